"""Steps on the object pixels under the windows of a batch, compiled: the runs of pixels of each row, one after another.

Arrays: obj, velocity … (slice, y, 2x) interleaved; gradient (slice, y, 2x) and weight (slice, y, x); runs (run, 3):
row, first and last pixel. Pixels count whose weight exceeds ``dark``. Bounds as in
:mod:`hpcrec.backend.kernels.windows`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from hpcrec.backend.kernels.windows import _next_run, add_and_clear

_compile: Any = njit(fastmath=True, error_model="numpy", nogil=True, cache=True)


@_compile
def _bound_lit(o: Any, w: Any, dark: Any, bound: int) -> None:
    for k in range(w.size):
        size = math.sqrt(o[2 * k] * o[2 * k] + o[2 * k + 1] * o[2 * k + 1])
        if w[k] > dark and size > np.float32(0) and (bound == 2 or size > np.float32(1)):
            o[2 * k] /= size
            o[2 * k + 1] /= size


@_compile
def find_runs(corners: Any, window: Any, n_rows: int) -> Any:
    """Return the runs (run, 3) under the windows (ny, nx) at ``corners`` (n, 2), in ascending order of x."""
    found = np.empty((0, 3), np.int64)
    for fill in range(2):
        n = 0
        for i in range(n_rows):
            first, last, j = _next_run(corners, window, i, 0)
            while last > first:
                if fill:
                    found[n, 0], found[n, 1], found[n, 2] = i, first, last
                n += 1
                first, last, j = _next_run(corners, window, i, j)
        if not fill:
            found = np.empty((n, 3), np.int64)
    return found


@_compile
def add_threads(gradient: Any, weight: Any, runs: Any) -> None:
    """Add gradient (thread, slice, y, 2x) and weight (thread, slice, y, x) to those of the first thread; clear them."""
    for i, first, last in runs:
        for s in range(weight.shape[1]):
            for t in range(1, len(weight)):
                add_and_clear(weight[0, s, i, first:last], weight[t, s, i, first:last])
                add_and_clear(gradient[0, s, i, 2 * first : 2 * last], gradient[t, s, i, 2 * first : 2 * last])


@_compile
def divide(gradient: Any, weight: Any, runs: Any, scale: Any, floor: Any, dark: Any) -> None:
    """Gradient g ← scale · g / √(W² + floor²), zero on dark pixels."""
    # A zero of double precision would keep the loops scalar
    zero = np.float32(0)
    for i, first, last in runs:
        for s in range(len(weight)):
            g, w = gradient[s, i, 2 * first : 2 * last], weight[s, i, first:last]
            for k in range(w.size):
                factor = scale / math.sqrt(w[k] * w[k] + floor * floor) if w[k] > dark else zero
                g[2 * k] *= factor
                g[2 * k + 1] *= factor


@_compile
def follow(
    obj: Any, velocity: Any, direction: Any, weight: Any, runs: Any, step: Any, momentum: Any, dark: Any, bound: int
) -> None:
    """O += v with v ← step · D + momentum · v; clear direction D and weight. Without slices of v there is no momentum.

    D is zero on dark pixels.
    """
    for i, first, last in runs:
        for s in range(len(obj)):
            o, d = obj[s, i, 2 * first : 2 * last], direction[s, i, 2 * first : 2 * last]
            w = weight[s, i, first:last]
            if len(velocity):
                v = velocity[s, i, 2 * first : 2 * last]
                for k in range(w.size):
                    for part in range(2):
                        change = step * d[2 * k + part] + momentum * v[2 * k + part]
                        lit = w[k] > dark
                        v[2 * k + part] = change if lit else v[2 * k + part]
                        o[2 * k + part] += change if lit else np.float32(0)
            else:
                for k in range(d.size):
                    o[k] += step * d[k]
            if bound:
                _bound_lit(o, w, dark, bound)
            d[:] = 0
            w[:] = 0


@_compile
def adam(obj: Any, velocity: Any, square: Any, gradient: Any, weight: Any, runs: Any, numbers: Any, bound: int) -> None:
    """O −= step · m̂ / (√q̂ + floor) with m ← a m + (1−a) g, q ← b q + (1−b)|g|²; clear gradient and weight.

    velocity m; square q (slice, y, x); numbers: a, 1 − a, b, 1 − b, step / (1−aⁿ), 1 / (1−bⁿ), floor, dark. In single
    precision 1 − b would be off by 1e-5 of itself.
    """
    a, rest_a, b, rest_b, step, correction, floor, dark = numbers
    for i, first, last in runs:
        for s in range(len(obj)):
            o, g = obj[s, i, 2 * first : 2 * last], gradient[s, i, 2 * first : 2 * last]
            v, q, w = velocity[s, i, 2 * first : 2 * last], square[s, i, first:last], weight[s, i, first:last]
            for k in range(w.size):
                re, im = g[2 * k], g[2 * k + 1]
                lit = w[k] > dark
                vr, vi = a * v[2 * k] + rest_a * re, a * v[2 * k + 1] + rest_a * im
                size = b * q[k] + rest_b * (re * re + im * im)
                factor = step / (math.sqrt(size * correction) + floor) if lit else np.float32(0)
                v[2 * k], v[2 * k + 1] = vr if lit else v[2 * k], vi if lit else v[2 * k + 1]
                q[k] = size if lit else q[k]
                o[2 * k] -= factor * vr
                o[2 * k + 1] -= factor * vi
            if bound:
                _bound_lit(o, w, dark, bound)
            g[:] = 0
            w[:] = 0


@_compile
def weigh_by_root(
    obj: Any, gradient: Any, weight: Any, runs: Any, peak: Any, floor: Any, step: Any, bound: int
) -> None:
    """O −= step · √min(W/peak, 1) g / (W + floor); clear gradient and weight."""
    one, dark = np.float32(1), np.float32(0)
    for i, first, last in runs:
        for s in range(len(obj)):
            o, g = obj[s, i, 2 * first : 2 * last], gradient[s, i, 2 * first : 2 * last]
            w = weight[s, i, first:last]
            for k in range(w.size):
                factor = step * math.sqrt(min(w[k] / peak, one)) / (w[k] + floor) if w[k] > dark else dark
                o[2 * k] -= factor * g[2 * k]
                o[2 * k + 1] -= factor * g[2 * k + 1]
            if bound:
                _bound_lit(o, w, dark, bound)
            g[:] = 0
            w[:] = 0


@_compile
def collect(obj: Any, waves: Any, total: Any, gradient: Any, weight: Any, runs: Any, share: Any) -> None:
    """Waves += W O − share · g, and total (slice, y, x) += W; gradient and weight stay."""
    for i, first, last in runs:
        for s in range(len(obj)):
            o, g = obj[s, i, 2 * first : 2 * last], gradient[s, i, 2 * first : 2 * last]
            u, w, t = waves[s, i, 2 * first : 2 * last], weight[s, i, first:last], total[s, i, first:last]
            for k in range(w.size):
                u[2 * k] += w[k] * o[2 * k] - share * g[2 * k]
                u[2 * k + 1] += w[k] * o[2 * k + 1] - share * g[2 * k + 1]
                t[k] += w[k]


@_compile
def kick(obj: Any, velocity: Any, before: Any, momentum: Any, share: Any, bound: int) -> None:
    """v ← momentum · v + O − B; O += share · v, bounded where v is not zero; B ← O. Flat arrays of all pixels."""
    for k in range(obj.size // 2):
        vr = momentum * velocity[2 * k] + obj[2 * k] - before[2 * k]
        vi = momentum * velocity[2 * k + 1] + obj[2 * k + 1] - before[2 * k + 1]
        velocity[2 * k], velocity[2 * k + 1] = vr, vi
        re, im = obj[2 * k] + share * vr, obj[2 * k + 1] + share * vi
        if bound and (vr != np.float32(0) or vi != np.float32(0)):
            size = math.sqrt(re * re + im * im)
            if size > np.float32(0) and (bound == 2 or size > np.float32(1)):
                re, im = re / size, im / size
        obj[2 * k], obj[2 * k + 1] = re, im
        before[2 * k], before[2 * k + 1] = re, im
