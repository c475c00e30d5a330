"""Figures of single patterns, compiled; counts stay in the cache, see :mod:`hpcrec.analysis.patterns`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

# Not "nnan": bad pixels may hold not-a-number, and are chosen out
_FAST = {"nsz", "arcp", "contract", "afn", "reassoc"}
_compile: Any = njit(fastmath=_FAST, error_model="numpy", nogil=True, cache=True)
_LN2 = math.log(2)
# Pixels whose figures are summed in single precision
_RUN = 256
# Bits of √½ in single precision, and those of its fraction
_ROOT_HALF, _MANTISSA = 0x3F3504F3, 0x007FFFFF


@_compile
def take_logarithms(values: Any, exponents: Any) -> None:
    """Values = ln values, in place; ``exponents`` is room as large. Normal numbers above 0 only.

    x = 2^e m with √½ ≤ m < √2, and ln m = 2 artanh s with s = (m − 1)/(m + 1), |s| < 0.172, whose power series
    (Abramowitz and Stegun, 4.1.27) ends with s⁹: 1e-9 is left out. No calls, and bits in a loop of their own, so that
    it becomes vector code.
    """
    bits = values.view(np.int32)
    for k in range(values.size):
        lifted = bits[k] - np.int32(_ROOT_HALF)
        exponents[k] = np.float32(lifted >> np.int32(23))
        bits[k] = np.int32((lifted & np.int32(_MANTISSA)) + np.int32(_ROOT_HALF))
    for k in range(values.size):
        m = values[k]
        s = (m - np.float32(1)) / (m + np.float32(1))
        q = s * s
        series = np.float32(1 / 7) + q * np.float32(1 / 9)
        series = np.float32(1 / 3) + q * (np.float32(1 / 5) + q * series)
        values[k] = exponents[k] * np.float32(_LN2) + np.float32(2) * s * (np.float32(1) + q * series)


@_compile
def fill_figures(modelled: Any, measured: Any, masks: Any, floor: Any, room: Any, out: Any) -> None:
    """Fill ``out`` (n, 6) with error, difference, amplitude, counts, deviance and pixels of patterns (n, pixels).

    modelled : float32; measured : real, not complex; masks (n or 1, pixels) of 0 and 1; floor : ε, float32;
    room (3, pixels) float32 to work in
    """
    taken, logarithms, exponents = room[0], room[1], room[2]
    for j in range(len(modelled)):
        found, counts, mask = modelled[j], measured[j], masks[j % len(masks)]
        for k in range(taken.size):
            seen = np.float32(counts[k]) if mask[k] else np.float32(0)
            taken[k] = seen
            logarithms[k] = (seen + floor) / (found[k] + floor)
        take_logarithms(logarithms, exponents)
        out[j] = 0
        for first in range(0, taken.size, _RUN):
            part = slice(first, first + _RUN)
            _add_figures(found[part], taken[part], logarithms[part], mask[part], floor, out[j])


@_compile
def _add_figures(found: Any, taken: Any, logarithms: Any, mask: Any, floor: Any, out: Any) -> None:
    """Add the figures of a run of pixels, summed in single precision, to ``out`` (6,) float64."""
    error, difference, amplitude = np.float32(0), np.float32(0), np.float32(0)
    total, deviance, pixels = np.float32(0), np.float32(0), np.float32(0)
    for k in range(taken.size):
        seen, good, c = taken[k], np.float32(mask[k]), found[k]
        root = math.sqrt(seen)
        left = (math.sqrt(c) - root) * good
        error += left * left
        difference += abs(left)
        amplitude += root
        total += seen
        deviance += (c - seen + (seen + floor) * logarithms[k]) * good
        pixels += good
    out[0] += error
    out[1] += difference
    out[2] += amplitude
    out[3] += total
    out[4] += np.float32(2) * deviance
    out[5] += pixels
