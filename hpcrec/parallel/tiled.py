"""The tiled exchange: each rank holds a core it owns and a halo around it, and talks to its neighbours only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import numpy as np

from hpcrec.backend.array import Array, IntArray, array_module, to_host
from hpcrec.errors import ParallelError
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.tiles import EMPTY_BOX, Box, bounding_box, tile_layout, window_corners
from hpcrec.models.partial import Field, Partial, Total
from hpcrec.parallel.communicator import Communicator
from hpcrec.parallel.exchange import Ownership, Room, peak, sum_all

# Of what travels at a time when an object is gathered or handed out: ranks need room for no more beside their own
PIECE_BYTES: Final = 32 << 20
Boxes = IntArray  # (rank, 4): y0, y1, x0, x1 of one field on every rank


class Tiled:
    """Each rank holds core and halo; memory and traffic of a rank shrink with the number of ranks.

    A total takes two rounds of neighbour messages (overlap-region exchange: Nashed et al., Opt. Express 22, 32082
    (2014), here with sums instead of means): every rank *adds* its contributions in other cores into their owners,
    then owners copy the finished cores to the halos. Only boxes that some rank touched travel. Owners add in rank
    order, so a run is repeatable bit by bit.
    """

    def __init__(
        self, communicator: Communicator, positions: Array, grid: Grid, window: tuple[int, int], margin: int = 8
    ) -> None:
        self.communicator = communicator
        self.layout = tile_layout(positions, grid, window, communicator.size, margin)
        self.core, self.held = self.layout.cores[communicator.rank], self.layout.held[communicator.rank]
        self._grid, self._window, self._margin = grid, window, margin
        self._held_rows = np.array([_row(box) for box in self.layout.held])
        self._ownership = Ownership(self.layout.shares, positions)
        others = [rank for rank in range(communicator.size) if rank != communicator.rank]
        # whose core my windows may touch, and whose windows may touch my core
        self._owners = [r for r in others if not self.held.intersect(self.layout.cores[r]).empty]
        self._guests = [r for r in others if not self.core.intersect(self.layout.held[r]).empty]
        self.update_positions(positions)

    def share(self, indices: IntArray) -> IntArray:
        """Return those of ``indices`` that this rank processes, along the Hilbert curve."""
        return self._ownership.share(indices, self.communicator.rank)

    def update_positions(self, positions: Array) -> None:
        """Check that every window of every rank stays in that rank's held box."""
        corners = window_corners(positions, self._grid, self._window)
        boxes = [bounding_box(corners[share], self._window) for share in self.layout.shares]
        self._check_held(np.array([_row(box) for box in boxes]))

    def _check_held(self, touched: Boxes) -> None:
        y0, y1, x0, x1 = touched.T
        held = self._held_rows.T
        outside = (y0 < held[0]) | (y1 > held[1]) | (x0 < held[2]) | (x1 > held[3])
        outside &= (y1 > y0) & (x1 > x0)
        if outside.any():
            rank = int(np.argmax(outside))
            raise ParallelError(
                f"rank {rank} touches the object pixels {_box(touched[rank])} but holds {self.layout.held[rank]}: "
                "probe windows moved out of the halo; enlarge parallel.halo_margin_angstrom "
                f"(now {self._margin} pixels) or limit the largest move of positions"
            )

    def total(self, partial: Partial, peaks: tuple[str, ...] = ()) -> Total:
        """Add the partials of all ranks; each rank sees the touched box as far as it holds it."""
        names = sorted(partial.fields)
        touched = self._gather_boxes([partial.fields[name] for name in names])
        cores = self._add_to_owners([partial.fields[name] for name in names], touched)
        fields = dict(zip(names, self._copy_to_halos(cores, touched), strict=True))
        found = np.array([peak(cores[names.index(name)].values) for name in peaks], np.float64)
        highest = self.communicator.max(found) if peaks else found
        return Total(
            fields,
            sum_all(self.communicator, partial.sums),
            {name: float(value) for name, value in zip(peaks, highest, strict=True)},
        )

    def _gather_boxes(self, parts: list[Field]) -> list[Boxes]:
        """Return for each field the boxes of all ranks.

        Checks that all ranks' fields have one form (else bytes would be taken for other numbers), and that each rank
        holds what it touched.
        """
        mine = np.zeros((len(parts), self.communicator.size, 6), np.int64)
        for i, part in enumerate(parts):
            form = (part.values.dtype.num, int(np.prod(part.values.shape[:-2])))
            mine[i, self.communicator.rank] = (*_row(part.box), *form)
        gathered = self.communicator.sum(mine)
        if (gathered[:, :, 4:] != mine[:, [self.communicator.rank], 4:]).any():
            raise ParallelError("ranks entered an exchange with fields of different types or leading axes")
        for touched in gathered:
            self._check_held(touched[:, :4])
        return list(gathered[:, :, :4])

    def _add_to_owners(self, parts: list[Field], touched: list[Boxes]) -> list[Field]:
        """Reverse halo exchange: return for each field the finished sum on the touched part of the own core."""
        rank, cores = self.communicator.rank, self.layout.cores
        outgoing = {
            owner: [_cut(part, _overlap(_box(rows[rank]), cores[owner])) for part, rows in zip(parts, touched)]
            for owner in self._owners
        }
        expected = {
            guest: [(part, _overlap(_box(rows[guest]), self.core)) for part, rows in zip(parts, touched)]
            for guest in self._guests
        }
        received = self._swap(outgoing, expected)
        received[rank] = [_crop(part, self.core) for part in parts]
        sums = []
        for i, (part, rows) in enumerate(zip(parts, touched)):
            total = _zeros(part, _around(rows, self.core))
            for source in sorted(received):
                _add(total, received[source][i])
            sums.append(total)
        return sums

    def _copy_to_halos(self, cores: list[Field], touched: list[Boxes]) -> list[Field]:
        """Forward halo exchange: return for each field the finished values on the touched part of the held box."""
        outgoing = {
            guest: [_cut(core, _overlap(core.box, self.layout.held[guest])) for core in cores] for guest in self._guests
        }
        expected = {
            owner: [
                (core, _overlap(_around(rows, self.layout.cores[owner]), self.held))
                for core, rows in zip(cores, touched)
            ]
            for owner in self._owners
        }
        received = self._swap(outgoing, expected)
        fields = []
        for i, (core, rows) in enumerate(zip(cores, touched)):
            total = _zeros(core, _overlap(_around(rows), self.held))
            _add(total, core)
            for source in sorted(received):
                _add(total, received[source][i])
            fields.append(total)
        return fields

    def _swap(
        self, outgoing: dict[int, list[Array]], expected: dict[int, list[tuple[Field, Box]]]
    ) -> dict[int, list[Field]]:
        """Exchange one message of bytes a neighbour; ``expected`` gives (a field of that form, its box) in order.

        Messages are where the fields are; how those of a GPU travel is the communicator's business.
        """
        messages = {rank: _pack(arrays) for rank, arrays in outgoing.items()}
        buffers = {rank: _buffer(forms) for rank, forms in expected.items()}
        self.communicator.swap(
            {rank: message for rank, message in messages.items() if message.size},
            {rank: buffer for rank, buffer in buffers.items() if buffer.size},
        )
        return {rank: _unpack(buffers[rank], forms) for rank, forms in expected.items()}

    def whole(self, values: Array, room: Room = np.empty) -> Array | None:
        """Gather the cores of ``values`` (…, y, x), a piece at a time, to the whole grid on rank 0; None elsewhere."""
        mine, core = values.reshape(-1, *values.shape[-2:]), self.core
        if self.communicator.rank:
            for i, piece in self._pieces(core, len(mine), values.dtype):
                self.communicator.swap({0: np.ascontiguousarray(to_host(mine[(i, *piece.slices(self.held))]))}, {})
            return None
        result = room(values.shape[:-2] + self._grid.shape, values.dtype)
        found = result.reshape(-1, *self._grid.shape)
        for i, piece in self._pieces(core, len(mine), values.dtype):
            found[(i, *piece.slices(EMPTY_BOX))] = to_host(mine[(i, *piece.slices(self.held))])
        for rank in range(1, self.communicator.size):
            for i, piece in self._pieces(self.layout.cores[rank], len(mine), values.dtype):
                buffer = np.empty(piece.shape, values.dtype)
                self.communicator.swap({}, {rank: buffer})
                found[(i, *piece.slices(EMPTY_BOX))] = buffer
        return result

    def place(self, whole: Array | None) -> Array:
        """Hand out the held boxes of rank 0's array of the whole grid, a piece at a time."""
        form = self.communicator.broadcast(None if whole is None else (whole.shape[:-2], whole.dtype.str))
        values = np.empty(form[0] + self.held.shape, form[1])
        mine = values.reshape(-1, *self.held.shape)
        if whole is None:
            for i, piece in self._pieces(self.held, len(mine), values.dtype):
                buffer = np.empty(piece.shape, values.dtype)
                self.communicator.swap({}, {0: buffer})
                mine[(i, *piece.slices(self.held))] = buffer
            return values
        given = whole.reshape(-1, *self._grid.shape)
        values[...] = whole[(..., *self.held.slices(EMPTY_BOX))]
        for rank in range(1, self.communicator.size):
            for i, piece in self._pieces(self.layout.held[rank], len(mine), values.dtype):
                self.communicator.swap({rank: np.ascontiguousarray(given[(i, *piece.slices(EMPTY_BOX))])}, {})
        return values

    @staticmethod
    def _pieces(box: Box, n_images: int, dtype: np.dtype[Any]) -> Iterator[tuple[int, Box]]:
        """Yield the rows of a box, of one image after the other, in pieces of limited size."""
        if box.empty:
            return
        rows = max(PIECE_BYTES // (box.shape[1] * dtype.itemsize), 1)
        for i in range(n_images):
            for y in range(box.y0, box.y1, rows):
                yield i, Box(y, min(y + rows, box.y1), box.x0, box.x1)


def _row(box: Box) -> tuple[int, int, int, int]:
    return (0, 0, 0, 0) if box.empty else (box.y0, box.y1, box.x0, box.x1)


def _box(row: IntArray) -> Box:
    return Box(int(row[0]), int(row[1]), int(row[2]), int(row[3]))


def _overlap(a: Box, b: Box) -> Box:
    box = a.intersect(b)
    return EMPTY_BOX if box.empty else box


def _around(rows: Boxes, inside: Box | None = None) -> Box:
    """Return the smallest box around the boxes of all ranks, each first cut to ``inside``."""
    y0, y1, x0, x1 = rows.T
    if inside is not None:
        y0, y1 = np.maximum(y0, inside.y0), np.minimum(y1, inside.y1)
        x0, x1 = np.maximum(x0, inside.x0), np.minimum(x1, inside.x1)
    full = (y1 > y0) & (x1 > x0)
    if not full.any():
        return EMPTY_BOX
    return Box(int(y0[full].min()), int(y1[full].max()), int(x0[full].min()), int(x1[full].max()))


def _zeros(like: Field, box: Box) -> Field:
    shape = like.values.shape[:-2] + box.shape
    return Field(box, array_module(like.values).zeros(shape, like.values.dtype))


def _crop(part: Field, box: Box) -> Field:
    inner = _overlap(part.box, box)
    if inner.empty:
        return _zeros(part, EMPTY_BOX)
    return Field(inner, part.values[(..., *inner.slices(part.box))])


def _cut(part: Field, box: Box) -> Array:
    """Return the values of ``part`` on ``box`` inside it, contiguous."""
    return cast(Array, array_module(part.values).ascontiguousarray(_crop(part, box).values))


def _add(total: Field, part: Field) -> None:
    if not part.box.empty:
        total.values[(..., *part.box.slices(total.box))] += part.values


def _size(like: Field, box: Box) -> int:
    """Return the bytes of a field of the form of ``like`` on ``box``."""
    return int(np.prod(like.values.shape[:-2] + box.shape)) * like.values.dtype.itemsize


def _pack(arrays: list[Array]) -> Array:
    if not arrays:
        return np.empty(0, np.uint8)
    return cast(Array, array_module(*arrays).concatenate([a.reshape(-1).view(np.uint8) for a in arrays]))


def _buffer(forms: list[tuple[Field, Box]]) -> Array:
    """Return room for a message of fields."""
    n_bytes = sum(_size(like, box) for like, box in forms)
    return cast(Array, array_module(*(like.values for like, _ in forms)).empty(n_bytes, np.uint8))


def _unpack(message: Array, forms: list[tuple[Field, Box]]) -> list[Field]:
    """Split a message into fields."""
    fields, start = [], 0
    for like, box in forms:
        stop = start + _size(like, box)
        # a copy, because a later type may need an alignment that its place in the message lacks
        values = message[start:stop].copy().view(like.values.dtype)
        fields.append(Field(box, values.reshape(like.values.shape[:-2] + box.shape)))
        start = stop
    return fields
