"""Sums over the windows of many patterns, compiled: what the plain forms in ``models/refined.py`` say, in one pass."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

_compile: Any = njit(fastmath=True, error_model="numpy", nogil=True, cache=True)


@_compile
def add_position_weights(obj: Any, corners: Any, power: Any, product: Any, scale: Any, out: Any) -> None:
    """Add to ``out`` (n, 2) the weights along y and x, times ``scale``, the mean over flight points.

    obj (state, slice, y, 2x) interleaved float32; corners (n, flight, 2); power (ny, nx) Σ|P|² over the modes; product
    (ny, 2nx): room to work in. Differences are of neighbouring pixels in the window, with the power between them.
    """
    ny, nx = power.shape
    factor = scale / corners.shape[1]
    for j in range(len(corners)):
        for f in range(corners.shape[1]):
            y, x = corners[j, f, 0], corners[j, f, 1]
            for state in range(len(obj)):
                for i in range(ny):
                    product[i] = obj[state, 0, y + i, 2 * x : 2 * (x + nx)]
                    for s in range(1, obj.shape[1]):
                        row, p = obj[state, s, y + i, 2 * x : 2 * (x + nx)], product[i]
                        for k in range(nx):
                            a, b = p[2 * k], p[2 * k + 1]
                            p[2 * k] = a * row[2 * k] - b * row[2 * k + 1]
                            p[2 * k + 1] = a * row[2 * k + 1] + b * row[2 * k]
                along_y, along_x = np.float64(0), np.float64(0)
                for i in range(ny):
                    p, w, total = product[i], power[i], np.float32(0)
                    for k in range(nx - 1):
                        a, b = p[2 * k + 2] - p[2 * k], p[2 * k + 3] - p[2 * k + 1]
                        total += (a * a + b * b) * (w[k] + w[k + 1])
                    along_x += total
                    if i:
                        q, v, total = product[i - 1], power[i - 1], np.float32(0)
                        for k in range(nx):
                            a, b = p[2 * k] - q[2 * k], p[2 * k + 1] - q[2 * k + 1]
                            total += (a * a + b * b) * (w[k] + v[k])
                        along_y += total
                out[j, 0] += 0.5 * factor * along_y
                out[j, 1] += 0.5 * factor * along_x


@_compile
def add_window_powers(obj: Any, corners: Any, scale: Any, out: Any) -> None:
    """Add scale · Σ|O|² over the windows at ``corners`` (n, 2) of ``obj`` (y, 2x), interleaved, to ``out`` (ny, nx)."""
    ny, nx = out.shape
    for j in range(len(corners)):
        y, x = corners[j, 0], corners[j, 1]
        for i in range(ny):
            a, c = obj[y + i, 2 * x : 2 * (x + nx)], out[i]
            for k in range(nx):
                c[k] += (a[2 * k] * a[2 * k] + a[2 * k + 1] * a[2 * k + 1]) * scale


@_compile
def _next_run(corners: Any, window: Any, row: int, j: int) -> Any:
    """Return where the run of pixels of a row under windows begins and ends, and the window to go on from.

    Windows from ``j`` on, in ascending order of x; windows that overlap make one run. First and last are equal at the
    end.
    """
    first = last = 0
    while j < len(corners):
        if corners[j, 0] <= row < corners[j, 0] + window[0]:
            x = corners[j, 1]
            if last == 0:
                first = x
            elif x > last:
                break
            last = x + window[1]
        j += 1
    return first, last, j


@_compile
def add_and_clear(out: Any, more: Any) -> None:
    """Out += more, then more = 0."""
    for k in range(out.size):
        out[k] += more[k]
        more[k] = 0


# Numbers that are not negative keep their order as integers, which vectors can compare in one pass
@_compile
def _least_bits(w: Any) -> Any:
    bits = w.view(np.int32)
    least = bits[0]
    for k in range(bits.size):
        least = min(least, bits[k])
    return least


@_compile
def _peak_bits(w: Any) -> Any:
    largest, bits = np.int32(0), w.view(np.int32)
    for k in range(bits.size):
        largest = max(largest, bits[k])
    return largest


@_compile
def peak_of(w: Any) -> Any:
    """Return the largest of numbers that are not negative."""
    return np.array([_peak_bits(w)]).view(np.float32)[0]


@_compile
def _to_factors(w: Any, numbers: Any, quadratic: bool) -> None:
    """Make of the weights of a row what the gradient is multiplied by, zero in the dark."""
    share, floor, scale, _, dark = numbers
    zero = np.float32(0)
    if quadratic:
        for k in range(w.size):
            d = share * w[k]
            factor = scale / math.sqrt(d * d + floor * floor)
            w[k] = factor if w[k] > dark else zero
    else:
        for k in range(w.size):
            d = share * w[k]
            factor = scale / (d + max(w[k] - d, floor))
            w[k] = factor if w[k] > dark else zero


@_compile
def _step_row(o: Any, g: Any, factor: Any) -> None:
    for k in range(factor.size):
        o[2 * k] += g[2 * k] * factor[k]
        o[2 * k + 1] += g[2 * k + 1] * factor[k]


@_compile
def _step_lit_row(o: Any, v: Any, g: Any, factor: Any, momentum: Any) -> None:
    for k in range(factor.size):
        ur, ui = g[2 * k] * factor[k], g[2 * k + 1] * factor[k]
        vr, vi = momentum * v[2 * k] + ur, momentum * v[2 * k + 1] + ui
        v[2 * k], v[2 * k + 1] = vr, vi
        o[2 * k] += ur + momentum * vr
        o[2 * k + 1] += ui + momentum * vi


@_compile
def _step_half_lit_row(o: Any, v: Any, g: Any, factor: Any, momentum: Any) -> None:
    for k in range(factor.size):
        if factor[k] != np.float32(0):
            ur, ui = g[2 * k] * factor[k], g[2 * k + 1] * factor[k]
            vr, vi = momentum * v[2 * k] + ur, momentum * v[2 * k + 1] + ui
            v[2 * k], v[2 * k + 1] = vr, vi
            o[2 * k] += ur + momentum * vr
            o[2 * k + 1] += ui + momentum * vi


@_compile
def _bound_row(o: Any, factor: Any, bound: int) -> None:
    for k in range(factor.size):
        size = math.sqrt(o[2 * k] * o[2 * k] + o[2 * k + 1] * o[2 * k + 1])
        if factor[k] != np.float32(0) and size > np.float32(0) and (bound == 2 or size > np.float32(1)):
            o[2 * k] /= size
            o[2 * k + 1] /= size


@_compile
def step_windows(
    obj: Any, velocity: Any, gradient: Any, weight: Any, corners: Any, window: Any, rows: Any, numbers: Any,
    quadratic: bool, bound: int,
) -> None:  # fmt: skip
    """Move the object where a batch lit it, and clear what it was told: the pixels of ``rows`` (first, last) only.

    obj and velocity (slice, y, 2x); gradient (thread, slice, y, 2x) and weight (thread, slice, y, x), which are added;
    corners (n, 2) of the windows (ny, nx), in ascending order of x; numbers: share, floor, scale, momentum, darkest
    weight. The step is that of ``precondition`` and ``step_with_momentum``; no momentum where ``velocity`` has no
    slices. bound: 0 none, 1 |O| ≤ 1, 2 |O| = 1.
    """
    dark = np.array([numbers[4]]).view(np.int32)[0]
    for i in range(rows[0], rows[1]):
        first, last, j = _next_run(corners, window, i, 0)
        while last > first:
            for s in range(len(obj)):
                o, w = obj[s, i, 2 * first : 2 * last], weight[0, s, i, first:last]
                g = gradient[0, s, i, 2 * first : 2 * last]
                for t in range(1, len(weight)):
                    add_and_clear(w, weight[t, s, i, first:last])
                    add_and_clear(g, gradient[t, s, i, 2 * first : 2 * last])
                all_lit = _least_bits(w) > dark
                _to_factors(w, numbers, quadratic)
                if not len(velocity):
                    _step_row(o, g, w)
                elif all_lit:
                    _step_lit_row(o, velocity[s, i, 2 * first : 2 * last], g, w, numbers[3])
                else:
                    _step_half_lit_row(o, velocity[s, i, 2 * first : 2 * last], g, w, numbers[3])
                if bound:
                    _bound_row(o, w, bound)
                w[:] = 0
                g[:] = 0
            first, last, j = _next_run(corners, window, i, j)


@_compile
def peak_of_windows(weight: Any, corners: Any, window: Any, rows: Any) -> Any:
    """Add up ``weight`` (thread, slice, y, x) in the first thread's; return the largest sum under the windows.

    corners (n, 2) in ascending order of x; the pixels of ``rows`` (first, last) only.
    """
    largest = np.int32(0)
    for i in range(rows[0], rows[1]):
        first, last, j = _next_run(corners, window, i, 0)
        while last > first:
            for s in range(weight.shape[1]):
                for t in range(1, len(weight)):
                    add_and_clear(weight[0, s, i, first:last], weight[t, s, i, first:last])
                largest = max(largest, _peak_bits(weight[0, s, i, first:last]))
            first, last, j = _next_run(corners, window, i, j)
    return np.array([largest]).view(np.float32)[0]
