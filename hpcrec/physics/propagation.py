"""Free-space propagation over short distances: the separable Fresnel factor, and the exact one."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from hpcrec.backend.array import ComplexArray, FloatArray
from hpcrec.conventions import PROPAGATION_SIGN


def fresnel_factors_1d(
    n: int, sampling: float, wavelength: float, distance: float, band_limit: float | None = None
) -> ComplexArray:
    """Return h(k) = exp(−iπλΔz k²) along one axis (n,), complex128, zero frequency at [0].

    ``sampling``, ``wavelength``, ``distance`` Δz in Å; frequencies beyond ``band_limit`` times Nyquist are zero.
    """
    k = np.fft.fftfreq(n, sampling)
    factor: ComplexArray = np.exp(PROPAGATION_SIGN * 1j * np.pi * wavelength * distance * k**2)
    if band_limit is not None:
        factor[np.abs(k) > band_limit * 0.5 / sampling] = 0
    return factor


def fresnel_factor(
    grid_shape: tuple[int, int],
    sampling: tuple[float, float],
    wavelength: float,
    distance: float,
    band_limit: float | None = None,
    dtype: Any = np.complex64,
) -> ComplexArray:
    """Return H(ky, kx) = h(ky)·h(kx), the spectrum's factor for a step Δz > 0 downstream, zero frequency at [0, 0].

    Paraxial (Fresnel) form, Goodman, Introduction to Fourier Optics, §4.2, without the constant phase exp(2πiΔz/λ).
    ``band_limit`` (fraction of Nyquist, square) guards against wrap-around of products of waves; None keeps all, and
    then H is unitary.
    """
    hy, hx = (
        fresnel_factors_1d(n, d, wavelength, distance, band_limit) for n, d in zip(grid_shape, sampling, strict=True)
    )
    return (hy[:, None] * hx[None, :]).astype(dtype)


def propagation_rate(
    grid_shape: tuple[int, int],
    sampling: tuple[float, float],
    wavelength: float,
    kind: Literal["fresnel", "exact"] = "fresnel",
) -> FloatArray:
    """Return r(ky, kx) in rad/Å, the phase of a wave's spectrum a step downstream: H = exp(i r Δz); zero at [0, 0].

    "fresnel": −πλk², as :func:`fresnel_factor`; "exact": 2π(√(λ⁻² − k²) − λ⁻¹), the angular spectrum (Goodman,
    Introduction to Fourier Optics, §3.10) without the constant phase; where waves are evanescent it is not a
    number. All in Å and 1/Å.
    """
    ky, kx = (np.fft.fftfreq(n, d) for n, d in zip(grid_shape, sampling, strict=True))
    squared = ky[:, None] ** 2 + kx[None, :] ** 2
    if kind == "fresnel":
        return PROPAGATION_SIGN * np.pi * wavelength * squared  # type: ignore[no-any-return]
    with np.errstate(invalid="ignore"):
        longitudinal = np.sqrt(wavelength**-2 - squared)
    return -PROPAGATION_SIGN * 2 * np.pi * (longitudinal - 1 / wavelength)  # type: ignore[no-any-return]


def tilted_factor(
    rate: FloatArray,
    sampling: tuple[float, float],
    distance: float,
    tilt: tuple[float, float] = (0.0, 0.0),
    band_limit: float | None = None,
    dtype: Any = np.complex64,
) -> ComplexArray:
    """Return H(ky, kx) = exp(i r Δz + 2πi Δz (ky tan θy + kx tan θx)) of a step through a sample tilted by θ.

    ``rate`` r as of :func:`propagation_rate`, ``tilt`` (θy, θx) in rad, ``distance`` Δz in Å. The sample's columns run
    along (tan θy, tan θx, 1), so that in their frame waves move the other way (Sha, Cui and Yu, Sci. Adv. 8, eabn2275
    (2022)). Evanescent waves and those beyond ``band_limit`` times Nyquist (square) are zero.
    """
    ky, kx = (np.fft.fftfreq(n, d) for n, d in zip(rate.shape, sampling, strict=True))
    shear = ky[:, None] * np.tan(tilt[0]) + kx[None, :] * np.tan(tilt[1])
    factor = np.exp(1j * distance * (rate + 2 * np.pi * shear))
    kept = np.isfinite(rate)
    if band_limit is not None:
        for k, d, axis in ((ky, sampling[0], 1), (kx, sampling[1], 0)):
            kept &= np.expand_dims(np.abs(k) <= band_limit * 0.5 / d, axis)
    return np.where(kept, factor, 0).astype(dtype)


def propagation_fault(
    grid_shape: tuple[int, int],
    sampling: tuple[float, float],
    wavelength: float,
    distance: float,
    band_limit: float | None = None,
) -> str | None:
    """Say in one sentence why a step is too long for its grid, or return None.

    The phase of h may turn by at most π from one frequency to the next: λ|Δz| ≤ n d² / (band limit).
    """
    for axis, n, d in zip("yx", grid_shape, sampling):
        longest = n * d**2 / (wavelength * (1.0 if band_limit is None else band_limit))
        if abs(distance) > longest:
            return (
                f"a propagation step of {distance:.4g} Å aliases along {axis}: {n} pixels of {d:.4g} Å carry at most "
                f"{longest:.4g} Å; use more slices or a larger window"
            )
    return None
