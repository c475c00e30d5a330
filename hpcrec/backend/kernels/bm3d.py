"""Loops of BM3D: search similar blocks, filter them together in a 3-D transform, put them back with weights.

Dabov, Foi, Katkovnik & Egiazarian, IEEE Trans. Image Process. 16, 2080 (2007), §III. Blocks go through a 2-D cosine
transform and a Haar transform across the group.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from hpcrec.backend.array import Array, FloatArray, IntArray
from hpcrec.backend.threads import run_parts

_BAND: Final = 16
BLOCK: Final = 8  # a constant, so that the compiler unrolls the inner loops


@njit(cache=True, nogil=True, fastmath=True)
def match_blocks(
    image: Array, y0: int, x0: int, reach: int, limit: float, rows: Array, columns: Array, scores: Array
) -> int:
    """Find the blocks most like the one at (y0, x0) within ``reach`` pixels; return how many.

    ``rows``, ``columns``, ``scores`` (n_max,) are filled in order of the summed squared difference, which is at most
    ``limit``; the block itself comes first.
    """
    height, width = image.shape
    n_max = rows.size
    rows[0], columns[0], scores[0] = y0, x0, 0.0
    count = 1
    for y in range(max(0, y0 - reach), min(height - BLOCK, y0 + reach) + 1):
        for x in range(max(0, x0 - reach), min(width - BLOCK, x0 + reach) + 1):
            if y == y0 and x == x0:
                continue
            bound = limit if count < n_max else scores[n_max - 1]
            distance = np.float32(0.0)
            for i in range(BLOCK):
                for j in range(BLOCK):
                    difference = image[y + i, x + j] - image[y0 + i, x0 + j]
                    distance += difference * difference
                if distance >= bound:
                    break
            if distance >= bound:
                continue
            if count < n_max:
                count += 1
            k = count - 1
            while k > 1 and scores[k - 1] > distance:
                scores[k], rows[k], columns[k] = scores[k - 1], rows[k - 1], columns[k - 1]
                k -= 1
            scores[k], rows[k], columns[k] = distance, y, x
    return count


@njit(cache=True, nogil=True, fastmath=True)
def haar(group: Array, work: Array, forward: bool) -> None:
    """Orthonormal Haar transform in place along axis 0 of ``group`` (n, coefficient), n a power of two."""
    n, m = group.shape
    root = np.float32(np.sqrt(0.5))
    length = n if forward else 2
    while (length > 1) if forward else (length <= n):
        half = length // 2
        for i in range(half):
            for c in range(m):
                if forward:
                    work[i, c] = (group[2 * i, c] + group[2 * i + 1, c]) * root
                    work[half + i, c] = (group[2 * i, c] - group[2 * i + 1, c]) * root
                else:
                    work[2 * i, c] = (group[i, c] + group[half + i, c]) * root
                    work[2 * i + 1, c] = (group[i, c] - group[half + i, c]) * root
        group[:length] = work[:length]
        length = half if forward else 2 * length


@njit(cache=True, nogil=True, fastmath=True)
def _load(image: Array, rows: Array, columns: Array, n: int, basis: Array, group: Array) -> None:
    """Fill ``group`` (n, 64) with the cosine transforms of ``n`` blocks."""
    half = np.empty((BLOCK, BLOCK), np.float32)
    for b in range(n):
        for u in range(BLOCK):
            for j in range(BLOCK):
                total = np.float32(0.0)
                for i in range(BLOCK):
                    total += basis[u, i] * image[rows[b] + i, columns[b] + j]
                half[u, j] = total
        for u in range(BLOCK):
            for v in range(BLOCK):
                total = np.float32(0.0)
                for j in range(BLOCK):
                    total += half[u, j] * basis[v, j]
                group[b, u * BLOCK + v] = total


@njit(cache=True, nogil=True, fastmath=True)
def _store(
    group: Array,
    rows: Array,
    columns: Array,
    n: int,
    basis: Array,
    window: Array,
    weight: float,
    out: Array,
    norm: Array,
) -> None:
    """Transform the blocks back and add them, weighted, to ``out``; the weights to ``norm``."""
    half = np.empty((BLOCK, BLOCK), np.float32)
    for b in range(n):
        for i in range(BLOCK):
            for v in range(BLOCK):
                total = np.float32(0.0)
                for u in range(BLOCK):
                    total += basis[u, i] * group[b, u * BLOCK + v]
                half[i, v] = total
        for i in range(BLOCK):
            for j in range(BLOCK):
                total = np.float32(0.0)
                for v in range(BLOCK):
                    total += half[i, v] * basis[v, j]
                share = window[i, j] * weight
                out[rows[b] + i, columns[b] + j] += share * total
                norm[rows[b] + i, columns[b] + j] += share


@njit(cache=True, nogil=True, fastmath=True)
def _shrink(group: Array, level: float) -> float:
    """Set coefficients below ``level`` to zero; return the weight of the group, one over how many are left."""
    kept = 0
    for i in range(group.shape[0]):
        for c in range(group.shape[1]):
            if abs(group[i, c]) < level:
                group[i, c] = 0.0
            else:
                kept += 1
    return 1.0 / max(kept, 1)


@njit(cache=True, nogil=True, fastmath=True)
def _wiener(group: Array, pilot: Array, variance: float) -> float:
    """Multiply by the empirical Wiener factor of the pilot group; return the weight of the group, 1/Σ factor²."""
    total = 0.0
    for i in range(group.shape[0]):
        for c in range(group.shape[1]):
            power = pilot[i, c] * pilot[i, c]
            factor = power / (power + variance)
            group[i, c] *= factor
            total += factor * factor
    return 1.0 / max(total, 1e-9)


@njit(cache=True, nogil=True, fastmath=True)
def _filter_band(
    noisy: Array, pilot: Array, starts_y: Array, starts_x: Array, basis: Array, window: Array, n_max: int, reach: int,
    limit: float, sigma: float, shrinkage: float, first: int, out: Array, norm: Array,
) -> None:  # fmt: skip
    """Add the filtered groups of some reference blocks to ``out`` and ``norm``, whose row 0 is the image's ``first``."""
    rows, columns = np.empty(n_max, np.int64), np.empty(n_max, np.int64)
    scores = np.empty(n_max, np.float32)
    group_store = np.empty((n_max, BLOCK * BLOCK), np.float32)
    pilot_store, work = np.empty_like(group_store), np.empty_like(group_store)
    for y in starts_y:
        for x in starts_x:
            count = match_blocks(pilot, y, x, reach, limit, rows, columns, scores)
            n = 1
            while 2 * n <= count:
                n *= 2
            group = group_store[:n]
            _load(noisy, rows, columns, n, basis, group)
            haar(group, work, True)
            if shrinkage > 0:
                weight = _shrink(group, shrinkage * sigma)
            else:
                _load(pilot, rows, columns, n, basis, pilot_store[:n])
                haar(pilot_store[:n], work, True)
                weight = _wiener(group, pilot_store[:n], sigma * sigma)
            haar(group, work, False)
            for i in range(n):
                rows[i] -= first
            _store(group, rows, columns, n, basis, window, weight, out, norm)


def collaborative_filter(
    noisy: FloatArray,
    pilot: FloatArray,
    starts_y: IntArray,
    starts_x: IntArray,
    basis: FloatArray,
    window: FloatArray,
    n_max: int,
    reach: int,
    limit: float,
    sigma: float,
    shrinkage: float,
    threads: int | None = None,
) -> FloatArray:
    """Run one stage over the reference blocks at ``starts_y`` × ``starts_x``; return the estimate (y, x).

    ``noisy``, ``pilot`` (y, x) float32: blocks are matched in the pilot. ``shrinkage`` > 0 thresholds the group's
    coefficients at shrinkage·σ (first stage); 0 applies the Wiener factors of the pilot (second stage). ``basis``
    (8, 8) orthonormal rows; ``window`` (8, 8); groups hold the largest power of two ≤ ``n_max`` matches
    of summed squared difference < ``limit``. Bands of reference blocks are summed apart and joined in their order, so
    ``threads`` (default those of the process) change no bit.
    """
    bands = [starts_y[i : i + _BAND] for i in range(0, len(starts_y), _BAND)]
    spans = [(max(0, int(b[0]) - reach), min(len(noisy), int(b[-1]) + reach + BLOCK)) for b in bands]
    sums = [np.zeros((2, last - first, noisy.shape[1]), np.float32) for first, last in spans]
    settings = (basis, window, n_max, reach, limit, sigma, shrinkage)

    def task(first: int, last: int) -> None:
        for i in range(first, last):
            _filter_band(noisy, pilot, bands[i], starts_x, *settings, spans[i][0], *sums[i])

    run_parts(task, len(bands), threads)
    total = np.zeros((2, *noisy.shape), np.float32)
    for part, (first, last) in zip(sums, spans):
        total[:, first:last] += part
    seen = total[1] > 0
    return np.where(seen, total[0] / np.where(seen, total[1], 1), noisy)
