"""Shares of a tilt's patterns in proportion to the measured speeds of the ranks that work on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np

from hpcrec.backend.device import settle
from hpcrec.models.partial import Partial, Total
from hpcrec.parallel.communicator import Communicator

# Speeds within this factor count as equal, and speeds are told apart in steps of it, so that noise moves no tile
STEP: Final = 1.15
# Of the middle speed: slower ranks are not starved, and faster ones get no tile that memory was not planned for
WIDEST: Final = 4.0
# The first sweep compiles and reads, the second tells; fewer left than these may not repay reading patterns again
# (chosen, not measured)
SWEEPS_TO_PACE: Final = 2
SWEEPS_WORTH: Final = 3
Exchanging = Callable[[Partial, tuple[str, ...]], Total]


class ReshareError(Exception):
    """No fault: all that was done is in a checkpoint, from which the same ranks are to go on with other shares."""


class Pace:
    """How many patterns through one slice a rank does in a second of its own work, waits for others left out.

    ``speed`` is that of the fastest sweep since :meth:`start`, which leaves out what compiles in the first; None before
    one is known.
    """

    def __init__(self) -> None:
        self.speed: float | None = None
        self._fresh = True

    def start(self) -> None:
        """Begin a tilt: its first sweep takes the place of what was known."""
        self._fresh = True

    def sweep(self, n_waves: int, seconds: float) -> None:
        """Note ``n_waves`` patterns times slices in ``seconds`` of own work; none tell nothing."""
        if n_waves and seconds > 0:
            speed = n_waves / seconds
            self.speed = speed if self._fresh or self.speed is None else max(speed, self.speed)
            self._fresh = False


class Balance:
    """The shares of the ranks that work on one tilt, and what its sweeps tell of their speeds.

    ``weights`` (rank,) are those of the shares, the same on all ranks; None: equal. Without a ``pace`` nothing is
    measured. Made, and asked for :meth:`change`, by all ranks of ``group`` alike.
    """

    def __init__(self, group: Communicator, pace: Pace | None) -> None:
        self._group, self._pace = group, pace if group.size > 1 else None
        self.weights, self._known = agreed_weights(group, self._pace)
        self._waited = self._began = 0.0
        if self._pace is not None:
            self._pace.start()

    def timed(self, exchange: Exchanging) -> Exchanging:
        """Begin a sweep; return the exchange, whose seconds are no own work.

        A GPU first ends what it was told to do, which is.
        """
        self._waited, self._began = 0.0, time.perf_counter()
        if self._pace is None:
            return exchange

        def timed(partial: Partial, peaks: tuple[str, ...] = ()) -> Total:
            settle()
            with self.waiting():
                return exchange(partial, peaks)

        return timed

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Leave the seconds of the block, where this rank waits for others, out of its own work."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    def swept(self, n_waves: int) -> None:
        """End the sweep, of ``n_waves`` patterns times slices on this rank."""
        if self._pace is not None:
            self._pace.sweep(n_waves, time.perf_counter() - self._began - self._waited)

    def change(self, done: int, left: int) -> str | None:
        """Say which other shares are due after ``done`` sweeps here with ``left`` to go; None: none, or not worth it.

        Only where the speeds of some rank were not known before.
        """
        if self._known or done != SWEEPS_TO_PACE or left < SWEEPS_WORTH:
            return None
        weights, self._known = agreed_weights(self._group, self._pace)
        return None if weights is None else " : ".join(f"{weight:.3g}" for weight in weights)


def agreed_weights(group: Communicator, pace: Pace | None) -> tuple[tuple[float, ...] | None, bool]:
    """Return the weights of the ranks' shares (None: equal), and whether nothing is left to be found out.

    The same on all ranks; collective where there is a ``pace``.
    """
    if pace is None or group.size == 1:
        return None, True
    mine = np.zeros(group.size)
    mine[group.rank] = pace.speed or 0.0
    speeds = group.sum(mine).tolist()
    return coarse_weights(speeds), min(speeds) > 0


def coarse_weights(speeds: Sequence[float]) -> tuple[float, ...] | None:
    """Return speeds over their median in steps of :data:`STEP`, at most :data:`WIDEST` from it.

    None, for equal shares, where they lie within one step or one of them is not known (0).
    """
    if min(speeds) <= 0 or max(speeds) <= STEP * min(speeds):
        return None
    steps = np.rint(np.log(np.array(speeds) / np.median(speeds)) / np.log(STEP))
    weights = tuple(np.clip(STEP**steps, 1 / WIDEST, WIDEST).tolist())
    return None if len(set(weights)) == 1 else weights
