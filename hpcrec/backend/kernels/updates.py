"""Fused steps on object pixels: one pass over memory instead of ten; compiled on the host, plain on a GPU.

The plain twins (``plain_…``) define the truth; a test compares the two.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from hpcrec.backend.array import ComplexArray, FloatArray, array_module, real_dtype

_compile: Any = njit(fastmath=True, error_model="numpy", nogil=True, cache=True)


def precondition(
    gradient: ComplexArray, weight: FloatArray, share: float, floor: float, scale: float, *, quadratic: bool
) -> ComplexArray:
    """Return scale · g / d of arrays (slice, y, x), zero where the weight W is zero.

    d = √((share · W)² + floor²) if ``quadratic``, else share · W + max((1 − share) · W, floor).
    """
    arguments = (gradient, weight, share, floor, scale)
    if array_module(gradient, weight) is not np:
        return plain_precondition(*arguments, quadratic=quadratic)
    real = real_dtype(gradient.dtype)
    out = np.empty(gradient.shape, gradient.dtype)
    numbers = (real.type(share), real.type(floor), real.type(scale))
    weight = np.ascontiguousarray(weight, real)
    _precondition(np.ascontiguousarray(gradient).view(real), weight, *numbers, quadratic, out.view(real))
    return out


def plain_precondition(
    gradient: ComplexArray, weight: FloatArray, share: float, floor: float, scale: float, *, quadratic: bool
) -> ComplexArray:
    """Return the same as :func:`precondition`."""
    xp, real = array_module(gradient, weight), real_dtype(gradient.dtype)
    if quadratic:
        size = xp.hypot(share * weight, floor)
    else:
        size = share * weight + xp.maximum((1 - share) * weight, floor)
    factor = xp.where(weight > 0, scale / xp.where(size > 0, size, 1), 0)
    return gradient * factor.astype(real)  # type: ignore[no-any-return]


def step_with_momentum(
    obj: ComplexArray,
    velocity: ComplexArray,
    change: ComplexArray,
    weight: FloatArray,
    corner: tuple[int, int],
    momentum: float,
) -> None:
    """Nesterov's step in place where the weight W is not zero: v ← μ v + u, O ← O + u + μ v.

    ``obj`` and ``velocity`` (slice, y, x) are contiguous; ``change`` u and ``weight`` cover a box of them from pixel
    ``corner``.
    """
    if array_module(obj) is not np:
        plain_step_with_momentum(obj, velocity, change, weight, corner, momentum)
        return
    real = real_dtype(obj.dtype)
    change = np.ascontiguousarray(change, obj.dtype)
    _step_with_momentum(obj.view(real), velocity.view(real), change.view(real), weight, *corner, real.type(momentum))


def plain_step_with_momentum(
    obj: ComplexArray,
    velocity: ComplexArray,
    change: ComplexArray,
    weight: FloatArray,
    corner: tuple[int, int],
    momentum: float,
) -> None:
    """Do the same as :func:`step_with_momentum`."""
    (y, x), (ny, nx) = corner, weight.shape[-2:]
    box = (slice(None), slice(y, y + ny), slice(x, x + nx))
    old, touched = velocity[box], weight > 0
    new = (momentum * old + change).astype(obj.dtype)
    xp = array_module(obj)
    obj[box] += xp.where(touched, change + momentum * new, 0).astype(obj.dtype)
    velocity[box] = xp.where(touched, new, old)


@_compile
def _precondition(g: Any, weight: Any, share: Any, floor: Any, scale: Any, quadratic: bool, out: Any) -> None:
    # An integer zero would make single precision double
    zero = scale - scale
    for s in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            a, w, c = g[s, i], weight[s, i], out[s, i]
            for k in range(w.size):
                d = share * w[k]
                d = math.sqrt(d * d + floor * floor) if quadratic else d + max(w[k] - d, floor)
                factor = scale / d if w[k] > zero else zero
                c[2 * k] = a[2 * k] * factor
                c[2 * k + 1] = a[2 * k + 1] * factor


@_compile
def _step_with_momentum(obj: Any, velocity: Any, change: Any, weight: Any, y: int, x: int, momentum: Any) -> None:
    for s in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            u, w = change[s, i], weight[s, i]
            o, v = obj[s, y + i, 2 * x : 2 * x + u.size], velocity[s, y + i, 2 * x : 2 * x + u.size]
            for k in range(w.size):
                if w[k] > 0:
                    vr = momentum * v[2 * k] + u[2 * k]
                    vi = momentum * v[2 * k + 1] + u[2 * k + 1]
                    v[2 * k], v[2 * k + 1] = vr, vi
                    o[2 * k] += u[2 * k] + momentum * vr
                    o[2 * k + 1] += u[2 * k + 1] + momentum * vi
