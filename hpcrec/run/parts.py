"""The parts of one tilt's reconstruction: a coarse start, all positions, and half scans for the ring correlation.

Each part is a :class:`~hpcrec.run.runner.TiltRun` with checkpoints of its own, so an interrupted tilt goes on with the
part it was in. Events of all but the main part are told as ``part_sweep`` and notes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcrec.analysis.half_scans import half_scan_correlation, projection_of
from hpcrec.analysis.resolution import ShellCorrelation
from hpcrec.backend.array import ComplexArray
from hpcrec.backend.device import out_of_memory
from hpcrec.data.dataset import TiltSeries
from hpcrec.data.views import half_resolution, with_positions
from hpcrec.errors import DataError, DeviceError
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.scan import half_scans, held_out_positions
from hpcrec.io.checkpoint import remove_checkpoints
from hpcrec.operators.resample import double_object
from hpcrec.parallel.communicator import Communicator
from hpcrec.run.balance import ReshareError
from hpcrec.run.job import Job
from hpcrec.run.means import PLAIN, Means
from hpcrec.run.observers import Observer
from hpcrec.run.outcome import Start, TiltOutcome
from hpcrec.run.runner import TiltRun, checkpoint_prefix
from hpcrec.run.saves import begun
from hpcrec.run.start import common_grid
from hpcrec.run.stop import leave_if_asked

MAIN: Final = "sweeps"
HALVES: Final = ("half1", "half2")
# These belong to the pixels of the coarse detector; the finer model begins them anew
_OF_PIXELS: Final = ("variation", "coefficients", "background")


@dataclass(frozen=True, kw_only=True)
class TiltTask:
    """One tilt for one group of ranks: the job, the series with its common grid, where checkpoints lie.

    ``means`` : what the rank may use
    """

    job: Job
    series: TiltSeries
    grid: Grid
    i_tilt: int
    group: Communicator
    checkpoints: Path
    report: Observer
    means: Means = PLAIN

    @property
    def number(self) -> int:
        """Number of the tilt in the input file."""
        return int(self.series.tilt_numbers[self.i_tilt])


def reconstruct_tilt(task: TiltTask) -> tuple[TiltOutcome | None, ShellCorrelation | None]:
    """Reconstruct a tilt with all its parts; collective over the group.

    Returns, on the group's first rank, the outcome and the ring correlation of half scans where the job wants it.
    Raises :class:`StoppedError` on all of them once they were asked to leave and have kept what was done.
    """
    leave_if_asked(task.group)
    frc = _half_scans(task) if task.job.quality.frc else None
    return _coarse_to_fine(task, MAIN), frc


def remove_parts(checkpoints: Path, number: int) -> None:
    """Remove the checkpoints of all parts of a tilt."""
    for name in (MAIN, *HALVES):
        for part in (name, f"coarse_{name}"):
            remove_checkpoints(checkpoints, checkpoint_prefix(part, number))


def _half_scans(task: TiltTask) -> ShellCorrelation | None:
    """Reconstruct two interlocking halves of the positions apart, and correlate their projections."""
    positions = task.series.facts.positions[task.i_tilt]
    kept = np.setdiff1d(np.arange(len(positions)), held_out_positions(positions, task.job.quality.hold_out))
    job = replace(task.job, quality=replace(task.job.quality, hold_out=0.0, frc=False))
    found = []
    for name, half in zip(HALVES, half_scans(positions, kept)):
        series = with_positions(task.series, task.i_tilt, half)
        found.append(_coarse_to_fine(replace(task, job=job, series=series), name))
    first, second = found
    if first is None or second is None:
        return None
    n_states = task.job.ptychography.object_states
    try:
        return half_scan_correlation(
            (projection_of(first.whole, n_states), projection_of(second.whole, n_states)),
            (first.illumination, second.illumination),
            first.setup.sampling,
        )
    except DataError as fault:
        task.report({"event": "warning", "text": f"tilt {task.number}: {fault}"})
        return None


def _coarse_to_fine(task: TiltTask, name: str) -> TiltOutcome | None:
    """Sweep over all positions, after a start at half the resolution where the job wants one."""
    start = None
    if task.job.ptychography.coarse_iterations and not _begun(task, name):
        start = _coarse_start(task, f"coarse_{name}")
    return _sweep(task, name, start)


def _begun(task: TiltTask, name: str) -> bool:
    """Whether the part ``name`` has a checkpoint."""
    return begun(task.checkpoints, checkpoint_prefix(name, task.number), task.group)


def _sweep(task: TiltTask, name: str, start: Start | None = None) -> TiltOutcome | None:
    """Run the sweeps of a part; raises DeviceError where the memory of a GPU does not suffice."""
    report = task.report if name == MAIN else _aside(name, task.report)
    where = (task.grid, task.i_tilt, task.group, task.checkpoints)
    try:
        with closing(TiltRun(task.job, task.series, *where, report, name, start, task.means)) as run:
            outcome = run.run()
            if name != MAIN:
                run.save()
    except ReshareError:
        return _sweep(task, name, start)
    except out_of_memory() as fault:
        raise DeviceError(
            f"tilt {task.number}: {task.means.device} has no memory left ({fault}): take a smaller "
            "ptychography.batch_size, or more ranks with GPUs of their own for each tilt (parallel.group_size, "
            "parallel.exchange = 'tiled')"
        ) from None
    return outcome


def _coarse_start(task: TiltTask, name: str) -> Start:
    """Return where the full resolution begins: what sweeps at half of it have found."""
    series = half_resolution(task.series)
    section = replace(task.job.ptychography, iterations=task.job.ptychography.coarse_iterations, coarse_iterations=0)
    job = replace(task.job, ptychography=section)
    found = _sweep(replace(task, job=job, series=series, grid=common_grid(job, series)), name)
    small = None if found is None else (found.probe, found.positions, _of_any_pixels(found))
    probe, positions, refined = task.group.broadcast(small)
    return Start(
        obj=None if found is None else finer_object(found.whole, found.setup.grid, task.grid),
        probe=probe,
        positions=positions,
        refined=refined,
    )


def _of_any_pixels(found: TiltOutcome) -> dict[str, Any]:
    return {name: values for name, values in found.refined.items() if name not in _OF_PIXELS}


def finer_object(obj: ComplexArray, coarse: Grid, fine: Grid) -> ComplexArray:
    """Return an object (slice, y, x) of the grid ``coarse`` on ``fine``, of half its pixel size; 1 outside of it.

    The origins of both grids are whole numbers of fine pixels apart.
    """
    doubled = double_object(obj)
    whole = np.ones((len(obj), *fine.shape), obj.dtype)
    offset = np.rint((np.array(coarse.origin) - fine.origin) / fine.sampling).astype(int)
    inner, outer = [], []
    for first, n, size in zip(offset.tolist(), fine.shape, doubled.shape[1:]):
        low, high = max(first, 0), min(first + size, n)
        inner.append(slice(low, high))
        outer.append(slice(low - first, high - first))
    whole[:, inner[0], inner[1]] = doubled[:, outer[0], outer[1]]
    return whole


def _aside(name: str, report: Observer) -> Callable[[Any], None]:
    """Return a listener that passes the events of a side part on without their being taken for the tilt's own."""

    def hear(event: Any) -> None:
        part = name.replace(f"_{MAIN}", "")
        match event["event"]:
            case "tilt_started":
                report({"event": "note", "text": f"tilt {event['tilt']}, {part}: {event['iterations']} sweeps"})
            case "sweep":
                report({**event, "event": "part_sweep", "part": part})
            case "tilt_done":
                pass
            case _:
                report(event)

    return hear
