"""The loss of patterns without its gradient, compiled: what a search along a line looks at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hpcrec.backend.kernels.ptychography import _illuminate, _pass_slices
from hpcrec.backend.kernels.waves import add_power, detect, take_pattern, vary, weigh

_compile: Any = njit(fastmath=True, error_model="numpy", nogil=True, cache=True)


@_compile
def losses(plan: Any, waves: Any, detector: Any, room: Any, totals: Any) -> None:
    """Add loss, error and counts to ``totals`` (3,); ``room`` (mode + 4, …) to work in.

    Arguments as in :func:`hpcrec.backend.kernels.ptychography.gradients`.
    """
    obj, corners, spectrum, variation, coefficients, ramps, gaps, near, entry = waves
    patterns, rows, kind, masks, loss, floor, scales, background, _ = detector
    ny, nx, n_modes = ramps[0].shape[2] // 2, ramps[1].shape[2] // 2, len(spectrum)
    pixels, wave, counts, measured = ny * nx, room[n_modes], room[n_modes + 2], room[n_modes + 3]
    power, unit = room[n_modes + 1], np.float32(1 if near[0] else 1 / (ny * nx))
    for m in range(n_modes):
        room[m, : 2 * pixels] = spectrum[m]
    for j in range(len(corners)):
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
        mask = masks[j % len(masks)]
        take_pattern(measured, patterns[rows[j]], kind, mask)
        detect(counts[:pixels], power, scales[j], background)
        weigh(power, counts, measured, mask, loss, floor, totals)
