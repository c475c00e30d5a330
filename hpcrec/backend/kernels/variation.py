"""The proximal map of the total variation in compiled passes: the loops of fast gradient projection on the dual.

The twin is the NumPy way of :func:`hpcrec.objectives.regularizers.flatten_variation`, which says what is computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hpcrec.backend.array import Array, FloatArray
from hpcrec.backend.threads import run_parts


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _primal(values: Any, weight: Any, down: Any, right: Any, lateral: bool, y0: int, y1: int, found: Any) -> None:
    """Write rows y0 to y1 − 1 of v − τ Σ ∂ᵀp; the dual's last row and column are zero."""
    n_x = values.shape[1]
    for y in range(y0, y1):
        if y > 0:
            for x in range(n_x):
                found[y, x] = values[y, x] + weight * (down[y, x] - down[y - 1, x])
        else:
            for x in range(n_x):
                found[y, x] = values[y, x] + weight * down[y, x]
        if lateral:
            found[y, 0] += weight * right[y, 0]
            for x in range(n_x - 1):
                found[y, x + 1] += weight * (right[y, x + 1] - right[y, x])


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy", inline="always")
def _ascend(a: Any, b: Any, one: Any) -> Any:
    """Return (a, b) divided by their common length where it exceeds one."""
    size = a.real * a.real + a.imag * a.imag + b.real * b.real + b.imag * b.imag
    by = one / max(np.sqrt(size), one)
    return a * by, b * by


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _dual(found: Any, gain: Any, inertia: Any, lateral: bool, y0: int, y1: int, dual: Any, ahead: Any) -> None:
    """Ascend from ``ahead`` along the differences of ``found``, project on the unit ball, extrapolate; in place."""
    n_y, n_x = found.shape
    one = inertia - inertia + 1
    for y in range(y0, y1):
        line, below = found[y], found[min(y + 1, n_y - 1)]
        down, right, old_down, old_right = ahead[0, y], ahead[-1, y], dual[0, y], dual[-1, y]
        if lateral:
            for x in range(n_x - 1):
                a, b = down[x] + gain * (below[x] - line[x]), right[x] + gain * (line[x + 1] - line[x])
                a, b = _ascend(a, b, one)
                down[x], old_down[x] = a + inertia * (a - old_down[x]), a
                right[x], old_right[x] = b + inertia * (b - old_right[x]), b
        for x in range(n_x - 1 if lateral else 0, n_x):
            a = down[x] + gain * (below[x] - line[x])
            a, _ = _ascend(a, a - a, one)
            down[x], old_down[x] = a + inertia * (a - old_down[x]), a


def flatten_plane(values: Array, weight: float, lateral: bool, n_iterations: int, threads: int | None = None) -> Array:
    """Return the proximal map of τ TV at ``values`` (y, x), real or complex; differences along y, and x if ``lateral``.

    Two passes an iteration, both over parts of the rows; needs five arrays of the size of ``values``, or three.
    """
    values = np.ascontiguousarray(values)
    real = values.real.dtype.type
    dual = np.zeros((1 + lateral, *values.shape), values.dtype)
    ahead, found = dual.copy(), np.empty_like(values)
    height, t = len(values), 1.0

    def primal(from_dual: Array) -> None:
        across = from_dual[-1]
        run_parts(
            lambda a, b: _primal(values, real(weight), from_dual[0], across, lateral, a, b, found), height, threads
        )

    def ascend(gain: FloatArray, inertia: FloatArray) -> None:
        run_parts(lambda a, b: _dual(found, gain, inertia, lateral, a, b, dual, ahead), height, threads)

    for _ in range(n_iterations):
        primal(ahead)
        grown = 0.5 * (1 + np.sqrt(1 + 4 * t**2))
        ascend(real(1 / (4 * (1 + lateral) * weight)), real((t - 1) / grown))
        t = grown
    primal(dual)
    return found
