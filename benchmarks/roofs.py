"""What bounds a loop on this machine: bytes a second of memory and of the first cache, operations a second."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numba
import numpy as np

from hpcrec.backend.threads import run_parts

TRIAD, CACHED, CHAIN = 1 << 24, 2048, 256
_REPEATS = 20000


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one call must do: bytes from and to memory, bytes from and to the first cache, float32 operations."""

    memory: float
    cache: float
    flops: float


@dataclass(frozen=True, kw_only=True)
class Roof:
    """What the machine does in a second, in the units of :class:`Work`."""

    memory: float
    cache: float
    flops: float

    def shares(self, work: Work, seconds: float) -> dict[str, float]:
        """Return how much of each limit a call uses; the largest share is the limit that it is at."""
        return {
            "memory": work.memory / seconds / self.memory,
            "cache": work.cache / seconds / self.cache,
            "flops": work.flops / seconds / self.flops,
        }


@numba.njit(nogil=True, fastmath=True)
def _triad(a, b, c):
    for i in range(a.size):
        a[i] = b[i] + np.float32(0.5) * c[i]


@numba.njit(nogil=True, fastmath=True)
def _axpy(y, x, weight, n):
    for _ in range(n):
        for i in range(y.size):
            y[i] += weight * x[i]


@numba.njit(nogil=True, fastmath=True)
def _chain(y, weight, n):
    for _ in range(n):
        for i in range(y.size):
            s = y[i]
            for _ in range(16):
                s = s * weight + weight
            y[i] = s


class Roofs:
    """The loops that measure the limits of ``threads`` threads: a triad of three arrays of 64 MB, y += w x of two of
    8 KB a thread, and chains of multiply-adds in registers."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._large = [np.ones(TRIAD, np.float32) for _ in range(3)]
        self._small = [[np.ones(CACHED, np.float32) for _ in range(2)] for _ in range(threads)]
        self.measure()

    def measure(self) -> Roof:
        """Return the limits of this moment; takes about a tenth of a second."""
        threads, (a, b, c) = self.threads, self._large
        weight, n_chains = np.float32(0.5), _REPEATS // 8
        # Of slices: a loop from a first to a last place may count from the end, and is no vector loop
        triad = self._seconds(lambda first, last: _triad(a[first:last], b[first:last], c[first:last]), TRIAD)
        axpy = self._seconds(
            lambda first, last: [_axpy(y, x, weight, _REPEATS) for y, x in self._small[first:last]], threads
        )
        chain = self._seconds(
            lambda first, last: [_chain(y[:CHAIN], weight, n_chains) for y, _ in self._small[first:last]], threads
        )
        for y, _ in self._small:
            y[...] = 1
        return Roof(
            memory=12 * TRIAD / triad,
            cache=12 * CACHED * _REPEATS * threads / axpy,
            flops=32 * CHAIN * n_chains * threads / chain,
        )

    def _seconds(self, task, n: int) -> float:
        start = time.perf_counter()
        run_parts(task, n, self.threads)
        return time.perf_counter() - start
