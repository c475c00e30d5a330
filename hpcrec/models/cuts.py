"""Where the waves of a chunk meet the object: products with its windows, and sums over them; plain, or by a kernel."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from hpcrec.backend import windows
from hpcrec.backend.array import ComplexArray, FloatArray, IntArray, array_module
from hpcrec.models.served import served
from hpcrec.operators.patches import add_patches, cut_patches


class Cuts(Protocol):
    """The windows of some patterns in the slices of an object; waves are (position, flight, state, mode, y, x)."""

    def times(self, i_slice: int, wave: ComplexArray, out: ComplexArray, *, conjugate: bool = False) -> ComplexArray:
        """Write ψ O, or ψ O*, to ``out``, which may be ``wave``, and return it."""

    def seen(self, i_slice: int) -> ComplexArray:
        """Return the windows (position, flight, state, 1, y, x) of a slice."""


class PlainCuts:
    """The windows (position, flight, state, 1, y, x) of each slice, cut out one after the other."""

    def __init__(self, obj: ComplexArray, corners: IntArray, window: tuple[int, int]) -> None:
        n_states, n_slices = obj.shape[:2]
        cut = cut_patches(obj.reshape(-1, *obj.shape[2:]), corners.reshape(-1, 2), window)
        cut = cut.reshape(n_states, n_slices, *corners.shape[:2], *window)
        self._slices = [np.moveaxis(cut[:, s], 0, 2)[:, :, :, None] for s in range(n_slices)]

    def times(self, i_slice: int, wave: ComplexArray, out: ComplexArray, *, conjugate: bool = False) -> ComplexArray:
        """Write ψ O, or ψ O*, to ``out``."""
        seen = self._slices[i_slice]
        return np.multiply(wave, seen.conj() if conjugate else seen, out=out)  # type: ignore[no-any-return]

    def seen(self, i_slice: int) -> ComplexArray:
        """Return the windows of a slice."""
        return self._slices[i_slice]


class LaunchedCuts:
    """The same by a kernel that reads the object where it is, on a device."""

    def __init__(self, obj: ComplexArray, corners: IntArray, window: tuple[int, int]) -> None:
        self._obj, self._corners = obj, corners.reshape(-1, 2)
        self._shape = (*corners.shape[:2], len(obj), 1, *window)

    def times(self, i_slice: int, wave: ComplexArray, out: ComplexArray, *, conjugate: bool = False) -> ComplexArray:
        """Write ψ O, or ψ O*, to ``out``."""
        windows.times(_merged(wave), self._obj[:, i_slice], self._corners, _merged(out), conjugate=conjugate)
        return out

    def seen(self, i_slice: int) -> ComplexArray:
        """Return the windows of a slice."""
        ones = array_module(self._obj).ones(self._shape, self._obj.dtype)
        return self.times(i_slice, ones, ones)


def cuts_of(obj: ComplexArray, corners: IntArray, window: tuple[int, int]) -> Cuts:
    """Return the windows at ``corners`` (position, flight, 2) of an object (state, slice, y, x)."""
    return LaunchedCuts(obj, corners, window) if served(obj) else PlainCuts(obj, corners, window)


def add_products(obj: ComplexArray, light: FloatArray, wave: ComplexArray, g: ComplexArray, corners: IntArray) -> None:
    """Add Σ ψ* g to ``obj`` and Σ|ψ|² to ``light`` (state, y, x), of waves (position, flight, state, mode, y, x).

    ``corners`` (position, flight, 2) count in ``obj``. The sums of a kernel run over the windows in the same order.
    """
    flat = corners.reshape(-1, 2)
    if served(obj):
        windows.add_products(obj, light, _merged(wave), _merged(g), flat)
        return
    for state in range(len(obj)):
        parts = wave[:, :, state]
        for out, values in ((obj, parts.conj() * g[:, :, state]), (light, np.abs(parts) ** 2)):
            seen = np.sum(values, axis=2)
            add_patches(out[state : state + 1], seen.reshape(1, -1, *seen.shape[-2:]), flat)


def _merged(wave: ComplexArray) -> ComplexArray:
    """Return a wave as (window, state, mode, y, x), the same memory."""
    return wave.reshape(-1, *wave.shape[2:])
