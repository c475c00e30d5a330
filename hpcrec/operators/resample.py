"""Waves and objects on coarser and finer pixels over the same field of view, by cutting and padding frequencies."""

from __future__ import annotations

import numpy as np

from hpcrec.backend.array import Array, ComplexArray
from hpcrec.backend.fft import fft2, ifft2


def cut_frequencies(spectrum: Array, shape: tuple[int, int]) -> Array:
    """Return the frequencies −(n//2) … (n−1)//2 of a spectrum (…, ky, kx), zero frequency at [0, 0], as ``shape``."""
    for axis, n in zip((-2, -1), shape):
        size = spectrum.shape[axis]
        kept = np.concatenate([np.arange((n + 1) // 2), np.arange(size - n // 2, size)])
        spectrum = np.take(spectrum, kept, axis=axis)
    return spectrum


def pad_frequencies(spectrum: Array, shape: tuple[int, int]) -> Array:
    """Return a spectrum (…, ky, kx), zero frequency at [0, 0], with zeros beyond its frequencies, as ``shape``."""
    wide = np.zeros((*spectrum.shape[:-2], *shape), spectrum.dtype)
    places = []
    for n, size in zip(spectrum.shape[-2:], shape):
        places.append(np.concatenate([np.arange((n + 1) // 2), np.arange(size - n // 2, size)]))
    wide[..., places[0][:, None], places[1]] = spectrum
    return wide


def resample_probe(probe: ComplexArray, shape: tuple[int, int]) -> ComplexArray:
    """Return a probe (…, y, x), centred at n//2, on ``shape`` pixels of the same window.

    Its power is kept, but for what lies at frequencies that ``shape`` does not have.
    """
    spectrum = fft2(np.fft.ifftshift(probe, axes=(-2, -1)))
    change = cut_frequencies if shape[0] < probe.shape[-2] else pad_frequencies
    return np.asarray(np.fft.fftshift(ifft2(change(spectrum, shape)), axes=(-2, -1)), probe.dtype)


def probe_like(probe: ComplexArray, like: ComplexArray) -> ComplexArray:
    """Return a probe (mode, y, x) on the pixels, of the same window, and with the power of ``like``."""
    found = resample_probe(probe, (like.shape[-2], like.shape[-1]))
    powers = [float(np.sum(np.abs(p) ** 2, dtype=np.float64)) for p in (like, found)]
    return np.asarray(found * np.sqrt(powers[0] / powers[1]), like.dtype)


def double_object(obj: ComplexArray) -> ComplexArray:
    """Return an object (…, y, x) on pixels of half the size: pixel [2i, 2j] of the result is [i, j] of ``obj``."""
    ny, nx = obj.shape[-2:]
    # The transform is unitary: four times the pixels of the same value have twice the norm
    return (2 * ifft2(pad_frequencies(fft2(obj), (2 * ny, 2 * nx)))).astype(obj.dtype, copy=False)
