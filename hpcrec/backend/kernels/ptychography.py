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
AMPLITUDE, POISSON, GAUSSIAN = 0, 1, 2
_compile: Any = njit(fastmath=True, error_model="numpy", nogil=True, cache=True)


@_compile
def _transmit(out: Any, wave: Any, obj: Any, y: int, x: int, ny: int, nx: int, more: bool) -> None:
    """Out = wave · window of the object; with ``more``, out += that."""
    for i in range(ny):
        a, c = wave[2 * i * nx : 2 * (i + 1) * nx], out[2 * i * nx : 2 * (i + 1) * nx]
        b = obj[y + i, 2 * x : 2 * (x + nx)]
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
def _return(
    g: Any, wave: Any, obj: Any, y: int, x: int, grad: Any, light: Any, yg: int, xg: int, ny: int, nx: int
) -> None:
    """Gradient += wave* · g, illumination += |wave|², then g = object* · g."""
    for i in range(ny):
        c, a = g[2 * i * nx : 2 * (i + 1) * nx], wave[2 * i * nx : 2 * (i + 1) * nx]
        b = obj[y + i, 2 * x : 2 * (x + nx)]
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
def _turn(wave: Any, ry: Any, rx: Any, sign: Any) -> None:
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
def _cross(wave: Any, factor: Any, tilted: bool, ry: Any, rx: Any, plans: Any) -> None:
    """Carry a wave over a gap."""
    at = wave.ctypes.data
    _execute(plans[0], at, at)
    _multiply(wave, factor, np.float32(1))
    if tilted:
        _turn(wave, ry, rx, np.float32(1))
    _execute(plans[1], at, at)


@_compile
def _add_moments(out: Any, g: Any, spectrum: Any, rate: Any, qy: Any, qx: Any, scale: Any) -> None:
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
def _add_power(power: Any, far: Any, scale: Any, pixels: int, first: bool) -> None:
    if first:
        for k in range(pixels):
            power[k] = (far[2 * k] * far[2 * k] + far[2 * k + 1] * far[2 * k + 1]) * scale
    else:
        for k in range(pixels):
            power[k] += (far[2 * k] * far[2 * k] + far[2 * k + 1] * far[2 * k + 1]) * scale


@_compile
def _detect(counts: Any, power: Any, scale: Any, background: Any) -> None:
    """Counts = scale · power + background."""
    for k in range(background.size):
        counts[k] = scale * power[k] + background[k]


@_compile
def _weigh(weight: Any, counts: Any, measured: Any, mask: Any, loss: int, floor: Any, totals: Any) -> None:
    """Weight = ∂L/∂Î of the modelled counts Î; add loss, error and counts to ``totals``."""
    total, error, sum_counts = np.float32(0), np.float32(0), np.float32(0)
    for k in range(mask.size):
        difference = (math.sqrt(counts[k]) - math.sqrt(measured[k])) * mask[k]
        error += difference * difference
        sum_counts += measured[k] * mask[k]
    if loss == POISSON:
        for k in range(mask.size):
            ratio = (measured[k] + floor) / (counts[k] + floor)
            total += (counts[k] - measured[k] + (measured[k] + floor) * math.log(ratio)) * mask[k]
            weight[k] = (np.float32(1) - ratio) * mask[k]
    elif loss == GAUSSIAN:
        for k in range(mask.size):
            difference = (counts[k] - measured[k]) * mask[k]
            weight[k] = np.float32(2) * difference / (measured[k] + floor)
            total += difference * weight[k]
        total *= np.float32(0.5)
    else:
        for k in range(mask.size):
            found = math.sqrt(counts[k] + floor)
            difference = (found - math.sqrt(measured[k] + floor)) * mask[k]
            total += difference * difference
            weight[k] = difference / found
    totals[0] += total
    totals[1] += error
    totals[2] += sum_counts


@_compile
def _add_detector_sums(
    power: Any, counts: Any, weight: Any, mask: Any, of_scale: Any, of_background: Any, with_scale: bool,
    with_background: bool,
) -> None:  # fmt: skip
    """Add ∂L/∂c and the counts at c = 1 to ``of_scale`` (2,); ∂L/∂b and ½/(Î + 1) to ``of_background`` (2, …)."""
    if with_scale:
        along, total = np.float32(0), np.float32(0)
        for k in range(mask.size):
            along += weight[k] * power[k]
            total += power[k] * mask[k]
        of_scale[0] += along
        of_scale[1] += total
    if with_background:
        for k in range(mask.size):
            of_background[0, k] += weight[k]
            of_background[1, k] += mask[k] * np.float32(0.5) / (counts[k] + np.float32(1))


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
def _add(out: Any, wave: Any, factor: Any, pixels: int) -> None:
    for k in range(2 * pixels):
        out[k] += factor * wave[k]


@_compile
def _vary(mode: Any, spectrum: Any, variation: Any, coefficients: Any, pixels: int) -> None:
    """Mode = spectrum + Σ coefficients · variation."""
    mode[: 2 * pixels] = spectrum
    for i in range(len(variation)):
        _add(mode, variation[i], coefficients[i], pixels)


@_compile
def _illuminate(wave: Any, spectrum: Any, ry: Any, rx: Any, plans: Any) -> None:
    """Wave = the shifted probe mode."""
    wave[: ry.size * rx.size // 2] = spectrum[: ry.size * rx.size // 2]
    _turn(wave, ry, rx, np.float32(1))
    _execute(plans[1], wave.ctypes.data, wave.ctypes.data)


@_compile
def _to_detector(wave: Any, near: bool, factor: Any, none: Any, plans: Any) -> None:
    if near:
        _cross(wave, factor, False, none, none, plans)
    else:
        _execute(plans[0], wave.ctypes.data, wave.ctypes.data)


@_compile
def _pass_slices(
    wave: Any, obj: Any, gaps: Any, near: Any, j: int, y: int, x: int, ny: int, nx: int, plans: Any
) -> None:
    """Carry a wave from in front of the first slice to the detector, in place."""
    propagators, tilted, tilt_y, tilt_x = gaps
    for s in range(len(obj)):
        if s:
            _cross(wave, propagators[s - 1], tilted, tilt_y[j, s - 1], tilt_x[j, s - 1], plans)
        _transmit(wave, wave, obj[s], y, x, ny, nx, False)
    _to_detector(wave, near[0], near[1], near[1], plans)


@_compile
def _tangent(
    wave: Any, tangent: Any, obj: Any, change: Any, gaps: Any, near: Any, j: int, y: int, x: int, yc: int, xc: int,
    ny: int, nx: int, plans: Any,
) -> None:  # fmt: skip
    """Carry a wave to the detector together with its first-order change along a change of the object."""
    propagators, tilted, tilt_y, tilt_x = gaps
    for s in range(len(obj)):
        if s:
            _cross(wave, propagators[s - 1], tilted, tilt_y[j, s - 1], tilt_x[j, s - 1], plans)
            _cross(tangent, propagators[s - 1], tilted, tilt_y[j, s - 1], tilt_x[j, s - 1], plans)
            _transmit(tangent, tangent, obj[s], y, x, ny, nx, False)
        _transmit(tangent, wave, change[s], yc, xc, ny, nx, s > 0)
        _transmit(wave, wave, obj[s], y, x, ny, nx, False)
    _to_detector(wave, near[0], near[1], near[1], plans)
    _to_detector(tangent, near[0], near[1], near[1], plans)


@_compile
def intensities(plans: Any, waves: Any, scale: Any, background: Any, room: Any, out: Any) -> None:
    """Fill ``out`` (n, ny·nx) with modelled counts; ``room`` (mode + 2, …) to work in.

    plans: addresses; waves: what :func:`hpcrec.models.compiled.waves_arguments` gives; scale (n,); background (ny·nx).
    """
    obj, corners, spectrum, variation, coefficients, ramps, gaps, near = waves
    ny, nx, n_modes = ramps[0].shape[2] // 2, ramps[1].shape[2] // 2, len(spectrum)
    pixels, wave = ny * nx, room[n_modes]
    power, unit = room[n_modes + 1], np.float32(1 if near[0] else 1 / (ny * nx))
    for m in range(n_modes):
        room[m, : 2 * pixels] = spectrum[m]
    for j in range(len(corners)):
        _vary(room[0], spectrum[0], variation, coefficients[j], pixels)
        first = True
        for f in range(corners.shape[1]):
            for state in range(len(obj)):
                for m in range(n_modes):
                    _illuminate(wave, room[m], ramps[0][j, f], ramps[1][j, f], plans)
                    _pass_slices(wave, obj[state], gaps, near, j, corners[j, f, 0], corners[j, f, 1], ny, nx, plans)
                    _add_power(power, wave, unit, pixels, first)
                    first = False
        _detect(out[j], power, scale[j], background)


@_compile
def gradients(
    plans: Any, waves: Any, detector: Any, origin: Any, incoming: Any, running: Any, modes: Any, frequencies: Any,
    out_obj: Any, out_light: Any, out_spectrum: Any, out_shifts: Any, out_variation: Any, out_coefficients: Any,
    out_moments: Any, out_scale: Any, out_background: Any, totals: Any, wanted: Any,
) -> None:  # fmt: skip
    """Add gradients of patterns to the arrays of :class:`hpcrec.models.chain.ChainSums`.

    detector: patterns (n, ny·nx), mask (n or 1, ny·nx), loss, floor, scale (n,), background (ny·nx); origin: pixel of
    ``obj`` where object sums begin; ``incoming`` (part, slice, …), ``running`` (part + 3, …), ``modes`` (mode, …): room
    to work in; frequencies: rate (ny·nx), and cycles per pixel along y and x; wanted: whether spectrum, shifts,
    variation, moments, scale and background are. Rest as in :func:`intensities`.
    """
    obj, corners, spectrum, variation, coefficients, ramps, gaps, near = waves
    patterns, masks, loss, floor, scales, background = detector
    propagators, tilted, tilt_y, tilt_x = gaps
    rate, qy, qx = frequencies
    probe, shifts, varied, moments, scaled, grounded = wanted
    n_modes, n_states, n_parts, last = len(spectrum), len(obj), len(incoming), obj.shape[1] - 1
    ny, nx, pixels = qy.size, qx.size, qy.size * qx.size
    one, inverse = np.float32(1), np.float32(1 / pixels)
    unit = one if near[0] else inverse
    power, counts, weight, extra = (
        running[n_parts],
        running[n_parts][pixels:],
        running[n_parts + 1],
        running[n_parts + 2],
    )
    here = np.zeros(3)
    for m in range(n_modes):
        modes[m, : 2 * pixels] = spectrum[m]
    for j in range(len(corners)):
        mask = masks[j % len(masks)]
        _vary(modes[0], spectrum[0], variation, coefficients[j], pixels)
        for c in range(n_parts):
            f, state, m = c // (n_states * n_modes), c // n_modes % n_states, c % n_modes
            y, x = corners[j, f, 0], corners[j, f, 1]
            _illuminate(incoming[c, 0], modes[m], ramps[0][j, f], ramps[1][j, f], plans)
            for s in range(last):
                _transmit(incoming[c, s + 1], incoming[c, s], obj[state, s], y, x, ny, nx, False)
                _cross(incoming[c, s + 1], propagators[s], tilted, tilt_y[j, s], tilt_x[j, s], plans)
            _transmit(running[c], incoming[c, last], obj[state, last], y, x, ny, nx, False)
            _to_detector(running[c], near[0], near[1], near[1], plans)
            _add_power(power, running[c], unit, pixels, c == 0)
        _detect(counts[:pixels], power, scales[j], background)
        _weigh(weight, counts, patterns[j], mask, loss, floor, totals)
        _add_detector_sums(power, counts, weight, mask, out_scale[j], out_background, scaled, grounded)
        for c in range(n_parts):
            f, state, m = c // (n_states * n_modes), c // n_modes % n_states, c % n_modes
            y, x, g = corners[j, f, 0], corners[j, f, 1], running[c]
            _scale(g, weight, unit * scales[j], pixels)
            if near[0]:
                _execute(plans[0], g.ctypes.data, g.ctypes.data)
                _multiply(g, near[1], -one)
            _execute(plans[1], g.ctypes.data, g.ctypes.data)
            for s in range(last, -1, -1):
                _return(
                    g, incoming[c, s], obj[state, s], y, x, out_obj[state, s], out_light[state, s],
                    y - origin[0], x - origin[1], ny, nx,
                )  # fmt: skip
                if s:
                    _execute(plans[0], g.ctypes.data, g.ctypes.data)
                    if moments:
                        extra[: 2 * pixels] = incoming[c, s, : 2 * pixels]
                        _execute(plans[0], extra.ctypes.data, extra.ctypes.data)
                        _add_moments(out_moments[j, s - 1], g, extra, rate, qy, qx, inverse)
                    _multiply(g, propagators[s - 1], -one)
                    if tilted:
                        _turn(g, tilt_y[j, s - 1], tilt_x[j, s - 1], -one)
                    _execute(plans[1], g.ctypes.data, g.ctypes.data)
            if probe or shifts or varied:
                _execute(plans[0], g.ctypes.data, g.ctypes.data)
                _turn(g, ramps[0][j, f], ramps[1][j, f], -one)
            if probe:
                _add(out_spectrum[m], g, one, pixels)
            if shifts:
                here[:] = 0
                _add_moments(here, g, modes[m], rate, qy, qx, one)
                out_shifts[j, f, 0] += 4 * np.pi * here[1]
                out_shifts[j, f, 1] += 4 * np.pi * here[2]
            if varied and m == 0:
                for i in range(len(variation)):
                    _add(out_variation[i], g, coefficients[j, i], pixels)
                    out_coefficients[j, i] += 2 * _dot(g, variation[i], pixels)


@_compile
def responses(
    plans: Any, waves: Any, detector: Any, minus_inverse_curvature: Any, origin: Any, change: Any,
    spectrum_change: Any, with_probe: bool, room: Any, modes: Any, terms: Any, totals: Any,
) -> None:  # fmt: skip
    """Add to ``terms`` (n, 5) the answers to ``change`` (state, slice, y, 2x) and ``spectrum_change`` (mode, 2·ny·nx).

    ``room`` (4, part, …) and ``modes`` (mode, …) to work in. Rest as in :func:`gradients`.
    """
    obj, corners, spectrum, variation, coefficients, ramps, gaps, near = waves
    patterns, masks, loss, floor, scales, background = detector
    n_modes, n_states, n_parts = len(spectrum), len(obj), room.shape[1]
    ny, nx = ramps[0].shape[2] // 2, ramps[1].shape[2] // 2
    pixels = ny * nx
    unit = np.float32(1) if near[0] else np.float32(1 / pixels)
    power, counts, weight = room[3, 0], room[3, 0][pixels:], modes[n_modes]
    for m in range(n_modes):
        modes[m, : 2 * pixels] = spectrum[m]
    for j in range(len(corners)):
        _vary(modes[0], spectrum[0], variation, coefficients[j], pixels)
        for c in range(n_parts):
            f, state, m = c // (n_states * n_modes), c // n_modes % n_states, c % n_modes
            y, x, ry, rx = corners[j, f, 0], corners[j, f, 1], ramps[0][j, f], ramps[1][j, f]
            if with_probe:
                _illuminate(room[2, c], spectrum_change[m], ry, rx, plans)
                _pass_slices(room[2, c], obj[state], gaps, near, j, y, x, ny, nx, plans)
            _illuminate(room[0, c], modes[m], ry, rx, plans)
            _tangent(
                room[0, c], room[1, c], obj[state], change[state], gaps, near, j, y, x, y - origin[0], x - origin[1],
                ny, nx, plans,
            )  # fmt: skip
            _add_power(power, room[0, c], unit, pixels, c == 0)
        _detect(counts[:pixels], power, scales[j], background)
        _weigh(weight, counts, patterns[j], masks[j % len(masks)], loss, floor, totals)
        for c in range(n_parts):
            chi, a, b = room[0, c], room[1, c], room[2, c]
            _scale(chi, weight, minus_inverse_curvature * scales[j], pixels)
            terms[j, 0] += unit * _dot(a, a, pixels)
            terms[j, 3] += unit * _dot(a, chi, pixels)
            if with_probe:
                terms[j, 1] += unit * _dot(a, b, pixels)
                terms[j, 2] += unit * _dot(b, b, pixels)
                terms[j, 4] += unit * _dot(b, chi, pixels)
