"""Fourier ring correlation of one projection from two half scans, brought to one another first.

A ptychographic object is known up to a shift (with its probe), a phase ramp (a shift of the probe's spectrum) and a
constant. These are searched for and taken off before the two halves are compared on the region that both have seen.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import scipy
from scipy import ndimage

from hpcrec.analysis.resolution import ShellCorrelation, fourier_shell_correlation
from hpcrec.backend.array import Array, ComplexArray, FloatArray
from hpcrec.errors import DataError

_LIT: Final = 0.3
_EDGE_SHARE: Final = 0.06
_ROUNDS: Final = 3
_LARGEST_SHIFT: Final = 8
_LEAST_SIDE: Final = 16


def half_scan_correlation(
    halves: tuple[ComplexArray, ComplexArray],
    illuminations: tuple[FloatArray, FloatArray],
    sampling: tuple[float, float],
) -> ShellCorrelation:
    """Return the Fourier ring correlation of two complex projections (y, x).

    ``illuminations`` (y, x), how much each half has seen of each pixel; ``sampling`` (dy, dx) Å. Both halves are one
    half of the data: the threshold is the half-bit of van Heel & Schatz (2005).

    Raises
    ------
    DataError : the halves have no region of 16 × 16 pixels in common.
    """
    window = common_window(*illuminations)
    inside = ndimage.find_objects((window > 0).astype(int))
    if not inside or min(s.stop - s.start for s in inside[0]) < _LEAST_SIDE:
        raise DataError("the half scans have too little in common for a ring correlation; scan a larger field")
    cut = inside[0]
    a, b, window = halves[0][cut], halves[1][cut], window[cut]
    return fourier_shell_correlation(a, registered(b, a, window), sampling, window)


def projection_of(obj: ComplexArray, n_states: int = 1) -> ComplexArray:
    """Return the product (y, x) of an object's slices (state · slice, y, x), the mean over its states."""
    by_state = obj.reshape(n_states, -1, *obj.shape[1:]).astype(np.complex128)
    return np.asarray(np.mean(np.prod(by_state, axis=1), axis=0))


def common_window(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return a soft window (y, x) in [0, 1] of the pixels that two illuminations (y, x) have both well seen."""
    seen = [np.asarray(i, np.float64) / np.percentile(i[i > 0], 90) for i in (a, b)]
    lit = ndimage.binary_fill_holes(np.minimum(*seen) > _LIT)
    edge = max(round(_EDGE_SHARE * np.sqrt(lit.sum())), 2)
    # Eroded first, so that the soft edge ends where the lit region does
    inner = ndimage.binary_erosion(lit, iterations=edge)
    soft = ndimage.gaussian_filter(inner.astype(np.float64), edge / 2, truncate=2.0)
    return np.where(lit, soft, 0.0)


def registered(moving: ComplexArray, fixed: ComplexArray, window: FloatArray) -> ComplexArray:
    """Return ``moving`` (y, x) with the shift, phase ramp and constant that bring it nearest to ``fixed``.

    Each is where a correlation under the soft ``window`` peaks, found to a small part of a pixel, in three rounds; at
    most eight pixels and eight periods of the ramp across the field, so that no lattice is taken for a shift.
    """
    found = np.asarray(moving, np.complex128)
    fixed = np.asarray(fixed, np.complex128)
    ny, nx = found.shape
    y, x = np.arange(ny) - ny // 2, np.arange(nx) - nx // 2
    ky, kx = np.fft.fftfreq(ny), np.fft.fftfreq(nx)
    for _ in range(_ROUNDS):
        # Σ w² a b* exp(−2πi q·r) peaks at the ramp q of a against b, in periods across the field
        overlap = window**2 * fixed * found.conj()
        ramp = _peak(overlap, -y / ny, -x / nx)
        found = found * _wave(y / ny, ramp[0])[:, None] * _wave(x / nx, ramp[1])[None, :]
        found = found * np.exp(1j * np.angle(np.sum(window**2 * fixed * found.conj())))
        # Σ A B* exp(+2πi k·s) peaks at the shift s of a against b
        spectra = [np.fft.fft2(_without_mean(o, window)) for o in (fixed, found)]
        shift = _peak(spectra[0] * spectra[1].conj(), ky, kx)
        moved = np.fft.fft2(found) * _wave(ky, -shift[0])[:, None] * _wave(kx, -shift[1])[None, :]
        found = np.fft.ifft2(moved)
    return found


def _without_mean(obj: ComplexArray, window: FloatArray) -> ComplexArray:
    return np.asarray((obj - np.average(obj, weights=window)) * window)


def _wave(coordinates: FloatArray, frequency: float) -> ComplexArray:
    return np.asarray(np.exp(2j * np.pi * coordinates * frequency))


def _peak(values: Array, y: FloatArray, x: FloatArray) -> tuple[float, float]:
    """Return (p, q) at which |Σ v exp(2πi (p y + q x))| is largest, each at most eight from zero."""
    trials = np.arange(-_LARGEST_SHIFT, _LARGEST_SHIFT + 1)
    sums = np.abs(np.exp(2j * np.pi * np.outer(trials, y)) @ values @ np.exp(2j * np.pi * np.outer(x, trials)))
    best = np.unravel_index(int(sums.argmax()), sums.shape)
    start = np.array([trials[best[0]], trials[best[1]]], np.float64)
    scale = float(sums.max()) or 1.0

    def misfit(point: FloatArray) -> float:
        return -float(np.abs(_wave(y, point[0]) @ values @ _wave(x, point[1]))) / scale

    simplex = start + np.array([[0.0, 0.0], [0.4, 0.0], [0.0, 0.4]])
    options = {"initial_simplex": simplex, "xatol": 1e-4, "fatol": 1e-12, "maxiter": 200}
    fine = scipy.optimize.minimize(misfit, start, method="Nelder-Mead", options=options).x
    return float(fine[0]), float(fine[1])
