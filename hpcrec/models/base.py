"""The state of a ptychographic reconstruction and the batches that update it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray, IntArray
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.tiles import Box
from hpcrec.models.events import Events


@dataclass(slots=True)
class PtychographyState:
    """What is being reconstructed for one tilt; only ``Engine.apply`` changes it.

    obj : (slice, y, x) complex transmission on the pixels of ``box`` (the whole grid, or a rank's core and halo)
    probe : (mode, y, x) complex, centred at n//2; |probe|² sums to the counts of one pattern; the same on all ranks
    positions : (position, 2) float64 Å, all positions of the tilt; the same on all ranks
    grid : the whole object's grid; ``box`` is counted in its pixels
    n_states : mutually incoherent object states; ``obj`` holds the slices of one after the other
    refined : what is known better than the model's parameters, the same on all ranks, by name:
        "tilt" (2,) and "position_tilt" (position, 2) rad, tilt of the sample's columns towards y and x; they add up
        "thickness" (slice − 1,) Å between the slices
        "variation" (m, y, x) complex, added to mode 0 of the probe "coefficients" (position, m) times
        "intensity" (position,) factor of each pattern; "background" (ky, kx) counts
    object_memory : arrays (slice, y, x) on ``box`` that an engine keeps between updates (momenta)
    memory : small arrays an engine keeps between updates; the same on all ranks
    pattern_memory : arrays (own position, …) of waves that an engine keeps for each pattern of this rank
    core : the pixels of ``box`` that this rank adds to sums over the object; None: all
    visited : patterns of a sweep, where some positions are left out; None: all
    own : (n,) positions whose patterns this rank has, ascending; None: all
    whole_pixels : positions count as if they were on whole pixels; half of the transforms of one slice are saved
    windowed : this rank has all patterns, so that gradients may stay on the windows of a batch

    On a device lie waves and images, see :func:`hpcrec.models.placement.state_on`; the rest stays on the host.
    """

    obj: ComplexArray
    probe: ComplexArray
    positions: FloatArray
    grid: Grid
    box: Box
    iteration: int = 0
    n_states: int = 1
    refined: dict[str, Array] = field(default_factory=dict)
    object_memory: dict[str, Array] = field(default_factory=dict)
    memory: dict[str, Array] = field(default_factory=dict)
    pattern_memory: dict[str, Array] = field(default_factory=dict)
    core: Box | None = None
    visited: int | None = None
    own: IntArray | None = None
    whole_pixels: bool = False
    windowed: bool = False

    @property
    def n_visited(self) -> int:
        """Number of patterns of a sweep."""
        return len(self.positions) if self.visited is None else self.visited

    @property
    def own_positions(self) -> IntArray:
        """The positions (n,) whose patterns this rank has, ascending."""
        return np.arange(len(self.positions)) if self.own is None else self.own

    def rows(self, indices: IntArray) -> IntArray:
        """Return the places (n,) of own positions along the first axis of what ``pattern_memory`` holds."""
        return indices if self.own is None else np.searchsorted(self.own, indices)

    @property
    def n_slices(self) -> int:
        """Number of slices of each object state."""
        return len(self.obj) // self.n_states


@dataclass(frozen=True, slots=True)
class Batch:
    """Some patterns of one tilt: ``indices`` (n,) into the tilt's positions; ``patterns`` (n, ky, kx) counts or events.

    Patterns have their zero frequency at [0, 0] and keep the detector's integer type until a model widens them.
    ``good`` (n, ky, kx), True = good, are the pixels that count in each pattern, where that differs from pattern to
    pattern. ``step`` numbers the batch inside its iteration, ``n_global`` counts its patterns over all ranks;
    ``of_all`` (n_global,) are the indices of all ranks' shares, None where this one is all. An empty batch (a rank
    without a share) is legal everywhere. ``part`` numbers the parts into which a share may be divided.
    """

    indices: IntArray
    patterns: Array | Events
    step: int = 0
    n_global: int = 0
    good: BoolArray | None = None
    of_all: IntArray | None = None
    part: int = 0

    @property
    def places(self) -> IntArray:
        """The places (n,) of this share's patterns among those of all ranks; raises ValueError if nobody said them."""
        if self.of_all is None:
            if len(self.indices) not in (0, self.n_global) and self.n_global:
                raise ValueError("a share of a batch must say the indices of all ranks' shares: of_all")
            return np.arange(len(self.indices))
        order = np.argsort(self.of_all)
        return order[np.searchsorted(self.of_all, self.indices, sorter=order)]
