"""Wigner distribution deconvolution: the complex object from one linear step, weak or not.

With G(q, k) the spectrum over the scan and A the probe's spectrum, G(q, ·) is the convolution of A(k) A*(k + q) with
Ô(k) Ô*(k − q). Rodenburg & Bates, Phil. Trans. R. Soc. A 339, 521 (1992).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, FloatArray
from hpcrec.backend.fft import fftn, ifft2, ifftn
from hpcrec.direct.raster import Raster
from hpcrec.direct.ssb import frequency_parts, probe_modes, shifted_spectra
from hpcrec.errors import DeviceError

MEMORY_LIMIT: Final = 4 << 30


def wdd_object(
    patterns: Array,
    probe: ComplexArray,
    raster: Raster,
    sampling: tuple[float, float],
    *,
    epsilon: float = 1e-3,
    memory_limit: int = MEMORY_LIMIT,
) -> ComplexArray:
    """Return the object (rows, columns) complex64 on the raster, rms modulus 1, mean phase zero.

    For each q: h = F⁻¹_k G(q, ·), x = F⁻¹_k[A(k) A*(k + q)], d = h x* / (|x|² + ε max|x_0|²); then
    D_q(κ) = Ô(κ) Ô*(κ − q) read at κ = q gives Ô(q) Ô*(0). ``patterns`` (rows, columns, ky, kx) of any real type, zero
    frequency at [0, 0], widened a strip of the detector at a time; ``probe`` (y, x) or (mode, y, x), centred at n//2,
    ``sampling`` (dy, dx) in Å. A larger ε bears more noise and weakens low frequencies. A deconvolution cannot leave
    pixels out: bad ones count as what ``patterns`` hold there. Raises :class:`ConfigError` for a probe of another
    window than the patterns', :class:`DeviceError` if the spectrum is larger than ``memory_limit`` bytes.
    """
    rows, columns, ny, nx = patterns.shape
    half = rows // 2 + 1  # the others are conjugate: the intensity is real
    if half * columns * ny * nx * 8 > memory_limit:
        raise DeviceError(
            f"the spectrum of {rows} × {columns} patterns of {ny} × {nx} pixels needs "
            f"{half * columns * ny * nx * 8 / 2**30:.1f} GiB, the limit is {memory_limit / 2**30:.1f} GiB; "
            "bin the detector or take fewer positions"
        )
    spectrum = _scan_spectrum(patterns, half)
    modes = probe_modes(probe, patterns)
    frequencies = raster.frequencies()[:half].reshape(-1, 2)
    own, _ = shifted_spectra(modes, np.zeros((1, 2)), sampling)
    bound = epsilon * float(np.max(np.abs(ifft2(np.sum(np.abs(own[0]) ** 2, axis=0))) ** 2))
    y, x = (np.fft.fftfreq(n) * n * d for n, d in zip((ny, nx), sampling))
    found = np.zeros((2, len(frequencies)), np.complex128)
    flat = spectrum.reshape(-1, ny, nx)
    for part in frequency_parts(len(frequencies), modes):
        below, above = shifted_spectra(modes, frequencies[part], sampling)
        # G(−q) = G*(q), so one pass answers for q and for −q
        for sign, shifted, held in ((0, above, flat[part]), (1, below, flat[part].conj())):
            overlap = ifft2(np.einsum("myx,qmyx->qyx", own[0], shifted.conj()))
            share = ifft2(held) * overlap.conj() / (np.abs(overlap) ** 2 + bound)
            q = frequencies[part] * (1 - 2 * sign)
            wave_y = np.exp(-2j * np.pi * q[:, :1] * y)
            wave_x = np.exp(-2j * np.pi * q[:, 1:] * x)
            found[sign, part] = np.einsum("qyx,qy,qx->q", share, wave_y, wave_x)
    return _assembled(found.reshape(2, half, columns), rows)


def _scan_spectrum(patterns: Array, half: int) -> ComplexArray:
    """Return G (half the rows, columns, ky, kx) complex64."""
    rows, columns, ny, nx = patterns.shape
    spectrum = np.empty((half, columns, ny, nx), np.complex64)
    for i in range(ny):
        spectrum[:, :, i] = fftn(patterns[:, :, i].astype(np.float32), axes=(0, 1))[:half]
    return spectrum


def _assembled(found: ComplexArray, rows: int) -> ComplexArray:
    """Return the object from Ô(q) (first half of the rows, columns) and Ô(−q) of the same q."""
    half, columns = found.shape[1:]
    whole = np.empty((rows, columns), np.complex128)
    whole[:half] = found[0]
    minus = (-np.arange(columns)) % columns
    for row in range(1, (rows + 1) // 2):
        whole[rows - row] = found[1, row, minus]
    obj = ifftn(whole)
    obj /= max(float(np.sqrt(np.mean(np.abs(obj) ** 2))), 1e-30)
    turn: FloatArray = np.conj(np.mean(obj)) / max(float(np.abs(np.mean(obj))), 1e-30)
    return np.asarray(obj * turn, np.complex64)
