"""Scans: regular positions, an order along a space-filling curve, and fair shares of the positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import ConvexHull, QhullError, cKDTree

from hpcrec.backend.array import Array, BoolArray, FloatArray, IntArray

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


def split_positions(positions: Array, n_shares: int, weights: Sequence[float] | None = None) -> list[IntArray]:
    """Split the positions (n, 2) into ``n_shares`` consecutive runs of the Hilbert order, equal within one.

    With ``weights`` (share,), which :func:`check_weights` describes, runs are in proportion to them, within one.
    Returns index arrays; with more shares than positions some are empty.
    """
    order = hilbert_order(positions)
    check_weights(weights, n_shares)
    if weights is None or len(set(weights)) == 1:
        return np.array_split(order, n_shares)
    ends = np.rint(np.cumsum(weights) / np.sum(weights) * len(order)).astype(np.int64)
    return np.split(order, ends[:-1])


def check_weights(weights: Sequence[float] | None, n_shares: int) -> None:
    """Raise ValueError unless there is a finite weight, 0 or more, for each share, and one above 0; None is equal."""
    if weights is None:
        return
    if len(weights) != n_shares or not np.isfinite(weights).all() or min(weights) < 0 or max(weights) == 0:
        raise ValueError(f"{n_shares} shares need as many finite weights, 0 or more and not all 0, got {weights}")


def scan_step(positions: Array) -> float:
    """Return the median distance (Å) from a position (n, 2) to its nearest neighbour, 0 for a single position."""
    points = np.asarray(positions, np.float64)
    if len(points) < 2:
        return 0.0
    return float(np.median(cKDTree(points).query(points, k=2)[0][:, 1]))


def interior_positions(positions: Array, steps: float = 1.5) -> BoolArray:
    """Return which positions (n, 2) lie more than ``steps`` scan steps inside the convex hull of all; (n,) bool."""
    points = np.asarray(positions, np.float64)
    none: BoolArray = np.zeros(len(points), np.bool_)
    if len(points) < 3:
        return none
    try:
        edges = ConvexHull(points).equations
    except QhullError:
        return none  # on a line: all are at the border
    depth = np.full(len(points), np.inf)
    for y, x, offset in edges:
        depth = np.minimum(depth, -(points[:, 0] * y + points[:, 1] * x + offset))
    inside: BoolArray = depth > steps * scan_step(points)
    return inside


def held_out_positions(positions: Array, share: float) -> IntArray:
    """Return a share of the positions (n, 2), at least one, evenly spread along the Hilbert curve; sorted indices.

    None is at the border of the scan, where fewer neighbours see the same pixels. Too few inside give none at all;
    at most a quarter of the inner positions are taken.
    """
    inside = interior_positions(positions)
    order = hilbert_order(positions)
    order = order[inside[order]]
    n = min(max(round(share * len(positions)), 1), len(order) // 4) if share > 0 else 0
    return np.sort(order[((np.arange(n) + 0.5) * len(order) / max(n, 1)).astype(np.int64)])


def half_scans(positions: Array, indices: IntArray) -> tuple[IntArray, IntArray]:
    """Split ``indices`` into positions (n, 2) in two halves that interlock like the fields of a checkerboard; sorted.

    Every other position along the Hilbert curve, which steps from neighbour to neighbour: on a raster of 2ⁿ × 2ⁿ these
    are the black and the white fields.
    """
    kept = np.zeros(len(positions), np.bool_)
    kept[indices] = True
    order = hilbert_order(positions)
    order = order[kept[order]]
    return np.sort(order[::2]), np.sort(order[1::2])
