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

from hpcrec.errors import ConfigError
from hpcrec.io.base import READERS, reader_class
from hpcrec.run.faults import job_faults
from hpcrec.run.job import BeamSection, Job

T = TypeVar("T")
PATH_KEYS = {("data", "path"), ("analysis", "reference"), ("parallel", "scratch")}
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
        faults.extend(job_faults(job))
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
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


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
