"""Many batches in one call: gradients of a batch, then a step of object and probe, without the interpreter in between.

Each thread runs :func:`run_batches`; they meet between gradients and step. What one thread does alone is small: the
sums of the probe. :mod:`hpcrec.models.stream` prepares the arguments; the same with other sums of round-off is
``Engine.accumulate`` and ``Engine.apply`` for one batch after the other, and a test compares the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcrec.backend.kernels.meeting import meet, take_one
from hpcrec.backend.kernels.ptychography import _compile, gradients
from hpcrec.backend.kernels.transforms import transform
from hpcrec.backend.kernels.waves import add_power
from hpcrec.backend.kernels.windows import add_and_clear, add_window_powers, peak_of, peak_of_windows, step_windows

_ROWS = 16
"""Rows of the object that a thread takes at a time."""


@_compile
def run_batches(
    place: int, n_threads: int, meeting: Any, plan: Any, waves: Any, detector: Any, batches: Any, room: Any,
    frequencies: Any, sums: Any, momenta: Any, of_object: Any, of_probe: Any, peaks: Any, totals: Any,
) -> None:  # fmt: skip
    """Do the share of thread ``place``; object, spectrum and momenta are changed in place.

    plan, waves, detector, frequencies: as in :func:`hpcrec.backend.kernels.ptychography.gradients`, the spectrum
    contiguous (mode, 2·ny·nx). batches: where batches begin and end (m + 1,), their windows (n · flight, 2) in
    ascending order of x within a batch, and the factor of Σ|O|². room: incoming, running and modes of this thread.
    sums, all zero before and after: gradient (thread, state, slice, y, 2x), illumination (thread, state, slice, y, x),
    spectra (thread, mode, 2·ny·nx), window powers (thread, ny, nx). momenta: of object (slice, y, 2x) and spectrum
    (mode, 2·ny·nx), or none of either. of_object: share, floor, scale, momentum, whether the floor is a share of the
    illumination's peak (or of the probe's), what of that peak is dark, whether quadratic, bound. of_probe: whether it
    moves, γ, 1/curvature, step, momentum. peaks (2 + thread,): room; the first is max Σ|P|² at the start; totals (3,).
    """
    obj, corners, spectrum, variation, coefficients, ramps, gaps, near, entry = waves
    patterns, rows, kind, masks, loss, floor, scales, background, bare = detector
    propagators, axes, tilted, tilt_y, tilt_x = gaps
    edges, windows, power_share = batches
    incoming, running, modes = room
    gradient, light, spectra, powers = sums
    share, floor_share, scale, momentum, by_light, dark_share, quadratic, bound = of_object
    ny, nx, flight, probe_moves = frequencies[1].size, frequencies[2].size, corners.shape[1], of_probe[0]
    n_slices = obj.shape[0] * obj.shape[1]
    flat = obj.reshape(n_slices, obj.shape[2], obj.shape[3])
    flat_gradient = gradient.reshape(n_threads, n_slices, obj.shape[2], obj.shape[3])
    flat_light = light.reshape(n_threads, n_slices, obj.shape[2], obj.shape[3] // 2)
    wanted = probe_moves, False, False, False, False, False
    origin, none = np.zeros(2, np.int64), np.zeros((2, 0), np.float32)
    unkept, unrevised = np.zeros((0, 1, 1), np.float32), (False, np.float32(0), np.float32(0))
    none_of_patterns, none_of_gaps = np.zeros((0, 0)), np.zeros((0, 0, 3))
    taken = 0
    for b in range(len(edges) - 1):
        first, n = edges[b], edges[b + 1] - edges[b]
        lo, hi = first + place * n // n_threads, first + (place + 1) * n // n_threads
        if hi > lo:
            part = (
                obj, corners[lo:hi], spectrum, variation, coefficients[lo:hi], (ramps[0][lo:hi], ramps[1][lo:hi]),
                (propagators, axes, tilted, tilt_y[lo:hi], tilt_x[lo:hi]),
                (near[0], near[1], near[2][lo:hi], near[3][lo:hi]), entry,
            )  # fmt: skip
            some = masks[lo:hi] if len(masks) > 1 else masks
            seen = patterns, rows[lo:hi], kind, some, loss, floor, scales[lo:hi], background, bare
            gradients(
                plan, part, seen, origin, (incoming, unkept), running, modes, frequencies, gradient[place],
                light[place], spectra[place], none_of_gaps, spectra[place], none_of_patterns, none_of_gaps,
                none_of_patterns, none, totals, wanted, unrevised,
            )  # fmt: skip
            if probe_moves:
                own = corners[lo:hi].reshape((hi - lo) * flight, 2)
                for i in range(obj.shape[0]):
                    add_window_powers(obj[i, 0], own, power_share, powers[place])
        meet(meeting, n_threads)
        lit = windows[first * flight : (first + n) * flight]
        top, end = lit[:, 0].min(), lit[:, 0].max() + ny
        peak = peaks[b % 2]
        if by_light:
            at = top + place * (end - top) // n_threads, top + (place + 1) * (end - top) // n_threads
            peaks[2 + place] = peak_of_windows(flat_light, lit, (ny, nx), at)
            meet(meeting, n_threads)
            peak = peaks[2:].max()
        if place == 0 and probe_moves:
            _step_probe(spectrum, momenta[1], spectra, powers, of_probe, entry[0], plan, modes)
            if not by_light:
                peaks[(b + 1) % 2] = _peak_of_probe(spectrum, entry[0], plan, modes, running[0])
        elif place == 0:
            peaks[(b + 1) % 2] = peak
        numbers = share, floor_share * peak, scale, momentum, dark_share * peak
        pieces = (end - top + _ROWS - 1) // _ROWS
        i = take_one(meeting) - taken
        while i < pieces:
            at = top + i * _ROWS, min(top + (i + 1) * _ROWS, end)
            step_windows(flat, momenta[0], flat_gradient, flat_light, lit, (ny, nx), at, numbers, quadratic, bound)
            i = take_one(meeting) - taken
        # Every thread asked once more than there were pieces
        taken += pieces + n_threads
        meet(meeting, n_threads)


@_compile
def _step_probe(
    spectrum: Any, velocity: Any, spectra: Any, powers: Any, of_probe: Any, whole: bool, plan: Any, modes: Any
) -> None:
    """Step against the summed gradients over (1 − γ) V + γ max V, V = Σ|O|², and clear the sums."""
    _, regularity, unit, step, momentum = of_probe
    weight = powers[0].reshape(powers[0].size)
    for t in range(1, len(powers)):
        add_and_clear(weight, powers[t].reshape(weight.size))
    largest, one = peak_of(weight), np.float32(1)
    for m in range(len(spectrum)):
        g, p = spectra[0, m], spectrum[m]
        for t in range(1, len(spectra)):
            add_and_clear(g, spectra[t, m])
        if largest > 0 and regularity == one:
            inverse = unit / largest
            if len(velocity):
                v = velocity[m]
                for k in range(p.size):
                    v[k] = momentum * v[k] + g[k] * inverse
                    p[k] -= step * (g[k] * inverse + momentum * v[k])
            else:
                for k in range(p.size):
                    p[k] -= step * inverse * g[k]
        elif largest > 0:
            _divide_in_space(g, weight, regularity, largest, step * unit, whole, plan, modes[0])
            for k in range(p.size):
                p[k] -= g[k]
        g[:] = 0
    weight[:] = 0


@_compile
def _divide_in_space(
    g: Any, weight: Any, regularity: Any, largest: Any, step: Any, whole: bool, plan: Any, wave: Any
) -> None:
    """Multiply the gradient of a spectrum, in real space, by step over its denominator."""
    pixels, one = weight.size, np.float32(1)
    wave[: 2 * pixels] = g
    norm = one if whole else one / np.float32(pixels)
    if not whole:
        transform(plan, wave, False)
    for k in range(pixels):
        d = (one - regularity) * weight[k] + regularity * largest
        factor = step * norm / d if d > 0 else np.float32(0)
        wave[2 * k] *= factor
        wave[2 * k + 1] *= factor
    if not whole:
        transform(plan, wave, True)
    g[:] = wave[: 2 * pixels]


@_compile
def _peak_of_probe(spectrum: Any, whole: bool, plan: Any, modes: Any, power: Any) -> Any:
    """Return max Σ|P|², the sum over the modes."""
    pixels = spectrum.shape[1] // 2
    norm = np.float32(1) if whole else np.float32(1) / np.float32(pixels)
    for m in range(len(spectrum)):
        wave = modes[m]
        wave[: 2 * pixels] = spectrum[m]
        if not whole:
            transform(plan, wave, False)
        add_power(power, wave, norm, pixels, m == 0)
    return peak_of(power[:pixels])
