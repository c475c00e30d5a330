"""What the values of a job say together that cannot be: ranges, and keys that do not go with one another."""

from __future__ import annotations

import dataclasses
import re
from importlib.util import find_spec
from typing import Any, Final

from hpcrec.engines import engine_class
from hpcrec.io import one_file
from hpcrec.run.constrain import chosen_constraints, constraint_faults
from hpcrec.run.job import Job
from hpcrec.run.optics import chosen_slices
from hpcrec.run.schedulers import NO_JOBQUEUE, open_faults


def job_faults(job: Job) -> list[str]:
    """Return the faults that only several keys together show."""
    faults = []
    p, probe = job.ptychography, job.probe
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", job.name):
        faults.append("name: use 1 to 64 letters, digits, dots, dashes or underscores")
    if probe.source == "aperture" and (probe.semiangle_mrad is None or job.beam is None):
        faults.append("probe: source = 'aperture' needs probe.semiangle_mrad and a [beam] section")
    slices, auto_thickness = chosen_slices(job), p.slice_thickness_angstrom == "auto"
    if slices not in (1, "auto") and p.slice_thickness_angstrom is None:
        faults.append("ptychography.slice_thickness_angstrom: missing; more than one slice needs it")
    auto_thickness |= slices == "auto" and p.slice_thickness_angstrom is None
    if auto_thickness and (probe.semiangle_mrad is None or job.beam is None):
        faults.append("ptychography.slice_thickness_angstrom: 'auto' needs probe.semiangle_mrad and a [beam] section")
    if slices != 1 and job.beam is None:
        faults.append("beam: missing; more than one slice needs the wavelength")
    if slices == "auto" and p.sample_thickness_angstrom is None:
        faults.append("ptychography.sample_thickness_angstrom: missing; slices = 'auto' needs it")
    numbers = [slices] if isinstance(slices, int) else slices if isinstance(slices, list) else []
    if any(n < 1 for n in numbers):
        faults.append("ptychography.slices: must be 1 or more")
    faults.extend(_parallel_faults(job))
    faults.extend(_engine_faults(job))
    faults.extend(_range_faults(job))
    faults.extend(_detector_faults(job))
    faults.extend(_refine_faults(job))
    faults.extend(_table_faults(job))
    faults.extend(constraint_faults(job))
    faults.extend(_quality_faults(job))
    if p.object_states > 1 and job.tomography:
        faults.append("ptychography.object_states: a volume needs one object state; leave [tomography] out, or take 1")
    if job.analysis and not job.tomography:
        faults.append("analysis: needs a [tomography] section, whose volume it measures")
    return faults


def _parallel_faults(job: Job) -> list[str]:
    """Return what of [parallel] cannot be; what only the tomography stage would stumble over is told at once."""
    p, faults = job.parallel, []
    if isinstance(p.group_size, int) and p.group_size < 1:
        faults.append("parallel.group_size: must be 1 or more, or 'auto'")
    if p.scheduler and p.cluster != "local":
        faults.append(f"parallel.cluster: {p.cluster!r} starts workers, parallel.scheduler has its own; leave one out")
    if p.cluster == "jobqueue" and find_spec("dask_jobqueue") is None:
        faults.append(NO_JOBQUEUE)
    if p.large_results == "one" and not one_file.available():
        faults.append('parallel.large_results: "one" needs an h5py built with MPI, which this is not; take "parts"')
    # A scheduler's file may yet have to be written
    if p.scheduler and not p.unencrypted_scheduler and not p.scheduler.endswith(".json"):
        faults.extend(open_faults(p.scheduler))
    return faults


def _engine_faults(job: Job) -> list[str]:
    """Return what the engine does not do."""
    p, faults = job.ptychography, []
    engine = engine_class(p.engine)
    slices = chosen_slices(job)
    numbers = slices if isinstance(slices, list) else [slices]
    if engine.one_slice_only and any(n != 1 for n in numbers):
        faults.append(
            f"ptychography.slices: the engine {p.engine!r} is made for one slice; set it to 1, or use 'lsqml'"
        )
    if engine.full_batch and p.batch_size:
        faults.append(f"ptychography.batch_size: the engine {p.engine!r} takes all patterns at once; leave it at 0")
    if engine.keeps_waves:
        faults += [
            f"constraints.{name}: the exit waves of the engine {p.engine!r}, from which object and probe are made, "
            "would not follow; leave it out, or take another engine"
            for name in chosen_constraints(job)
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
    if chosen_slices(job) == 1:
        faults += [
            f"refine.{name}: needs ptychography.slices of 2 or more"
            for name in ("tilt", "position_tilt", "thickness")
            if getattr(refine, name) is not None
        ]
    if refine.affine is not None and refine.positions is None and refine.annealing is None:
        faults.append("refine.affine: draws refined positions together; add [refine.positions] or [refine.annealing]")
    for name in ("positions", "annealing"):
        table, first = getattr(refine, name), job.ptychography.whole_pixel_iterations
        if table is not None and table.start_iteration < first:
            faults.append(
                f"refine.{name}.start_iteration: must be {first} or more, ptychography.whole_pixel_iterations, got "
                f"{table.start_iteration}"
            )
    if refine.annealing is not None and refine.annealing.stop_iteration is None:
        faults.append("refine.annealing.stop_iteration: missing; the circle of trials shrinks until then")
    if refine.aberrations is not None and job.beam is None:
        faults.append("refine.aberrations: needs a [beam] section")
    return faults


def _table_faults(job: Job) -> list[str]:
    """Return the numbers of engines and refinements that make no sense: steps, widths and counts below their least."""
    faults = []
    for where, section in (("ptychography", job.ptychography), ("refine", job.refine)):
        for name in (f.name for f in dataclasses.fields(section)):
            table = getattr(section, name)
            if not dataclasses.is_dataclass(table):
                continue
            for key in (f.name for f in dataclasses.fields(table)):
                value, least = getattr(table, key), _LEAST.get(key, 0)
                if isinstance(value, int | float) and value < least:
                    faults.append(f"{where}.{name}.{key}: must be {least} or more, got {value:g}")
            stop = getattr(table, "stop_iteration", None)
            if stop is not None and stop <= getattr(table, "start_iteration", 0):
                faults.append(f"{where}.{name}.stop_iteration: must be above start_iteration, got {stop}")
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


# In the tables of engines and refinements; 0 for all other keys
_LEAST: Final = {"groups": 1, "history": 1, "patterns_per_kick": 1, "trials": 1, "modes": 1, "largest_factor": 1}
_LOWEST: Final = {
    "ptychography.iterations": 1,
    "ptychography.batch_size": 0,
    "ptychography.coarse_iterations": 0,
    "ptychography.whole_pixel_iterations": 0,
    "ptychography.early_stop_tolerance": 0,
    "ptychography.early_stop_window": 1,
    "ptychography.checkpoint_every": 1,
    "ptychography.seed": 0,
    "ptychography.object_states": 1,
    "probe.modes": 1,
    "probe.source_sigma_angstrom": 0,
    "probe.focal_spread_angstrom": 0,
    "detector.upsampling": 1,
    "detector.flight_points": 1,
    "detector.point_spread_pixels": 0,
    "parallel.workers": 0,
    "parallel.save_every": 1,
    "parallel.batch_jobs": 1,
    "parallel.threads": 1,
    "parallel.halo_margin_angstrom": 0,
    "parallel.memory_gib_per_rank": 0,
    "parallel.patience_s": 0,
    "parallel.stall_s": 0,
    "tomography.binning": 1,
    "tomography.thickness_angstrom": 0,
    "tomography.fista.n_iterations": 1,
    "tomography.fista.sparsity": 0,
    "tomography.resire.n_iterations": 1,
}
_POSITIVE: Final = (
    "beam.energy_ev",
    "probe.semiangle_mrad",
    "detector.saturation_counts",
    "ptychography.slice_thickness_angstrom",
    "ptychography.sample_thickness_angstrom",
)


def value_at(job: Job, key: str) -> Any:
    """Return the value of a dotted key of the job; None where it, or one of its tables, is left out."""
    found: Any = job
    for part in key.split("."):
        found = getattr(found, part, None)
    return found


def _range_faults(job: Job) -> list[str]:
    """Return the numbers that lie outside of what makes sense."""
    faults = []
    for key, low in _LOWEST.items():
        if isinstance(value := value_at(job, key), int | float) and value < low:
            faults.append(f"{key}: must be {low} or more, got {value:g}")
    for key in _POSITIVE:
        if isinstance(value := value_at(job, key), int | float) and value <= 0:
            faults.append(f"{key}: must be positive, got {value:g}")
    if t := job.tomography:
        if min(t.field_angstrom) < 0:
            faults.append(f"tomography.field_angstrom: must be 0 or more, got {min(t.field_angstrom):g}")
        if len(t.alignment.bins) != len(t.alignment.rounds) or min(t.alignment.bins, default=0) < 1:
            faults.append("tomography.alignment: bins and rounds must have the same number of entries, bins 1 or more")
        if not 0 < t.resire.relaxation < 2:
            faults.append(f"tomography.resire.relaxation: must lie between 0 and 2, got {t.resire.relaxation}")
    if not 0 <= job.parallel.halo_cut <= 0.1:
        faults.append(
            f"parallel.halo_cut: must lie between 0 and 0.1 (0: whole windows), got {job.parallel.halo_cut:g}"
        )
    n_modes = 1 if job.probe.modes == "auto" else job.probe.modes
    if n_modes > 1 and not 0 < job.probe.mode_share * (n_modes - 1) < 1:
        faults.append("probe.mode_share: the extra modes together must start with less than all the power")
    if job.ptychography.kernel == "compiled" and job.ptychography.precision == "double":
        faults.append("ptychography.kernel: the compiled loops are single precision; use kernel = 'auto' with double")
    return faults
