"""Compiled passes over volumes and images of the tomography: the solvers' step and a pose's derivative images.

Of a device's arrays the step is a kernel of :mod:`hpcrec.backend.projector`, the derivative images are array code.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

from hpcrec.backend import projector
from hpcrec.backend.array import FloatArray, array_module
from hpcrec.backend.threads import run_parts

# Sixth-order central difference; 0.1 % accurate for structures of σ ≥ 1.5 pixels.
STENCIL: Final = (45 / 60, -9 / 60, 1 / 60)


# No fast mathematics here: a value that is not a number must stay one, and a threshold of exactly the value gives zero
@njit(nogil=True, cache=True, error_model="numpy")
def _step(
    point: Any, before: Any, gradient: Any, step: Any, threshold: Any, momentum: Any, positive: bool, volume: Any,
    ahead: Any,
) -> None:  # fmt: skip
    zero = threshold - threshold
    for i in range(point.size):
        moved = point[i] - step * gradient[i]
        found = moved - threshold
        found = zero if found < zero else found
        if not positive:
            below = moved + threshold
            found += zero if below > zero else below
        volume[i] = found
        ahead[i] = found + momentum * (found - before[i])


def proximal_step(
    point: FloatArray,
    before: FloatArray,
    gradient: FloatArray,
    step: float,
    threshold: float,
    momentum: float,
    positive: bool,
    threads: int | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return V = prox(y − s g) and y⁺ = V + β (V − before) in one pass over point y, before, gradient g, of one shape.

    The proximal map is that of τ Σ|v| (``threshold`` τ), on v ≥ 0 where ``positive``. 20 bytes a float32 voxel.
    Arrays of a device, of float32 alone, take the kernel there.
    """
    if not point.shape == before.shape == gradient.shape:
        raise ValueError(f"expected arrays of one shape, got {point.shape}, {before.shape}, {gradient.shape}")
    if array_module(point) is not np:
        return projector.proximal_step(point, before, gradient, step, threshold, momentum, positive)
    kind = point.dtype.type
    flat = [np.ascontiguousarray(a, kind).reshape(-1) for a in (point, before, gradient)]
    volume, ahead = np.empty(point.shape, kind), np.empty(point.shape, kind)
    out = volume.reshape(-1), ahead.reshape(-1)

    def task(first: int, last: int) -> None:
        part = slice(first, last)
        y, v, g = (a[part] for a in flat)
        _step(y, v, g, kind(step), kind(threshold), kind(momentum), positive, out[0][part], out[1][part])

    run_parts(task, point.size, threads)
    return volume, ahead


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy", forceinline=True)
def _slope(image: Any, y: int, x: int, down: int, right: int, weights: Any) -> Any:
    """Sixth-order difference of ``image`` at a pixel near its edge, along one axis; pixels outside repeat the edge."""
    total = weights[0] - weights[0]
    for i in range(3):
        n = i + 1
        total += weights[i] * (
            image[min(y + n * down, image.shape[0] - 1), min(x + n * right, image.shape[1] - 1)]
            - image[max(y - n * down, 0), max(x - n * right, 0)]
        )
    return total


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _derivatives(
    image: Any, moment: Any, turns: Any, middle: Any, pixel: float, y0: int, y1: int, weights: Any, out: Any
) -> None:
    n_y, n_x = image.shape
    n = turns.astype(image.dtype)
    gy, gx = np.empty(n_x, image.dtype), np.empty(n_x, image.dtype)
    my, mx = np.empty(n_x, image.dtype), np.empty(n_x, image.dtype)
    a, b, c = weights
    across = ((np.arange(n_x) - n_x // 2) * pixel - middle[1]).astype(image.dtype)
    for y in range(y0, y1):
        if 3 <= y < n_y - 3:
            for x in range(n_x):
                gy[x] = (
                    a * (image[y + 1, x] - image[y - 1, x])
                    + b * (image[y + 2, x] - image[y - 2, x])
                    + c * (image[y + 3, x] - image[y - 3, x])
                )
                my[x] = (
                    a * (moment[y + 1, x] - moment[y - 1, x])
                    + b * (moment[y + 2, x] - moment[y - 2, x])
                    + c * (moment[y + 3, x] - moment[y - 3, x])
                )
        else:
            for x in range(n_x):
                gy[x], my[x] = _slope(image, y, x, 1, 0, weights), _slope(moment, y, x, 1, 0, weights)
        line, other = image[y], moment[y]
        for i in range(max(n_x - 6, 0)):
            x = i + 3
            gx[x] = a * (line[i + 4] - line[i + 2]) + b * (line[i + 5] - line[i + 1]) + c * (line[i + 6] - line[i])
            mx[x] = (
                a * (other[i + 4] - other[i + 2]) + b * (other[i + 5] - other[i + 1]) + c * (other[i + 6] - other[i])
            )
        for i in range(min(6, n_x)):
            x = i if i < 3 else max(n_x - 1 - (i - 3), 0)
            gx[x], mx[x] = _slope(image, y, x, 0, 1, weights), _slope(moment, y, x, 0, 1, weights)
        below = image.dtype.type((y - n_y // 2) * pixel - middle[0])
        for x in range(n_x):
            out[0, y, x], out[1, y, x] = -gy[x], -gx[x]
            swirl = below * gx[x] - across[x] * gy[x]
            out[2, y, x] = n[0, 2] * swirl - n[0, 1] * mx[x] + n[0, 0] * my[x]
            out[3, y, x] = n[1, 2] * swirl - n[1, 1] * mx[x] + n[1, 0] * my[x]
            out[4, y, x] = n[2, 2] * swirl - n[2, 1] * mx[x] + n[2, 0] * my[x]


def derivative_images(
    image: FloatArray,
    moment: FloatArray,
    turns: FloatArray,
    middle: tuple[float, float],
    pixel_size: float,
    threads: int | None = None,
) -> FloatArray:
    """Return the derivatives (5, y, x) of a projection by dy, dx and turns about the axes ``turns`` (3, xyz).

    ``image``, ``moment`` (y, x): projection P and depth moment D; ``middle`` (y, x) Å: what it turns about. In one pass
    −∂y P, −∂x P and, for each axis n, −∂x(n_y D − n_z y P) − ∂y(n_z x P − n_x D) with sixth-order differences.
    """
    if array_module(image) is not np:
        return derivative_arrays(image, moment, turns, middle, pixel_size)
    image, moment = np.ascontiguousarray(image), np.ascontiguousarray(moment, image.dtype)
    kind = image.dtype.type
    a, b, c = (kind(w / pixel_size) for w in STENCIL)
    out = np.empty((5, *image.shape), image.dtype)

    def task(first: int, last: int) -> None:
        _derivatives(image, moment, turns, middle, pixel_size, first, last, (a, b, c), out)

    run_parts(task, len(image), threads)
    return out


def derivative_arrays(
    image: FloatArray, moment: FloatArray, turns: FloatArray, middle: tuple[float, float], pixel_size: float
) -> FloatArray:
    """Do as :func:`derivative_images` with whole arrays, of host or device: its twin."""
    xp, real = array_module(image), image.dtype.type
    gy, gx, my, mx = (_slopes(a, axis, pixel_size) for a in (image, moment) for axis in (0, 1))
    y, x = (xp.asarray(((np.arange(n) - n // 2) * pixel_size - c).astype(real)) for n, c in zip(image.shape, middle))
    swirl = y[:, None] * gx - x * gy
    turned = [real(n[2]) * swirl - real(n[1]) * mx + real(n[0]) * my for n in turns]
    return xp.stack([-gy, -gx, *turned])  # type: ignore[no-any-return]


def _slopes(image: FloatArray, axis: int, pixel_size: float) -> FloatArray:
    """Return the sixth-order difference along an axis; pixels outside repeat the edge."""
    xp, n = array_module(image), image.shape[axis]
    total = xp.zeros_like(image)
    for i, weight in enumerate(STENCIL):
        ahead, behind = (xp.asarray(np.clip(np.arange(n) + step, 0, n - 1)) for step in (i + 1, -i - 1))
        difference = xp.take(image, ahead, axis=axis) - xp.take(image, behind, axis=axis)
        total += image.dtype.type(weight / pixel_size) * difference
    return total  # type: ignore[no-any-return]
