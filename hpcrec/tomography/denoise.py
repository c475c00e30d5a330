"""Denoising of one phase projection, by name; off unless asked for.

Resolution is measured on volumes from projections that were *not* denoised: every filter here makes the halves alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import numpy as np
import skimage

from hpcrec.backend.array import Array, FloatArray
from hpcrec.errors import ConfigError, DataError
from hpcrec.options import options
from hpcrec.tomography.bm3d import bm3d

_MAD_TO_SIGMA: Final = 1.4826


@options
class DenoiseOptions:
    """Which denoiser runs on each projection before alignment and reconstruction.

    method : "none", "bm3d" (block matching), "nlm" (non-local means) or "tv" (total variation)
    sigma : standard deviation of the noise in rad; None estimates it from the finest wavelet band of each projection
    strength : factor on sigma; below 1 keeps more texture
    """

    method: Literal["none", "bm3d", "nlm", "tv"] = "none"
    sigma: float | None = None
    strength: float = 1.0


def denoise(image: Array, options: DenoiseOptions) -> FloatArray:
    """Return ``image`` (y, x) denoised as ``options`` say, float32; a pure function of one projection.

    Raises DataError for values that are not finite, ConfigError for a negative sigma or strength.
    """
    image = np.asarray(image, np.float32)
    if not np.isfinite(image).all():
        raise DataError("the projection to denoise holds values that are not finite; rerun this tilt")
    if options.strength < 0 or (options.sigma is not None and options.sigma < 0):
        raise ConfigError(
            f"denoise.sigma and denoise.strength must not be negative: {options.sigma}, {options.strength}"
        )
    sigma = estimate_sigma(image) if options.sigma is None else options.sigma
    return DENOISERS[options.method](image, sigma * options.strength)


def estimate_sigma(image: Array) -> float:
    """Return the noise's standard deviation from the finest diagonal Haar band of ``image`` (y, x).

    σ = 1.4826 · median |d|, d = (a − b − c + d)/2 over 2×2 pixels (Donoho & Johnstone, Biometrika 81, 425 (1994));
    flat zeros outside the illuminated field do not count. Band-limited noise, as in ptychographic phases on a fine
    grid, is underestimated: give sigma then.
    """
    image = np.asarray(image, np.float64)
    corners = image[:-1:2, :-1:2], image[:-1:2, 1::2], image[1::2, :-1:2], image[1::2, 1::2]
    detail = 0.5 * (corners[0] - corners[1] - corners[2] + corners[3])
    seen = np.logical_or.reduce([corner != 0 for corner in corners])
    return _MAD_TO_SIGMA * float(np.median(np.abs(detail[seen]))) if seen.any() else 0.0


def _unchanged(image: FloatArray, sigma: float) -> FloatArray:
    return image.copy()


def _non_local_means(image: FloatArray, sigma: float) -> FloatArray:
    """Buades, Coll & Morel, IPOL 1, 208 (2011): patches of 5×5 within 13×13 pixels, h = 0.8 σ."""
    if sigma == 0:
        return image.copy()
    result = skimage.restoration.denoise_nl_means(
        image, patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma, fast_mode=True
    )  # type: ignore[no-untyped-call]
    return np.asarray(result, np.float32)


def _total_variation(image: FloatArray, sigma: float) -> FloatArray:
    """Chambolle, J. Math. Imaging Vis. 20, 89 (2004), with a weight of 0.9 σ."""
    if sigma == 0:
        return image.copy()
    return np.asarray(skimage.restoration.denoise_tv_chambolle(image, weight=0.9 * sigma), np.float32)  # type: ignore[no-untyped-call]


DENOISERS: Final[dict[str, Callable[[FloatArray, float], FloatArray]]] = {
    "none": _unchanged,
    "bm3d": bm3d,
    "nlm": _non_local_means,
    "tv": _total_variation,
}
