"""Parallax of the bright field: every pixel of the bright disc sees the sample from another side.

A bright-field pixel at k records the same picture of a weak phase object, displaced by s(k) = −∇χ(k) / 2π; for defocus
and two-fold astigmatism that is s = M k, M = −λ Rᵀ S D with S = [[C10 − C12a, C12b], [C12b, C10 + C12a]] in (y, x),
C12a = C12 cos 2φ12, C12b = C12 sin 2φ12, where the detector turns k by D and the scan its positions by R (see
``direct/orientation.py``). Lupini, Chi & Jesse, J. Microscopy 263, 43 (2016); Varnavides et al., arXiv:2309.05250
(2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import minimize

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray
from hpcrec.backend.fft import fft2, ifft2
from hpcrec.errors import DataError
from hpcrec.geometry.grid import Grid

_PIXELS: Final = 64  # groups of bright-field pixels: enough to sample the disc, few enough to search fast
_FREQUENCIES: Final = 240
_COARSE: Final = 80  # frequencies for the first search
_TAPER: Final = 0.15  # of the field on each side, so that its edges do not ring
_CHUNK: Final = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class BrightField:
    """What groups of bright-field pixels record at each position.

    ``k`` (pixel, 2) in 1/Å as (y, x); ``signals`` (position, pixel) float32, zero mean, in units of each group's
    Poisson noise; ``means`` (pixel,) mean counts; ``radius`` of the disc in 1/Å.
    """

    k: FloatArray
    signals: FloatArray
    means: FloatArray
    radius: float


def bright_disc(mean_pattern: FloatArray) -> BoolArray:
    """Return the pixels (ky, kx) of the bright disc: above half the level that its upper half has in the middle."""
    bright = mean_pattern > 0.5 * np.percentile(mean_pattern, 99.9)
    found: BoolArray = bright if not bright.any() else mean_pattern > 0.5 * np.median(mean_pattern[bright])
    return found


def bright_field(
    patterns: Array,
    detector_sampling: tuple[float, float],
    mask: BoolArray | None = None,
    *,
    n_pixels: int = _PIXELS,
) -> BrightField:
    """Return the bright field of patterns (position, ky, kx), zero frequency at [0, 0], in about ``n_pixels`` groups.

    ``detector_sampling`` (dky, dkx) in 1/Å; ``mask`` (ky, kx), True = good. Patterns are widened a few at a time.
    Raises :class:`DataError` where there is no disc of at least five pixels.
    """
    ny, nx = patterns.shape[-2:]
    good = np.ones((ny, nx), bool) if mask is None else mask
    mean = np.zeros((ny, nx))
    for i in range(0, len(patterns), _CHUNK):
        mean += patterns[i : i + _CHUNK].sum(axis=0, dtype=np.float64)
    disc = bright_disc(np.where(good, mean / len(patterns), 0.0)) & good
    count = int(disc.sum())
    if count < 5:
        raise DataError(f"the bright field covers {count} pixels of the detector; at least 5 are needed")
    ky, kx = (np.fft.fftfreq(n, 1 / (n * d)) for n, d in zip((ny, nx), detector_sampling))
    k = np.stack(np.broadcast_arrays(ky[:, None], kx[None, :]), axis=-1)[disc]
    side = max(1, round(np.sqrt(count / n_pixels)))
    cells = np.floor(k / np.array(detector_sampling) / side + 0.5).astype(np.int64)
    _, group = np.unique(cells, axis=0, return_inverse=True)
    gather = np.zeros((count, int(group.max()) + 1), np.float32)
    gather[np.arange(count), group.ravel()] = 1
    signals = np.concatenate(
        [patterns[i : i + _CHUNK, disc].astype(np.float32) @ gather for i in range(0, len(patterns), _CHUNK)]
    )
    means = signals.mean(axis=0, dtype=np.float64)
    signals = ((signals - means) / np.sqrt(np.maximum(means, 1e-12))).astype(np.float32)
    area = count * detector_sampling[0] * detector_sampling[1]
    centres = (gather.T @ k) / gather.sum(axis=0)[:, None]
    return BrightField(k=centres, signals=signals, means=means, radius=float(np.sqrt(area / np.pi)))


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftFit:
    """Displacements s = M k of the bright-field pictures: ``matrix`` M (2, 2) in Å², and how well they agree.

    ``coherence`` : power of the aligned sum over the sum of all powers, between 1/pixels (noise) and 1.
    """

    matrix: FloatArray
    coherence: float


def fit_shifts(
    positions: FloatArray, seen: BrightField, largest_shift: float, *, finest: float = 1.0
) -> dict[bool, ShiftFit]:
    """Return the best matrix of each handedness: key True for a negative determinant (frames mirrored).

    The sum of all pictures, each moved back by M k, has the most power when M is right; that is searched for over all
    turns and strengths and refined. ``positions`` (position, 2) in Å, anywhere; ``largest_shift`` Å at the disc's
    edge; frequencies up to ``finest`` times the disc's radius are used, and up to twice the scan's own limit, for
    displacements between pictures are finer than the scan. M and −M differ (opposite defocus), but a scan turned by
    half a turn exchanges them.
    """
    q, spectrum = strongest_frequencies(positions, seen, finest * seen.radius)
    reach = largest_shift / seen.radius
    fine = 0.25 / max(float(np.linalg.norm(q, axis=1).max()), 1e-30) / seen.radius
    strengths = np.linspace(0, reach, min(max(int(np.ceil(reach / fine)), 4), 48) + 1)[1:]
    return {handed: _search(q, spectrum, seen.k, strengths, handed) for handed in (False, True)}


def coherence(matrix: FloatArray, q: FloatArray, spectrum: ComplexArray, k: FloatArray) -> float:
    """Return Σ_q |Σ_k G exp(2πi q·M k)|² / (n_k Σ_q Σ_k |G|²) of spectra G (q, pixel)."""
    wave = np.exp((2j * np.pi) * ((q @ matrix) @ k.T).astype(np.float32))
    total = np.sum(np.abs(np.sum(spectrum * wave, axis=1)) ** 2)
    return float(total / max(len(k) * np.sum(np.abs(spectrum) ** 2), 1e-30))


def strongest_frequencies(positions: FloatArray, seen: BrightField, limit: float) -> tuple[FloatArray, ComplexArray]:
    """Return the frequencies (q, 2) in 1/Å that carry most of the signal, and the spectra G (q, pixel) there.

    Half of the plane (the signals are real) up to ``limit`` and to twice what the scan resolves; positions may lie
    anywhere, the field's edges are tapered. Raises :class:`DataError` where there are too few positions for one
    frequency, or the bright field is the same at all of them.
    """
    low, high = positions.min(axis=0), positions.max(axis=0)
    extent = np.maximum(high - low, 1e-6)
    step = float(np.sqrt(np.prod(extent) / len(positions)))
    limit = min(limit, 1.0 / step)
    # Wider than the field by a step: the period of a raster
    spacing = 1 / (extent + step)
    ny, nx = (int(np.floor(limit / d)) for d in spacing)
    grid = np.stack(np.meshgrid(np.arange(-ny, ny + 1), np.arange(-nx, nx + 1), indexing="ij"), axis=-1).reshape(-1, 2)
    half = (grid[:, 0] > 0) | ((grid[:, 0] == 0) & (grid[:, 1] > 0))
    q = grid[half] * spacing
    q = q[np.linalg.norm(q, axis=1) <= limit]
    if len(q) == 0:
        raise DataError(
            f"{len(positions)} positions, {step:.3g} Å apart, are too few to compare pictures of the bright field; "
            "take more positions, or closer ones"
        )
    inside = (positions - low) / extent
    edge = np.clip(np.minimum(inside, 1 - inside) / _TAPER, 0, 1)
    taper = np.prod(np.sin(0.5 * np.pi * np.maximum(edge, 0.05)) ** 2, axis=1)
    tapered = (seen.signals - np.average(seen.signals, axis=0, weights=taper)) * taper[:, None]
    spectrum = np.concatenate(
        [np.exp(-2j * np.pi * (part @ positions.T)).astype(np.complex64) @ tapered.astype(np.complex64)
         for part in np.array_split(q, max(len(q) // 256, 1))]
    )  # fmt: skip
    power = np.sum(np.abs(spectrum) ** 2, axis=1)
    if not power.any():
        raise DataError(f"the bright field is the same at all {len(positions)} positions: it shows no sample")
    kept = np.sort(np.argsort(power)[::-1][:_FREQUENCIES])
    return q[kept], spectrum[kept]


def _search(q: FloatArray, spectrum: ComplexArray, k: FloatArray, strengths: FloatArray, handed: bool) -> ShiftFit:
    mirror = np.array([[0.0, 1.0], [1.0, 0.0]]) if handed else np.eye(2)
    found: list[tuple[float, FloatArray]] = []
    strongest = np.argsort(np.sum(np.abs(spectrum) ** 2, axis=1))[::-1][:_COARSE]
    few_q, few = q[strongest], spectrum[strongest]
    for i, strength in enumerate(strengths):
        # As many turns as the edge of the disc needs to move by no more than the strengths do
        turns = 2 * np.pi * np.arange(min(8 + 7 * (i + 1), 96)) / min(8 + 7 * (i + 1), 96)
        for turn in turns:
            c, s = np.cos(turn), np.sin(turn)
            matrix = strength * np.array([[c, s], [-s, c]]) @ mirror
            found.append((coherence(matrix, few_q, few, k), matrix))
    found.sort(key=lambda entry: -entry[0])
    sign = -1.0 if handed else 1.0
    unit = float(strengths[0])

    def cost(flat: FloatArray) -> float:
        matrix = flat.reshape(2, 2) * unit
        return 0.0 if np.linalg.det(matrix) * sign < 0 else -coherence(matrix, q, spectrum, k)

    fits = []
    for _, matrix in found[:2]:
        start = matrix.ravel() / unit
        simplex = start + np.concatenate([np.zeros((1, 4)), 0.5 * np.eye(4)])
        fits.append(
            minimize(
                cost, start, method="Nelder-Mead", options={"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-6}
            )
        )
    best = min(fits, key=lambda fit: fit.fun)
    return ShiftFit(matrix=np.asarray(best.x.reshape(2, 2) * unit), coherence=-float(best.fun))


def parallax_image(
    positions: FloatArray, seen: BrightField, matrix: FloatArray, pixel: float, *, margin: float = 0.0
) -> tuple[FloatArray, Grid]:
    """Return the aligned bright field (y, x) float32, mean signal over its counts, and its grid of ``pixel`` Å.

    Each picture's values are put at R − M k, shared among four pixels, and divided by how much fell there: positions
    may lie anywhere, and pixels be finer than the scan. Pixels that nothing reached are zero.
    """
    low, high = positions.min(axis=0) - margin, positions.max(axis=0) + margin
    shape = tuple(int(n) for n in np.ceil((high - low) / pixel) + 2)
    grid = Grid(shape=(shape[0], shape[1]), sampling=(pixel, pixel), origin=(float(low[0]), float(low[1])))
    values, weights = np.zeros(shape[0] * shape[1]), np.zeros(shape[0] * shape[1])
    scale = np.sqrt(seen.means)
    for k, mean, noise, signal in zip(seen.k, seen.means, scale, seen.signals.T):
        at = grid.to_pixels(positions - matrix @ k)
        corner = np.floor(at).astype(np.int64)
        part = at - corner
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            y, x = corner[:, 0] + dy, corner[:, 1] + dx
            share = np.abs(1 - dy - part[:, 0]) * np.abs(1 - dx - part[:, 1])
            inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
            index = (y * shape[1] + x)[inside]
            values += np.bincount(index, (share * signal * noise)[inside], len(values))
            weights += np.bincount(index, share[inside] * mean, len(values))
    image = np.where(weights > 1e-3 * weights.max(), values / np.maximum(weights, 1e-30), 0.0)
    return image.reshape(grid.shape).astype(np.float32), grid


def phase_from_parallax(
    image: FloatArray, pixel: float, wavelength: float, c10: float, *, c12a: float = 0.0, c12b: float = 0.0
) -> FloatArray:
    """Return the phase (y, x) float32 rad behind an aligned bright field: its contrast is 2 sin χ(q) φ̂(q).

    Wiener division by the contrast, χ = πλ (C10 q² + C12a (q_x² − q_y²) + 2 C12b q_y q_x); lengths in Å.
    """
    qy, qx = Grid(shape=(image.shape[0], image.shape[1]), sampling=(pixel, pixel)).frequencies()
    chi = np.pi * wavelength * (c10 * (qy**2 + qx**2) + c12a * (qx**2 - qy**2) + 2 * c12b * qy * qx)
    transfer = 2 * np.sin(chi)
    spectrum = fft2(np.asarray(image, np.float32)) * transfer / (transfer**2 + 0.1)
    return np.asarray(ifft2(spectrum).real, np.float32)
