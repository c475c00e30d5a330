"""Boxes of object pixels, and who owns which of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcrec.backend.array import Array, IntArray
from hpcrec.geometry.grid import Grid


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

    def contains(self, other: Box) -> bool:
        """Whether every pixel of ``other`` lies in this box."""
        return other.empty or self.intersect(other) == other


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
