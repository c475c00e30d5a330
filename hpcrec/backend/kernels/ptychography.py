"""The multislice chain, compiled: one pattern a loop turn, all its waves in the second-level cache.

The last three functions do a share of patterns. Complex arrays travel as interleaved float32 (the last axis twice as
long), which the compiler turns into wide vector code; FFTW is called by its C symbol, in place, without the interpreter
and without the GIL. Waves are flat and aligned to 64 bytes. :mod:`hpcrec.models.compiled` prepares the arguments; the
plain twin with the equations is :mod:`hpcrec.models.multislice`, and a test compares the two.

Transforms are not normalised: a forward and a backward one make the factor n = ny·nx. The callers put 1/√n into the
ramps along y and 1/n into the propagator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hpcrec.backend.kernels.transforms import filter_wave, transform
from hpcrec.backend.kernels.waves import (
    AMPLITUDE,
    add_detector_sums,
    add_moments,
    add_power,
    add_scaled,
    add_turned_back,
    answer_amplitudes,
    carry_back,
    detect,
    illuminate,
    multiply,
    real_dot,
    revise,
    scale_all,
    scale_wave,
    take_pattern,
    transmit,
    transmit_in_place,
    turn,
    vary,
    weigh,
)

_compile: Any = njit(fastmath=True, error_model="numpy", nogil=True, cache=True)


@_compile
def _propagate(wave: Any, factor: Any, tilted: bool, ry: Any, rx: Any, sign: Any, plan: Any) -> None:
    """Multiply the spectrum of a wave by a factor, and by ramps if ``tilted``; by conjugates if ``sign`` is −1."""
    transform(plan, wave, True)
    multiply(wave, factor, sign)
    if tilted:
        turn(wave, ry, rx, sign)
    transform(plan, wave, False)


@_compile
def _cross(wave: Any, gaps: Any, s: int, j: int, back: bool, plan: Any) -> None:
    """Carry a wave over gap s downstream, or a gradient ``back``."""
    propagators, axes, tilted, tilt_y, tilt_x = gaps
    if len(axes) and not tilted:
        filter_wave(plan, wave, axes[s, 1 if back else 0])
    else:
        sign = np.float32(-1) if back else np.float32(1)
        _propagate(wave, propagators[s], tilted, tilt_y[j, s], tilt_x[j, s], sign, plan)


@_compile
def _illuminate(wave: Any, spectrum: Any, ry: Any, rx: Any, entry: Any, plan: Any) -> None:
    """Wave = the shifted probe mode; entry: whether it is not shifted, but comes as it is, times the second number."""
    if entry[0]:
        for k in range(ry.size * rx.size // 2):
            wave[k] = spectrum[k] * entry[1]
        return
    illuminate(wave, spectrum, ry, rx)
    transform(plan, wave, False)


@_compile
def _to_detector(wave: Any, near: Any, j: int, f: int, plan: Any) -> None:
    """Far field, or near field moved back by the probe's shift; near: whether, factor, ramps (n, flight, …)."""
    if near[0]:
        _propagate(wave, near[1], True, near[2][j, f], near[3][j, f], np.float32(1), plan)
    else:
        transform(plan, wave, True)


@_compile
def _pass_slices(
    wave: Any, obj: Any, gaps: Any, near: Any, j: int, f: int, y: int, x: int, ny: int, nx: int, plan: Any
) -> None:
    """Carry a wave from in front of the first slice to the detector, in place."""
    for s in range(len(obj)):
        if s:
            _cross(wave, gaps, s - 1, j, False, plan)
        transmit_in_place(wave, obj[s], y, x, ny, nx)
    _to_detector(wave, near, j, f, plan)


@_compile
def _tangent(
    wave: Any, tangent: Any, obj: Any, change: Any, gaps: Any, near: Any, j: int, f: int, y: int, x: int, yc: int,
    xc: int, ny: int, nx: int, plan: Any,
) -> None:  # fmt: skip
    """Carry a wave to the detector together with its first-order change along a change of the object."""
    for s in range(len(obj)):
        if s:
            _cross(wave, gaps, s - 1, j, False, plan)
            _cross(tangent, gaps, s - 1, j, False, plan)
            transmit_in_place(tangent, obj[s], y, x, ny, nx)
        transmit(tangent, wave, change[s], yc, xc, ny, nx, s > 0)
        transmit_in_place(wave, obj[s], y, x, ny, nx)
    _to_detector(wave, near, j, f, plan)
    _to_detector(tangent, near, j, f, plan)


@_compile
def power_of(j: int, waves: Any, room: Any, plan: Any) -> Any:
    """Return the power Σ|Ψ|² of pattern j, in ``room`` (mode + 2, …), which begins with the modes of the probe."""
    obj, corners, spectrum, variation, coefficients, ramps, gaps, near, entry = waves
    ny, nx, n_modes = ramps[0].shape[2] // 2, ramps[1].shape[2] // 2, len(spectrum)
    pixels, wave, power = ny * nx, room[n_modes], room[n_modes + 1]
    unit = np.float32(1 if near[0] else 1 / pixels)
    if len(variation):
        vary(room[0], spectrum[0], variation, coefficients[j], pixels)
    first = True
    for f in range(corners.shape[1]):
        y, x = corners[j, f, 0], corners[j, f, 1]
        for state in range(len(obj)):
            for m in range(n_modes):
                _illuminate(wave, room[m], ramps[0][j, f], ramps[1][j, f], entry, plan)
                _pass_slices(wave, obj[state], gaps, near, j, f, y, x, ny, nx, plan)
                add_power(power, wave, unit, pixels, first)
                first = False
    return power


@_compile
def intensities(plan: Any, waves: Any, scale: Any, background: Any, room: Any, out: Any) -> None:
    """Fill ``out`` (n, ny·nx) with modelled counts; ``room`` (mode + 2, …) to work in.

    plan: of transforms; waves: as :mod:`hpcrec.models.compiled` lays them out; scale (n,); background (ny·nx).
    """
    corners, spectrum = waves[1], waves[2]
    room[: len(spectrum), : spectrum.shape[1]] = spectrum
    for j in range(len(corners)):
        detect(out[j], power_of(j, waves, room, plan), scale[j], background)


@_compile
def gradients(
    plan: Any, waves: Any, detector: Any, origin: Any, rooms: Any, running: Any, modes: Any, frequencies: Any,
    out_obj: Any, out_light: Any, out_spectrum: Any, out_shifts: Any, out_variation: Any, out_coefficients: Any,
    out_moments: Any, out_scale: Any, out_background: Any, totals: Any, wanted: Any, revision: Any,
) -> None:  # fmt: skip
    """Add gradients of patterns to the arrays of :class:`hpcrec.models.chain.ChainSums`.

    detector: bytes of patterns (…, bytes), which of them to take (n,), their kind, mask (n or 1, ny·nx) of 0 and 1,
    loss, floor, scale (n,), background (ny·nx), whether these two say nothing; origin: pixel of ``obj`` where object
    sums begin; rooms: ``entering`` (n or 1, part, slice, …), which keeps the waves in front of the slices, and
    ``leaving`` (n or 0, part, …), which keeps ∂L/∂φ* of the exit waves φ; ``running`` (part + 3, …), ``modes``
    (mode, …): room to work in; frequencies: rate (ny·nx), and cycles per pixel along y and x; wanted: whether spectrum,
    shifts, variation, moments, scale and background are; revision: whether waves between slices are revised as 3PIE
    does, with its β and γ. Rest as in :func:`intensities`.
    """
    obj, corners, spectrum, variation, coefficients, ramps, gaps, near, entry = waves
    patterns, rows, kind, masks, loss, floor, scales, background, bare = detector
    propagators, _, tilted, tilt_y, tilt_x = gaps
    rate, qy, qx = frequencies
    probe, shifts, varied, moments, scaled, grounded = wanted
    entering, leaving = rooms
    n_modes, n_states, n_parts, last = len(spectrum), len(obj), entering.shape[1], obj.shape[1] - 1
    ny, nx, pixels = qy.size, qx.size, qy.size * qx.size
    one, inverse = np.float32(1), np.float32(1 / pixels)
    unit = one if near[0] else inverse
    power, counts = running[n_parts], running[n_parts][pixels:]
    weight, measured, extra = running[n_parts + 1], running[n_parts + 1][pixels:], running[n_parts + 2]
    straight = entry[0] and entry[1] == one
    at_once = bare and loss == AMPLITUDE and not (near[0] or scaled or grounded)
    in_passing = probe and entry[0] and not (shifts or varied)
    here, direct, nowhere = np.zeros(3), modes.reshape(n_modes, 1, modes.shape[1]), np.zeros((0, 0), np.float32)
    for m in range(n_modes):
        modes[m, : 2 * pixels] = spectrum[m]
    for j in range(len(corners)):
        mask, incoming = masks[j % len(masks)], entering[j % len(entering)]
        if len(variation):
            vary(modes[0], spectrum[0], variation, coefficients[j], pixels)
        for c in range(n_parts):
            f, state, m = c // (n_states * n_modes), c // n_modes % n_states, c % n_modes
            y, x = corners[j, f, 0], corners[j, f, 1]
            wave = modes[m] if straight else incoming[c, 0]
            if not straight:
                _illuminate(wave, modes[m], ramps[0][j, f], ramps[1][j, f], entry, plan)
            for s in range(last):
                transmit(incoming[c, s + 1], wave, obj[state, s], y, x, ny, nx, False)
                wave = incoming[c, s + 1]
                _cross(wave, gaps, s, j, False, plan)
            transmit(running[c], wave, obj[state, last], y, x, ny, nx, False)
            _to_detector(running[c], near, j, f, plan)
            if not at_once:
                add_power(power, running[c], unit, pixels, c == 0)
        take_pattern(measured, patterns[rows[j]], kind, mask)
        if at_once:
            answer_amplitudes(running, n_parts, power, measured, mask, floor, unit, totals)
        else:
            found = power
            if not bare:
                detect(counts[:pixels], power, scales[j], background)
                found = counts
            weigh(weight, found, measured, mask, loss, floor, totals)
            if scaled or grounded:
                add_detector_sums(power, found, weight, mask, out_scale[j], out_background, scaled, grounded)
        for first in range(0, n_parts, n_modes):
            f, state = first // (n_states * n_modes), first // n_modes % n_states
            y, x = corners[j, f, 0], corners[j, f, 1]
            for c in range(first, first + n_modes):
                g = running[c]
                back = near[0] and shifts
                if back:
                    extra[: 2 * pixels] = g[: 2 * pixels]
                    transform(plan, extra, True)
                if not at_once:
                    scale_wave(g, weight, unit * scales[j], pixels)
                if near[0]:
                    transform(plan, g, True)
                if back:
                    here[:] = 0
                    add_moments(here, g, extra, rate, qy, qx, inverse)
                    out_shifts[j, f, 0] -= 4 * np.pi * here[1]
                    out_shifts[j, f, 1] -= 4 * np.pi * here[2]
                if near[0]:
                    multiply(g, near[1], -one)
                    turn(g, near[2][j, f], near[3][j, f], -one)
                transform(plan, g, False)
                if len(leaving):
                    leaving[j, c, : 2 * pixels] = g[: 2 * pixels]
            for s in range(last, -1, -1):
                kept, at, slot = (direct, 0, 0) if straight and s == 0 else (incoming, first, s)
                carry_back(
                    running, first, n_modes, kept, at, slot, obj[state, s], y, x, out_obj[state, s],
                    out_light[state, s], y - origin[0], x - origin[1], ny, nx,
                    out_spectrum if in_passing and s == 0 else nowhere, entry[1],
                )  # fmt: skip
                for c in range(first, first + n_modes if s else first):
                    g = running[c]
                    if revision[0]:
                        revise(g, obj[state, s], y, x, ny, nx, revision[1], revision[2])
                    if not moments:
                        _cross(g, gaps, s - 1, j, True, plan)
                    else:
                        transform(plan, g, True)
                        extra[: 2 * pixels] = incoming[c, s, : 2 * pixels]
                        transform(plan, extra, True)
                        add_moments(out_moments[j, s - 1], g, extra, rate, qy, qx, inverse)
                        multiply(g, propagators[s - 1], -one)
                        if tilted:
                            turn(g, tilt_y[j, s - 1], tilt_x[j, s - 1], -one)
                        transform(plan, g, False)
            for m in range(0 if in_passing else n_modes):
                g = running[first + m]
                if entry[0] and (probe or varied):
                    scale_all(g, entry[1], pixels)
                elif probe or shifts or varied:
                    transform(plan, g, True)
                if probe and not (entry[0] or shifts or varied):
                    add_turned_back(out_spectrum[m], g, ramps[0][j, f], ramps[1][j, f])
                    continue
                if (shifts or varied) and not entry[0]:
                    turn(g, ramps[0][j, f], ramps[1][j, f], -one)
                if probe:
                    add_scaled(out_spectrum[m], g, one, pixels)
                if shifts:
                    here[:] = 0
                    add_moments(here, g, modes[m], rate, qy, qx, one)
                    out_shifts[j, f, 0] += 4 * np.pi * here[1]
                    out_shifts[j, f, 1] += 4 * np.pi * here[2]
                if varied and m == 0:
                    for i in range(len(variation)):
                        add_scaled(out_variation[i], g, coefficients[j, i], pixels)
                        out_coefficients[j, i] += 2 * real_dot(g, variation[i], pixels)


@_compile
def responses(
    plan: Any, waves: Any, detector: Any, minus_inverse_curvature: Any, origin: Any, change: Any,
    spectrum_change: Any, with_probe: bool, room: Any, modes: Any, terms: Any, totals: Any,
) -> None:  # fmt: skip
    """Add to ``terms`` (n, 5) the answers to ``change`` (state, slice, y, 2x) and ``spectrum_change`` (mode, 2·ny·nx).

    ``room`` (4, part, …) and ``modes`` (mode, …) to work in. Rest as in :func:`gradients`.
    """
    obj, corners, spectrum, variation, coefficients, ramps, gaps, near, entry = waves
    patterns, rows, kind, masks, loss, floor, scales, background, bare = detector
    n_modes, n_states, n_parts = len(spectrum), len(obj), room.shape[1]
    ny, nx = ramps[0].shape[2] // 2, ramps[1].shape[2] // 2
    pixels = ny * nx
    unit = np.float32(1) if near[0] else np.float32(1 / pixels)
    power, counts = room[3, 0], room[3, 0][pixels:]
    weight, measured = modes[n_modes], modes[n_modes][pixels:]
    for m in range(n_modes):
        modes[m, : 2 * pixels] = spectrum[m]
    for j in range(len(corners)):
        if len(variation):
            vary(modes[0], spectrum[0], variation, coefficients[j], pixels)
        for c in range(n_parts):
            f, state, m = c // (n_states * n_modes), c // n_modes % n_states, c % n_modes
            y, x, ry, rx = corners[j, f, 0], corners[j, f, 1], ramps[0][j, f], ramps[1][j, f]
            if with_probe:
                _illuminate(room[2, c], spectrum_change[m], ry, rx, entry, plan)
                _pass_slices(room[2, c], obj[state], gaps, near, j, f, y, x, ny, nx, plan)
            _illuminate(room[0, c], modes[m], ry, rx, entry, plan)
            _tangent(
                room[0, c], room[1, c], obj[state], change[state], gaps, near, j, f, y, x, y - origin[0], x - origin[1],
                ny, nx, plan,
            )  # fmt: skip
            add_power(power, room[0, c], unit, pixels, c == 0)
        mask = masks[j % len(masks)]
        take_pattern(measured, patterns[rows[j]], kind, mask)
        detect(counts[:pixels], power, scales[j], background)
        weigh(weight, counts, measured, mask, loss, floor, totals)
        for c in range(n_parts):
            chi, a, b = room[0, c], room[1, c], room[2, c]
            scale_wave(chi, weight, minus_inverse_curvature * scales[j], pixels)
            terms[j, 0] += unit * scales[j] * real_dot(a, a, pixels)
            terms[j, 3] += unit * real_dot(a, chi, pixels)
            if with_probe:
                terms[j, 1] += unit * scales[j] * real_dot(a, b, pixels)
                terms[j, 2] += unit * scales[j] * real_dot(b, b, pixels)
                terms[j, 4] += unit * real_dot(b, chi, pixels)
