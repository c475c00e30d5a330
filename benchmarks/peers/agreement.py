"""How far a reconstructed transmission is from the true phase, without what ptychography cannot know."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import shift
from skimage.registration import phase_cross_correlation

from benchmarks.peers.task import MARGIN


def phase_error(found: np.ndarray, truth: np.ndarray, corner: np.ndarray) -> float:
    """Return rms phase error / standard deviation of the true phase in the scanned box: 1 = nothing was learned.

    ``found`` (y, x) complex, the scanned box and ``MARGIN`` pixels around it; ``truth`` (y, x) rad, whose pixel
    ``corner`` is the first one of ``found``. A common shift, ramp and constant are taken out.
    """
    if not np.isfinite(found).all():
        return float("nan")
    wanted = truth[corner[0] : corner[0] + found.shape[0], corner[1] : corner[1] + found.shape[1]]
    inner = (slice(MARGIN, -MARGIN),) * 2
    level = _without_ramp(found, np.zeros_like(wanted))
    moved = np.full(2, np.inf)
    if np.ptp(level) > 1e-6:
        moved, *_ = phase_cross_correlation(wanted, level, upsample_factor=50, normalization=None)
    if np.abs(moved).max() < MARGIN:
        wave = np.exp(1j * level)
        level = np.angle(shift(wave.real, moved, mode="nearest") + 1j * shift(wave.imag, moved, mode="nearest"))
    residual = _without_ramp(np.exp(1j * level[inner]), wanted[inner])
    return float(np.sqrt(np.mean(residual**2)) / wanted[inner].std())


def _without_ramp(wave: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Return the phase (y, x) of ``wave`` beyond ``phase``, without the ramp and constant that fit it best."""
    y, x = np.indices(phase.shape)
    wave = wave * np.exp(-1j * phase)
    padded = (4 * phase.shape[0], 4 * phase.shape[1])
    peak = np.unravel_index(np.abs(np.fft.fft2(wave, padded)).argmax(), padded)
    wave = wave * np.exp(-2j * np.pi * (peak[0] * y / padded[0] + peak[1] * x / padded[1]))
    rest = np.angle(wave / np.mean(wave))
    plane = np.stack([np.ones(phase.size), y.ravel(), x.ravel()], axis=1)
    fit, *_ = np.linalg.lstsq(plane, rest.ravel(), rcond=None)
    return rest - (plane @ fit).reshape(phase.shape)
