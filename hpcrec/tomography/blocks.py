"""One stage of BM3D as array code, for devices: similar blocks by shifted differences, filtered in batches of groups.

What is computed is what :func:`hpcrec.backend.kernels.bm3d.collaborative_filter` does, to rounding: where two blocks
are as alike as rounding tells, or a coefficient is as large as the threshold, the choice may differ. Sums of filtered
blocks are in double precision, as a device adds them in no fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from hpcrec.backend.array import Array, FloatArray, IntArray, array_module
from hpcrec.backend.kernels.bm3d import BLOCK, haar

# Numbers of a batch of groups: 16 MB, and as many places of 8 bytes
_BATCH: Final = 1 << 22


def _rows_inside(starts: IntArray, length: int, shift: int) -> slice:
    """Return the references whose block, moved by ``shift``, lies inside an axis of ``length``; one run, in order."""
    first, last = max(0, -shift), min(length, length - shift) - BLOCK
    return slice(int(np.searchsorted(starts, first)), int(np.searchsorted(starts, last, side="right")))


def _distances(image: FloatArray, rows: IntArray, columns: IntArray, dy: int, dx: int) -> FloatArray:
    """Return the summed squared differences (row, column) of blocks from those (dy, dx) further.

    ``rows``, ``columns``: their first pixels, on the host, all of which and of the others lie inside.
    """
    xp, width = array_module(image), image.shape[1]
    x0, x1 = max(0, -dx), min(width, width - dx)
    sums = xp.zeros((len(rows), x1 - x0), image.dtype)
    for i in range(BLOCK):
        one, other = (xp.take(image, xp.asarray(rows + i + d), axis=0) for d in (0, dy))
        sums += (one[:, x0:x1] - other[:, x0 + dx : x1 + dx]) ** 2
    for step in (1, 2, 4):
        sums = sums[:, :-step] + sums[:, step:]
    return xp.take(sums, xp.asarray(columns - x0), axis=1)  # type: ignore[no-any-return]


def match_arrays(
    image: FloatArray, starts_y: IntArray, starts_x: IntArray, n_max: int, reach: int, limit: float
) -> tuple[IntArray, IntArray]:
    """Return the first pixels y·width + x (n_max, reference) of the blocks most like each reference, and their counts.

    The block itself comes first, the others in order of the difference, which is below ``limit``; equal ones in that of
    the window. Displacement after displacement is sorted into the lists of all references at once.
    """
    xp, (height, width) = array_module(image), image.shape
    shape, infinity = (len(starts_y), len(starts_x)), image.dtype.type(np.inf)
    own = xp.asarray(starts_y[:, None] * width + starts_x)
    scores, places = xp.full((n_max, *shape), infinity, image.dtype), xp.zeros((n_max, *shape), np.int64)
    scores[0], places[0] = 0, own
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            across, along = _rows_inside(starts_y, height, dy), _rows_inside(starts_x, width, dx)
            rows, columns = starts_y[across], starts_x[along]
            if (dy == 0 and dx == 0) or len(rows) == 0 or len(columns) == 0:
                continue
            found = _distances(image, rows, columns, dy, dx)
            found = xp.where(found < image.dtype.type(limit), found, infinity)
            kept, where = scores[:, across, along], places[:, across, along]
            later, here = found < kept[:-1], found < kept[1:]
            there = own[across, along] + (dy * width + dx)
            following = xp.where(later, where[:-1], xp.where(here, there, where[1:]))
            kept[1:] = xp.where(later, kept[:-1], xp.where(here, found, kept[1:]))
            where[1:] = following
    return places.reshape(n_max, -1), (scores < infinity).sum(axis=0).ravel()


def _batches(places: IntArray, counts: IntArray) -> Iterator[IntArray]:
    """Yield the blocks' places (group, n) of groups of the same size n, the largest power of two that is there."""
    xp, n_max = array_module(places), len(places)
    for power in range(n_max.bit_length()):
        n = 1 << power
        members = xp.flatnonzero((counts >= n) & (counts < 2 * n) if 2 * n <= n_max else counts >= n)
        size = max(_BATCH // (n * BLOCK**2), 1)
        for first in range(0, len(members), size):
            yield places[:n, members[first : first + size]].T


def _haar_matrix(n: int) -> FloatArray:
    matrix = np.eye(n, dtype=np.float32)
    haar(matrix, np.zeros_like(matrix), True)
    return matrix


def filter_arrays(
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
) -> FloatArray:
    """Do as :func:`hpcrec.backend.kernels.bm3d.collaborative_filter` where the images live; the rest is on the host.

    ``n_max``: a power of two. Memory: some twelve times ``n_max``/9 of an image, and half a gigabyte.
    """
    xp, (height, width) = array_module(noisy), noisy.shape
    both, shares = xp.asarray(np.kron(basis, basis)), xp.asarray(window.ravel())
    offsets = xp.asarray((np.arange(BLOCK)[:, None] * width + np.arange(BLOCK)).ravel())
    places, counts = match_arrays(pilot, starts_y, starts_x, n_max, reach, limit)
    total, weights = (xp.zeros(height * width, np.float64) for _ in range(2))
    for of_blocks in _batches(places, counts):
        index = of_blocks[:, :, None] + offsets
        change = xp.asarray(_haar_matrix(of_blocks.shape[1]))

        def spectra(image: FloatArray, index: Any = index, change: Any = change) -> Array:
            return xp.matmul(change, xp.matmul(xp.take(image.ravel(), index), both.T))  # type: ignore[no-any-return]

        group = spectra(noisy)
        if shrinkage > 0:
            kept = xp.abs(group) >= group.dtype.type(shrinkage * sigma)
            group, weight = group * kept, 1.0 / xp.maximum(kept.sum(axis=(1, 2)), 1)
        else:
            power = spectra(pilot) ** 2
            factor = power / (power + group.dtype.type(sigma**2))
            group, weight = group * factor, 1.0 / xp.maximum((factor**2).sum(axis=(1, 2)), 1e-9)
        weight = weight.astype(np.float64)
        blocks = xp.matmul(xp.matmul(change.T, group), both) * shares * weight[:, None, None]
        total += xp.bincount(index.ravel(), blocks.ravel(), minlength=height * width)
        each = xp.repeat(weight, of_blocks.shape[1])
        weights += xp.bincount(of_blocks.ravel(), each, minlength=height * width)
    return _weighed(total.reshape(noisy.shape), weights.reshape(noisy.shape), window, noisy)


def _weighed(total: FloatArray, weights: FloatArray, window: FloatArray, noisy: FloatArray) -> FloatArray:
    """Return the sums of blocks over those of their weights, which are given at the blocks' first pixels."""
    xp, (height, width) = array_module(total), total.shape
    norm = xp.zeros_like(total)
    for i in range(BLOCK):
        for j in range(BLOCK):
            norm[i:, j:] += float(window[i, j]) * weights[: height - i, : width - j]
    seen = norm > 0
    found = xp.where(seen, total / xp.where(seen, norm, 1.0), noisy)
    return found.astype(np.float32)  # type: ignore[no-any-return]
