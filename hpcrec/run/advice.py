"""What hpcrec would choose for a job, and why: shown by ``hpcrec check`` beside what the job says."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from hpcrec.backend.array import ComplexArray
from hpcrec.data.dataset import TiltSeries
from hpcrec.errors import ConfigError
from hpcrec.geometry.scan import scan_step
from hpcrec.run.job import Job
from hpcrec.run.optics import beam_of, focus_depth, mode_count, mode_shares, slice_count, slice_thickness
from hpcrec.run.runner import batch_size
from hpcrec.run.start import mean_power, starting_probe

FEWEST_COUNTS: Final = 50.0
FEWEST_TO_HOLD_OUT: Final = 500
_LEAST_OVERLAP: Final = 0.6
_BRIGHT_SHARE: Final = 0.8
_WORTH_HALVING: Final = 96


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """A key or property of the job, what it is ``now``, what would be ``better`` (empty: well as it is), and why."""

    name: str
    now: str
    better: str = ""
    why: str


def advise(job: Job, series: TiltSeries) -> list[Advice]:
    """Return what the data and the optics say about a job's choices."""
    found = [_slices(job, series), _modes(job, series), _batch(job, series)]
    found += [_coarse(job, series), _overlap(job, series), _counts(series), _hold_out(job, series)]
    return [advice for advice in found if advice is not None]


def _slices(job: Job, series: TiltSeries) -> Advice | None:
    """The slices' distance against the depth of field, over which a wave front changes by a quarter of a wave."""
    depth, section = focus_depth(job), job.ptychography
    if depth is None:
        return None
    counts = [slice_count(job, int(n), float(a)) for n, a in zip(series.tilt_numbers, series.tilt_angles)]
    n, thickness = max(counts), slice_thickness(job)
    why = f"the depth of field λ/θ² at {job.probe.semiangle_mrad:g} mrad is {depth:.3g} Å"
    if n > 1:
        now = f"{min(counts)} to {n} slices" if min(counts) < n else f"{n} slices"
        better = f"slice_thickness_angstrom of {depth:.2g} or less" if thickness > 1.05 * depth else ""
        return Advice(name="slices", now=f"{now}, {thickness:.3g} Å apart", better=better, why=why)
    thick = section.sample_thickness_angstrom
    if thick is None:
        return Advice(
            name="slices", now="1", why=f"{why}: a thicker sample needs slices; say sample_thickness_angstrom"
        )
    better = "'auto'" if thick > depth else ""
    return Advice(name="slices", now="1", better=better, why=f"{why}, the sample {thick:g} Å")


def _modes(job: Job, series: TiltSeries) -> Advice | None:
    """The probe modes that hold more than a hundredth of the power under the given partial coherence."""
    probe, now, shares = job.probe, mode_count(job), mode_shares(job)
    if beam_of(job) is None or not probe.semiangle_mrad:
        return None
    if shares is None:
        why = "say probe.source_sigma_angstrom or probe.focal_spread_angstrom, and the modes they make are taken"
        return Advice(name="probe.modes", now=f"{now}", why=why)
    n = mode_count(replace(job, probe=replace(probe, modes="auto")))
    why = f"a source of {probe.source_sigma_angstrom:g} Å and a focal spread of {probe.focal_spread_angstrom:g} Å "
    why += f"make {n} modes of more than 1 %, {shares[:n].sum():.0%} of the power together"
    return Advice(name="probe.modes", now=f"{now}", better=f"{n}" if n > now else "", why=why)


def _batch(job: Job, series: TiltSeries) -> Advice:
    """The batch decides how a sweep converges; memory does not bound it."""
    n_positions = max(len(p) for p in series.facts.positions)
    size = min(batch_size(job, n_positions), n_positions)
    whose = "the job's" if job.ptychography.batch_size else f"{job.ptychography.engine}'s own"
    why = (
        f"{whose}: {math.ceil(n_positions / size)} updates a sweep; memory does not bound it, as waves are made a few "
    )
    return Advice(name="batch_size", now=f"{size}", why=f"{why}patterns at a time")


def _coarse(job: Job, series: TiltSeries) -> Advice | None:
    """A coarse start pays where half of the detector still holds the bright field with room around it."""
    beam, now = beam_of(job), job.ptychography.coarse_iterations
    if beam is None or not job.probe.semiangle_mrad or job.detector.field == "near":
        return None
    disc, edge = job.probe.semiangle_mrad * 1e-3 / beam.wavelength, 0.25 / max(series.sampling)
    fits = disc < _BRIGHT_SHARE * edge and min(series.pattern_shape) >= _WORTH_HALVING
    why = f"the bright field reaches to {disc:.3g} 1/Å, the middle half of the detector to {edge:.3g} 1/Å"
    better = f"{max(job.ptychography.iterations // 4, 5)}" if fits and not now else ""
    return Advice(name="coarse_iterations", now=f"{now}", better=better, why=why)


def _overlap(job: Job, series: TiltSeries) -> Advice | None:
    """The linear overlap of neighbouring probes, Bunk et al., Ultramicroscopy 108, 481 (2008): 60 % or more."""
    if job.detector.field == "near":
        return None
    try:
        probe = starting_probe(job, series, 1)
    except ConfigError as fault:
        return Advice(name="probe", now="does not fit", better="see why", why=str(fault))
    diameter = probe_diameter(probe, series.sampling)
    step = max(scan_step(p) for p in series.facts.positions)
    overlap = 1 - step / diameter
    better = f"{_LEAST_OVERLAP:.0%} or more: smaller steps or more defocus" if overlap < _LEAST_OVERLAP else ""
    why = f"steps of {step:.3g} Å, a probe of {diameter:.3g} Å (nine tenths of its power)"
    return Advice(name="overlap", now=f"{max(overlap, 0.0):.0%}", better=better, why=why)


def probe_diameter(probe: ComplexArray, sampling: tuple[float, float]) -> float:
    """Return the diameter (Å) about its centre of mass that holds nine tenths of a probe's power; (mode, y, x)."""
    power = np.sum(np.abs(probe) ** 2, axis=0)
    y, x = (np.arange(n) * d for n, d in zip(power.shape, sampling))
    total = power.sum()
    cy, cx = float(power.sum(axis=1) @ y / total), float(power.sum(axis=0) @ x / total)
    radius = np.hypot(y[:, None] - cy, x[None, :] - cx).ravel()
    order = np.argsort(radius)
    inside = np.searchsorted(np.cumsum(power.ravel()[order]), 0.9 * total)
    return float(2 * max(radius[order][min(inside, radius.size - 1)], 0.5 * min(sampling)))


def _counts(series: TiltSeries) -> Advice:
    counts = mean_power(series.tilt(series.n_tilts // 2))
    better = "counts, not normalised patterns" if counts < FEWEST_COUNTS else ""
    return Advice(name="counts", now=f"{counts:.3g} a pattern", better=better, why="losses weigh noise by counts")


def _hold_out(job: Job, series: TiltSeries) -> Advice:
    share, n = job.quality.hold_out, min(len(p) for p in series.facts.positions)
    enough = n >= FEWEST_TO_HOLD_OUT and job.refine.positions is None and job.refine.annealing is None
    better = "0.02" if enough and not share else ""
    why = f"{n} patterns a tilt; held-out ones show overfitting"
    if job.refine.positions is not None or job.refine.annealing is not None:
        why += ", but their positions are not refined, which raises their error"
    return Advice(name="quality.hold_out", now=f"{share:g}", better=better, why=why)
