"""Gaussian filters of arrays on host or device; beyond the edges everything is zero."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from hpcrec.backend.array import FloatArray, array_module

_REACH = 4.0  # standard deviations, as SciPy's default


def smoothed(a: FloatArray, sigmas: tuple[float, ...]) -> FloatArray:
    """Return ``a`` convolved with a Gaussian of ``sigmas`` pixels along its axes, 0 along an axis: nothing; float32."""
    if array_module(a) is np:
        found: FloatArray = np.asarray(gaussian_filter(a, sigmas, mode="constant"), np.float32)
        return found
    return smoothed_arrays(a, sigmas)


def smoothed_arrays(a: FloatArray, sigmas: tuple[float, ...]) -> FloatArray:
    """Do the same by sums of shifted arrays, of host or device: SciPy's weights, up to four standard deviations."""
    found: FloatArray = array_module(a).asarray(a, np.float32)
    for axis, sigma in enumerate(sigmas):
        if sigma > 0:
            found = _along(found, axis, sigma)
    return found


def _along(a: FloatArray, axis: int, sigma: float) -> FloatArray:
    xp, reach = array_module(a), int(_REACH * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    total = np.float32(weights[0]) * a
    source, target = xp.moveaxis(a, axis, 0), xp.moveaxis(total, axis, 0)
    for n in range(1, min(reach, a.shape[axis] - 1) + 1):
        target[n:] += np.float32(weights[n]) * source[:-n]
        target[:-n] += np.float32(weights[n]) * source[n:]
    return total  # type: ignore[no-any-return]
