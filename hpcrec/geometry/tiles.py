"""Boxes of object pixels, and who owns which of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcrec.backend.array import Array, IntArray
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.scan import check_weights, hilbert_order


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A half-open box of object pixels [y0, y1) × [x0, x1) in the numbering of the whole object."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels, never negative."""
        return max(self.y1 - self.y0, 0), max(self.x1 - self.x0, 0)

    @property
    def empty(self) -> bool:
        """Whether the box holds no pixel."""
        return self.y1 <= self.y0 or self.x1 <= self.x0

    def slices(self, inside: Box) -> tuple[slice, slice]:
        """Return the index of this box in an array that covers ``inside``."""
        return slice(self.y0 - inside.y0, self.y1 - inside.y0), slice(self.x0 - inside.x0, self.x1 - inside.x0)

    def intersect(self, other: Box) -> Box:
        """Return the pixels of both; may be empty."""
        return Box(max(self.y0, other.y0), min(self.y1, other.y1), max(self.x0, other.x0), min(self.x1, other.x1))

    def union(self, other: Box) -> Box:
        """Return the smallest box around both; an empty box adds nothing."""
        if self.empty:
            return other
        if other.empty:
            return self
        return Box(min(self.y0, other.y0), max(self.y1, other.y1), min(self.x0, other.x0), max(self.x1, other.x1))

    def grow(self, margin: int) -> Box:
        """Return the box with ``margin`` more pixels on each side; an empty box stays empty."""
        if self.empty:
            return self
        return Box(self.y0 - margin, self.y1 + margin, self.x0 - margin, self.x1 + margin)

    def contains(self, other: Box) -> bool:
        """Whether every pixel of ``other`` lies in this box."""
        return other.empty or self.intersect(other) == other

    def without(self, inner: Box) -> list[Box]:
        """Return boxes that hold every pixel outside of ``inner``, once; none is empty."""
        inner = self.intersect(inner)
        if inner.empty:
            return [] if self.empty else [self]
        around = (
            Box(self.y0, inner.y0, self.x0, self.x1),
            Box(inner.y1, self.y1, self.x0, self.x1),
            Box(inner.y0, inner.y1, self.x0, inner.x0),
            Box(inner.y0, inner.y1, inner.x1, self.x1),
        )
        return [box for box in around if not box.empty]


EMPTY_BOX = Box(0, 0, 0, 0)


def bounding_box(corners: IntArray, window: tuple[int, int]) -> Box:
    """Return the smallest box around windows whose first pixels are ``corners`` (n, 2); empty if there are none."""
    if len(corners) == 0:
        return EMPTY_BOX
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    return Box(int(low[0]), int(high[0]) + window[0], int(low[1]), int(high[1]) + window[1])


def window_corners(positions: Array, grid: Grid, window: tuple[int, int]) -> IntArray:
    """Return the first pixel (n, 2) of the probe window at each position in Å: round(pixel) − n//2."""
    pixels = np.rint(grid.to_pixels(np.reshape(positions, (-1, 2)))).astype(np.int64)
    return pixels - np.array([window[0] // 2, window[1] // 2])  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class TileLayout:
    """How the ranks share one object: rank r owns the pixels ``cores[r]`` and works on positions ``shares[r]``.

    cores : boxes that partition the grid exactly; some may be empty
    held : each core and its halo: the windows of the rank's share with a margin around, inside the grid
    reached : of each held box what the probe reaches, with the core and the margin; all of it unless halos are cut
    shares : for each rank its positions, along the Hilbert curve; every position once, counts equal within one or in
        proportion to weights
    """

    cores: tuple[Box, ...]
    held: tuple[Box, ...]
    reached: tuple[Box, ...]
    shares: tuple[IntArray, ...]


def tile_layout(
    positions: Array,
    grid: Grid,
    window: tuple[int, int],
    n_ranks: int,
    margin: int,
    *,
    reach: Box | None = None,
    weights: Sequence[float] | None = None,
) -> TileLayout:
    """Share positions (n, 2) in Å and the pixels of ``grid`` by recursive bisection (Berger & Bokhari, 1987).

    Every cut halves the positions at hand across the longer side of their extent, and the box at hand along the same
    line. Runs of the Hilbert curve would balance as well, but only bisection makes the cores rectangles, which keeps
    halos and messages plain boxes; the curve orders the visits within a share. Positions on the line of a cut go
    either way, so a rank's windows may start just outside its core: the halo covers them. ``window`` (ny, nx) and
    ``margin`` in pixels.

    ``reach`` : what the probe reaches of its window, in pixels of the window; None: all of it
    ``weights`` (rank,) : cuts divide the positions in proportion to the weights on either side, and so the pixels where
        there are no positions; see :func:`~hpcrec.geometry.scan.check_weights`. None: equal
    """
    check_weights(weights, n_ranks)
    centres = np.rint(grid.to_pixels(np.reshape(positions, (-1, 2)))).astype(np.int64)
    whole = Box(0, grid.shape[0], 0, grid.shape[1])
    parts = _bisect(centres, np.arange(len(centres)), whole, tuple(weights or (1.0,) * n_ranks))
    corners = window_corners(positions, grid, window)
    shares = tuple(share[hilbert_order(centres[share])] for _, share in parts)
    cores = tuple(core for core, _ in parts)

    def halos(inner: Box) -> tuple[Box, ...]:
        """Return the cores with what the windows' part ``inner`` covers around them."""
        first = corners + np.array([inner.y0, inner.x0])
        boxes = [bounding_box(first[share], inner.shape).grow(margin) for share in shares]
        return tuple(core.union(box).intersect(whole) for core, box in zip(cores, boxes, strict=True))

    every = Box(0, window[0], 0, window[1])
    return TileLayout(cores=cores, held=halos(every), reached=halos(reach or every), shares=shares)


def _bisect(centres: IntArray, share: IntArray, box: Box, weights: tuple[float, ...]) -> list[tuple[Box, IntArray]]:
    """Split ``box`` and the positions ``share`` in proportion to ``weights``; returns (core, share) for each."""
    n_ranks = len(weights)
    if n_ranks == 1:
        return [(box, share)]
    n_low = n_ranks // 2
    each, rest = divmod(len(share), n_ranks)
    count, part = n_low * each + rest * n_low // n_ranks, n_low / n_ranks
    equal = len(set(weights)) == 1
    if not equal:
        part = sum(weights[:n_low]) / sum(weights)
        count = round(part * len(share))
    points = centres[share]
    extent = np.ptp(points, axis=0) if len(share) else np.array(box.shape)
    axis = 0 if extent[0] >= extent[1] else 1
    order = np.lexsort((points[:, 1 - axis], points[:, axis]))
    low, high = share[order[:count]], share[order[count:]]
    start, stop = ((box.y0, box.y1), (box.x0, box.x1))[axis]
    if len(low) and len(high):
        cut = int(centres[low[-1], axis] + centres[high[0], axis] + 1) // 2
    else:
        cut = start + ((stop - start) * n_low // n_ranks if equal else round(part * (stop - start)))
    cut = min(max(cut, start), stop)
    boxes = (
        (Box(box.y0, cut, box.x0, box.x1), Box(cut, box.y1, box.x0, box.x1))
        if axis == 0
        else (Box(box.y0, box.y1, box.x0, cut), Box(box.y0, box.y1, cut, box.x1))
    )
    return _bisect(centres, low, boxes[0], weights[:n_low]) + _bisect(centres, high, boxes[1], weights[n_low:])
