"""The leading axes of stored patterns: which of them count tilts, positions, scan rows and scan columns."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from hpcrec.backend.array import Array, FloatArray, IntArray
from hpcrec.errors import ConfigError, DataError
from hpcrec.geometry.scan import raster_positions

logger = logging.getLogger(__name__)

Layout = Literal["auto", "position", "tilt,position", "row,column", "tilt,row,column"]

_AXES: Final = {"position": 3, "tilt,position": 4, "row,column": 4, "tilt,row,column": 5}


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanLayout:
    """``shape`` of the stored patterns; ``has_tilts`` whether its first axis counts tilts."""

    shape: tuple[int, ...]
    has_tilts: bool

    @property
    def n_tilts(self) -> int:
        """Number of tilts, 1 where there is no such axis."""
        return self.shape[0] if self.has_tilts else 1

    @property
    def scan_shape(self) -> tuple[int, ...]:
        """(position,) or (row, column)."""
        return self.shape[int(self.has_tilts) : -2]

    @property
    def n_positions(self) -> int:
        """Number of positions of each tilt."""
        return int(np.prod(self.scan_shape))

    @property
    def frame_shape(self) -> tuple[int, int]:
        """(rows, columns) of a frame."""
        return self.shape[-2], self.shape[-1]


def find_layout(path: Path, shape: tuple[int, ...], layout: Layout, n_angles: int | None) -> ScanLayout:
    """Return the layout of patterns of ``shape``; ``n_angles`` is the number of tilt angles, or None without any.

    Raises :class:`DataError` where shape and layout disagree, :class:`ConfigError` where "auto" cannot decide.
    """
    if layout == "auto":
        layout = _guess(path, shape, n_angles)
    if len(shape) != _AXES[layout]:
        raise DataError(
            f"{path}: patterns have shape {shape}, but layout {layout!r} needs {_AXES[layout]} axes "
            f"({layout},ky,kx); choose another layout or dataset"
        )
    if min(shape) < 1:
        raise DataError(f"{path}: patterns have shape {shape}: there is nothing in them")
    return ScanLayout(shape=tuple(int(n) for n in shape), has_tilts=layout.startswith("tilt"))


def _guess(path: Path, shape: tuple[int, ...], n_angles: int | None) -> Layout:
    if len(shape) == 3:
        return "position"
    if len(shape) == 5:
        return "tilt,row,column"
    if len(shape) != 4:
        raise DataError(f"{path}: patterns have shape {shape}; expected 3, 4 or 5 axes, the last two (ky, kx)")
    if n_angles is None and shape[0] == 1:
        return "tilt,position"
    if n_angles is None:
        raise ConfigError(
            f"{path}: patterns of shape {shape} may be (tilt,position,ky,kx) or (row,column,ky,kx); "
            "set layout, or name the tilt angles"
        )
    if n_angles == shape[0]:
        return "tilt,position"
    if n_angles == 1:
        return "row,column"
    raise DataError(f"{path}: {n_angles} tilt angles for patterns of shape {shape}; they must agree in the first axis")


def scan_positions(
    path: Path,
    stored: Array | None,
    scan: ScanLayout,
    columns: tuple[int, int],
    step: tuple[float, float] | None,
) -> list[FloatArray]:
    """Return positions (position, 2) float64, (y, x), of each tilt, in the file's unit.

    ``stored`` is ([tilt,] position or row, column, components), shared by all tilts if it has no tilt axis. Without it
    a raster of ``step`` centred on zero is made from the scan's rows and columns.
    """
    if stored is None:
        return [_raster(scan, step)] * scan.n_tilts
    if stored.dtype.kind not in "uif":
        raise DataError(f"{path}: positions are of type {stored.dtype}; expected real numbers")
    shared = (scan.n_positions, stored.shape[-1] if stored.ndim else 0)
    if stored.ndim >= 2 and stored.size == np.prod(shared):
        per_tilt: list[FloatArray] = [np.asarray(stored, np.float64).reshape(shared)] * scan.n_tilts
    elif stored.ndim >= 3 and stored.shape[0] == scan.n_tilts and stored.size == scan.n_tilts * np.prod(shared):
        per_tilt = list(np.asarray(stored, np.float64).reshape(scan.n_tilts, *shared))
    else:
        raise DataError(
            f"{path}: positions have shape {stored.shape}, but each of the {scan.n_tilts} tilts has "
            f"{scan.n_positions} patterns; expected ({scan.n_positions}, 2)"
        )
    if not all(0 <= c < shared[1] for c in columns):
        raise DataError(f"{path}: positions have {shared[1]} columns; position_columns asks for {list(columns)}")
    chosen: list[FloatArray] = [
        p[:, list(columns)] for p in (per_tilt[:1] if per_tilt[0] is per_tilt[-1] else per_tilt)
    ]
    for i_tilt, positions in enumerate(chosen):
        if not np.isfinite(positions).all():
            i_position = int(np.argwhere(~np.isfinite(positions))[0, 0])
            raise DataError(f"{path}: position {i_position} of tilt {i_tilt} is not finite")
    return chosen if len(chosen) == scan.n_tilts else chosen * scan.n_tilts


def _raster(scan: ScanLayout, step: tuple[float, float] | None) -> FloatArray:
    if step is None or len(scan.scan_shape) != 2:
        raise ConfigError("name the dataset of the positions, or give scan_step_angstrom for patterns in rows, columns")
    return raster_positions((scan.scan_shape[0], scan.scan_shape[1]), step)


def report_unwritten(where: str, stored: int, n_chunks: int, fill: object) -> None:
    """Warn of chunks that are not stored; it is no fault, since a writer may leave out those without counts."""
    if stored < n_chunks:
        logger.warning(
            "%s: %d of %d chunks are not stored and are read as %s; that is right for chunks without counts, but a "
            "measurement or a copy that was cut short looks the same",
            where,
            n_chunks - stored,
            n_chunks,
            fill,
        )


def read_runs(
    indices: IntArray, scan_shape: tuple[int, ...], chunk: tuple[int, ...], longest: int
) -> Iterator[tuple[IntArray, tuple[slice, ...], tuple[IntArray, ...]]]:
    """Group scattered patterns into few block reads that touch each chunk once.

    ``indices`` (n,) into the flattened scan; ``chunk`` patterns per chunk along each scan axis; a block spans at most
    ``longest`` chunks. Yields which of ``indices`` the block serves, its slices, and where they are inside the block.
    """
    multi = np.stack(np.unravel_index(indices, scan_shape))
    tiles = multi // np.array(chunk)[:, None]
    order = np.lexsort((*multi[::-1], *tiles[::-1]))
    multi, tiles = multi[:, order], tiles[:, order]
    jump = (np.diff(tiles[:-1], axis=1) != 0).any(axis=0) | (np.diff(tiles[-1]) > 1)
    run = np.concatenate(([0], np.cumsum(jump)))
    inside_run = tiles[-1] - tiles[-1, np.searchsorted(run, run)]
    too_long = np.diff(inside_run // longest) != 0
    starts = np.concatenate(([0], np.flatnonzero(jump | too_long) + 1))
    low = np.minimum.reduceat(multi, starts, axis=1)
    high = np.maximum.reduceat(multi, starts, axis=1) + 1
    stops = np.append(starts[1:], len(indices))
    for start, stop, first, last in zip(starts.tolist(), stops.tolist(), low.T.tolist(), high.T.tolist()):
        inside = multi[:, start:stop] - np.array(first)[:, None]
        yield order[start:stop], tuple(slice(a, b) for a, b in zip(first, last)), tuple(inside)
