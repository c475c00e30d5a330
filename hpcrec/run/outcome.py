"""What one reconstructed tilt is, and what it can begin with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, FloatArray, IntArray
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.tiles import Box, window_corners
from hpcrec.io.joined import JoinedArray
from hpcrec.run.start import TiltSetup


@dataclass(frozen=True, kw_only=True)
class TiltOutcome:
    """One reconstructed tilt, complete on the group's first rank.

    obj (slice, y, x), a large one in parts, and illumination (y, x) on ``grid``; probe (mode, y, x); positions
    (position, 2) Å; loss and data_error, one number a sweep, held_out_error too where patterns (``held_out``, their
    indices) are;
    ``patterns`` (position, column) the figures of each pattern, see ``analysis/patterns.py``; ``seconds`` of this
    attempt.
    """

    setup: TiltSetup
    obj: ComplexArray | JoinedArray
    probe: ComplexArray
    positions: FloatArray
    illumination: FloatArray
    refined: dict[str, Array]
    loss: FloatArray
    data_error: FloatArray
    held_out: IntArray
    held_out_error: FloatArray
    patterns: FloatArray
    stopped_early: bool
    seconds: float
    peak_memory_gib: float

    @property
    def whole(self) -> ComplexArray:
        """The object; it is read to memory if it is in parts."""
        return self.obj.read(()) if isinstance(self.obj, JoinedArray) else self.obj


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a tilt begins with instead of an empty object: found at another resolution.

    obj (slice, y, x) on the whole grid, on the group's first rank, None elsewhere; probe (mode, y, x) on the pixels it
    was found on; positions (position, 2) Å; ``refined`` as in the state.
    """

    obj: ComplexArray | None
    probe: ComplexArray
    positions: FloatArray
    refined: dict[str, Array]


def illumination(probe: ComplexArray, positions: FloatArray, grid: Grid) -> FloatArray:
    """Return Σ_j Σ_m |P_m(r − R_j)|² (y, x) float32 on whole pixels: how much each object pixel was seen."""
    window = (probe.shape[-2], probe.shape[-1])
    power = (np.abs(probe) ** 2).sum(axis=0)
    whole = Box(0, grid.shape[0], 0, grid.shape[1])
    seen = np.zeros(grid.shape, np.float32)
    for y, x in window_corners(positions, grid, window):
        seen[Box(int(y), int(y) + window[0], int(x), int(x) + window[1]).slices(whole)] += power
    return seen


def peak_memory_gib() -> float:
    """Return the largest resident memory this process has had, in GiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 2**20
    return 0.0
