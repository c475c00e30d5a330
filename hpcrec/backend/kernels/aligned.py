"""Projection along one axis of the volume, and its adjoint: every row along the axis is the same 2-D problem.

Where the tilt axis is the volume's y axis and pixels are as large as voxels, the place u = a·x + b·z + c of a voxel on
the detector does not depend on y, and v = y + d moves every row alike. So the weights are found once for a whole row of
voxels, a row of pixels is a sparse sum of rows of voxels (and the reverse), and the shift along v is one pass over the
images. Volumes and images are turned for that into blocks of at most :data:`hpcrec.backend.kernels.rows.ROW` rows,
contiguous along y: (block, z, x, row) and (block, projection, u, row). Each sum has its own thread and a fixed order,
so the number of threads changes no bit. The NumPy twin is :func:`.projection.projection_matrix`.

Tiles of voxels stay in the second-level cache while all projections use them: 16 · 16 columns of 256 rows are 256 KB.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit

from hpcrec.backend.array import BoolArray, FloatArray, IntArray
from hpcrec.backend.kernels.rows import LANES, ROW, add_rows, aligned_zeros
from hpcrec.backend.threads import run_parts

TILE: Final = 16
# A line of voxels one voxel apart falls on a strip of three pixels at most five times, as max(|cos|, |sin|) ≥ 0.7
_MOST: Final = 5 * TILE
_GROUP: Final = 12
_HEIGHT: Final = 6 * ROW
# Rows of 256 bytes, sixteen of which fill a way of the first cache: planes 5 rows apart modulo 16 put the rows that one
# sum takes, whose place moves by at most one or two a plane, into different sets; powers of two would all meet in one
_PLACES, _APART = 16, 5


@njit(nogil=True, cache=True, inline="always")
def _weights(degree: int, u: float, w: Any) -> int:
    """Fill the weights (3,) of the pixels left, at and right of the nearest one; return the left one."""
    i = int(np.floor(u + 0.5))
    f = u - i
    if degree == 1:
        w[0], w[1], w[2] = max(-f, 0.0), 1 - abs(f), max(f, 0.0)
    else:
        w[0], w[1], w[2] = 0.5 * (0.5 - f) * (0.5 - f), 0.75 - f * f, 0.5 * (0.5 + f) * (0.5 + f)
    return i - 1


@njit(nogil=True, cache=True)
def _lists_of_pixels(
    a: Any,
    filled: Any,
    z0: int,
    x0: int,
    degree: int,
    moment: int,
    n_u: int,
    w: Any,
    count: Any,
    starts: Any,
    by: Any,
    width: int,
) -> Any:
    """List for each pixel that a tile meets its voxels and their weights; return first and one past last pixel.

    ``starts`` and ``by`` (pixel, :data:`_MOST`), ``count`` (pixel,), all from the first pixel on.
    """
    n_z, n_x = filled.shape
    z1, x1 = min(z0 + TILE, n_z), min(x0 + TILE, n_x)
    low = a[0, 3] + min(a[0, 0] * x0, a[0, 0] * (x1 - 1)) + min(a[0, 2] * z0, a[0, 2] * (z1 - 1))
    high = a[0, 3] + max(a[0, 0] * x0, a[0, 0] * (x1 - 1)) + max(a[0, 2] * z0, a[0, 2] * (z1 - 1))
    first, last = max(int(np.floor(low + 0.5)) - 1, 0), min(int(np.floor(high + 0.5)) + 2, n_u)
    count[: max(last - first, 0)] = 0
    for z in range(z0, z1):
        for x in range(x0, x1):
            if not filled[z, x]:
                continue
            i = _weights(degree, a[0, 0] * x + a[0, 2] * z + a[0, 3], w) - first
            factor = a[3, 0] * x + a[3, 2] * z + a[3, 3] if moment else 1.0
            for p in range(3):
                if 0 <= i + p < last - first and w[p] != 0:
                    n = count[i + p]
                    starts[i + p, n] = (z * n_x + x) * width
                    by[i + p, n] = w[p] * factor
                    count[i + p] = n + 1
    return first, last


@njit(nogil=True, cache=True, error_model="numpy")
def project_rows(volume: Any, filled: Any, affine: Any, degree: int, moment: int, k0: int, k1: int, out: Any) -> None:
    """Add to ``out`` (block, projection, u, row) the projections k0 to k1 − 1 of ``volume`` (block, z, x, row).

    ``filled`` (z, x) False: columns taken as zero; ``affine`` (projection, 4, 4) as in :mod:`.projection`.
    One thread, without the interpreter lock; the order of sums does not depend on k0 and k1.
    """
    n_blocks, n_z, n_x, width = volume.shape
    n_k, n_u = out.shape[1], out.shape[2]
    w, count = np.empty(3), np.zeros(2 * TILE + 4, np.int64)
    starts = np.empty((2 * TILE + 4, _MOST), np.int64)
    by = np.empty((2 * TILE + 4, _MOST), volume.dtype)
    flat_starts, flat_by = starts.reshape(-1), by.reshape(-1)
    source, target = volume.reshape(-1), out.reshape(-1)
    height = max(_HEIGHT // width, 1)
    for b0 in range(0, n_blocks, height):
        for z0 in range(0, n_z, TILE):
            for x0 in range(0, n_x, TILE):
                if not filled[z0 : z0 + TILE, x0 : x0 + TILE].any():
                    continue
                for k in range(k0, k1):
                    first, last = _lists_of_pixels(
                        affine[k], filled, z0, x0, degree, moment, n_u, w, count, starts, by, width
                    )
                    for b in range(b0, min(b0 + height, n_blocks)):
                        shift = b * n_z * n_x * width
                        part = source[shift : shift + n_z * n_x * width]
                        for u in range(first, last):
                            i = u - first
                            to = ((b * n_k + k) * n_u + u) * width
                            add_rows(target, to, part, flat_starts, flat_by, i * _MOST, i * _MOST + count[i], width)


@njit(nogil=True, cache=True)
def _list_of_voxel(affine: Any, k0: int, k1: int, z: int, x: int, degree: int, n_u: int, w: Any, n: int, starts: Any,
                   by: Any, width: int) -> int:  # fmt: skip
    """Append the pixels that the voxels (z, x) meet in some projections, and their weights; return the new length."""
    for k in range(k0, k1):
        a = affine[k]
        i = _weights(degree, a[0, 0] * x + a[0, 2] * z + a[0, 3], w)
        for p in range(3):
            if 0 <= i + p < n_u and w[p] != 0:
                starts[n] = (k * n_u + i + p) * width
                by[n] = w[p]
                n += 1
    return n


@njit(nogil=True, cache=True, error_model="numpy")
def back_project_rows(images: Any, filled: Any, affine: Any, degree: int, z_first: int, z_last: int, out: Any) -> None:
    """Add to planes z_first to z_last − 1 of ``out`` (block, z, x, row) the adjoint of :func:`project_rows`."""
    n_blocks, n_z, n_x, width = out.shape
    n_k, n_u = images.shape[1], images.shape[2]
    w, edges = np.empty(3), np.zeros(TILE * TILE + 1, np.int64)
    starts = np.empty(TILE * TILE * _GROUP * 3, np.int64)
    by = np.empty(TILE * TILE * _GROUP * 3, out.dtype)
    source, target = images.reshape(-1), out.reshape(-1)
    for z0 in range(z_first, z_last, TILE):
        z1 = min(z0 + TILE, z_last)
        for x0 in range(0, n_x, TILE):
            x1 = min(x0 + TILE, n_x)
            for k0 in range(0, n_k, _GROUP):
                n, i = 0, 0
                for z in range(z0, z1):
                    for x in range(x0, x1):
                        if filled[z, x]:
                            n = _list_of_voxel(
                                affine, k0, min(k0 + _GROUP, n_k), z, x, degree, n_u, w, n, starts, by, width
                            )
                        i += 1
                        edges[i] = n
                for b in range(n_blocks):
                    shift = b * n_k * n_u * width
                    part = source[shift : shift + n_k * n_u * width]
                    i = 0
                    for z in range(z0, z1):
                        for x in range(x0, x1):
                            to = ((b * n_z + z) * n_x + x) * width
                            if edges[i + 1] > edges[i]:
                                add_rows(target, to, part, starts, by, edges[i], edges[i + 1], width)
                            i += 1


@njit(nogil=True, cache=True)
def _rows_from_volume(volume: Any, ranges: Any, z0: int, z1: int, out: Any) -> None:
    """Turn planes z0 to z1 − 1 of ``volume`` (z, y, x) into ``out`` (block, z, x, row), zero outside ``ranges``."""
    n_x, width = volume.shape[2], out.shape[3]
    for z in range(z0, z1):
        for b in range(out.shape[0]):
            for x0 in range(0, n_x, LANES):
                for x in range(x0, min(x0 + LANES, n_x)):
                    row = out[b, z, x]
                    low, high = max(ranges[z, x, 0] - b * width, 0), min(ranges[z, x, 1] - b * width, width)
                    for i in range(low, high):
                        row[i] = volume[z, b * width + i, x]


@njit(nogil=True, cache=True)
def _volume_from_rows(rows: Any, ranges: Any, z0: int, z1: int, out: Any) -> None:
    """Turn ``rows`` (block, z, x, row) back into planes z0 to z1 − 1 of ``out`` (z, y, x), zero outside ``ranges``."""
    n_y, n_x, width = out.shape[1], out.shape[2], rows.shape[3]
    for z in range(z0, z1):
        for b in range(rows.shape[0]):
            for x in range(n_x):
                row, low, high = rows[b, z, x], ranges[z, x, 0] - b * width, ranges[z, x, 1] - b * width
                row[: min(max(low, 0), width)] = 0
                row[min(max(high, 0), width) :] = 0
            for x0 in range(0, n_x, LANES):
                for i in range(min(width, n_y - b * width)):
                    for x in range(x0, min(x0 + LANES, n_x)):
                        out[z, b * width + i, x] = rows[b, z, x, i]


@njit(nogil=True, cache=True)
def _images_from_rows(rows: Any, affine: Any, degree: int, n_y: int, scale: float, k0: int, k1: int, out: Any) -> None:
    """Spread ``rows`` (block, projection, u, row) along v: write images k0 to k1 − 1 of ``out`` (projection, v, u)."""
    n_v, n_u, width = out.shape[1], out.shape[2], rows.shape[3]
    w = np.empty(3)
    for k in range(k0, k1):
        left = _weights(degree, affine[k, 1, 3], w)
        for v in range(n_v):
            for u in range(n_u):
                out[k, v, u] = 0
            for q in range(3):
                y = v - left - q
                if 0 <= y < n_y and w[q] != 0:
                    by = rows.dtype.type(w[q] * scale)
                    for u in range(n_u):
                        out[k, v, u] += by * rows[y // width, k, u, y % width]


@njit(nogil=True, cache=True)
def _rows_from_images(
    images: Any, affine: Any, degree: int, n_y: int, scale: float, k0: int, k1: int, out: Any
) -> None:
    """Write projections k0 to k1 − 1 of ``out`` (block, projection, u, row): the adjoint of images from rows."""
    n_v, n_u, width = images.shape[1], images.shape[2], out.shape[3]
    w = np.empty(3)
    for k in range(k0, k1):
        left = _weights(degree, affine[k, 1, 3], w)
        for q in range(3):
            by = images.dtype.type(w[q] * scale)
            for y in range(max(0, -left - q), min(n_y, n_v - left - q)):
                for u in range(n_u):
                    out[y // width, k, u, y % width] += by * images[k, y + left + q, u]


def is_aligned(affine: FloatArray, volume_shape: tuple[int, int, int]) -> bool:
    """Whether an affine map (4, 4) projects voxels of a volume (z, y, x) along rows, to 10⁻⁶ pixels."""
    n_z, n_y, n_x = volume_shape
    moves = abs(affine[0, 1]) * n_y, abs(affine[1, 0]) * n_x, abs(affine[1, 2]) * n_z, abs(affine[1, 1] - 1) * n_y
    return bool(max(moves) < 1e-6 and abs(affine[0, 0] ** 2 + affine[0, 2] ** 2 - 1) < 1e-6)


def _padded(n: int) -> int:
    """Return the length of an axis in front of the rows, a few more than n."""
    return n + (_APART - n) % _PLACES


def _filled(ranges: IntArray, n: int) -> BoolArray:
    """Return which columns (z, n) of voxels are not empty; those of the padding are."""
    filled = np.zeros((len(ranges), n), np.bool_)
    filled[:, : ranges.shape[1]] = ranges[..., 1] > ranges[..., 0]
    return filled


def _row_blocks(n_y: int) -> tuple[int, int]:
    """Return how many blocks of how many rows hold n_y rows; every block is a whole number of vectors."""
    n_blocks = max(-(-n_y // ROW), 1)
    return n_blocks, max(-(-n_y // (n_blocks * LANES)) * LANES, LANES)


def project_aligned(
    volume: FloatArray,
    ranges: IntArray,
    affine: FloatArray,
    degree: int,
    moment: bool,
    scale: float,
    detector_shape: tuple[int, int],
    threads: int | None,
) -> FloatArray:
    """Return the projections (projection, v, u), times ``scale``, of ``volume`` (z, y, x) for aligned maps.

    ``ranges`` (z, x, 2) first and one-past-last y of each column; ``moment`` weights voxels by row 3 of ``affine``.
    Needs a second copy of the volume.
    """
    n_z, n_y, n_x = volume.shape
    n_blocks, width = _row_blocks(n_y)
    rows = aligned_zeros((n_blocks, n_z, _padded(n_x), width), volume.dtype)
    run_parts(lambda a, b: _rows_from_volume(volume, ranges, a, b, rows), n_z, threads)
    filled = _filled(ranges, _padded(n_x))
    sums = aligned_zeros((n_blocks, len(affine), _padded(detector_shape[1]), width), volume.dtype)
    run_parts(lambda a, b: project_rows(rows, filled, affine, degree, int(moment), a, b, sums), len(affine), threads)
    images = np.empty((len(affine), *detector_shape), volume.dtype)
    run_parts(lambda a, b: _images_from_rows(sums, affine, degree, n_y, scale, a, b, images), len(affine), threads)
    return images


def back_project_aligned(
    images: FloatArray,
    ranges: IntArray,
    affine: FloatArray,
    degree: int,
    scale: float,
    volume_shape: tuple[int, int, int],
    threads: int | None,
) -> FloatArray:
    """Return the adjoint of :func:`project_aligned` (without moment) applied to ``images``: a volume (z, y, x)."""
    n_z, n_y, n_x = volume_shape
    n_blocks, width = _row_blocks(n_y)
    sums = aligned_zeros((n_blocks, len(affine), _padded(images.shape[2]), width), images.dtype)
    run_parts(lambda a, b: _rows_from_images(images, affine, degree, n_y, scale, a, b, sums), len(affine), threads)
    rows = aligned_zeros((n_blocks, n_z, _padded(n_x), width), images.dtype)
    filled = _filled(ranges, _padded(n_x))
    run_parts(lambda a, b: back_project_rows(sums, filled, affine, degree, a, b, rows), n_z, threads)
    volume = np.empty(volume_shape, images.dtype)
    run_parts(lambda a, b: _volume_from_rows(rows, ranges, a, b, volume), n_z, threads)
    return volume
