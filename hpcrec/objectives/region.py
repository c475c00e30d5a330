"""Which part of the object a rank has at hand, and what it asks of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, FloatArray, array_module
from hpcrec.backend.fft import fftn, ifftn
from hpcrec.geometry.tiles import Box


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """Pixels of the object that are at hand.

    Every function is called by all ranks alike.

    shape : of the whole object's grid
    held : where the arrays at hand lie
    core : what of it counts in sums: the cores of all ranks are the whole grid, every pixel once
    total : sum over all ranks of a small array of the host
    with_next : images (image, y, x) on the core and the row and column behind it, from those on the held box
    shifted : f_s(r − way_s) of slices (state, slice, y, x) on the periodic grid, ways (slice, 2) in pixels
    """

    shape: tuple[int, int]
    held: Box
    core: Box
    total: Callable[[Array], Array]
    with_next: Callable[[Array], Array]
    shifted: Callable[[ComplexArray, FloatArray], ComplexArray]

    def own(self, values: Array) -> Array:
        """Return those of values (…, y, x) on the held box that count in sums."""
        return values[(..., *self.core.slices(self.held))]

    def pixels(self, box: Box) -> tuple[FloatArray, FloatArray]:
        """Return y and x of a box in pixels from n//2 of the whole grid."""
        ny, nx = self.shape
        return np.arange(box.y0, box.y1) - float(ny // 2), np.arange(box.x0, box.x1) - float(nx // 2)


def all_at_hand(shape: tuple[int, ...]) -> Region:
    """Return the region of an object (…, y, x) that one rank has alone."""
    ny, nx = shape[-2:]
    box = Box(0, ny, 0, nx)

    def both(obj: ComplexArray, ways: FloatArray) -> ComplexArray:
        return shifted_along(shifted_along(obj, ways[:, 1], -1), ways[:, 0], -2)

    return Region(shape=(ny, nx), held=box, core=box, total=lambda a: a, with_next=lambda values: values, shifted=both)


def shifted_along(values: ComplexArray, ways: FloatArray, axis: int) -> ComplexArray:
    """Return f_s(r − way_s) of images (…, slice, y, x) along ``axis`` −1 or −2, which is periodic; ways in pixels."""
    xp = array_module(values)
    frequency = np.fft.fftfreq(values.shape[axis])
    turn = np.exp(-2j * np.pi * ways[:, None] * frequency)
    turn = turn[:, None, :] if axis == -1 else turn[:, :, None]
    spectrum = fftn(values, axes=(axis,))
    spectrum *= xp.asarray(turn.astype(values.dtype))
    return ifftn(spectrum, axes=(axis,))
