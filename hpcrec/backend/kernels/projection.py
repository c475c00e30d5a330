"""Spline projection of a volume along affine maps, and its adjoint: compiled kernels and their NumPy twin.

A voxel (iz, ix, iy) lands at u = a·(ix, iy, iz, 1) and v likewise, in detector pixels, and at bin coordinate b;
``affine`` (projection, 4, 4) has the rows u, v, b, depth. Its value is spread with separable B-spline weights of
degree 1 or 2 over 3 × 3 pixels and linearly over two depth bins. Volumes are (z, x, y), images (projection, bin, x, y):
the tilt axis y is contiguous, so that for small rotations out of the tilt plane a whole column of voxels falls on a
few detector columns and the inner loops are vectors. Any rotation is allowed; others are slower. Images carry a border
of :data:`BORDER` pixels. ``ranges`` (z, x, 2) holds the first and one-past-last y of each column (the support).

Sums may be taken in any order (``fastmath``), but in the same one by all processes: so each kernel is compiled as one
function. A function that it called would be one code where a process compiles both, another in numba's cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hpcrec.backend.array import Array, FloatArray, IntArray
from hpcrec.backend.kernels.rows import row_of

BORDER = 2


@njit(nogil=True, cache=True, inline="always")
def _steps_inside(position: float, slope: float, centre: float) -> int:
    """How many unit steps, at least one, until ``position + slope n`` leaves (centre − ½, centre + ½)."""
    if abs(slope) < 1e-9:
        return 1 << 30
    edge = centre + 0.5 if slope > 0 else centre - 0.5
    return max(1, int(np.ceil((edge - position) / slope)))


@njit(nogil=True, cache=True, fastmath=True, inline="always")
def _spline_weights(degree: int, f: Any, half: Any) -> Any:
    """Weights of the pixels left, at and right of the nearest one, for an offset f within ±½; ``half`` is ½ typed."""
    if degree == 1:
        return max(-f, f - f), half + half - abs(f), max(f, f - f)
    low, high = half - f, half + f
    return half * low * low, half + half * half - f * f, half * high * high


@njit(nogil=True, cache=True, error_model="numpy", forceinline=True)
def _segment(u: float, v: float, b: float, slopes: Any, n_most: int, n_bins: int, n_u: int, n_v: int) -> Any:
    """Find the longest run of voxels, ``n_most`` at most, that keeps its pixel column, row offset and pair of bins.

    ``u``, ``v``, ``b``: place of the first voxel; ``slopes`` (u, v − 1, b) per voxel. Returns the run's length, how
    many of its first voxels to leave out and how many to take, the first voxel's nearest pixel along u and v, the bin.
    """
    iu, iv = int(np.floor(u + 0.5)), int(np.floor(v + 0.5))
    n = min(n_most, _steps_inside(u, slopes[0], iu), _steps_inside(v, slopes[1], iv))
    ib = 0
    if n_bins > 1:
        ib = min(max(int(np.floor(b)), 0), n_bins - 2)
        n = min(n, _steps_inside(b, slopes[2], np.floor(b) + 0.5))
    skip = max(0, -1 - iv)
    keep = min(n, n_v + 1 - iv) - skip
    if iu < -1 or iu > n_u:
        keep = 0
    return n, skip, max(keep, 0), iu, iv, ib


@njit(nogil=True, cache=True, fastmath=True, forceinline=True)
def _bin_weight(start: Any, slope: Any, n: Any, second: int, weight: Any) -> None:
    """Linear weight (n,) of the lower (0) or upper (1) of two bins; beyond the ends the end bin takes all."""
    for i in range(n):
        h = min(max(start + slope * i, 0.0), 1.0)
        weight[i] = h if second else 1.0 - h


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy", forceinline=True)
def _scatter(
    values: Any, n: int, degree: int, u: Any, v: Any, slopes: Any, ramp: Any, image: Any, at: int, side: int
) -> None:
    """Spread n values over three rows of n + 2 pixels of ``image``, which begin at flat index ``at``.

    ``values`` (≥ n + 4) has two zeros before and after the n. ``u``, ``v``: distance of the first voxel from its
    nearest pixel; ``side`` pixels from row to row. Each pixel collects from three voxels and is read and written once.
    """
    half = values.dtype.type(0.5)
    u0, v0 = ramp.dtype.type(u), ramp.dtype.type(v)
    du, dv = ramp.dtype.type(slopes[0]), ramp.dtype.type(slopes[1])
    one, two, three = row_of(image, at, n + 2), row_of(image, at + side, n + 2), row_of(image, at + 2 * side, n + 2)
    u1, v1, u2, v2 = u0 - du, v0 - dv, u0 - du - du, v0 - dv - dv
    for j in range(n + 2):
        b0 = values[j + 2] * _spline_weights(degree, v0 + dv * ramp[j], half)[0]
        b1 = values[j + 1] * _spline_weights(degree, v1 + dv * ramp[j], half)[1]
        b2 = values[j] * _spline_weights(degree, v2 + dv * ramp[j], half)[2]
        a0, c0, d0 = _spline_weights(degree, u0 + du * ramp[j], half)
        a1, c1, d1 = _spline_weights(degree, u1 + du * ramp[j], half)
        a2, c2, d2 = _spline_weights(degree, u2 + du * ramp[j], half)
        one[j] += a0 * b0 + a1 * b1 + a2 * b2
        two[j] += c0 * b0 + c1 * b1 + c2 * b2
        three[j] += d0 * b0 + d1 * b1 + d2 * b2


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy", forceinline=True)
def _gather(
    out: Any, n: int, degree: int, u: Any, v: Any, slopes: Any, ramp: Any, weight: Any, image: Any, at: int, side: int
) -> None:
    """Add to ``out`` (n,) the weighted sums over three rows of n + 2 pixels: the adjoint of :func:`_scatter`."""
    half = out.dtype.type(0.5)
    u0, v0 = ramp.dtype.type(u), ramp.dtype.type(v)
    du, dv = ramp.dtype.type(slopes[0]), ramp.dtype.type(slopes[1])
    one, two, three = row_of(image, at, n + 2), row_of(image, at + side, n + 2), row_of(image, at + 2 * side, n + 2)
    for i in range(n):
        a, b, c = _spline_weights(degree, v0 + dv * ramp[i], half)
        d, e, f = _spline_weights(degree, u0 + du * ramp[i], half)
        first = one[i] * a + one[i + 1] * b + one[i + 2] * c
        second = two[i] * a + two[i + 1] * b + two[i + 2] * c
        third = three[i] * a + three[i + 1] * b + three[i + 2] * c
        out[i] += weight[i] * (d * first + e * second + f * third)


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _project(volume: Any, ranges: Any, affine: Any, degree: int, moment: int, out: Any) -> None:
    n_z, n_x, n_y = volume.shape
    n_bins, n_u, n_v = out.shape[1], out.shape[2] - 2 * BORDER, out.shape[3] - 2 * BORDER
    side, plane = out.shape[3], out.shape[2] * out.shape[3]
    values, weight = np.zeros(n_y + 4, volume.dtype), np.ones(n_y, volume.dtype)
    ramp, inner = np.arange(n_y + 2).astype(volume.dtype), row_of(values, 2, n_y)
    for k in range(affine.shape[0]):
        a = affine[k]
        slopes = (a[0, 1], a[1, 1] - 1.0, a[2, 1])
        for z in range(n_z):
            for x in range(n_x):
                y, y_end = ranges[z, x, 0], ranges[z, x, 1]
                u, v = a[0, 0] * x + a[0, 2] * z + a[0, 3], a[1, 0] * x + a[1, 2] * z + a[1, 3]
                b, depth = a[2, 0] * x + a[2, 2] * z + a[2, 3], a[3, 0] * x + a[3, 2] * z + a[3, 3]
                while y < y_end:
                    u_y, v_y, b_y = u + a[0, 1] * y, v + slopes[1] * y, b + a[2, 1] * y
                    steps, skip, n, iu, iv, ib = _segment(u_y, v_y + y, b_y, slopes, y_end - y, n_bins, n_u, n_v)
                    y0, y = y + skip, y + steps
                    if n == 0:
                        continue
                    column = row_of(volume, (z * n_x + x) * n_y + y0, n)
                    for second in range(min(n_bins, 2)):
                        if n_bins > 1:
                            _bin_weight(b + a[2, 1] * y0 - ib, a[2, 1], n, second, weight)
                        for i in range(n):
                            inner[i] = column[i] * weight[i]
                        if moment:
                            first, step = ramp.dtype.type(depth + a[3, 1] * y0), ramp.dtype.type(a[3, 1])
                            for i in range(n):
                                inner[i] *= first + step * ramp[i]
                        values[n + 2] = values[n + 3] = 0
                        at = (k * n_bins + ib + second) * plane + (iu - 1 + BORDER) * side + iv + skip - 1 + BORDER
                        u_0, v_0 = u + a[0, 1] * y0 - iu, v + slopes[1] * y0 + (y0 - skip - iv)
                        _scatter(values, n, degree, u_0, v_0, slopes, ramp, out, at, side)


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _back_project(images: Any, ranges: Any, affine: Any, degree: int, z_first: int, out: Any) -> None:
    n_z, n_x, n_y = out.shape
    n_bins, n_u, n_v = images.shape[1], images.shape[2] - 2 * BORDER, images.shape[3] - 2 * BORDER
    side, plane = images.shape[3], images.shape[2] * images.shape[3]
    weight, ramp = np.ones(n_y, out.dtype), np.arange(n_y).astype(out.dtype)
    for z in range(n_z):
        for k in range(affine.shape[0]):
            a = affine[k]
            slopes, z_all = (a[0, 1], a[1, 1] - 1.0, a[2, 1]), z + z_first
            for x in range(n_x):
                y, y_end = ranges[z, x, 0], ranges[z, x, 1]
                u, v = a[0, 0] * x + a[0, 2] * z_all + a[0, 3], a[1, 0] * x + a[1, 2] * z_all + a[1, 3]
                b = a[2, 0] * x + a[2, 2] * z_all + a[2, 3]
                while y < y_end:
                    u_y, v_y, b_y = u + a[0, 1] * y, v + slopes[1] * y, b + a[2, 1] * y
                    steps, skip, n, iu, iv, ib = _segment(u_y, v_y + y, b_y, slopes, y_end - y, n_bins, n_u, n_v)
                    y0, y = y + skip, y + steps
                    if n == 0:
                        continue
                    column = row_of(out, (z * n_x + x) * n_y + y0, n)
                    for second in range(min(n_bins, 2)):
                        if n_bins > 1:
                            _bin_weight(b + a[2, 1] * y0 - ib, a[2, 1], n, second, weight)
                        at = (k * n_bins + ib + second) * plane + (iu - 1 + BORDER) * side + iv + skip - 1 + BORDER
                        u_0, v_0 = u + a[0, 1] * y0 - iu, v + slopes[1] * y0 + (y0 - skip - iv)
                        _gather(column, n, degree, u_0, v_0, slopes, ramp, weight, images, at, side)


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
