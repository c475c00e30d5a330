"""Counted electrons: patterns as lists of the pixels that were hit, which take less room where electrons are few.

A pattern is cut into tiles of 16 × 16 pixels, rows of tiles one after the other. Its events are sorted by tile; each is
one byte, the place y·16 + x in its tile, and a pixel hit k times has k of them. So 2400 electrons on 256² pixels take
2.9 kB: less than as places in the pattern (two bytes each, four for 512²), and the kernels' stripes of 16 lines, along
x or along y, are rows or columns of tiles, so that one order serves both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np

from hpcrec.backend.array import Array, FloatArray, IntArray, array_module, to_host
from hpcrec.errors import DataError

TILE: Final = 16
"""Pixels along each side of a tile; 16² places fit a byte, and the kernels' stripes are as wide."""
_PIXELS: Final = TILE * TILE
# Of the counts of 64 bits that patterns pass through on their way to arrays
_ROOM_BYTES: Final = 1 << 28


@dataclass(frozen=True, kw_only=True, slots=True)
class Events:
    """The counts of n patterns as events, on the host or on a device.

    pattern_shape : (ky, kx); the last tiles along each side may reach beyond it
    dtype : integer type of the counts as an array
    starts : (n,) int64, where a pattern's events begin in ``places``
    edges : (n, tiles + 1) uint16, or uint32 where a pattern has more events than that holds: a tile's events are
        ``edges[tile]`` to ``edges[tile + 1]`` of its pattern's
    places : (…,) uint8, y·16 + x in a tile; of other patterns too, if these ones were taken of many
    """

    pattern_shape: tuple[int, int]
    dtype: np.dtype[Any]
    starts: IntArray
    edges: IntArray
    places: IntArray

    def __len__(self) -> int:
        """Return the number of patterns."""
        return len(self.starts)

    def __getitem__(self, rows: slice | Array) -> Events:
        """Return some of the patterns, as :meth:`take` does."""
        return self.take(rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (n, ky, kx) of the patterns."""
        return (len(self), *self.pattern_shape)

    @property
    def counts(self) -> IntArray:
        """The events (n,) int64 of each pattern."""
        return self.edges[:, -1].astype(np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of these patterns alone, as :meth:`packed` holds them."""
        return self.starts.nbytes + self.edges.nbytes + int(self.counts.sum())

    def take(self, rows: slice | Array) -> Events:
        """Return the patterns ``rows``: a slice, places (m,) or (n,) booleans, of the host or the events' device.

        The events themselves are not copied.
        """
        xp = array_module(self.starts)
        chosen = rows if isinstance(rows, slice) else xp.asarray(rows)
        return Events(
            pattern_shape=self.pattern_shape,
            dtype=self.dtype,
            starts=self.starts[chosen],
            edges=self.edges[chosen],
            places=self.places,
        )

    def packed(self) -> Events:
        """Return the same patterns with no events but theirs, one pattern after the other."""
        ends = array_module(self.starts).cumsum(self.counts)
        return Events(
            pattern_shape=self.pattern_shape,
            dtype=self.dtype,
            starts=ends - self.counts,
            edges=self.edges,
            places=self.places[_places_in_turn(self.starts, ends)],
        )

    def on(self, xp: ModuleType) -> Events:
        """Return the patterns on the device of ``xp``, CuPy or NumPy; what is moved is packed."""
        if array_module(self.starts) is xp:
            return self
        packed = self.packed()
        moved = {name: getattr(packed, name) for name in ("starts", "edges", "places")}
        moved = {name: to_host(a) if xp is np else xp.asarray(a) for name, a in moved.items()}
        return Events(pattern_shape=self.pattern_shape, dtype=self.dtype, **moved)

    def dense(self) -> IntArray:
        """Return the counts (n, ky, kx) as an array, where the events are."""
        xp, tiles = array_module(self.starts), _tiles(self.pattern_shape)
        found = xp.zeros(self.shape, self.dtype)
        few = max(_ROOM_BYTES // (8 * _PIXELS * tiles[0] * tiles[1]), 1)
        for first in range(0, len(self), few):
            part = slice(first, first + few)
            found[part] = self.take(part).packed()._counted()
        return found  # type: ignore[no-any-return]

    def _counted(self) -> Array:
        """Return the counts (n, ky, kx), 64 bits each, of packed patterns."""
        xp, (down, across) = array_module(self.starts), _tiles(self.pattern_shape)
        ends = (self.starts[:, None] + self.edges[:, 1:]).ravel()
        tile = xp.searchsorted(ends, xp.arange(len(self.places)), side="right")
        counts = xp.bincount(tile * _PIXELS + self.places, minlength=len(ends) * _PIXELS)
        rows = counts.reshape(len(self), down, across, TILE, TILE).transpose(0, 1, 3, 2, 4)
        whole = rows.reshape(len(self), down * TILE, across * TILE)
        return whole[:, : self.pattern_shape[0], : self.pattern_shape[1]]  # type: ignore[no-any-return]


def events_of(counts: Array) -> Events:
    """Return counts (n, ky, kx), integers of a NumPy or CuPy array, as events where the counts are.

    Raises DataError : counts that are no integers, or negative.
    """
    _check(counts)
    xp, shape = array_module(counts), counts.shape[-2:]
    tiled = _tiled(counts)
    in_tiles = tiled.sum(axis=-1, dtype=np.int64)
    ends = xp.cumsum(in_tiles, axis=-1)
    edges = xp.concatenate([xp.zeros((len(counts), 1), np.int64), ends], axis=1)
    flat = tiled.ravel()
    hit = xp.flatnonzero(flat)
    starts = xp.cumsum(edges[:, -1]) - edges[:, -1]
    return Events(
        pattern_shape=(shape[0], shape[1]),
        dtype=counts.dtype.newbyteorder("="),
        starts=starts,
        edges=edges.astype(_edge_type(edges[:, -1])),
        places=(_repeated(hit, flat[hit]) & (_PIXELS - 1)).astype(np.uint8),
    )


def joined(parts: Sequence[Events]) -> Events:
    """Return the patterns of several, one after the other; all of one shape, type and device, at least one."""
    packed = [part.packed() for part in parts]
    xp, first = array_module(packed[0].starts), packed[0]
    ends = np.cumsum([0, *(len(part.places) for part in packed)])
    widest = np.result_type(*(part.edges.dtype for part in packed))
    return Events(
        pattern_shape=first.pattern_shape,
        dtype=first.dtype,
        starts=xp.concatenate([part.starts + int(end) for part, end in zip(packed, ends)]),
        edges=xp.concatenate([part.edges.astype(widest, copy=False) for part in packed]),
        places=xp.concatenate([part.places for part in packed]),
    )


def event_bytes(counts: Array) -> int:
    """Return the bytes that counts (n, ky, kx) take as :func:`events_of` makes them."""
    _check(counts)
    down, across = _tiles(counts.shape[-2:])
    of_patterns = counts.sum(axis=(1, 2), dtype=np.int64)
    of_edges = (down * across + 1) * np.dtype(_edge_type(of_patterns)).itemsize
    total: int = len(counts) * (8 + of_edges) + int(of_patterns.sum())
    return total


def smaller(counts: Array) -> Array | Events:
    """Return counts (n, ky, kx) as events if these take fewer bytes, else as they are."""
    return events_of(counts) if event_bytes(counts) < counts.nbytes else counts


def dense(patterns: Array | Events) -> Array:
    """Return patterns (n, ky, kx) as an array: for all code but the kernels that take events."""
    return patterns.dense() if isinstance(patterns, Events) else patterns


def kind_of(patterns: Array | Events) -> str:
    """Return what kind of counts a kernel must take: their type, or the type of the tiles' edges."""
    return f"events of {patterns.edges.dtype.name}" if isinstance(patterns, Events) else patterns.dtype.name


def largest_total(patterns: Array | Events) -> float:
    """Return the counts of the pattern that has most; 0 where there is none."""
    of_patterns: FloatArray
    if isinstance(patterns, Events):
        of_patterns = patterns.counts.astype(np.float64)
    else:
        of_patterns = patterns.sum(axis=(1, 2), dtype=np.float64)
    return float(of_patterns.max()) if len(of_patterns) else 0.0


def _check(counts: Array) -> None:
    if counts.dtype.kind not in "iu":
        raise DataError(f"events are made of whole counts; expected integers, got {counts.dtype}")
    if counts.dtype.kind == "i" and counts.size and int(counts.min()) < 0:
        raise DataError(f"events are made of counts; expected none below 0, got {int(counts.min())}")


def _tiles(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the number of tiles along ky and kx."""
    return -(-shape[0] // TILE), -(-shape[1] // TILE)


def _edge_type(of_patterns: IntArray) -> Any:
    most = int(of_patterns.max()) if len(of_patterns) else 0
    return np.uint16 if most <= np.iinfo(np.uint16).max else np.uint32


def _tiled(counts: Array) -> Array:
    """Return counts (n, ky, kx) as (n, tile, place), with zeros beyond a pattern's end."""
    xp, (n, ky, kx) = array_module(counts), counts.shape
    down, across = _tiles((ky, kx))
    whole = counts
    if (ky, kx) != (down * TILE, across * TILE):
        whole = xp.zeros((n, down * TILE, across * TILE), counts.dtype)
        whole[:, :ky, :kx] = counts
    tiles = whole.reshape(n, down, TILE, across, TILE).transpose(0, 1, 3, 2, 4)
    return tiles.reshape(n, down * across, _PIXELS)  # type: ignore[no-any-return]


def _repeated(values: IntArray, times: IntArray) -> IntArray:
    """Return each value as often as ``times`` says; ``cupy.repeat`` takes no array of times."""
    xp = array_module(values)
    ends = xp.cumsum(times, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return values[xp.searchsorted(ends, xp.arange(total), side="right")]  # type: ignore[no-any-return]


def _places_in_turn(starts: IntArray, ends: IntArray) -> IntArray:
    """Return the places of events that begin at ``starts`` and, put one after the other, would end at ``ends``."""
    xp = array_module(starts)
    total = int(ends[-1]) if len(ends) else 0
    found = xp.arange(total)
    which = xp.searchsorted(ends, found, side="right")
    before = xp.concatenate([xp.zeros(1, np.int64), ends])
    return found + (starts[which] - before[which])  # type: ignore[no-any-return]
