"""Exit waves of single patterns of one slice, compiled: what projection engines do with each of them.

The plain twins are in :mod:`hpcrec.models.waves`; a test compares the two. Kept waves (n, part, 2·ny·nx) need not be
aligned. Arguments ``plan``, ``waves`` and ``detector`` as in :mod:`hpcrec.backend.kernels.ptychography`, never on
whole pixels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from hpcrec.backend.kernels.ptychography import _illuminate, _to_detector
from hpcrec.backend.kernels.transforms import transform
from hpcrec.backend.kernels.waves import (
    add_power,
    add_turned_back,
    detect,
    multiply,
    take_pattern,
    transmit,
    turn,
    vary,
)

_compile: Any = njit(fastmath=True, error_model="numpy", nogil=True, cache=True)


@_compile
def _place(waves: Any, j: int, c: int) -> Any:
    """Return flight point, object state and mode of a part of pattern j, and the first pixel of its window."""
    obj, corners, n_modes = waves[0], waves[1], len(waves[2])
    f = c // (len(obj) * n_modes)
    return f, c // n_modes % len(obj), c % n_modes, corners[j, f, 0], corners[j, f, 1]


@_compile
def _enter(wave: Any, waves: Any, mode: Any, j: int, c: int, plan: Any) -> Any:
    """Fill ``wave`` with the probe of a part of pattern j and return its place; ``mode``: room for one that varies."""
    _, _, spectrum, variation, coefficients, ramps, _, _, entry = waves
    place = _place(waves, j, c)
    f, m = place[0], place[2]
    chosen = spectrum[m]
    if m == 0 and len(variation):
        chosen = mode
        vary(mode, spectrum[0], variation, coefficients[j], spectrum.shape[1] // 2)
    _illuminate(wave, chosen, ramps[0][j, f], ramps[1][j, f], entry, plan)
    return place


@_compile
def _subtract(left: Any, wave: Any, kept: Any, obj: Any, y: int, x: int, ny: int, nx: int, back: bool) -> None:
    """Fill ``left`` with P O − ψ, ``back``: with O* (P O − ψ), of P ``wave``, ψ ``kept`` and the window of O."""
    for i in range(ny):
        row = slice(2 * i * nx, 2 * (i + 1) * nx)
        p, q, d, o = wave[row], kept[row], left[row], obj[y + i, 2 * x : 2 * (x + nx)]
        for k in range(nx):
            a, b, r, s = p[2 * k], p[2 * k + 1], o[2 * k], o[2 * k + 1]
            u, v = a * r - b * s - q[2 * k], a * s + b * r - q[2 * k + 1]
            d[2 * k], d[2 * k + 1] = (r * u + s * v, r * v - s * u) if back else (u, v)


@_compile
def _differ(left: Any, wave: Any, kept: Any, waves: Any, mode: Any, j: int, c: int, back: bool, plan: Any) -> Any:
    """Fill ``wave`` and ``left`` as :func:`_enter` and :func:`_subtract`, of a part of pattern j; return its place."""
    place = _enter(wave, waves, mode, j, c, plan)
    ramp_y, ramp_x = waves[5]
    ny, nx = ramp_y.shape[2] // 2, ramp_x.shape[2] // 2
    _subtract(left, wave, kept, waves[0][place[1], 0], place[3], place[4], ny, nx, back)
    return place


@_compile
def exit_waves(plan: Any, waves: Any, room: Any, mode: Any, out: Any) -> None:
    """Fill ``out`` (n, part, 2·ny·nx) with P O; ``room`` (1, …) and ``mode`` to work in."""
    obj, ramps = waves[0], waves[5]
    ny, nx = ramps[0].shape[2] // 2, ramps[1].shape[2] // 2
    for j in range(len(out)):
        for c in range(out.shape[1]):
            _, state, _, y, x = _enter(room[0], waves, mode, j, c, plan)
            transmit(out[j, c], room[0], obj[state, 0], y, x, ny, nx, False)


@_compile
def overlap_object(plan: Any, waves: Any, origin: Any, kept: Any, room: Any, mode: Any, out: Any, light: Any) -> None:
    """Add Σ P* (P O − ψ) to ``out`` (state, 1, y, 2x), Σ|P|² to ``light`` (state, 1, y, x); ψ ``kept`` (n, part, …).

    origin: pixel of the object where both begin; ``room`` (2, …) and ``mode`` to work in.
    """
    ramp_y, ramp_x = waves[5]
    ny, nx = ramp_y.shape[2] // 2, ramp_x.shape[2] // 2
    for j in range(len(kept)):
        for c in range(kept.shape[1]):
            _, state, _, y, x = _differ(room[1], room[0], kept[j, c], waves, mode, j, c, False, plan)
            for i in range(ny):
                at, to, row = y + i - origin[0], x - origin[1], slice(2 * i * nx, 2 * (i + 1) * nx)
                p, d = room[0, row], room[1, row]
                g, w = out[state, 0, at, 2 * to : 2 * (to + nx)], light[state, 0, at, to : to + nx]
                for k in range(nx):
                    g[2 * k] += p[2 * k] * d[2 * k] + p[2 * k + 1] * d[2 * k + 1]
                    g[2 * k + 1] += p[2 * k] * d[2 * k + 1] - p[2 * k + 1] * d[2 * k]
                    w[k] += p[2 * k] * p[2 * k] + p[2 * k + 1] * p[2 * k + 1]


@_compile
def overlap_probe(plan: Any, waves: Any, kept: Any, room: Any, mode: Any, out: Any) -> None:
    """Add the spectra of O* (P O − ψ), shifts undone, to ``out`` (mode, 2·ny·nx); ψ ``kept`` (n, part, …)."""
    ramp_y, ramp_x = waves[5]
    for j in range(len(kept)):
        for c in range(kept.shape[1]):
            f, _, m, _, _ = _differ(room[1], room[0], kept[j, c], waves, mode, j, c, True, plan)
            transform(plan, room[1], True)
            add_turned_back(out[m], room[1], ramp_y[j, f], ramp_x[j, f])


@_compile
def _factors(factor: Any, counts: Any, measured: Any, mask: Any, floor: Any, noise_share: Any, unit: Any) -> None:
    """Fill ``factor`` with unit · (1 − t + t √((I₀+ε)/(Î+ε))), 1 on bad pixels, t the share of the way."""
    one, zero, quarter = np.float32(1), np.float32(0), np.float32(0.25)
    error, bound, way = zero, zero, one
    if noise_share > 0:
        for k in range(mask.size):
            good, m = np.float32(mask[k]), measured[k]
            difference = math.sqrt(counts[k]) - math.sqrt(m)
            error += difference * difference * good
            bound += min(m, quarter) * good
        way = one - math.sqrt(min(noise_share * bound / max(error, np.float32(1e-30)), one))
    for k in range(mask.size):
        off = one - math.sqrt((measured[k] + floor) / (counts[k] + floor))
        factor[k] = unit * (one - way * off * np.float32(mask[k]))


@_compile
def step(
    plan: Any, waves: Any, detector: Any, numbers: Any, noise_share: Any, kept: Any, room: Any, mode: Any, out: Any
) -> None:
    """Fill ``out`` (n, part, …) with b A(c Q + (1−c) ψ) + a Q + (1−a−b) ψ, Q = P O, of ψ ``kept``; numbers a, b, c.

    ``room`` (2 part + 3, …) and ``mode`` to work in.
    """
    obj, ramps, near = waves[0], waves[5], waves[7]
    patterns, rows, kind, masks, _, floor, scales, background, _ = detector
    a, b, c = numbers
    ny, nx = ramps[0].shape[2] // 2, ramps[1].shape[2] // 2
    n_parts, pixels, one = kept.shape[1], ny * nx, np.float32(1)
    unit = one if near[0] else one / np.float32(pixels)
    power, counts, measured = room[2 * n_parts], room[2 * n_parts + 1], room[2 * n_parts + 2]
    for j in range(len(kept)):
        mask = masks[j % len(masks)]
        for i in range(n_parts):
            f, state, _, y, x = _place(waves, j, i)
            overlap, mixed, old = room[i], room[n_parts + i], kept[j, i]
            if a != 0 or c != 0:
                _enter(mixed, waves, mode, j, i, plan)
                transmit(overlap, mixed, obj[state, 0], y, x, ny, nx, False)
            else:
                overlap[: 2 * pixels] = 0
            for k in range(2 * pixels):
                mixed[k] = c * overlap[k] + (one - c) * old[k]
            _to_detector(mixed, near, j, f, plan)
            add_power(power, mixed, unit, pixels, i == 0)
        take_pattern(measured, patterns[rows[j]], kind, mask)
        detect(counts[:pixels], power, scales[j], background)
        _factors(power, counts, measured, mask, floor, noise_share, unit)
        for i in range(n_parts):
            f = _place(waves, j, i)[0]
            overlap, mixed, old, new = room[i], room[n_parts + i], kept[j, i], out[j, i]
            for k in range(pixels):
                mixed[2 * k] *= power[k]
                mixed[2 * k + 1] *= power[k]
            if near[0]:
                transform(plan, mixed, True)
                multiply(mixed, near[1], -one)
                turn(mixed, near[2][j, f], near[3][j, f], -one)
            transform(plan, mixed, False)
            for k in range(2 * pixels):
                new[k] = b * mixed[k] + a * overlap[k] + (one - a - b) * old[k]
