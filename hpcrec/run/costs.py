"""What a tilt costs: patterns times slices times sweeps, less what its checkpoints have done already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcrec.data.dataset import TiltSeries
from hpcrec.io.checkpoint import highest_number
from hpcrec.run.job import Job
from hpcrec.run.optics import slice_count
from hpcrec.run.parts import HALVES, MAIN
from hpcrec.run.runner import checkpoint_prefix

# Of a sweep over all positions at full resolution
_COARSE = 0.25
_HALF = 0.5


def slices_of(job: Job, series: TiltSeries) -> list[int]:
    """Return the slices of each tilt."""
    return [slice_count(job, int(n), float(a)) for n, a in zip(series.tilt_numbers, series.tilt_angles)]


def sweep_costs(job: Job, series: TiltSeries) -> list[float]:
    """Return what one sweep over each tilt costs: patterns times slices."""
    return [float(len(p) * n) for p, n in zip(series.facts.positions, slices_of(job, series))]


def sweeps_left(job: Job, number: int = 0, checkpoints: Path | None = None) -> float:
    """Return how many sweeps over all positions of a tilt are left: all, or those that its checkpoints lack.

    A sweep at half the resolution counts a quarter, one over half a scan a half. Early stops are not foreseen.
    """
    names = (*HALVES, MAIN) if job.quality.frc else (MAIN,)
    return sum((1.0 if name == MAIN else _HALF) * _left_of_part(job, name, number, checkpoints) for name in names)


def _left_of_part(job: Job, name: str, number: int, checkpoints: Path | None) -> float:
    section = job.ptychography
    done, coarse = (_done(part, number, checkpoints) for part in (name, f"coarse_{name}"))
    first = 0.0 if done else _COARSE * max(section.coarse_iterations - coarse, 0)
    return max(section.iterations - done, 0) + first


def _done(part: str, number: int, checkpoints: Path | None) -> int:
    return 0 if checkpoints is None else highest_number(checkpoints, checkpoint_prefix(part, number))


def sweep_share(event: Mapping[str, Any]) -> float:
    """Return how much of a sweep over all positions an event tells of: of a half scan, a coarse start; else 0."""
    if event["event"] not in ("sweep", "part_sweep"):
        return 0.0
    part = str(event.get("part", ""))
    return (_COARSE if part.startswith("coarse") else 1.0) * (_HALF if part.endswith(HALVES) else 1.0)
