"""Spline projection of a volume along affine maps, and its adjoint: compiled kernels and their NumPy twin.

A voxel (iz, ix, iy) lands at u = a·(ix, iy, iz, 1) and v likewise, in detector pixels, and at bin coordinate b;
``affine`` (projection, 4, 4) has the rows u, v, b, depth. Its value is spread with separable B-spline weights of
degree 1 or 2 over 3 × 3 pixels and linearly over two depth bins. Volumes are (z, x, y), images (projection, bin, x, y):
the tilt axis y is contiguous, so that for small rotations out of the tilt plane a whole column of voxels falls on a
few detector columns and the inner loops are vectors. Any rotation is allowed; others are slower. Images carry a border
of :data:`BORDER` pixels. ``ranges`` (z, x, 2) holds the first and one-past-last y of each column (the support).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hpcrec.backend.array import Array, FloatArray, IntArray

BORDER = 2


@njit(nogil=True, cache=True, inline="always")
def _steps_inside(position: float, slope: float, centre: float) -> int:
    """How many unit steps, at least one, until ``position + slope n`` leaves (centre − ½, centre + ½)."""
    if abs(slope) < 1e-9:
        return 1 << 30
    edge = centre + 0.5 if slope > 0 else centre - 0.5
    return max(1, int(np.ceil((edge - position) / slope)))


@njit(nogil=True, cache=True, fastmath=True)
def _spline_weights(degree: int, start: float, slope: float, n: int, weights: Any) -> None:
    """Weights (3, n) of the pixels left, at and right of centre, for offsets start + slope i within ±½."""
    start32, slope32 = np.float32(start), np.float32(slope)
    half, one = np.float32(0.5), np.float32(1)
    if degree == 1:
        for i in range(n):
            f = start32 + slope32 * np.float32(i)
            weights[0, i] = max(-f, np.float32(0))
            weights[1, i] = one - abs(f)
            weights[2, i] = max(f, np.float32(0))
    else:
        for i in range(n):
            f = start32 + slope32 * np.float32(i)
            weights[0, i] = half * (half - f) * (half - f)
            weights[1, i] = np.float32(0.75) - f * f
            weights[2, i] = half * (half + f) * (half + f)


@njit(nogil=True, cache=True)
def _segment(a: Any, base: Any, y: Any, y_end: Any, shape: Any, degree: int, wu: Any, wv: Any, where: Any) -> Any:
    """Fill the weights of the longest run from y on that keeps its pixel column and its row offset.

    ``where`` receives (first y, length, u index, v index, bin); indices count the border. Returns the next y.
    """
    n_bins, n_u, n_v = shape
    u, v = base[0] + a[0, 1] * y, base[1] + a[1, 1] * y
    iu, iv = int(np.floor(u + 0.5)), int(np.floor(v + 0.5))
    n = min(y_end - y, _steps_inside(u, a[0, 1], iu), _steps_inside(v, a[1, 1] - 1.0, iv))
    where[4] = 0
    if n_bins > 1:
        b = base[2] + a[2, 1] * y
        where[4] = min(max(int(np.floor(b)), 0), n_bins - 2)
        n = min(n, _steps_inside(b, a[2, 1], np.floor(b) + 0.5))
    skip = max(0, -1 - iv)
    keep = min(n, n_v + 1 - iv) - skip
    if iu < -1 or iu > n_u or keep <= 0:
        where[1] = 0
        return y + n
    _spline_weights(degree, u - iu + a[0, 1] * skip, a[0, 1], keep, wu)
    _spline_weights(degree, v - iv + (a[1, 1] - 1.0) * skip, a[1, 1] - 1.0, keep, wv)
    where[0], where[1] = y + skip, keep
    where[2], where[3] = iu - 1 + BORDER, iv + skip - 1 + BORDER
    return y + n


@njit(nogil=True, cache=True, fastmath=True)
def _bin_weight(start: Any, slope: Any, n: Any, second: int, weight: Any) -> None:
    """Linear weight (n,) of the lower (0) or upper (1) of two bins; beyond the ends the end bin takes all."""
    for i in range(n):
        h = min(max(np.float32(start + slope * i), np.float32(0)), np.float32(1))
        weight[i] = h if second else np.float32(1) - h


@njit(nogil=True, cache=True, fastmath=True)
def _scatter(values: Any, wu: Any, wv: Any, n: Any, image: Any, iu: Any, iv: Any, line: Any) -> None:
    for p in range(3):
        for i in range(n):
            line[i] = values[i] * wu[p, i]
        for q in range(3):
            target = image[iu + p, iv + q : iv + q + n]
            for i in range(n):
                target[i] += line[i] * wv[q, i]


@njit(nogil=True, cache=True, fastmath=True)
def _gather(out: Any, wu: Any, wv: Any, n: Any, image: Any, iu: Any, iv: Any, weight: Any) -> None:
    for p in range(3):
        source = image[iu + p, iv : iv + n + 2]
        for i in range(n):
            line = source[i] * wv[0, i] + source[i + 1] * wv[1, i] + source[i + 2] * wv[2, i]
            out[i] += weight[i] * wu[p, i] * line


@njit(nogil=True, cache=True, fastmath=True)
def _project(volume: Any, ranges: Any, affine: Any, degree: int, moment: int, out: Any) -> None:
    n_z, n_x, n_y = volume.shape
    n_bins, n_u, n_v = out.shape[1], out.shape[2] - 2 * BORDER, out.shape[3] - 2 * BORDER
    wu, wv = np.empty((3, n_y), np.float32), np.empty((3, n_y), np.float32)
    values, line, weight = np.empty(n_y, np.float32), np.empty(n_y, np.float32), np.ones(n_y, np.float32)
    where, base = np.zeros(5, np.int64), np.zeros(4)
    for k in range(affine.shape[0]):
        a = affine[k]
        for z in range(n_z):
            for x in range(n_x):
                y, y_end = ranges[z, x, 0], ranges[z, x, 1]
                base[:] = a[:, 0] * x + a[:, 2] * z + a[:, 3]
                while y < y_end:
                    y = _segment(a, base, y, y_end, (n_bins, n_u, n_v), degree, wu, wv, where)
                    y0, n, iu, iv, ib = where
                    if n == 0:
                        continue
                    for second in range(min(n_bins, 2)):
                        if n_bins > 1:
                            _bin_weight(base[2] + a[2, 1] * y0 - ib, a[2, 1], n, second, weight)
                        column = volume[z, x, y0 : y0 + n]
                        if moment:
                            depth, slope = np.float32(base[3] + a[3, 1] * y0), np.float32(a[3, 1])
                            for i in range(n):
                                values[i] = column[i] * weight[i] * (depth + slope * np.float32(i))
                        else:
                            for i in range(n):
                                values[i] = column[i] * weight[i]
                        _scatter(values, wu, wv, n, out[k, ib + second], iu, iv, line)


@njit(nogil=True, cache=True, fastmath=True)
def _back_project(images: Any, ranges: Any, affine: Any, degree: int, z_first: int, out: Any) -> None:
    n_z, n_x, n_y = out.shape
    n_bins, n_u, n_v = images.shape[1], images.shape[2] - 2 * BORDER, images.shape[3] - 2 * BORDER
    wu, wv = np.empty((3, n_y), np.float32), np.empty((3, n_y), np.float32)
    weight = np.ones(n_y, np.float32)
    where, base = np.zeros(5, np.int64), np.zeros(4)
    for z in range(n_z):
        for k in range(affine.shape[0]):
            a = affine[k]
            for x in range(n_x):
                y, y_end = ranges[z, x, 0], ranges[z, x, 1]
                base[:] = a[:, 0] * x + a[:, 2] * (z + z_first) + a[:, 3]
                while y < y_end:
                    y = _segment(a, base, y, y_end, (n_bins, n_u, n_v), degree, wu, wv, where)
                    y0, n, iu, iv, ib = where
                    if n == 0:
                        continue
                    for second in range(min(n_bins, 2)):
                        if n_bins > 1:
                            _bin_weight(base[2] + a[2, 1] * y0 - ib, a[2, 1], n, second, weight)
                        _gather(out[z, x, y0 : y0 + n], wu, wv, n, images[k, ib + second], iu, iv, weight)


def project(
    volume: FloatArray, ranges: IntArray, affine: FloatArray, degree: int, moment: bool, out: FloatArray
) -> None:
    """Add to ``out`` (projection, bin, x, y; with border) the projections of ``volume`` (z, x, y), float32.

    ``moment`` weights each voxel by its depth, row 3 of ``affine``. One thread, without the interpreter lock.
    """
    _project(volume, ranges, affine, degree, int(moment), out)


def back_project(
    images: FloatArray, ranges: IntArray, affine: FloatArray, degree: int, z_first: int, out: FloatArray
) -> None:
    """Add to ``out`` (z, x, y), the planes from ``z_first`` on, the adjoint of :func:`project` (without moment)."""
    _back_project(images, ranges, affine, degree, z_first, out)


def _spline(degree: int, distance: Array) -> Array:
    d = np.abs(distance)
    if degree == 1:
        return np.asarray(np.maximum(1 - d, 0))
    return np.where(d < 0.5, 0.75 - d**2, 0.5 * np.maximum(1.5 - d, 0) ** 2)


def projection_matrix(
    volume_shape: tuple[int, int, int], affine: FloatArray, degree: int, moment: bool, out_shape: tuple[int, int, int]
) -> FloatArray:
    """Return one projection as a dense matrix (bin·x·y, z·x·y), float64: the NumPy twin, for small tests.

    ``volume_shape`` (z, x, y); ``affine`` (4, 4); ``out_shape`` (bin, x, y) without border.
    """
    iz, ix, iy = np.meshgrid(*(np.arange(n) for n in volume_shape), indexing="ij")
    u, v, b, depth = (row[0] * ix + row[1] * iy + row[2] * iz + row[3] for row in affine)
    n_bins, n_u, n_v = out_shape
    wu = _spline(degree, np.arange(n_u)[:, None] - u.ravel())
    wv = _spline(degree, np.arange(n_v)[:, None] - v.ravel())
    wb = np.maximum(1 - np.abs(np.arange(n_bins)[:, None] - np.clip(b.ravel(), 0, n_bins - 1)), 0)
    matrix = wb[:, None, None] * wu[None, :, None] * wv[None, None, :] * (depth.ravel() if moment else 1.0)
    return np.asarray(matrix.reshape(-1, u.size), np.float64)
