"""The multislice chain, compiled: one pattern a loop turn, all its waves in the second-level cache.

The last three functions do a share of patterns. Complex arrays travel as interleaved float32 (the last axis twice as
long), which the compiler turns into wide vector code; FFTW is called by its C symbol, in place, without the interpreter
and without the GIL. Waves are flat and aligned to 64 bytes. :mod:`hpcrec.models.compiled` prepares the arguments; the
plain twin with the equations is :mod:`hpcrec.models.multislice`, and a test compares the two.

Transforms are not normalised: a forward and a backward one make the factor n = ny·nx. The callers put 1/√n into the
ramps along y and 1/n into the propagator.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite.binding import add_symbol  # type: ignore[import-untyped]
from numba import njit, types

from hpcrec.backend.fft import execute_address

# A symbol instead of a pointer keeps the compiled code free of addresses, so that it can be cached on disk
add_symbol("fftwf_execute_dft", execute_address())
_execute = types.ExternalFunction("fftwf_execute_dft", types.void(types.intp, types.intp, types.intp))
_compile: Any = njit(fastmath=True, error_model="numpy", nogil=True, cache=True)


@_compile
def _enter(wave: Any, spectrum: Any, ry: Any, rx: Any) -> None:
    """Wave = spectrum · ramps."""
    n = rx.size
    for i in range(ry.size // 2):
        yr, yi = ry[2 * i], ry[2 * i + 1]
        a, c = spectrum[i * n : (i + 1) * n], wave[i * n : (i + 1) * n]
        for k in range(n // 2):
            wr = rx[2 * k] * yr - rx[2 * k + 1] * yi
            wi = rx[2 * k] * yi + rx[2 * k + 1] * yr
            c[2 * k] = a[2 * k] * wr - a[2 * k + 1] * wi
            c[2 * k + 1] = a[2 * k] * wi + a[2 * k + 1] * wr


@_compile
def _leave(out: Any, wave: Any, ry: Any, rx: Any) -> None:
    """Out += wave · conjugate ramps."""
    n = rx.size
    for i in range(ry.size // 2):
        yr, yi = ry[2 * i], ry[2 * i + 1]
        a, c = wave[i * n : (i + 1) * n], out[i * n : (i + 1) * n]
        for k in range(n // 2):
            wr = rx[2 * k] * yr - rx[2 * k + 1] * yi
            wi = -(rx[2 * k] * yi + rx[2 * k + 1] * yr)
            c[2 * k] += a[2 * k] * wr - a[2 * k + 1] * wi
            c[2 * k + 1] += a[2 * k] * wi + a[2 * k + 1] * wr


@_compile
def _shift_gradient(wave: Any, spectrum: Any, ry: Any, rx: Any, qy: Any, qx: Any) -> Any:
    """Return Σ q Im(wave* · spectrum · ramps) along y and x."""
    n = rx.size
    along_y, along_x = np.float64(0), np.float64(0)
    for i in range(qy.size):
        yr, yi = ry[2 * i], ry[2 * i + 1]
        a, c = spectrum[i * n : (i + 1) * n], wave[i * n : (i + 1) * n]
        row, row_x = np.float32(0), np.float32(0)
        for k in range(qx.size):
            wr = rx[2 * k] * yr - rx[2 * k + 1] * yi
            wi = rx[2 * k] * yi + rx[2 * k + 1] * yr
            sr = a[2 * k] * wr - a[2 * k + 1] * wi
            si = a[2 * k] * wi + a[2 * k + 1] * wr
            im = c[2 * k] * si - c[2 * k + 1] * sr
            row += im
            row_x += im * qx[k]
        along_y += row * qy[i]
        along_x += row_x
    return along_y, along_x


@_compile
def _transmit(out: Any, wave: Any, obj: Any, y: int, x: int, ny: int, nx: int) -> None:
    """Out = wave · window of the object."""
    for i in range(ny):
        a, b, c = (
            wave[2 * i * nx : 2 * (i + 1) * nx],
            obj[y + i, 2 * x : 2 * (x + nx)],
            out[2 * i * nx : 2 * (i + 1) * nx],
        )
        for k in range(nx):
            ar, ai, br, bi = a[2 * k], a[2 * k + 1], b[2 * k], b[2 * k + 1]
            c[2 * k] = ar * br - ai * bi
            c[2 * k + 1] = ar * bi + ai * br


@_compile
def _transmit_more(out: Any, wave: Any, obj: Any, y: int, x: int, ny: int, nx: int) -> None:
    """Out += wave · window of the object."""
    for i in range(ny):
        a, b, c = (
            wave[2 * i * nx : 2 * (i + 1) * nx],
            obj[y + i, 2 * x : 2 * (x + nx)],
            out[2 * i * nx : 2 * (i + 1) * nx],
        )
        for k in range(nx):
            ar, ai, br, bi = a[2 * k], a[2 * k + 1], b[2 * k], b[2 * k + 1]
            c[2 * k] += ar * br - ai * bi
            c[2 * k + 1] += ar * bi + ai * br


@_compile
def _return(
    g: Any, wave: Any, obj: Any, y: int, x: int, grad: Any, light: Any, yg: int, xg: int, ny: int, nx: int
) -> None:
    """Gradient += wave* · g, illumination += |wave|², then g = object* · g."""
    for i in range(ny):
        c, a, b = (
            g[2 * i * nx : 2 * (i + 1) * nx],
            wave[2 * i * nx : 2 * (i + 1) * nx],
            obj[y + i, 2 * x : 2 * (x + nx)],
        )
        h, u = grad[yg + i, 2 * xg : 2 * (xg + nx)], light[yg + i, xg : xg + nx]
        for k in range(nx):
            gr, gi, pr, pi, br, bi = c[2 * k], c[2 * k + 1], a[2 * k], a[2 * k + 1], b[2 * k], b[2 * k + 1]
            h[2 * k] += gr * pr + gi * pi
            h[2 * k + 1] += gi * pr - gr * pi
            u[k] += pr * pr + pi * pi
            c[2 * k] = gr * br + gi * bi
            c[2 * k + 1] = gi * br - gr * bi


@_compile
def _multiply(wave: Any, factor: Any, sign: Any) -> None:
    """Wave *= factor, or its conjugate if ``sign`` is −1."""
    for k in range(factor.size // 2):
        ar, ai, br, bi = wave[2 * k], wave[2 * k + 1], factor[2 * k], factor[2 * k + 1] * sign
        wave[2 * k] = ar * br - ai * bi
        wave[2 * k + 1] = ar * bi + ai * br


@_compile
def _propagate(wave: Any, factor: Any, sign: Any, plans: Any) -> None:
    at = wave.ctypes.data
    _execute(plans[0], at, at)
    _multiply(wave, factor, sign)
    _execute(plans[1], at, at)


@_compile
def _add_power(power: Any, far: Any, scale: Any, pixels: int, first: bool) -> None:
    if first:
        for k in range(pixels):
            power[k] = (far[2 * k] * far[2 * k] + far[2 * k + 1] * far[2 * k + 1]) * scale
    else:
        for k in range(pixels):
            power[k] += (far[2 * k] * far[2 * k] + far[2 * k + 1] * far[2 * k + 1]) * scale


@_compile
def _weigh(power: Any, measured: Any, mask: Any, poisson: bool, floor: Any, totals: Any) -> None:
    """Turn modelled intensities into the weight w = ∂L/∂I; add loss, error and counts to ``totals``."""
    loss, error, counts = np.float32(0), np.float32(0), np.float32(0)
    for k in range(mask.size):
        difference = (math.sqrt(power[k]) - math.sqrt(measured[k])) * mask[k]
        error += difference * difference
        counts += measured[k] * mask[k]
    if poisson:
        for k in range(mask.size):
            ratio = (measured[k] + floor) / (power[k] + floor)
            loss += (power[k] - measured[k] + (measured[k] + floor) * math.log(ratio)) * mask[k]
            power[k] = (np.float32(1) - ratio) * mask[k]
    else:
        for k in range(mask.size):
            found = math.sqrt(power[k] + floor)
            difference = (found - math.sqrt(measured[k] + floor)) * mask[k]
            loss += difference * difference
            power[k] = difference / found
    totals[0] += loss
    totals[1] += error
    totals[2] += counts


@_compile
def _scale(wave: Any, weight: Any, scale: Any, pixels: int) -> None:
    for k in range(pixels):
        wave[2 * k] *= weight[k] * scale
        wave[2 * k + 1] *= weight[k] * scale


@_compile
def _dot(a: Any, b: Any, pixels: int) -> Any:
    """Return Re Σ a* b."""
    total = np.float32(0)
    for k in range(2 * pixels):
        total += a[k] * b[k]
    return total


@_compile
def _illuminate(waves: Any, spectrum: Any, ry: Any, rx: Any, plans: Any) -> None:
    """Waves (mode, …) = the shifted probe modes."""
    for m in range(len(spectrum)):
        _enter(waves[m], spectrum[m], ry, rx)
        _execute(plans[1], waves[m].ctypes.data, waves[m].ctypes.data)


@_compile
def _pass_slices(waves: Any, obj: Any, propagator: Any, y: int, x: int, ny: int, nx: int, plans: Any) -> None:
    """Carry waves (mode, …) from in front of the first slice to the far field, in place."""
    for m in range(len(waves)):
        wave = waves[m]
        for s in range(len(obj)):
            if s:
                _propagate(wave, propagator, np.float32(1), plans)
            _transmit(wave, wave, obj[s], y, x, ny, nx)
        _execute(plans[0], wave.ctypes.data, wave.ctypes.data)


@_compile
def _tangent(
    wave: Any, tangent: Any, obj: Any, change: Any, propagator: Any, y: int, x: int, yc: int, xc: int, ny: int, nx: int,
    plans: Any,
) -> None:  # fmt: skip
    """Carry a wave to the far field together with its first-order change along a change of the object."""
    for s in range(len(obj)):
        if s:
            _propagate(wave, propagator, np.float32(1), plans)
            _propagate(tangent, propagator, np.float32(1), plans)
            _transmit(tangent, tangent, obj[s], y, x, ny, nx)
            _transmit_more(tangent, wave, change[s], yc, xc, ny, nx)
        else:
            _transmit(tangent, wave, change[s], yc, xc, ny, nx)
        _transmit(wave, wave, obj[s], y, x, ny, nx)
    _execute(plans[0], wave.ctypes.data, wave.ctypes.data)
    _execute(plans[0], tangent.ctypes.data, tangent.ctypes.data)


@_compile
def intensities(
    plans: Any, obj: Any, corners: Any, spectrum: Any, ramps: Any, propagator: Any, waves: Any, out: Any
) -> None:
    """Fill ``out`` (n, ny·nx) with modelled intensities; ``waves`` (mode, …) is room to work in.

    plans: addresses; obj (slice, y, 2x); corners (n, 2); spectrum (mode, 2·ny·nx); ramps (n, 2·ny) and (n, 2·nx);
    propagator (2·ny·nx).
    """
    ny, nx = ramps[0].shape[1] // 2, ramps[1].shape[1] // 2
    for j in range(len(corners)):
        _illuminate(waves, spectrum, ramps[0][j], ramps[1][j], plans)
        _pass_slices(waves, obj, propagator, corners[j, 0], corners[j, 1], ny, nx, plans)
        for m in range(len(spectrum)):
            _add_power(out[j], waves[m], np.float32(1 / (ny * nx)), ny * nx, m == 0)


@_compile
def gradients(
    plans: Any, obj: Any, corners: Any, spectrum: Any, ramps: Any, propagator: Any, patterns: Any, mask: Any,
    poisson: bool, floor: Any, origin: Any, incoming: Any, running: Any, out_obj: Any, out_light: Any,
    out_spectrum: Any, out_shifts: Any, totals: Any, probe: bool, shifts: bool, qy: Any, qx: Any,
) -> None:  # fmt: skip
    """Add gradients of patterns (n, ny·nx) to ``out_obj`` (slice, y, 2x), ``out_light`` (slice, y, x), …

    ``out_spectrum`` (mode, 2·ny·nx), ``out_shifts`` (n, 2) and ``totals`` (3,). mask (ny·nx), 1 = good; origin: pixel
    of ``obj`` where object sums begin; ``incoming`` (mode, slice, …) and ``running`` (mode + 1, …): room to work in;
    qy, qx: frequencies in cycles per pixel. Rest as in :func:`intensities`.
    """
    n_modes, n_slices, ny, nx = len(spectrum), len(obj), qy.size, qx.size
    power, one, scale = running[n_modes], np.float32(1), np.float32(1 / (ny * nx))
    last = n_slices - 1
    for j in range(len(corners)):
        y, x, ry, rx = corners[j, 0], corners[j, 1], ramps[0][j], ramps[1][j]
        yg, xg = y - origin[0], x - origin[1]
        _illuminate(incoming[:, 0], spectrum, ry, rx, plans)
        for m in range(n_modes):
            for s in range(last):
                _transmit(incoming[m, s + 1], incoming[m, s], obj[s], y, x, ny, nx)
                _propagate(incoming[m, s + 1], propagator, one, plans)
            _transmit(running[m], incoming[m, last], obj[last], y, x, ny, nx)
            _execute(plans[0], running[m].ctypes.data, running[m].ctypes.data)
            _add_power(power, running[m], scale, ny * nx, m == 0)
        _weigh(power, patterns[j], mask, poisson, floor, totals)
        for m in range(n_modes):
            g = running[m]
            _scale(g, power, scale, ny * nx)
            _execute(plans[1], g.ctypes.data, g.ctypes.data)
            for s in range(last, -1, -1):
                _return(g, incoming[m, s], obj[s], y, x, out_obj[s], out_light[s], yg, xg, ny, nx)
                if s:
                    _propagate(g, propagator, -one, plans)
            if probe or shifts:
                _execute(plans[0], g.ctypes.data, g.ctypes.data)
            if probe:
                _leave(out_spectrum[m], g, ry, rx)
            if shifts:
                along_y, along_x = _shift_gradient(g, spectrum[m], ry, rx, qy, qx)
                out_shifts[j, 0] += 4 * np.pi * along_y
                out_shifts[j, 1] += 4 * np.pi * along_x


@_compile
def responses(
    plans: Any, obj: Any, corners: Any, spectrum: Any, ramps: Any, propagator: Any, patterns: Any, mask: Any,
    poisson: bool, floor: Any, minus_inverse_curvature: Any, origin: Any, change: Any, spectrum_change: Any,
    with_probe: bool, waves: Any, terms: Any, totals: Any,
) -> None:  # fmt: skip
    """Add to ``terms`` (n, 5) the answers to ``change`` (slice, y, 2x) and ``spectrum_change`` (mode, 2·ny·nx).

    ``waves`` (4, mode, …): room to work in. Rest as in :func:`gradients`.
    """
    n_modes, ny, nx = len(spectrum), ramps[0].shape[1] // 2, ramps[1].shape[1] // 2
    far, along_obj, along_probe, power, scale = waves[0], waves[1], waves[2], waves[3, 0], np.float32(1 / (ny * nx))
    for j in range(len(corners)):
        y, x, ry, rx = corners[j, 0], corners[j, 1], ramps[0][j], ramps[1][j]
        _illuminate(far, spectrum, ry, rx, plans)
        if with_probe:
            _illuminate(along_probe, spectrum_change, ry, rx, plans)
            _pass_slices(along_probe, obj, propagator, y, x, ny, nx, plans)
        for m in range(n_modes):
            _tangent(far[m], along_obj[m], obj, change, propagator, y, x, y - origin[0], x - origin[1], ny, nx, plans)
            _add_power(power, far[m], scale, ny * nx, m == 0)
        _weigh(power, patterns[j], mask, poisson, floor, totals)
        for m in range(n_modes):
            a, b, chi = along_obj[m], along_probe[m], far[m]
            _scale(chi, power, minus_inverse_curvature, ny * nx)
            terms[j, 0] += scale * _dot(a, a, ny * nx)
            terms[j, 3] += scale * _dot(a, chi, ny * nx)
            if with_probe:
                terms[j, 1] += scale * _dot(a, b, ny * nx)
                terms[j, 2] += scale * _dot(b, b, ny * nx)
                terms[j, 4] += scale * _dot(b, chi, ny * nx)
