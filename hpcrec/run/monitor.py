"""Whether the sweeps of a tilt converge: when they may stop early, and what to say when they diverge.

Every decision follows from the error curves, which are part of the checkpoint, and rank 0 takes it for its group: so a
resumed tilt stops where an uninterrupted one does, and all ranks agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np

from hpcrec.backend.array import to_host
from hpcrec.errors import DivergedError
from hpcrec.geometry.scan import scan_step
from hpcrec.models.base import PtychographyState
from hpcrec.parallel.communicator import Communicator
from hpcrec.run.job import Job
from hpcrec.run.start import TiltSetup

Course = Literal["well", "rising", "lost"]

_RISE: Final = 1.5
_RISING_FOR: Final = 3
_LOST_FOR: Final = 5
_LARGEST_TRANSMISSION: Final = 10.0
_BORDER_POWER: Final = 0.3
_POWER_RATIO: Final = 4.0


def converged(curve: Sequence[float], tolerance: float, window: int, earliest: int = 0) -> bool:
    """Whether the best of the last ``window`` sweeps is better than the best before by less than ``tolerance`` of it.

    ``curve`` (sweep,) an error. Never with a ``tolerance`` of 0, nor before all of the window lies behind sweep
    ``earliest`` (counted from 0), where the last thing that a job delays begins.
    """
    if tolerance <= 0 or len(curve) < max(earliest, 1) + window:
        return False
    before, lately = min(curve[:-window]), min(curve[-window:])
    return lately > (1 - tolerance) * before


def course(loss: Sequence[float], error: Sequence[float]) -> Course:
    """Say how the sweeps go, from their ``loss`` and data ``error``.

    "rising": the error of three sweeps in a row is more than half above the best one. "lost": loss or error is not
    finite, or the error has been above 1, where a model of empty patterns is better, for five sweeps and is no lower
    than after the first.
    """
    if not np.isfinite([*loss[-1:], *error[-1:]]).all():
        return "lost"
    if len(error) >= _LOST_FOR and min(error[-_LOST_FOR:]) > 1 and error[-1] >= error[0]:
        return "lost"
    if len(error) > _RISING_FOR and min(error[-_RISING_FOR:]) > _RISE * min(error):
        return "rising"
    return "well"


class Monitor:
    """Watches the sweeps of one tilt; the same on all ranks of its group, all calls are collective."""

    def __init__(self, job: Job, setup: TiltSetup, group: Communicator) -> None:
        self._job, self._setup, self._group = job, setup, group

    def done(self, iteration: int, error: Sequence[float], held_out_error: Sequence[float]) -> bool:
        """Whether no further sweep is due after ``iteration``; held-out patterns decide where there are any."""
        section = self._job.ptychography
        if iteration >= section.iterations:
            return True
        stop = converged(
            held_out_error or error, section.early_stop_tolerance, section.early_stop_window, last_start(self._job)
        )
        return bool(self._group.broadcast(stop))

    def check(self, state: PtychographyState, loss: Sequence[float], error: Sequence[float]) -> str | None:
        """Return a warning when the error begins to rise, else None.

        Raises
        ------
        DivergedError : the sweeps are lost; the sentence says what diverged and what to try.
        """
        before, now = self._group.broadcast((course(loss[:-1], error[:-1]), course(loss, error)))
        if now == "well" or before == now == "rising":
            return None
        what, advice = self._diagnosis(state)
        number, sweep = self._setup.number, state.iteration
        if now == "rising":
            return (
                f"tilt {number}: the data error rises, from {min(error):.4g} to {error[-1]:.4g} after sweep {sweep}: "
                f"{what}; {advice}"
            )
        raise DivergedError(
            f"tilt {number}: diverged at sweep {sweep}: {what}; {advice}; or leave the tilt out with data.drop_tilts"
        )

    def _diagnosis(self, state: PtychographyState) -> tuple[str, str]:
        """Return what went wrong, and what to try."""
        engine = self._job.ptychography.engine
        broken, values = self._figures(state)
        advice = {
            "positions": "take smaller steps (refine.positions.step), begin later (start_iteration), bound the moves "
            "(max_move_angstrom), and check scan step, rotation and flips in [data]",
            "probe": f"begin later with it (ptychography.{engine}.probe_start), and check probe.semiangle_mrad and "
            "probe.defocus_angstrom with its sign",
            "object": f"take smaller steps in [ptychography.{engine}] or a larger ptychography.batch_size, or set "
            f"ptychography.{engine}.object_constraint = 'amplitude_bound'",
            "refined": "take smaller steps or begin later with what stands in [refine]",
            "loss": f"check units (counts), mask, flips and transposition in [data], detector sampling and energy, or "
            f"take smaller steps in [ptychography.{engine}]",
        }
        if broken:
            first = broken[0]
            what = f"{', '.join(broken)} hold{'s' if len(broken) == 1 else ''} values that are not finite"
            return f"the {what}", advice.get(first, advice["refined"])
        if values["move"] > 1:
            return f"the positions have moved by {values['move']:.2g} scan steps (rms)", advice["positions"]
        if values["border"] > _BORDER_POWER:
            return f"the probe fills its window, {values['border']:.0%} of its power is in the border", advice["probe"]
        if not 1 / _POWER_RATIO < values["power"] < _POWER_RATIO:
            return f"the probe's power is {values['power']:.2g} times that of a pattern", advice["probe"]
        if values["largest"] > _LARGEST_TRANSMISSION:
            return f"the object transmits up to {values['largest']:.2g} times the wave", advice["object"]
        return "the loss grows though object, probe and positions look sound", advice["loss"]

    def _figures(self, state: PtychographyState) -> tuple[list[str], dict[str, float]]:
        """Return what is not finite, and figures of what looks odd, over all ranks."""
        setup, probe = self._setup, to_host(state.probe)
        modulus = np.abs(state.obj)
        largest = float(modulus.max()) if modulus.size else 0.0
        arrays = {"positions": state.positions, "probe": probe, **state.refined}
        sound = [np.isfinite(largest), *(np.isfinite(a).all() for a in arrays.values())]
        found = self._group.max(np.array([not s for s in sound] + [largest if sound[0] else 0.0], np.float64))
        broken = [name for name, bad in zip(["object", *arrays], found) if bad]
        if broken:
            return broken, {}
        power = np.asarray(np.sum(np.abs(probe) ** 2, axis=0, dtype=np.float64))
        by, bx = (max(n // 8, 1) for n in power.shape)
        moves = state.positions - setup.positions
        return [], {
            "largest": float(found[-1]),
            "border": 1 - float(power[by:-by, bx:-bx].sum() / power.sum()),
            "power": float(power.sum() / np.sum(np.abs(setup.probe) ** 2, dtype=np.float64)),
            "move": float(np.sqrt(np.mean(np.sum(moves**2, axis=1)))) / (scan_step(setup.positions) or 1.0),
        }


def last_start(job: Job) -> int:
    """Return the sweep (from 0) in which the last thing that the job delays begins."""
    chosen: list[Any] = [getattr(s, f.name) for s in (job.refine, job.constraints) for f in dataclasses.fields(s)]
    starts: list[int] = [options.start_iteration for options in chosen if options is not None]
    starts.append(getattr(getattr(job.ptychography, job.ptychography.engine), "probe_start", 0))
    return max(starts)
