"""The loss of patterns without its gradient, compiled: what a search along a line looks at."""

from __future__ import annotations

from typing import Any

from numba import njit

from hpcrec.backend.kernels.ptychography import power_of
from hpcrec.backend.kernels.waves import detect, take_pattern, weigh

_compile: Any = njit(fastmath=True, error_model="numpy", nogil=True, cache=True)


@_compile
def losses(plan: Any, waves: Any, detector: Any, room: Any, totals: Any) -> None:
    """Add loss, error and counts to ``totals`` (3,); ``room`` (mode + 4, …) to work in.

    Arguments as in :func:`hpcrec.backend.kernels.ptychography.gradients`.
    """
    corners, spectrum = waves[1], waves[2]
    patterns, rows, kind, masks, loss, floor, scales, background, _ = detector
    counts, measured = room[len(spectrum) + 2], room[len(spectrum) + 3]
    room[: len(spectrum), : spectrum.shape[1]] = spectrum
    for j in range(len(corners)):
        mask, power = masks[j % len(masks)], power_of(j, waves, room, plan)
        take_pattern(measured, patterns[rows[j]], kind, mask)
        detect(counts[: background.size], power, scales[j], background)
        weigh(power, counts, measured, mask, loss, floor, totals)
