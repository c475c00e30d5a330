"""Images moved between the boxes of ranks: tiles to whole rows, rows to whole columns, and back.

Transforms of an object that no rank can hold go this way, a pencil decomposition: first along x, with rows shared out,
then along y and from slice to slice, with columns shared out. Sharing out whole slices instead would leave ranks
without work where there are more of them than slices, and would need room for a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, Final

import numpy as np

from hpcrec.backend.array import Array, to_host
from hpcrec.geometry.tiles import EMPTY_BOX, Box
from hpcrec.parallel.communicator import Communicator

# Of what travels at a time, and of what is worked on at a time
PIECE_BYTES: Final = 32 << 20
BLOCK_BYTES: Final = 4 << 20
Work = Callable[[Array, Box], Array]


def all_boxes(communicator: Communicator, box: Box) -> tuple[Box, ...]:
    """Return the boxes of all ranks; one without pixels is the empty box. Collective."""
    rows = np.zeros((communicator.size, 4), np.int64)
    if not box.empty:
        rows[communicator.rank] = (box.y0, box.y1, box.x0, box.x1)
    return tuple(Box(*row) for row in communicator.sum(rows).tolist())


def move(communicator: Communicator, values: Array, sources: Sequence[Box], targets: Sequence[Box]) -> Array:
    """Return images (image, y, x) on this rank's box of ``targets``, in host memory; collective.

    ``values`` covers this rank's box of ``sources``. No pixel lies in two of these, and all pixels of the targets lie
    in them. Of messages a piece at a time is under way between two ranks.
    """
    rank, size = communicator.rank, communicator.size
    n, dtype = len(values), values.dtype
    found = np.empty((n, *targets[rank].shape), dtype)
    for step in range(size):
        dest, source = (rank + step) % size, (rank - step) % size
        leaving = _pieces(sources[rank], targets[dest], n, dtype)
        coming = _pieces(sources[source], targets[rank], n, dtype)
        for given, taken in zip_longest(leaving, coming):
            outgoing = {} if given is None else {dest: _cut(values, given, sources[rank])}
            if step == 0:
                buffer = outgoing.get(dest)
            else:
                buffer = None if taken is None else np.empty((len(taken[0]), *taken[1].shape), dtype)
                communicator.swap(outgoing, {} if buffer is None else {source: buffer})
            if buffer is not None:
                images, box = taken
                found[images.start : images.stop, *box.slices(targets[rank])] = buffer
    return found


def _cut(values: Array, piece: tuple[range, Box], inside: Box) -> Array:
    images, box = piece
    return np.ascontiguousarray(to_host(values[images.start : images.stop, *box.slices(inside)]))


def _pieces(source: Box, target: Box, n: int, dtype: np.dtype[Any]) -> Iterator[tuple[range, Box]]:
    """Yield what goes from one box to another, images and rows of limited size."""
    box = source.intersect(target)
    if box.empty:
        return
    row = box.shape[1] * dtype.itemsize
    together = max(PIECE_BYTES // (row * box.shape[0]), 1)
    rows = max(PIECE_BYTES // row, 1)
    for first in range(0, n, together):
        for y in range(box.y0, box.y1, rows):
            yield range(first, min(first + together, n)), Box(y, min(y + rows, box.y1), box.x0, box.x1)


class Pencils:
    """Rows and columns of the whole grid (y, x), shared out evenly to the ranks.

    ``core`` and ``held`` are this rank's boxes of an exchange. A rank that works has room for two shares of the object,
    or for one and its held box.
    """

    def __init__(self, communicator: Communicator, core: Box, held: Box, shape: tuple[int, int]) -> None:
        """Collective."""
        ny, nx = shape
        self.communicator, self.shape = communicator, shape
        self.held = all_boxes(communicator, held)
        self.cores = all_boxes(communicator, core)
        self.rows = tuple(Box(a, b, 0, nx) for a, b in _shares(ny, communicator.size))
        self.columns = tuple(Box(0, ny, a, b) for a, b in _shares(nx, communicator.size))

    @property
    def core(self) -> Box:
        """The pixels that this rank owns."""
        return self.cores[self.communicator.rank]

    def through(self, values: Array, of_rows: Work, of_columns: Work, back: Work | None = None) -> Array:
        """Return images (image, y, x) on the held box, in host memory, after work on whole rows and whole columns.

        ``values`` covers the held box; halos are not read. ``of_rows(block, box)`` gets some rows of all images and
        where they lie, and returns an array in its place; ``of_columns`` likewise; ``back`` gets rows once more.
        """
        rank = self.communicator.rank
        own = values[:, *self.core.slices(self.held[rank])]
        moved = move(self.communicator, own, self.cores, self.rows)
        _in_blocks(moved, self.rows[rank], 0, of_rows)
        moved = move(self.communicator, moved, self.rows, self.columns)
        _in_blocks(moved, self.columns[rank], 1, of_columns)
        if back is None:
            return move(self.communicator, moved, self.columns, self.held)
        moved = move(self.communicator, moved, self.columns, self.rows)
        _in_blocks(moved, self.rows[rank], 0, back)
        return move(self.communicator, moved, self.rows, self.held)

    def with_next(self, values: Array) -> Array:
        """Return images on this rank's core and the row and column behind it, in host memory; as :meth:`through`."""
        whole = Box(0, self.shape[0], 0, self.shape[1])
        wider = tuple(
            EMPTY_BOX if c.empty else Box(c.y0, c.y1 + 1, c.x0, c.x1 + 1).intersect(whole) for c in self.cores
        )
        own = values[:, *self.core.slices(self.held[self.communicator.rank])]
        return move(self.communicator, own, self.cores, wider)


def row_blocks(box: Box, n_bytes: int) -> Iterator[Box]:
    """Yield the rows of a box in blocks of limited size; ``n_bytes`` of a pixel, all images together."""
    yield from _blocks(box, 0, n_bytes)


def _blocks(box: Box, axis: int, n_bytes: int) -> Iterator[Box]:
    if box.empty:
        return
    n = max(BLOCK_BYTES // (box.shape[1 - axis] * n_bytes), 1)
    start, stop = ((box.y0, box.y1), (box.x0, box.x1))[axis]
    for a in range(start, stop, n):
        b = min(a + n, stop)
        yield Box(a, b, box.x0, box.x1) if axis == 0 else Box(box.y0, box.y1, a, b)


def _in_blocks(values: Array, box: Box, axis: int, work: Work) -> None:
    """Overwrite images on ``box`` by what ``work`` makes of them, some rows (axis 0) or columns at a time."""
    for block in _blocks(box, axis, len(values) * values.dtype.itemsize):
        part = np.s_[:, *block.slices(box)]
        values[part] = work(values[part], block)


def _shares(n: int, size: int) -> list[tuple[int, int]]:
    edges = [n * rank // size for rank in range(size + 1)]
    return list(zip(edges, edges[1:]))
