"""BM3D: denoising by filtering similar blocks together (Dabov et al., IEEE Trans. Image Process. 16, 2080 (2007)).

Written from the paper's §III with the parameters of its normal profile; white Gaussian noise of known σ is assumed.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.fft import dct

from hpcrec.backend.array import Array, FloatArray, IntArray, array_module
from hpcrec.backend.kernels.bm3d import BLOCK, collaborative_filter
from hpcrec.errors import DataError
from hpcrec.tomography.blocks import filter_arrays

_STEP: Final = 3
_REACH: Final = 16
_SHRINKAGE: Final = 2.7
_FIRST: Final = (16, 6.0)
_SECOND: Final = (32, 1.5)
_KAISER_BETA: Final = 2.0


def bm3d(image: Array, sigma: float, threads: int | None = None) -> FloatArray:
    """Return ``image`` (y, x) float32 denoised of white Gaussian noise of standard deviation ``sigma``.

    Two stages: a hard threshold of 2.7 σ on groups of up to 16 blocks, then empirical Wiener factors of that estimate
    on groups of up to 32. Blocks belong together when their mean squared difference is below 6 σ² (first; 2 σ² is
    noise alone) and 1.5 σ² (second). ``threads``: default those of the process.
    An image on a device is denoised there, by the array code of :mod:`hpcrec.tomography.blocks`, to the same values but
    where rounding decides which blocks are alike.
    Raises DataError for an image smaller than a block.
    """
    noisy: FloatArray = array_module(image).ascontiguousarray(image, np.float32)
    if noisy.ndim != 2 or min(noisy.shape) < BLOCK:
        raise DataError(f"BM3D needs an image of at least {BLOCK}×{BLOCK} pixels, got shape {noisy.shape}")
    if sigma <= 0:
        return noisy.copy()
    basic = _stage(noisy, noisy, sigma, *_FIRST, shrinkage=_SHRINKAGE, threads=threads)
    return _stage(noisy, basic, sigma, *_SECOND, shrinkage=0.0, threads=threads)


def _stage(
    noisy: FloatArray,
    pilot: FloatArray,
    sigma: float,
    n_max: int,
    limit: float,
    *,
    shrinkage: float,
    threads: int | None,
) -> FloatArray:
    basis = dct(np.eye(BLOCK), axis=0, norm="ortho").astype(np.float32)
    kaiser = np.kaiser(BLOCK, _KAISER_BETA)
    window = np.outer(kaiser, kaiser).astype(np.float32)
    starts = _starts(noisy.shape[0]), _starts(noisy.shape[1])
    distance = limit * sigma**2 * BLOCK**2
    arguments = noisy, pilot, *starts, basis, window, n_max, _REACH, distance, float(sigma), shrinkage
    if array_module(noisy) is not np:
        return filter_arrays(*arguments)
    estimate: FloatArray = collaborative_filter(*arguments, threads)
    return estimate


def _starts(length: int) -> IntArray:
    """Return the first pixels of the reference blocks along an axis: every third, and the last one."""
    return np.unique(np.append(np.arange(0, length - BLOCK + 1, _STEP), length - BLOCK))
