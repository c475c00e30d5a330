"""Loops of BM3D: search similar blocks, filter them together in a 3-D transform, put them back with weights.

Dabov, Foi, Katkovnik & Egiazarian, IEEE Trans. Image Process. 16, 2080 (2007), §III. Blocks go through a 2-D cosine
transform and a Haar transform across the group.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from hpcrec.backend.array import Array, FloatArray, IntArray
from hpcrec.backend.kernels.rows import row_of
from hpcrec.backend.threads import run_parts

_BAND: Final = 16
BLOCK: Final = 8  # a constant, so that the compiler unrolls the inner loops


@njit(cache=True, nogil=True, fastmath=True)
def _distances(image: Array, y0: int, y: int, dx: int, x0: int, x1: int, work: Array) -> None:
    """Write to ``work`` (3, ≥ x) the distances of blocks x0 to x1 − 1 of row y0 from those at (y, +dx).

    Sums over the rows of the blocks first, then over columns by doubling: 1 + 1 + 1 additions instead of 7.
    """
    sums, twos, fours = work[0], work[1], work[2]
    end = x1 + BLOCK - 1
    for x in range(end - x0):
        sums[x] = 0
    for i in range(BLOCK):
        one, other = image[y0 + i, x0:end], image[y + i, x0 + dx : end + dx]
        for x in range(end - x0):
            difference = one[x] - other[x]
            sums[x] += difference * difference
    for x in range(end - x0 - 1):
        twos[x] = sums[x] + sums[x + 1]
    for x in range(end - x0 - 3):
        fours[x] = twos[x] + twos[x + 2]
    for x in range(x1 - x0):
        sums[x] = fours[x] + fours[x + 4]


@njit(cache=True, nogil=True, fastmath=True)
def match_blocks(
    image: Array,
    y0: int,
    starts_x: Array,
    reach: int,
    limit: float,
    rows: Array,
    columns: Array,
    scores: Array,
    counts: Array,
) -> None:
    """Find the blocks most like each of those at (y0, ``starts_x``) within ``reach`` pixels; ``counts`` says how many.

    ``rows``, ``columns``, ``scores`` (reference, n_max) are filled in order of the summed squared difference, which is
    below ``limit``; the block itself comes first. All references of the row meet one displacement at a time.
    """
    height, width = image.shape
    n_max = rows.shape[1]
    work = np.empty((3, width), np.float32)
    for r in range(starts_x.size):
        rows[r, 0], columns[r, 0], scores[r, 0], counts[r] = y0, starts_x[r], 0.0, 1
    for y in range(max(0, y0 - reach), min(height - BLOCK, y0 + reach) + 1):
        for dx in range(-reach, reach + 1):
            x0, x1 = max(0, -dx), min(width, width - dx) - BLOCK + 1
            if (y == y0 and dx == 0) or x1 <= x0:
                continue
            _distances(image, y0, y, dx, x0, x1, work)
            for r in range(starts_x.size):
                x = starts_x[r]
                if x < x0 or x >= x1:
                    continue
                distance, count = work[0, x - x0], counts[r]
                if distance >= (limit if count < n_max else scores[r, n_max - 1]):
                    continue
                k = min(count, n_max - 1)
                counts[r] = k + 1
                while k > 1 and scores[r, k - 1] > distance:
                    scores[r, k], rows[r, k], columns[r, k] = scores[r, k - 1], rows[r, k - 1], columns[r, k - 1]
                    k -= 1
                scores[r, k], rows[r, k], columns[r, k] = distance, y, x + dx


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
def _times_rows(a: Array, i: int, source: Array, at: int, stride: int, out: Array, to: int) -> None:
    """Write row i of a (8, 8) times the eight rows of ``source`` from flat index ``at`` on to eight places of ``out``.

    Of views without checks the compiler makes vectors of eight; sums over the rows inside one loop stay in registers.
    """
    c, to_row = row_of(a, i * BLOCK, BLOCK), row_of(out, to, BLOCK)
    r0, r1 = row_of(source, at, BLOCK), row_of(source, at + stride, BLOCK)
    r2, r3 = row_of(source, at + 2 * stride, BLOCK), row_of(source, at + 3 * stride, BLOCK)
    r4, r5 = row_of(source, at + 4 * stride, BLOCK), row_of(source, at + 5 * stride, BLOCK)
    r6, r7 = row_of(source, at + 6 * stride, BLOCK), row_of(source, at + 7 * stride, BLOCK)
    a0, a1, a2, a3, a4, a5, a6, a7 = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
    for j in range(BLOCK):
        low, high = a0 * r0[j] + a1 * r1[j] + a2 * r2[j] + a3 * r3[j], a4 * r4[j] + a5 * r5[j] + a6 * r6[j] + a7 * r7[j]
        to_row[j] = low + high


@njit(cache=True, nogil=True, fastmath=True)
def _load(image: Array, rows: Array, columns: Array, n: int, basis: Array, group: Array) -> None:
    """Fill ``group`` (n, 64) with the cosine transforms of ``n`` blocks: basis · block · basisᵀ."""
    half, turned, width = np.empty((BLOCK, BLOCK), np.float32), np.ascontiguousarray(basis.T), image.shape[1]
    for b in range(n):
        at = rows[b] * width + columns[b]
        for u in range(BLOCK):
            _times_rows(basis, u, image, at, width, half, u * BLOCK)
        for u in range(BLOCK):
            _times_rows(half, u, turned, 0, BLOCK, group, (b * BLOCK + u) * BLOCK)


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
    half, block = np.empty((BLOCK, BLOCK), np.float32), np.empty((BLOCK, BLOCK), np.float32)
    turned, shares, width = np.ascontiguousarray(basis.T), window * np.float32(weight), out.shape[1]
    for b in range(n):
        for i in range(BLOCK):
            _times_rows(turned, i, group, b * BLOCK * BLOCK, BLOCK, half, i * BLOCK)
        for i in range(BLOCK):
            _times_rows(half, i, basis, 0, BLOCK, block, i * BLOCK)
            at = (rows[b] + i) * width + columns[b]
            line, sums = row_of(out, at, BLOCK), row_of(norm, at, BLOCK)
            for j in range(BLOCK):
                line[j] += shares[i, j] * block[i, j]
                sums[j] += shares[i, j]


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
    """Add the filtered groups of some reference blocks to ``out`` and ``norm``, which begin at row ``first``."""
    n_x = starts_x.size
    all_rows, all_columns = np.empty((n_x, n_max), np.int64), np.empty((n_x, n_max), np.int64)
    scores, counts = np.empty((n_x, n_max), np.float32), np.empty(n_x, np.int64)
    group_store = np.empty((n_max, BLOCK * BLOCK), np.float32)
    pilot_store, work = np.empty_like(group_store), np.empty_like(group_store)
    for y in starts_y:
        match_blocks(pilot, y, starts_x, reach, limit, all_rows, all_columns, scores, counts)
        for r in range(n_x):
            rows, columns, n = all_rows[r], all_columns[r], 1
            while 2 * n <= counts[r]:
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
