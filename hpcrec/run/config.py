"""Job files: TOML in, a checked :class:`~hpcrec.run.job.Job` out. The only home of pydantic."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import json
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import pydantic
import tomli_w

from hpcrec.engines import engine_class
from hpcrec.errors import ConfigError
from hpcrec.io.base import READERS, reader_class
from hpcrec.run.constrain import constraint_faults
from hpcrec.run.job import BeamSection, Job

T = TypeVar("T")
PATH_KEYS = {("data", "path"), ("analysis", "reference")}
STAGE_SECTIONS = {
    "ptychography": ("data", "beam", "probe", "detector", "ptychography", "refine", "constraints", "quality"),
    "tomography": ("tomography",),
    "analysis": ("analysis",),
}


def read_job_file(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the raw tables of a job file with ``key=value`` overrides and absolute paths; nothing is checked yet.

    Relative paths in the file count from the file's folder, those in overrides from the working directory.

    Raises
    ------
    ConfigError : no such file, not TOML, an override that is not key=value, an unset variable in a path.
    """
    raw = _read_toml(path)
    _absolute_paths(raw, path.resolve().parent)
    _override(raw, overrides)
    _absolute_paths(raw, Path.cwd())
    return raw


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no job file at {path}: check the path") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder: give a job file (TOML)") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path} is not a valid TOML file: {fault}") from None
    except OSError as fault:
        raise ConfigError(f"cannot read {path}: {fault.strerror}") from None


def _override(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    for override in overrides:
        keys, value = _parse_override(override)
        table = raw
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {override}: {key} is a value, not a table")
        table[keys[-1]] = value


def load_options(cls: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Return the options object of class ``cls`` that a TOML file describes; all its faults are listed at once."""
    raw = _read_toml(path)
    _override(raw, overrides)
    faults: list[str] = []
    made = _validate(cls, raw, (), faults)
    if faults:
        raise ConfigError(_fault_list(str(path), faults))
    return cast(T, made)


def from_plain(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return the dataclass ``cls`` that plain values of a JSON file describe; keys it does not know are left out."""
    return pydantic.TypeAdapter(cls).validate_python(dict(values))


def _fault_list(what: str, faults: Sequence[str]) -> str:
    head = f"{what} has 1 fault:" if len(faults) == 1 else f"{what} has {len(faults)} faults:"
    return "\n  ".join([head, *faults])


def _parse_override(text: str) -> tuple[list[str], Any]:
    """Split ``a.b=value``; the value is read as TOML, and as plain text where that fails."""
    name, equals, value = text.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys):
        raise ConfigError(f"--set {text}: expected key=value, for example --set ptychography.iterations=10")
    try:
        return keys, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return keys, value.strip()


def _absolute_paths(raw: dict[str, Any], folder: Path) -> None:
    for section, key in PATH_KEYS:
        table = raw.get(section)
        if isinstance(table, dict) and isinstance(table.get(key), str) and table[key]:
            table[key] = str((folder / _expand(table[key], f"{section}.{key}")).resolve())


def _expand(text: str, key: str) -> str:
    """Replace ``${NAME}`` and ``${NAME:-default}`` by environment variables."""

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if not found:
            raise ConfigError(
                f"{key}: the environment variable {match[1]} is not set; set it, or write the path itself"
            )
        return found

    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", value, text)


def check_job(raw: Mapping[str, Any]) -> Job:
    """Return the job that the raw tables describe.

    Raises
    ------
    ConfigError : every fault at once, one a line, with the nearest known key for a mistyped one.
    """
    faults: list[str] = []
    tables = dict(raw)
    data = tables.pop("data", None)
    options = None
    if not isinstance(data, dict) or "format" not in data:
        faults.append(f"data.format: missing; choose one of {', '.join(READERS)}")
    elif data["format"] not in READERS:
        faults.append(f"data.format: no reader {data['format']!r}; choose one of {', '.join(READERS)}")
    else:
        options = _validate(reader_class(data["format"]).Options, data, ("data",), faults)
    job = _validate(Job, {**tables, "data": None}, (), faults)
    if job is not None:
        faults.extend(_cross_checks(job))
    if faults:
        raise ConfigError(_fault_list("the job file", faults))
    assert job is not None
    energy = getattr(options, "energy_ev", None)
    if job.beam and isinstance(energy, float) and energy != job.beam.energy_ev:
        raise ConfigError(f"data.energy_ev {energy:g} and beam.energy_ev {job.beam.energy_ev:g} differ: leave one away")
    made: Job = dataclasses.replace(job, data=_with_beam(options, job.beam, data or {}))
    return made


def _with_beam(options: Any, beam: BeamSection | None, given: Mapping[str, Any]) -> Any:
    """Let the job's beam be that of the data too: readers then compare it with what the file says."""
    if beam is None:
        return options
    if given.get("radiation", beam.kind) != beam.kind:
        raise ConfigError(f"data.radiation {given['radiation']!r} and beam.kind {beam.kind!r} differ: leave one away")
    energy = beam.energy_ev if options.energy_ev is None else options.energy_ev
    return dataclasses.replace(options, energy_ev=energy, radiation=beam.kind)


def _validate(cls: type[Any], values: Any, where: tuple[str, ...], faults: list[str]) -> Any:
    try:
        return pydantic.TypeAdapter(cls).validate_python(values)
    except pydantic.ValidationError as error:
        for entry in error.errors(include_url=False):
            faults.append(_describe(cls, entry, where))
        return None


def _describe(cls: type[Any], entry: Any, where: tuple[str, ...]) -> str:
    """Turn one of pydantic's findings into a line a person can act on."""
    location = [part for part in entry["loc"] if not _is_type_tag(part)]
    key = ".".join([*where, *(str(part) for part in location)])
    if entry["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _keys_at(cls, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if entry["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{key}: missing"
    return f"{key}: {entry['msg'].lower()}, got {entry['input']!r}"


def _is_type_tag(part: Any) -> bool:
    """Whether a piece of pydantic's location names a branch of a union and not a key."""
    return isinstance(part, str) and (part in {"int", "float", "str"} or "[" in part)


def _keys_at(cls: Any, location: Sequence[Any]) -> list[str]:
    for part in location:
        hints = typing.get_type_hints(cls)
        cls = next((c for c in _members(hints.get(part)) if dataclasses.is_dataclass(c)), None)
        if cls is None:
            return []
    return [f.name for f in dataclasses.fields(cls)]


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _cross_checks(job: Job) -> list[str]:
    """Return the faults that only several keys together show."""
    faults = []
    p, probe = job.ptychography, job.probe
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", job.name):
        faults.append("name: use 1 to 64 letters, digits, dots, dashes or underscores")
    if probe.source == "aperture" and (probe.semiangle_mrad is None or job.beam is None):
        faults.append("probe: source = 'aperture' needs probe.semiangle_mrad and a [beam] section")
    if p.slices != 1 and p.slice_thickness_angstrom is None:
        faults.append("ptychography.slice_thickness_angstrom: missing; more than one slice needs it")
    if p.slice_thickness_angstrom == "auto" and (probe.semiangle_mrad is None or job.beam is None):
        faults.append("ptychography.slice_thickness_angstrom: 'auto' needs probe.semiangle_mrad and a [beam] section")
    if p.slices != 1 and job.beam is None:
        faults.append("beam: missing; more than one slice needs the wavelength")
    if p.slices == "auto" and p.sample_thickness_angstrom is None:
        faults.append("ptychography.sample_thickness_angstrom: missing; slices = 'auto' needs it")
    numbers = [p.slices] if isinstance(p.slices, int) else p.slices if isinstance(p.slices, list) else []
    if any(n < 1 for n in numbers):
        faults.append("ptychography.slices: must be 1 or more")
    if isinstance(job.parallel.group_size, int) and job.parallel.group_size < 1:
        faults.append("parallel.group_size: must be 1 or more, or 'auto'")
    faults.extend(_engine_faults(job))
    faults.extend(_range_faults(job))
    faults.extend(_detector_faults(job))
    faults.extend(_refine_faults(job))
    faults.extend(constraint_faults(job))
    faults.extend(_quality_faults(job))
    if job.analysis and not job.tomography:
        faults.append("analysis: needs a [tomography] section, whose volume it measures")
    return faults


def _engine_faults(job: Job) -> list[str]:
    """Return what the engine does not do."""
    p, faults = job.ptychography, []
    engine = engine_class(p.engine)
    numbers = p.slices if isinstance(p.slices, list) else [p.slices]
    if engine.one_slice_only and any(n != 1 for n in numbers):
        faults.append(
            f"ptychography.slices: the engine {p.engine!r} is made for one slice; set it to 1, or use 'lsqml'"
        )
    if engine.full_batch and p.batch_size:
        faults.append(f"ptychography.batch_size: the engine {p.engine!r} takes all patterns at once; leave it at 0")
    if engine.keeps_waves:
        faults += [
            f"constraints.{name}: the exit waves of the engine {p.engine!r} would not follow; leave it out"
            for name in ("centre", "ramp")
            if getattr(job.constraints, name) is not None
        ]
    return faults


def _detector_faults(job: Job) -> list[str]:
    """Return what of the detector does not go together."""
    detector, faults = job.detector, []
    if detector.field == "near" and (detector.distance_angstrom is None or job.beam is None):
        faults.append("detector: field = 'near' needs detector.distance_angstrom and a [beam] section")
    if detector.field == "near" and job.ptychography.coarse_iterations:
        faults.append("ptychography.coarse_iterations: half of a near-field image is no coarser; set it to 0")
    if detector.field == "near" and detector.upsampling != 1:
        faults.append("detector.upsampling: is meant for the far field; leave it at 1 with field = 'near'")
    if detector.flight_points > 1 and not any(detector.flight_angstrom):
        faults.append("detector.flight_angstrom: missing; flight_points needs the way of one exposure")
    if job.ptychography.kernel == "compiled" and (detector.point_spread_pixels or detector.upsampling != 1):
        faults.append(
            "ptychography.kernel: the compiled loops know neither point spread nor upsampling; use kernel = 'auto'"
        )
    return faults


def _refine_faults(job: Job) -> list[str]:
    """Return what cannot be refined."""
    refine, faults = job.refine, []
    if job.ptychography.slices == 1:
        faults += [
            f"refine.{name}: needs ptychography.slices of 2 or more"
            for name in ("tilt", "position_tilt", "thickness")
            if getattr(refine, name) is not None
        ]
    if refine.affine is not None and refine.positions is None and refine.annealing is None:
        faults.append("refine.affine: draws refined positions together; add [refine.positions] or [refine.annealing]")
    if refine.annealing is not None and refine.annealing.stop_iteration is None:
        faults.append("refine.annealing.stop_iteration: missing; the circle of trials shrinks until then")
    if refine.aberrations is not None and job.beam is None:
        faults.append("refine.aberrations: needs a [beam] section")
    for field in dataclasses.fields(refine):
        options = getattr(refine, field.name)
        if options is not None and options.start_iteration < 0:
            faults.append(f"refine.{field.name}.start_iteration: must be 0 or more")
    return faults


def _quality_faults(job: Job) -> list[str]:
    """Return limits of figures that are not measured, and shares that make no sense."""
    quality, faults = job.quality, []
    if not 0 <= quality.hold_out <= 0.2:
        faults.append(f"quality.hold_out: must lie between 0 and 0.2, got {quality.hold_out:g}")
    if quality.max_held_out_error is not None and not quality.hold_out:
        faults.append("quality.max_held_out_error: no pattern is held out; set quality.hold_out, for example to 0.02")
    if quality.max_resolution_angstrom is not None and not quality.frc:
        faults.append("quality.max_resolution_angstrom: needs quality.frc = true")
    limits = {f.name: getattr(quality, f.name) for f in dataclasses.fields(quality) if f.name.startswith("max_")}
    return faults + [f"quality.{k}: must be positive, got {v:g}" for k, v in limits.items() if v is not None and v <= 0]


def _range_faults(job: Job) -> list[str]:
    """Return the numbers that lie outside of what makes sense."""
    p, probe, parallel = job.ptychography, job.probe, job.parallel
    lowest: list[tuple[str, float, float]] = [
        ("ptychography.iterations", p.iterations, 1),
        ("ptychography.batch_size", p.batch_size, 0),
        ("ptychography.coarse_iterations", p.coarse_iterations, 0),
        ("ptychography.early_stop_tolerance", p.early_stop_tolerance, 0),
        ("ptychography.early_stop_window", p.early_stop_window, 1),
        ("ptychography.checkpoint_every", p.checkpoint_every, 1),
        ("ptychography.seed", p.seed, 0),
        ("ptychography.wasp.groups", p.wasp.groups, 1),
        ("ptychography.lbfgs.history", p.lbfgs.history, 1),
        ("ptychography.mpie.patterns_per_kick", p.mpie.patterns_per_kick, 1),
        ("probe.modes", probe.modes, 1),
        ("probe.source_sigma_angstrom", probe.source_sigma_angstrom, 0),
        ("probe.focal_spread_angstrom", probe.focal_spread_angstrom, 0),
        ("ptychography.object_states", p.object_states, 1),
        ("detector.upsampling", job.detector.upsampling, 1),
        ("detector.flight_points", job.detector.flight_points, 1),
        ("detector.point_spread_pixels", job.detector.point_spread_pixels, 0),
        ("parallel.workers", parallel.workers, 0),
        ("parallel.halo_margin_angstrom", parallel.halo_margin_angstrom, 0),
        ("parallel.memory_gib_per_rank", parallel.memory_gib_per_rank, 0),
    ]
    faults = []
    if job.tomography:
        t = job.tomography
        lowest += [
            ("tomography.binning", t.binning, 1),
            ("tomography.thickness_angstrom", t.thickness_angstrom, 0),
            ("tomography.field_angstrom", min(t.field_angstrom), 0),
            ("tomography.fista.n_iterations", t.fista.n_iterations, 1),
            ("tomography.fista.sparsity", t.fista.sparsity, 0),
            ("tomography.resire.n_iterations", t.resire.n_iterations, 1),
        ]
        if len(t.alignment.bins) != len(t.alignment.rounds) or min(t.alignment.bins, default=0) < 1:
            faults.append("tomography.alignment: bins and rounds must have the same number of entries, bins 1 or more")
        if not 0 < t.resire.relaxation < 2:
            faults.append(f"tomography.resire.relaxation: must lie between 0 and 2, got {t.resire.relaxation}")
    faults += [f"{key}: must be {low:g} or more, got {value:g}" for key, value, low in lowest if value < low]
    positive: list[tuple[str, float | None]] = [
        ("beam.energy_ev", job.beam.energy_ev if job.beam else None),
        ("probe.semiangle_mrad", probe.semiangle_mrad),
        ("detector.saturation_counts", job.detector.saturation_counts),
        (
            "ptychography.slice_thickness_angstrom",
            thickness if (thickness := p.slice_thickness_angstrom) != "auto" else 1,
        ),
    ]
    faults += [f"{key}: must be positive, got {v:g}" for key, v in positive if v is not None and v <= 0]
    if probe.modes > 1 and not 0 < probe.mode_share * (probe.modes - 1) < 1:
        faults.append("probe.mode_share: the extra modes together must start with less than all the power")
    if p.kernel == "compiled" and p.precision == "double":
        faults.append("ptychography.kernel: the compiled loops are single precision; use kernel = 'auto' with double")
    return faults


def load_job(path: Path, overrides: Sequence[str] = ()) -> tuple[Job, dict[str, Any]]:
    """Read and check a job file: return the job and its raw tables (for the run directory)."""
    raw = read_job_file(path, overrides)
    return check_job(raw), raw


def with_values(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the raw tables with values by dotted key, as ``--set`` would put them."""
    changed = copy.deepcopy(dict(raw))
    for key, value in values.items():
        *tables, last = key.split(".")
        table = changed
        for name in tables:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{key}: {name} is a value, not a table")
        table[last] = value
    return changed


def key_type(raw: Mapping[str, Any], key: str) -> type[Any] | None:
    """Return ``int`` or ``float`` for a dotted key of the job that takes such numbers, None for others."""
    section, *rest = key.split(".")
    reads_data = section == "data" and raw.get("data", {}).get("format") in READERS
    cls: Any = reader_class(raw["data"]["format"]).Options if reads_data else Job
    hint: Any = cls
    for part in rest if reads_data else [section, *rest]:
        cls = next((c for c in (hint, *_members(hint)) if dataclasses.is_dataclass(c)), None)
        hint = None if cls is None else typing.get_type_hints(cls).get(part)
    kinds = _members(hint)
    return float if float in kinds else int if int in kinds else None


def job_text(raw: Mapping[str, Any]) -> str:
    """Return the raw tables as TOML."""
    return tomli_w.dumps(dict(raw))


def fingerprint(raw: Mapping[str, Any], stage: str) -> str:
    """Return a short hash of everything that decides the result of a stage (and of the stages before it)."""
    names: list[str] = []
    for name, sections in STAGE_SECTIONS.items():
        names.extend(sections)
        if name == stage:
            break
    content = {name: _without_limits(raw.get(name)) if name == "quality" else raw.get(name) for name in names}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _without_limits(quality: Mapping[str, Any] | None) -> dict[str, Any]:
    """Leave out what judges results and changes none."""
    return {key: value for key, value in (quality or {}).items() if not key.startswith("max_")}


def changed_keys(old: Any, new: Any, where: str = "") -> list[str]:
    """Return the keys whose values differ between two raw jobs, as ``a.b: old → new``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for key in sorted({*old, *new})
            for line in changed_keys(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        ]
    return [] if old == new else [f"{where}: {old!r} → {new!r}"]
