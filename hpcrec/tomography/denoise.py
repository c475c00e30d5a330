"""Denoising of one phase projection, by name; off unless asked for.

Resolution is measured on volumes from projections that were *not* denoised: every filter here makes the halves alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import numpy as np
import skimage

from hpcrec.backend.array import Array, FloatArray, array_module, to_host
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

    An image on a device comes back there. Block matching and total variation work on it; non-local means, which
    scikit-image does, goes to the host and back.

    Raises DataError for values that are not finite, ConfigError for a negative sigma or strength.
    """
    xp = array_module(image)
    image = xp.asarray(image, np.float32)
    if not bool(xp.isfinite(image).all()):
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
    xp = array_module(image)
    image = xp.asarray(image, np.float64)
    corners = image[:-1:2, :-1:2], image[:-1:2, 1::2], image[1::2, :-1:2], image[1::2, 1::2]
    detail = 0.5 * (corners[0] - corners[1] - corners[2] + corners[3])
    seen = (corners[0] != 0) | (corners[1] != 0) | (corners[2] != 0) | (corners[3] != 0)
    return _MAD_TO_SIGMA * float(xp.median(xp.abs(detail[seen]))) if bool(seen.any()) else 0.0


def _unchanged(image: FloatArray, sigma: float) -> FloatArray:
    return image.copy()


def _non_local_means(image: FloatArray, sigma: float) -> FloatArray:
    """Buades, Coll & Morel, IPOL 1, 208 (2011): patches of 5×5 within 13×13 pixels, h = 0.8 σ; on the host."""
    if sigma == 0:
        return image.copy()
    result = skimage.restoration.denoise_nl_means(
        to_host(image), patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma, fast_mode=True
    )  # type: ignore[no-untyped-call]
    return array_module(image).asarray(result, np.float32)  # type: ignore[no-any-return]


def _total_variation(image: FloatArray, sigma: float) -> FloatArray:
    """Chambolle, J. Math. Imaging Vis. 20, 89 (2004), with a weight of 0.9 σ."""
    if sigma == 0:
        return image.copy()
    if array_module(image) is not np:
        return chambolle_arrays(image, 0.9 * sigma)
    return np.asarray(skimage.restoration.denoise_tv_chambolle(image, weight=0.9 * sigma), np.float32)  # type: ignore[no-untyped-call]


def chambolle_arrays(image: FloatArray, weight: float, n_most: int = 200, share: float = 2e-4) -> FloatArray:
    """Return argmin_x Σ|x − v|² / 2 + τ TV(x) of an image v with τ = ``weight``, by array code, of host or device.

    As scikit-image's ``denoise_tv_chambolle``: steps of ¼ on the dual, until the energy changes by less than ``share``
    of the first one, at most ``n_most``.
    """
    xp, step = array_module(image), image.dtype.type(0.25)
    down, right = xp.zeros_like(image), xp.zeros_like(image)
    found, energies = image, []
    for i in range(n_most):
        change = -(down + right)
        change[1:] += down[:-1]
        change[:, 1:] += right[:, :-1]
        found = image + change
        below, beside = xp.zeros_like(image), xp.zeros_like(image)
        below[:-1] = found[1:] - found[:-1]
        beside[:, :-1] = found[:, 1:] - found[:, :-1]
        size = xp.sqrt(below**2 + beside**2)
        energies.append(float((change**2).sum() + image.dtype.type(weight) * size.sum()))
        if i > 0 and abs(energies[-2] - energies[-1]) < share * energies[0]:
            break
        scale = 1 + step / image.dtype.type(weight) * size
        down, right = (down - step * below) / scale, (right - step * beside) / scale
    return found


DENOISERS: Final[dict[str, Callable[[FloatArray, float], FloatArray]]] = {
    "none": _unchanged,
    "bm3d": bm3d,
    "nlm": _non_local_means,
    "tv": _total_variation,
}
