"""Free-space propagation over short distances: the separable Fresnel factor."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcrec.backend.array import ComplexArray
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

    Paraxial (Fresnel) form, Goodman, Introduction to Fourier Optics, eq. 4-20, without the constant phase exp(2πiΔz/λ).
    ``band_limit`` (fraction of Nyquist, square) guards against wrap-around of products of waves; None keeps all, and
    then H is unitary.
    """
    hy, hx = (
        fresnel_factors_1d(n, d, wavelength, distance, band_limit) for n, d in zip(grid_shape, sampling, strict=True)
    )
    return (hy[:, None] * hx[None, :]).astype(dtype)


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
