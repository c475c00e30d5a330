"""Single side band ptychography: the phase of a weak object from one linear step.

Over the scan, the spectrum of the intensity at each detector pixel is G(q, k) = i φ̂(q) Γ(q, k) with
Γ = A*(k) A(k − q) − A(k) A*(k + q), A the probe's spectrum. Pennycook et al., Ultramicroscopy 151, 160 (2015);
Yang, Ercius, Nellist & Ophus, Ultramicroscopy 171, 117 (2016).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray
from hpcrec.backend.fft import fft2, fftn, ifftn
from hpcrec.direct.raster import Raster

_LIT: Final = 1e-3  # of the brightest pixel's intensity: a pixel of the bright field
_WORK_BYTES: Final = 1 << 25


def ssb_phase(
    patterns: Array,
    probe: ComplexArray,
    raster: Raster,
    sampling: tuple[float, float],
    *,
    mask: BoolArray | None = None,
    weighting: Literal["wiener", "noise"] = "wiener",
    floor: float = 0.05,
) -> FloatArray:
    """Return the phase (rows, columns) float32 of a weak phase object on the raster; its mean is zero.

    ``patterns`` (rows, columns, ky, kx) counts of any real type, zero frequency at [0, 0]; only the bright field is
    widened. ``probe`` (y, x) or (mode, y, x), centred at n//2, any power, ``sampling`` (dy, dx) Å; modes add up.
    ``weighting`` "wiener" gives radians: φ̂ = Σ_k −i G Γ* / (Σ|Γ|² + floor · max Σ|Γ|²); "noise" divides by √Σ|Γ|²,
    which makes the noise white and the contrast relative (the optimum bright field of Ooe et al., Ultramicroscopy 220,
    113133 (2021)). ``mask`` (ky, kx), True = good.
    """
    modes = probe.reshape(-1, *probe.shape[-2:])
    spectra = fft2(np.fft.ifftshift(modes, axes=(-2, -1)))
    power = np.sum(np.abs(spectra) ** 2, axis=0)
    lit = power > _LIT * power.max()
    if mask is not None:
        lit &= mask
    signals = patterns[:, :, lit].astype(np.float32)
    scale = np.sqrt(signals.mean(axis=(0, 1), dtype=np.float64).sum() / power[lit].sum())
    spectrum = fftn(signals, axes=(0, 1)).reshape(-1, int(lit.sum()))
    frequencies = raster.frequencies().reshape(-1, 2)
    numerator = np.zeros(len(frequencies), np.complex128)
    weight = np.zeros(len(frequencies))
    for part, below, above in shifted_spectra(modes, frequencies, sampling):
        gamma = np.einsum("mk,qmk->qk", spectra[:, lit].conj(), below[:, :, lit])
        gamma -= np.einsum("mk,qmk->qk", spectra[:, lit], above[:, :, lit].conj())
        numerator[part] = -1j * np.einsum("qk,qk->q", spectrum[part], gamma.conj())
        weight[part] = np.sum(np.abs(gamma) ** 2, axis=1)
    peak = max(float(weight.max()), 1e-30)
    if weighting == "noise":
        found = numerator / np.sqrt(np.maximum(weight, 1e-6 * peak))
    else:
        found = numerator / (scale**2 * (weight + floor * peak))
    found[0] = 0
    return np.asarray(ifftn(found.reshape(raster.shape)).real, np.float32)


def shifted_spectra(
    modes: ComplexArray, frequencies: FloatArray, sampling: tuple[float, float]
) -> Iterator[tuple[slice, ComplexArray, ComplexArray]]:
    """Yield (part, A(k − q), A(k + q)), each (n, mode, ky, kx), of some ``frequencies`` (q, 2) in 1/Å at a time.

    Each is the transform of the probe (mode, y, x) times exp(±2πi q·r), so any q is exact, on the detector's pixels or
    between them.
    """
    ny, nx = modes.shape[-2:]
    y, x = ((np.arange(n) - n // 2) * d for n, d in zip((ny, nx), sampling))
    modes = modes.astype(np.complex64)
    count = max(1, _WORK_BYTES // (modes.nbytes * 4))
    for first in range(0, len(frequencies), count):
        part = slice(first, min(first + count, len(frequencies)))
        qy, qx = frequencies[part].T
        ramp = np.exp(2j * np.pi * qy[:, None] * y)[:, :, None] * np.exp(2j * np.pi * qx[:, None] * x)[:, None, :]
        ramp = ramp.astype(np.complex64)[:, None]
        yield part, _spectra(modes * ramp), _spectra(modes * ramp.conj())


def _spectra(waves: ComplexArray) -> ComplexArray:
    return fft2(np.fft.ifftshift(waves, axes=(-2, -1)))
