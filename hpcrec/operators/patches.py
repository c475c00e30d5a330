"""Windows of an object: cut them out, add them back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from hpcrec.backend.array import Array, IntArray, array_module
from hpcrec.operators.base import LinearOperator

_CHUNK_BYTES: Final = 1 << 17
# Estimated, not measured: large against the launch of a kernel
_DEVICE_CHUNK_BYTES: Final = 1 << 27


def cut_patches(obj: Array, corners: IntArray, window: tuple[int, int]) -> Array:
    """Return the windows (slice, position, y, x) of ``obj`` (slice, y, x) whose first pixels are ``corners`` (n, 2).

    ``corners`` are on the host; on a device all windows are gathered at once.
    """
    xp = array_module(obj)
    if xp is not np:
        first = xp.asarray(corners)
        rows = first[:, 0, None, None] + xp.arange(window[0])[:, None]
        return obj[:, rows, first[:, 1, None, None] + xp.arange(window[1])]
    patches = np.empty((obj.shape[0], len(corners), *window), obj.dtype)
    for j, (y, x) in enumerate(corners):
        patches[:, j] = obj[:, y : y + window[0], x : x + window[1]]
    return patches


def window_chunks(obj: Array, n: int, window: tuple[int, int]) -> Iterator[slice]:
    """Yield parts of n windows of ``obj`` (y, x): as many at a time as fit the caches, or a small share of a device."""
    size = _CHUNK_BYTES if array_module(obj) is np else _DEVICE_CHUNK_BYTES
    step = max(1, size // (obj.dtype.itemsize * window[0] * window[1]))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def add_patches(obj: Array, patches: Array, corners: IntArray) -> None:
    """Add windows (slice, position, y, x) to ``obj`` (slice, y, x) in place; windows may overlap.

    On a device one window after the other too: no atomics, so that sums do not change from run to run.
    """
    ny, nx = patches.shape[-2:]
    for j, (y, x) in enumerate(corners):
        obj[:, y : y + ny, x : x + nx] += patches[:, j]


class Patches(LinearOperator):
    """Cuts windows (slice, position, y, x) from an object (slice, y, x); the adjoint adds them where they overlap.

    ``corners`` (n, 2) are the first pixels of the windows in the object's own numbering. Raises ValueError if a window
    leaves the object.
    """

    def __init__(
        self, shape: tuple[int, int, int], corners: IntArray, window: tuple[int, int], dtype: Any = np.complex64
    ) -> None:
        inside = (corners >= 0).all() and (corners + np.array(window) <= np.array(shape[1:])).all()
        if not inside:
            raise ValueError(f"a window of {window} pixels leaves the object of {shape[1:]} pixels")
        self.domain = shape
        self.range = (shape[0], len(corners), *window)
        self.dtype = np.dtype(dtype)
        self._corners, self._window = corners, window

    @classmethod
    def example(cls) -> Patches:
        """Return a small instance for the shared tests."""
        return cls((2, 12, 15), np.array([[0, 0], [3, 4], [2, 5], [5, 8]]), (6, 7), np.complex128)

    def apply(self, a: Array) -> Array:
        """Cut the windows."""
        return cut_patches(a, self._corners, self._window)

    def adjoint(self, b: Array) -> Array:
        """Add the windows into an empty object."""
        obj = array_module(b).zeros(self.domain, b.dtype)
        add_patches(obj, b, self._corners)
        return obj  # type: ignore[no-any-return]
