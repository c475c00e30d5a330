"""Regular rasters among measured positions: what the methods need that transform over the scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from hpcrec.backend.array import FloatArray, IntArray
from hpcrec.errors import ConfigError

_IRREGULAR: Final = 0.15  # of the shorter step, rms: beyond it the fast half of the spectrum loses its phase


@dataclass(frozen=True, kw_only=True, slots=True)
class Raster:
    """A full raster of rows and columns, in whatever order and however turned it was scanned.

    ``shape`` (rows, columns); ``vectors`` (2, 2) in Å, (y, x): the step from row to row and from column to column;
    ``order`` (rows·columns,) the position that stands at each place, columns fastest; ``residual`` rms distance of
    the positions from the raster in Å.
    """

    shape: tuple[int, int]
    vectors: FloatArray
    order: IntArray
    residual: float = 0.0

    def frequencies(self) -> FloatArray:
        """Return q (rows, columns, 2) in 1/Å as (y, x), zero frequency at [0, 0], of a transform over the raster."""
        f = np.meshgrid(np.fft.fftfreq(self.shape[0]), np.fft.fftfreq(self.shape[1]), indexing="ij")
        # q·(i a + j b) must be f_i i + f_j j
        found: FloatArray = np.stack(f, axis=-1) @ np.linalg.inv(self.vectors).T
        return found


def find_raster(positions: FloatArray) -> Raster:
    """Return the raster that the positions (position, 2) in Å form, scanned row after row (or column after column).

    Rows may run to and fro, and the raster may be turned. Raises :class:`ConfigError` where the positions are no full
    raster or lie further from one than 15 % of its step (rms).
    """
    points = np.asarray(positions, np.float64)
    found = _lattice(points) if len(points) >= 4 else None
    if found is None:
        raise ConfigError(
            f"the {len(points)} positions are no raster of rows and columns, which this method needs; "
            "use the parallax method, or ptychography"
        )
    vectors, start = found
    cells = np.rint((points - start) @ np.linalg.inv(vectors))
    # Steps and start by least squares over all positions
    design = np.concatenate([cells, np.ones((len(cells), 1))], axis=1)
    fitted = np.linalg.lstsq(design, points, rcond=None)[0]
    vectors, residual = fitted[:2], float(np.sqrt(np.mean(np.sum((design @ fitted - points) ** 2, axis=1))))
    cells = (cells - cells.min(axis=0)).astype(np.int64)
    rows, columns = (cells.max(axis=0) + 1).tolist()
    place = cells[:, 0] * columns + cells[:, 1]
    step = float(np.linalg.norm(vectors, axis=1).min())
    if rows * columns != len(points) or len(np.unique(place)) != len(points) or residual > _IRREGULAR * step:
        raise ConfigError(
            f"the positions lie {residual:.3g} Å (rms) from the nearest raster of {rows} × {columns} with a step of "
            f"{step:.3g} Å; this method needs a full and regular raster: use the parallax method, or ptychography"
        )
    return Raster(shape=(rows, columns), vectors=vectors, order=np.argsort(place), residual=residual)


def _lattice(points: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    """Return the steps (2, 2) of rows and columns, along +y and +x, and the first position; None if there are none."""
    steps = np.diff(points, axis=0)
    forward = steps * np.where(steps @ steps[0] < 0, -1.0, 1.0)[:, None]  # rows may run to and fro
    fast = np.median(forward, axis=0)
    length = float(np.linalg.norm(fast))
    if length == 0:
        return None
    jumps = np.flatnonzero(np.linalg.norm(forward - fast, axis=1) > 0.5 * length)
    if len(jumps) == 0:
        return None
    run = int(jumps[0]) + 1
    if run < 2 or len(points) < 2 * run:
        return None
    middles = points[: len(points) // run * run].reshape(-1, run, 2).mean(axis=1)
    slow = np.median(np.diff(middles, axis=0), axis=0)
    if abs(fast[0] * slow[1] - fast[1] * slow[0]) < 1e-6 * length * float(np.linalg.norm(slow)) + 1e-300:
        return None
    rows, columns = (slow, fast) if abs(fast[1]) * abs(slow[0]) >= abs(fast[0]) * abs(slow[1]) else (fast, slow)
    rows = rows if rows[0] >= 0 else -rows
    columns = columns if columns[1] >= 0 else -columns
    return np.stack([rows, columns]), points[0]
