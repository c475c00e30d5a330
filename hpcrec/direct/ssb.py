"""Single side band ptychography: the phase of a weak object from one linear step.

Over the scan, the spectrum of the intensity at each detector pixel is G(q, k) = i φ̂(q) Γ(q, k) with
Γ = A*(k) A(k − q) − A(k) A*(k + q), A the probe's spectrum. Pennycook et al., Ultramicroscopy 151, 160 (2015);
Yang, Ercius, Nellist & Ophus, Ultramicroscopy 171, 117 (2016).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Literal

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray
from hpcrec.backend.fft import fft2, fftn, ifftn
from hpcrec.direct.raster import Raster
from hpcrec.errors import ConfigError, DataError

_LIT: Final = 1e-3  # of the brightest pixel's intensity: a pixel of the bright field
_UNKNOWNS: Final = 50_000
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
    upsampling: int = 1,
) -> FloatArray:
    """Return the phase (rows, columns) float32 of a weak phase object on the raster; its mean is zero.

    ``patterns`` (rows, columns, ky, kx) counts of any real type, zero frequency at [0, 0]; only the bright field is
    widened. ``probe`` (y, x) or (mode, y, x), centred at n//2, any power, ``sampling`` (dy, dx) Å; modes add up.
    ``weighting`` "wiener" gives radians: φ̂ = Σ_k −i G Γ* / (Σ|Γ|² + floor · max Σ|Γ|²); "noise" divides by √Σ|Γ|²,
    which makes the noise white and the contrast relative (the optimum bright field of Ooe et al., Ultramicroscopy 220,
    113133 (2021)). ``mask`` (ky, kx), True = good.

    With ``upsampling`` u the picture has u times the rows and columns: frequencies that the scan cannot tell apart are
    still told apart by the detector, G(q, k) = i Σ_g φ̂(q + g) Γ(q + g, k), which is solved for each q by least squares
    with the same floor ("wiener" only). Good for scans with steps beyond half the resolution.

    Raises :class:`ConfigError` for a probe of another window than the patterns', :class:`DataError` where no good pixel
    of the bright field holds counts.
    """
    modes = probe_modes(probe, patterns)
    spectra = fft2(np.fft.ifftshift(modes, axes=(-2, -1)))
    power = np.sum(np.abs(spectra) ** 2, axis=0)
    lit = power > _LIT * power.max()
    if mask is not None:
        lit &= mask
    signals = patterns[:, :, lit].astype(np.float32)
    if not signals.any():
        raise DataError("no good pixel of the bright field holds counts; check the mask and where the beam's centre is")
    scale = float(np.sqrt(signals.mean(axis=(0, 1), dtype=np.float64).sum() / power[lit].sum()))
    spectrum = fftn(signals, axes=(0, 1)).reshape(-1, int(lit.sum()))

    def interference(q: FloatArray) -> ComplexArray:
        return _interference(modes, spectra, lit, q, sampling)

    if upsampling > 1:
        return _upsampled(spectrum, interference, raster, scale, floor, upsampling)
    frequencies = raster.frequencies().reshape(-1, 2)
    numerator = np.zeros(len(frequencies), np.complex128)
    weight = np.zeros(len(frequencies))
    for part in frequency_parts(len(frequencies), modes):
        gamma = interference(frequencies[part])
        numerator[part] = -1j * np.einsum("qk,qk->q", spectrum[part], gamma.conj())
        weight[part] = np.sum(np.abs(gamma) ** 2, axis=1)
    peak = max(float(weight.max()), 1e-30)
    if weighting == "noise":
        found = numerator / np.sqrt(np.maximum(weight, 1e-6 * peak))
    else:
        found = numerator / (scale**2 * (weight + floor * peak))
    found[0] = 0
    return np.asarray(ifftn(found.reshape(raster.shape)).real, np.float32)


def probe_modes(probe: ComplexArray, patterns: Array) -> ComplexArray:
    """Return a probe (y, x) or (mode, y, x) as modes; raises ConfigError unless its window is the patterns'."""
    if probe.shape[-2:] != patterns.shape[-2:]:
        raise ConfigError(
            f"the probe's window has {probe.shape[-2]} × {probe.shape[-1]} pixels, a pattern {patterns.shape[-2]} × "
            f"{patterns.shape[-1]}: direct methods need the same; set detector.upsampling to 1"
        )
    return probe.reshape(-1, *probe.shape[-2:])


def useful_upsampling(probe: ComplexArray, raster: Raster, sampling: tuple[float, float]) -> int:
    """Return the upsampling that reaches what :func:`ssb_phase` can resolve, pixels of 1/(4 k_α).

    At most a quarter of the bright pixels' number of unknowns for each frequency of the scan, and 5e4 in all.
    """
    modes = probe.reshape(-1, *probe.shape[-2:])
    power = np.sum(np.abs(fft2(modes)) ** 2, axis=0)
    count = float(np.sum(power > 0.5 * power.max()))
    radius = np.sqrt(count / np.pi / (power.size * sampling[0] * sampling[1]))
    wanted = float(np.linalg.norm(raster.vectors, axis=1).max()) * 4 * radius
    bound = min(np.sqrt(count / 4), np.sqrt(_UNKNOWNS / np.prod(raster.shape)))
    return max(1, min(int(np.ceil(wanted)), int(bound)))


def _upsampled(
    spectrum: ComplexArray,
    interference: Callable[[FloatArray], ComplexArray],
    raster: Raster,
    scale: float,
    floor: float,
    u: int,
) -> FloatArray:
    """Return the phase (u rows, u columns) from the spectra G (q, pixel) of the scan."""
    rows, columns = raster.shape
    fine = Raster(shape=(u * rows, u * columns), vectors=raster.vectors / u, order=raster.order)
    # Index u·rows frequencies as (zone, row): those of one row differ by what the scan cannot tell
    zones = fine.frequencies().reshape(u, rows, u, columns, 2).transpose(1, 3, 0, 2, 4).reshape(-1, u * u, 2)
    some = zones.reshape(-1, 2)[:: max(zones.size // 512, 1)]
    peak = max(float(np.sum(np.abs(interference(some)) ** 2, axis=1).max()), 1e-30)
    found = np.zeros((len(zones), u * u), np.complex128)
    for i, q in enumerate(zones):
        gamma = interference(q).astype(np.complex128)
        normal = gamma.conj() @ gamma.T + floor * peak * np.eye(u * u)
        found[i] = np.linalg.solve(normal, gamma.conj() @ (-1j * spectrum[i]))
    found[0] = 0  # the scan's own frequency and its multiples: the pattern of vacuum, far brighter, falls there too
    whole = found.reshape(rows, columns, u, u).transpose(2, 0, 3, 1).reshape(fine.shape)
    return np.asarray(u / scale**2 * ifftn(whole).real, np.float32)


def _interference(
    modes: ComplexArray, spectra: ComplexArray, lit: BoolArray, q: FloatArray, sampling: tuple[float, float]
) -> ComplexArray:
    """Return Γ (q, pixel) of frequencies (q, 2) on the ``lit`` pixels, for a probe of the given power."""
    below, above = shifted_spectra(modes, q, sampling)
    gamma = np.einsum("mk,qmk->qk", spectra[:, lit].conj(), below[:, :, lit])
    gamma -= np.einsum("mk,qmk->qk", spectra[:, lit], above[:, :, lit].conj())
    return np.asarray(gamma)


def frequency_parts(count: int, modes: ComplexArray) -> Iterator[slice]:
    """Yield slices of ``count`` frequencies, each as many as the work space holds."""
    step = max(1, _WORK_BYTES // (modes.size * 8 * 4))
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))


def shifted_spectra(
    modes: ComplexArray, frequencies: FloatArray, sampling: tuple[float, float]
) -> tuple[ComplexArray, ComplexArray]:
    """Return A(k − q) and A(k + q), each (q, mode, ky, kx) complex64, of ``frequencies`` (q, 2) in 1/Å.

    Each is the transform of the probe (mode, y, x) times exp(±2πi q·r), so any q is exact, on the detector's pixels or
    between them.
    """
    ny, nx = modes.shape[-2:]
    y, x = ((np.arange(n) - n // 2) * d for n, d in zip((ny, nx), sampling))
    qy, qx = frequencies.T
    ramp = np.exp(2j * np.pi * qy[:, None] * y)[:, :, None] * np.exp(2j * np.pi * qx[:, None] * x)[:, None, :]
    ramp, waves = ramp.astype(np.complex64)[:, None], modes.astype(np.complex64)
    return _spectra(waves * ramp), _spectra(waves * ramp.conj())


def _spectra(waves: ComplexArray) -> ComplexArray:
    return fft2(np.fft.ifftshift(waves, axes=(-2, -1)))
