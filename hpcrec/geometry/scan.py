"""Scans: regular positions, an order along a space-filling curve, and fair shares of the positions."""

from __future__ import annotations

import numpy as np

from hpcrec.backend.array import Array, FloatArray, IntArray

_BITS = 20  # cells of the curve along each side: 2^20, finer than any scan, and the index still fits 64 bits


def raster_positions(
    shape: tuple[int, int], step: tuple[float, float], centre: tuple[float, float] = (0.0, 0.0)
) -> FloatArray:
    """Return the positions (ny·nx, 2) in Å of a raster of ``shape`` (ny, nx), x fastest, centred on ``centre``.

    ``step`` (dy, dx) in Å; the mean of all positions is ``centre``.
    """
    axes = [(np.arange(n) - (n - 1) / 2) * d + c for n, d, c in zip(shape, step, centre, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def hilbert_index(cells: IntArray, bits: int) -> IntArray:
    """Return the place of each cell (n, 2), 0 ≤ cell < 2^bits, along the Hilbert curve of that order.

    Each step looks at one bit of both coordinates: it finds the quadrant along the curve and turns the rest of the
    coordinates into the quadrant's own frame (D. Hilbert, Math. Ann. 38, 459 (1891)).
    """
    y, x = cells[:, 0].astype(np.int64), cells[:, 1].astype(np.int64)
    index = np.zeros(len(cells), np.int64)
    for level in reversed(range(bits)):
        right, upper = (x >> level) & 1, (y >> level) & 1
        index = (index << 2) | ((3 * right) ^ upper)
        flip = (upper == 0) & (right == 1)
        mask = (1 << level) - 1
        x, y = x & mask, y & mask
        x, y = np.where(flip, mask - x, x), np.where(flip, mask - y, y)
        x, y = np.where(upper == 0, y, x), np.where(upper == 0, x, y)
    return index


def hilbert_order(positions: Array) -> IntArray:
    """Return the indices (n,) that visit the positions (n, 2) along a Hilbert curve over their square bounding box.

    Neighbours on the curve are neighbours on the sample, so patterns visited in this order share cache lines and
    consecutive runs of it are compact. Equal cells keep their order.
    """
    points = np.asarray(positions, np.float64)
    if len(points) == 0:
        return np.zeros(0, np.int64)
    low = points.min(axis=0)
    extent = float((points.max(axis=0) - low).max())
    scale = (2**_BITS - 1) / extent if extent > 0 else 0.0
    cells = np.floor((points - low) * scale).astype(np.int64)
    return np.argsort(hilbert_index(cells, _BITS), kind="stable")


def split_positions(positions: Array, n_shares: int) -> list[IntArray]:
    """Split the positions (n, 2) into ``n_shares`` consecutive runs of the Hilbert order, equal within one.

    Returns index arrays; with more shares than positions some are empty.
    """
    return np.array_split(hilbert_order(positions), n_shares)
