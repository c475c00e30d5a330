"""Steps on waves of one pattern, compiled: flat interleaved float32, one pass over memory each.

numba's cache on disk looks at the file of a function alone: who changes this file must clear the cache, as the tests do
(``tests/conftest.py``), or the callers in ``ptychography.py`` go on with the old code.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from hpcrec.backend.kernels.logarithm import excess
from hpcrec.backend.kernels.rows import row_of

AMPLITUDE, POISSON, GAUSSIAN = 0, 1, 2
# Types in which patterns come as they are
COUNTS = (np.uint8, np.uint16, np.uint32, np.float32)
# Added to what divides and may be zero
_LEAST = np.float32(1e-30)
# Pixels that go through the detector at a time
_PIECE = 1024
_compile: Any = njit(fastmath=True, error_model="numpy", nogil=True, cache=True)
_exactly: Any = njit(error_model="numpy", nogil=True, cache=True)


@_compile
def transmit(out: Any, wave: Any, obj: Any, y: int, x: int, ny: int, nx: int, more: bool) -> None:
    """Out = wave · window of the object; with ``more``, out += that. Not in place."""
    for i in range(ny):
        a, c = row_of(wave, 2 * i * nx, 2 * nx), row_of(out, 2 * i * nx, 2 * nx)
        b = row_of(obj, (y + i) * obj.shape[1] + 2 * x, 2 * nx)
        if more:
            for k in range(nx):
                c[2 * k] += a[2 * k] * b[2 * k] - a[2 * k + 1] * b[2 * k + 1]
                c[2 * k + 1] += a[2 * k] * b[2 * k + 1] + a[2 * k + 1] * b[2 * k]
        else:
            for k in range(nx):
                ar, ai, br, bi = a[2 * k], a[2 * k + 1], b[2 * k], b[2 * k + 1]
                c[2 * k] = ar * br - ai * bi
                c[2 * k + 1] = ar * bi + ai * br


@_compile
def transmit_in_place(wave: Any, obj: Any, y: int, x: int, ny: int, nx: int) -> None:
    """Wave *= window of the object; :func:`transmit` onto its own input would be a loop of single numbers."""
    for i in range(ny):
        a, b = row_of(wave, 2 * i * nx, 2 * nx), row_of(obj, (y + i) * obj.shape[1] + 2 * x, 2 * nx)
        for k in range(nx):
            ar, ai, br, bi = a[2 * k], a[2 * k + 1], b[2 * k], b[2 * k + 1]
            a[2 * k] = ar * br - ai * bi
            a[2 * k + 1] = ar * bi + ai * br


@_compile
def carry_back(
    waves: Any, first: int, n_modes: int, kept: Any, kept_first: int, slot: int, obj: Any, y: int, x: int, grad: Any,
    light: Any, yg: int, xg: int, ny: int, nx: int, probe: Any, scale: Any,
) -> None:  # fmt: skip
    """Gradient += wave* · g, illumination += |wave|², then g = object* · g, for all modes at a time, row by row.

    g: ``waves[first + m]``; wave: ``kept[kept_first + m, slot]``. Where ``probe`` (mode, 2·ny·nx) has modes, g stays as
    it is and probe += scale · object* · g.
    """
    to_probe, n = len(probe) > 0, 2 * nx
    _, n_slots, length = kept.shape
    for i in range(ny):
        b, h = row_of(obj, (y + i) * obj.shape[1] + 2 * x, n), row_of(grad, (yg + i) * grad.shape[1] + 2 * xg, n)
        u = row_of(light, (yg + i) * light.shape[1] + xg, nx)
        for m in range(n_modes):
            c = row_of(waves, (first + m) * waves.shape[1] + i * n, n)
            a = row_of(kept, ((kept_first + m) * n_slots + slot) * length + i * n, n)
            if to_probe:
                d = row_of(probe, m * probe.shape[1] + i * n, n)
                for k in range(nx):
                    gr, gi, pr, pi, br, bi = c[2 * k], c[2 * k + 1], a[2 * k], a[2 * k + 1], b[2 * k], b[2 * k + 1]
                    h[2 * k] += gr * pr + gi * pi
                    h[2 * k + 1] += gi * pr - gr * pi
                    u[k] += pr * pr + pi * pi
                    d[2 * k] += (gr * br + gi * bi) * scale
                    d[2 * k + 1] += (gi * br - gr * bi) * scale
            else:
                for k in range(nx):
                    gr, gi, pr, pi, br, bi = c[2 * k], c[2 * k + 1], a[2 * k], a[2 * k + 1], b[2 * k], b[2 * k + 1]
                    h[2 * k] += gr * pr + gi * pi
                    h[2 * k + 1] += gi * pr - gr * pi
                    u[k] += pr * pr + pi * pi
                    c[2 * k] = gr * br + gi * bi
                    c[2 * k + 1] = gi * br - gr * bi


@_compile
def revise(g: Any, obj: Any, y: int, x: int, ny: int, nx: int, step: Any, regularity: Any) -> None:
    """G *= β / ((1−γ)|O|² + γ max|O|²), the maximum over the window."""
    one, largest = np.float32(1), np.float32(0)
    for i in range(ny):
        b = obj[y + i, 2 * x : 2 * (x + nx)]
        for k in range(nx):
            largest = max(largest, b[2 * k] * b[2 * k] + b[2 * k + 1] * b[2 * k + 1])
    for i in range(ny):
        c, b = g[2 * i * nx : 2 * (i + 1) * nx], obj[y + i, 2 * x : 2 * (x + nx)]
        for k in range(nx):
            power = b[2 * k] * b[2 * k] + b[2 * k + 1] * b[2 * k + 1]
            size = (one - regularity) * power + regularity * largest
            factor = step / (size if size > np.float32(0) else one)
            c[2 * k] *= factor
            c[2 * k + 1] *= factor


@_compile
def multiply(wave: Any, factor: Any, sign: Any) -> None:
    """Wave *= factor, or its conjugate if ``sign`` is −1."""
    for k in range(factor.size // 2):
        ar, ai, br, bi = wave[2 * k], wave[2 * k + 1], factor[2 * k], factor[2 * k + 1] * sign
        wave[2 * k] = ar * br - ai * bi
        wave[2 * k + 1] = ar * bi + ai * br


@_compile
def turn(wave: Any, ry: Any, rx: Any, sign: Any) -> None:
    """Wave *= ramps, or their conjugate if ``sign`` is −1."""
    n = rx.size
    for i in range(ry.size // 2):
        yr, yi = ry[2 * i], ry[2 * i + 1]
        c = wave[i * n : (i + 1) * n]
        for k in range(n // 2):
            wr = rx[2 * k] * yr - rx[2 * k + 1] * yi
            wi = (rx[2 * k] * yi + rx[2 * k + 1] * yr) * sign
            cr, ci = c[2 * k], c[2 * k + 1]
            c[2 * k] = cr * wr - ci * wi
            c[2 * k + 1] = cr * wi + ci * wr


@_compile
def fill_ramps(shifts: Any, factor: float, out: Any) -> None:
    """Fill ``out`` (n, 2m) with factor · exp(−2πi q δ) of shifts δ (n,) in pixels, q of the m frequencies."""
    m = out.shape[1] // 2
    for j in range(shifts.size):
        step_r, step_i = math.cos(2 * math.pi * shifts[j] / m), -math.sin(2 * math.pi * shifts[j] / m)
        re, im = factor, 0.0
        for k in range(m // 2 + 1):
            if 2 * k < m:
                out[j, 2 * k], out[j, 2 * k + 1] = re, im
            if k:
                out[j, 2 * (m - k)], out[j, 2 * (m - k) + 1] = re, -im
            re, im = re * step_r - im * step_i, re * step_i + im * step_r


@_compile
def illuminate(wave: Any, spectrum: Any, ry: Any, rx: Any) -> None:
    """Wave = spectrum · ramps."""
    n = rx.size
    for i in range(ry.size // 2):
        yr, yi = ry[2 * i], ry[2 * i + 1]
        c, a = row_of(wave, i * n, n), row_of(spectrum, i * n, n)
        for k in range(n // 2):
            wr = rx[2 * k] * yr - rx[2 * k + 1] * yi
            wi = rx[2 * k] * yi + rx[2 * k + 1] * yr
            c[2 * k] = a[2 * k] * wr - a[2 * k + 1] * wi
            c[2 * k + 1] = a[2 * k] * wi + a[2 * k + 1] * wr


@_compile
def add_turned_back(out: Any, wave: Any, ry: Any, rx: Any) -> None:
    """Out += wave · conjugate ramps."""
    n = rx.size
    for i in range(ry.size // 2):
        yr, yi = ry[2 * i], ry[2 * i + 1]
        c, a = row_of(out, i * n, n), row_of(wave, i * n, n)
        for k in range(n // 2):
            wr = rx[2 * k] * yr - rx[2 * k + 1] * yi
            wi = rx[2 * k] * yi + rx[2 * k + 1] * yr
            c[2 * k] += a[2 * k] * wr + a[2 * k + 1] * wi
            c[2 * k + 1] += a[2 * k + 1] * wr - a[2 * k] * wi


@_compile
def add_moments(out: Any, g: Any, spectrum: Any, rate: Any, qy: Any, qx: Any, scale: Any) -> None:
    """Add ``scale`` times Σ r Im(G* X), Σ q_y Im(G* X), Σ q_x Im(G* X) to ``out`` (3,), X = ``spectrum``."""
    n = qx.size
    for i in range(qy.size):
        c, a, r = g[2 * i * n : 2 * (i + 1) * n], spectrum[2 * i * n : 2 * (i + 1) * n], rate[i * n : (i + 1) * n]
        row, row_x, row_r = np.float32(0), np.float32(0), np.float32(0)
        for k in range(n):
            im = c[2 * k] * a[2 * k + 1] - c[2 * k + 1] * a[2 * k]
            row += im
            row_x += im * qx[k]
            row_r += im * r[k]
        out[0] += row_r * scale
        out[1] += row * qy[i] * scale
        out[2] += row_x * scale


@_compile
def add_power(power: Any, far: Any, scale: Any, pixels: int, first: bool) -> None:
    """Power += scale · |wave|², or = for the first part."""
    if first:
        for k in range(pixels):
            power[k] = (far[2 * k] * far[2 * k] + far[2 * k + 1] * far[2 * k + 1]) * scale
    else:
        for k in range(pixels):
            power[k] += (far[2 * k] * far[2 * k] + far[2 * k + 1] * far[2 * k + 1]) * scale


@_compile
def detect(counts: Any, power: Any, scale: Any, background: Any) -> None:
    """Counts = scale · power + background."""
    for k in range(background.size):
        counts[k] = scale * power[k] + background[k]


# Without fastmath: bad pixels may hold not-a-number
@_exactly
def take(out: Any, values: Any, mask: Any) -> None:
    """Out = values as float32, zero where the mask is."""
    for k in range(mask.size):
        out[k] = np.float32(values[k]) if mask[k] else np.float32(0)


@_exactly
def take_pattern(out: Any, raw: Any, kind: int, mask: Any) -> None:
    """Out = counts of a pattern given by its bytes; ``kind`` is the place of its type in :data:`COUNTS`."""
    if kind == 0:
        take(out, raw, mask)
    elif kind == 1:
        take(out, raw.view(np.uint16), mask)
    elif kind == 2:
        take(out, raw.view(np.uint32), mask)
    else:
        take(out, raw.view(np.float32), mask)


@_compile
def _squared(c: Any, m: Any) -> Any:
    """Return (√c − √m)² = (c − m)²/(√c + √m)²: of bright, well fitted pixels c + m − 2√(c m) would keep no digit."""
    off = c - m
    return off * off / (c + m + np.float32(2) * math.sqrt(c * m) + _LEAST)


@_compile
def weigh(weight: Any, counts: Any, measured: Any, mask: Any, loss: int, floor: Any, totals: Any) -> None:
    """Weight = ∂L/∂Î of the modelled counts Î; add loss, error and counts to ``totals``. May overwrite ``counts``.

    For amplitudes, with r² = (I + ε)/(Î + ε): weight 1 − r and loss (Î + ε)(1 − r)². For Poisson counts: weight 1 − r²
    and loss (Î + ε)(r² ln r² − r² + 1).
    """
    total, error, sum_counts = np.float32(0), np.float32(0), np.float32(0)
    two = np.float32(2)
    if loss == POISSON:
        for k in range(mask.size):
            m, c, good = measured[k], counts[k], np.float32(mask[k])
            sharpness = np.float32(1) / (c + floor)
            off = (m - c) * sharpness * good
            error += _squared(c, m) * good
            sum_counts += m
            total += (c + floor) * excess((m + floor) * sharpness, off) * good
            weight[k] = -off
    elif loss == GAUSSIAN:
        for k in range(mask.size):
            m, c, good = measured[k], counts[k], np.float32(mask[k])
            difference = (c - m) * good
            error += _squared(c, m) * good
            sum_counts += m
            weight[k] = two * difference / (m + floor)
            total += difference * difference / (m + floor)
    else:
        for k in range(mask.size):
            m, c, good = measured[k], counts[k], np.float32(mask[k])
            error += _squared(c, m) * good
            sum_counts += m
            off = (np.float32(1) - math.sqrt((m + floor) / (c + floor))) * good
            total += (c + floor) * off * off
            weight[k] = off
    totals[0] += total
    totals[1] += error
    totals[2] += sum_counts


@_compile
def _answer_alone(wave: Any, measured: Any, mask: Any, floor: Any, unit: Any, totals: Any) -> None:
    """Do the same with a single part, whose power is not needed twice."""
    total, error, sum_counts = np.float32(0), np.float32(0), np.float32(0)
    for k in range(mask.size):
        re, im, m, good = wave[2 * k], wave[2 * k + 1], measured[k], np.float32(mask[k])
        c = (re * re + im * im) * unit
        error += _squared(c, m) * good
        sum_counts += m
        off = (np.float32(1) - math.sqrt((m + floor) / (c + floor))) * good
        total += (c + floor) * off * off
        wave[2 * k] = re * off * unit
        wave[2 * k + 1] = im * off * unit
    totals[0] += total
    totals[1] += error
    totals[2] += sum_counts


@_compile
def answer_amplitudes(
    waves: Any, n_parts: int, room: Any, measured: Any, mask: Any, floor: Any, unit: Any, totals: Any
) -> None:
    """Do what add_power, weigh and scale_wave do with the amplitude loss, in one pass; ``room`` (:data:`_PIECE`,)."""
    one = np.float32(1)
    if n_parts == 1:
        _answer_alone(waves[0], measured, mask, floor, unit, totals)
        return
    for start in range(0, mask.size, _PIECE):
        end = min(start + _PIECE, mask.size)
        power, seen, good = room[: end - start], measured[start:end], mask[start:end]
        total, error, sum_counts = np.float32(0), np.float32(0), np.float32(0)
        for c in range(n_parts):
            add_power(power, waves[c, 2 * start : 2 * end], unit, end - start, c == 0)
        for k in range(power.size):
            c, m, g = power[k], seen[k], np.float32(good[k])
            error += _squared(c, m) * g
            sum_counts += m
            off = (one - math.sqrt((m + floor) / (c + floor))) * g
            total += (c + floor) * off * off
            power[k] = off * unit
        for c in range(n_parts):
            scale_wave(waves[c, 2 * start : 2 * end], power, one, end - start)
        totals[0] += total
        totals[1] += error
        totals[2] += sum_counts


@_compile
def add_detector_sums(
    power: Any, counts: Any, weight: Any, mask: Any, of_scale: Any, of_background: Any, with_scale: bool,
    with_background: bool,
) -> None:  # fmt: skip
    """Add ∂L/∂c and the counts at c = 1 to ``of_scale`` (2,); ∂L/∂b and ½/(Î + 1) to ``of_background`` (2, …)."""
    if with_scale:
        along, total = np.float32(0), np.float32(0)
        for k in range(mask.size):
            along += weight[k] * power[k]
            total += power[k] * np.float32(mask[k])
        of_scale[0] += along
        of_scale[1] += total
    if with_background:
        for k in range(mask.size):
            of_background[0, k] += weight[k]
            of_background[1, k] += np.float32(mask[k]) * np.float32(0.5) / (counts[k] + np.float32(1))


@_compile
def scale_wave(wave: Any, weight: Any, scale: Any, pixels: int) -> None:
    """Wave *= scale · weight."""
    for k in range(pixels):
        wave[2 * k] *= weight[k] * scale
        wave[2 * k + 1] *= weight[k] * scale


@_compile
def scale_all(wave: Any, factor: Any, pixels: int) -> None:
    """Wave *= factor, if that is not 1."""
    if factor != np.float32(1):
        for k in range(2 * pixels):
            wave[k] *= factor


@_compile
def real_dot(a: Any, b: Any, pixels: int) -> Any:
    """Return Re Σ a* b."""
    total = np.float32(0)
    for k in range(2 * pixels):
        total += a[k] * b[k]
    return total


@_compile
def add_scaled(out: Any, wave: Any, factor: Any, pixels: int) -> None:
    """Out += factor · wave."""
    for k in range(2 * pixels):
        out[k] += factor * wave[k]


@_compile
def vary(mode: Any, spectrum: Any, variation: Any, coefficients: Any, pixels: int) -> None:
    """Mode = spectrum + Σ coefficients · variation."""
    mode[: 2 * pixels] = spectrum
    for i in range(len(variation)):
        add_scaled(mode, variation[i], coefficients[i], pixels)
