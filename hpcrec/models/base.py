"""The state of a ptychographic reconstruction and the batches that update it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpcrec.backend.array import Array, ComplexArray, FloatArray, IntArray
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.tiles import Box


@dataclass(slots=True)
class PtychographyState:
    """What is being reconstructed for one tilt; only ``Engine.apply`` changes it.

    obj : (slice, y, x) complex transmission on the pixels of ``box`` (the whole grid, or a rank's core and halo)
    probe : (mode, y, x) complex, centred at n//2; |probe|² sums to the counts of one pattern; the same on all ranks
    positions : (position, 2) float64 Å, all positions of the tilt; the same on all ranks
    grid : the whole object's grid; ``box`` is counted in its pixels
    object_memory : arrays (slice, y, x) on ``box`` that an engine keeps between updates (momenta)
    memory : small arrays an engine keeps between updates; the same on all ranks
    """

    obj: ComplexArray
    probe: ComplexArray
    positions: FloatArray
    grid: Grid
    box: Box
    iteration: int = 0
    object_memory: dict[str, Array] = field(default_factory=dict)
    memory: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some patterns of one tilt: ``indices`` (n,) into the tilt's positions; ``patterns`` (n, ky, kx) counts.

    Patterns have their zero frequency at [0, 0] and keep the detector's integer type until a model widens them.
    ``step`` numbers the batch inside its iteration, ``n_global`` counts the patterns of the batch over all ranks.
    An empty batch (a rank without a share) is legal everywhere.
    """

    indices: IntArray
    patterns: Array
    step: int = 0
    n_global: int = 0
