"""The tiled exchange: each rank holds a core it owns and a halo around it, and talks to its neighbours only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

import numpy as np

from hpcrec.backend.array import Array, BoolArray, IntArray, array_module, to_host
from hpcrec.errors import ParallelError
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.tiles import EMPTY_BOX, Box, bounding_box, tile_layout, window_corners
from hpcrec.models.partial import Field, Partial, Total
from hpcrec.parallel.communicator import Communicator
from hpcrec.parallel.exchange import Ownership, Room, as_images, peak, sum_all

# Of what travels at a time when an object is gathered or handed out: ranks need room for no more beside their own
PIECE_BYTES: Final = 32 << 20
Boxes = IntArray  # (rank, 4): y0, y1, x0, x1 of one field on every rank


class Tiled:
    """Each rank holds core and halo; memory and traffic of a rank shrink with the number of ranks.

    A total takes two rounds of neighbour messages (overlap-region exchange: Nashed et al., Opt. Express 22, 32082
    (2014), here with sums instead of means): every rank *adds* its contributions in other cores into their owners,
    then owners copy the finished cores to the halos. Only boxes that some rank touched travel. Owners add in rank
    order, so a run is repeatable bit by bit. With ``reach``, what lies further than the probe's ``reach`` from a rank's
    positions neither travels to owners nor comes from them, but for :meth:`refresh`.
    """

    def __init__(
        self,
        communicator: Communicator,
        positions: Array,
        grid: Grid,
        window: tuple[int, int],
        margin: int = 8,
        reach: Box | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.communicator = communicator
        self.layout = tile_layout(positions, grid, window, communicator.size, margin, reach=reach, weights=weights)
        self._reached = self.layout.reached[communicator.rank]
        self.core, self.held = self.layout.cores[communicator.rank], self.layout.held[communicator.rank]
        self._grid, self.window, self._margin = grid, window, margin
        self._held_rows = np.array([_row(box) for box in self.layout.held])
        self._ownership = Ownership(self.layout.shares, positions)
        others = [rank for rank in range(communicator.size) if rank != communicator.rank]
        # whose core my windows may touch, and whose windows may touch my core
        self._owners = [r for r in others if not self._reached.intersect(self.layout.cores[r]).empty]
        self._guests = [r for r in others if not self.core.intersect(self.layout.reached[r]).empty]
        self.update_positions(positions)

    def share(self, indices: IntArray) -> IntArray:
        """Return those of ``indices`` that this rank processes, along the Hilbert curve."""
        return self._ownership.share(indices, self.communicator.rank)

    def update_positions(self, positions: Array) -> None:
        """Check that every window of every rank stays in that rank's held box."""
        corners = window_corners(positions, self._grid, self.window)
        boxes = [bounding_box(corners[share], self.window) for share in self.layout.shares]
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

    def corners(self, positions: Array) -> IntArray:
        """Return the first pixels (n, 2) of the windows at ``positions`` (n, 2) in Å."""
        return window_corners(positions, self._grid, self.window)

    def touches_others(self, positions: Array) -> BoolArray:
        """Return which of the windows (n,) at ``positions`` (n, 2) in Å cover pixels that another rank holds."""
        corners = self.corners(positions)
        found = np.zeros(len(corners), bool)
        for rank in {*self._owners, *self._guests}:
            box = self.layout.held[rank]
            first, beyond = np.array([box.y0, box.x0]), np.array([box.y1, box.x1])
            found |= ((corners < beyond) & (corners + np.array(self.window) > first)).all(axis=1)
        return found

    def fields_total(self, parts: list[Field]) -> list[Field]:
        """Add fields over all ranks; each sees the touched boxes as far as it holds them."""
        touched = self._gather_boxes(parts)
        return self._copy_to_halos(self._add_to_owners(parts, touched), touched)

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
        rank, cores, reached = self.communicator.rank, self.layout.cores, self.layout.reached
        outgoing = {
            owner: [
                _cut(part, _overlap(_box(rows[rank]), cores[owner].intersect(reached[rank])))
                for part, rows in zip(parts, touched)
            ]
            for owner in self._owners
        }
        expected = {
            guest: [
                (part, _overlap(_box(rows[guest]), self.core.intersect(reached[guest])))
                for part, rows in zip(parts, touched)
            ]
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
            guest: [_cut(core, _overlap(core.box, self.layout.reached[guest])) for core in cores]
            for guest in self._guests
        }
        expected = {
            owner: [
                (core, _overlap(_around(rows, self.layout.cores[owner]), self._reached))
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

    def refresh(self, values: Array) -> None:
        """Fill ``values`` beyond the probe's reach, in place, with what its owners have."""
        rank, cores, field = self.communicator.rank, self.layout.cores, Field(self.held, values)
        beyond = [held.without(reached) for held, reached in zip(self.layout.held, self.layout.reached)]
        if not any(beyond):
            return
        others = [other for other in range(len(cores)) if other != rank]
        received = self._swap(
            {guest: [_cut(field, _overlap(box, self.core)) for box in beyond[guest]] for guest in others},
            {owner: [(field, _overlap(box, cores[owner])) for box in beyond[rank]] for owner in others},
        )
        for part in (part for parts in received.values() for part in parts if not part.box.empty):
            values[(..., *part.box.slices(self.held))] = part.values

    def whole(self, values: Array, room: Room = np.empty) -> Array | None:
        """Gather the cores of ``values`` (…, y, x), a piece at a time, to the whole grid on rank 0; None elsewhere."""
        first = self.communicator.rank == 0
        result = room(values.shape[:-2] + self._grid.shape, values.dtype) if first else None
        images = None if result is None else as_images(result)
        for i, image in enumerate(as_images(values)):
            self._collect(image, 0, None if images is None else images[i])
        return result

    def place(self, whole: Array | None) -> Array:
        """Hand out the held boxes of rank 0's array of the whole grid, a piece at a time."""
        form = self.communicator.broadcast(None if whole is None else (whole.shape[:-2], whole.dtype.str))
        values = np.empty(form[0] + self.held.shape, form[1])
        images = None if whole is None else as_images(whole)
        for i, image in enumerate(as_images(values)):
            self._hand_out(None if images is None else images[i], 0, image)
        return values

    def by_images(self, values: Array, work: Callable[[Array], Array]) -> Array:
        """Return the values (host memory) with each whole image changed by one of the ranks."""
        rank, size = self.communicator.rank, self.communicator.size
        images = as_images(values)
        found = np.empty(images.shape, values.dtype)
        for first in range(0, len(images), size):
            together = range(first, min(first + size, len(images)))
            own = np.empty(self._grid.shape, values.dtype) if rank < len(together) else None
            for root, i in enumerate(together):
                self._collect(images[i], root, own)
            changed = None if own is None else work(own)
            for root, i in enumerate(together):
                self._hand_out(changed, root, found[i])
        return found.reshape(values.shape)

    def _collect(self, image: Array, root: int, whole: Array | None) -> None:
        """Bring the cores of an image (y, x), which all hold in parts, to ``whole`` on the rank ``root``."""
        rank = self.communicator.rank
        for source, core in enumerate(self.layout.cores):
            for piece in _pieces(core, image.dtype) if rank in (root, source) else ():
                if rank != source:
                    buffer = np.empty(piece.shape, image.dtype)
                    self.communicator.swap({}, {source: buffer})
                else:
                    buffer = np.ascontiguousarray(to_host(image[piece.slices(self.held)]))
                if rank == root:
                    cast(Array, whole)[piece.slices(EMPTY_BOX)] = buffer
                else:
                    self.communicator.swap({root: buffer}, {})

    def _hand_out(self, whole: Array | None, root: int, image: Array) -> None:
        """Fill what each rank holds of an image (y, x) from ``whole`` on the rank ``root``."""
        rank = self.communicator.rank
        for target, held in enumerate(self.layout.held):
            for piece in _pieces(held, image.dtype) if rank in (root, target) else ():
                if rank == root:
                    buffer = np.ascontiguousarray(cast(Array, whole)[piece.slices(EMPTY_BOX)])
                else:
                    buffer = np.empty(piece.shape, image.dtype)
                    self.communicator.swap({}, {root: buffer})
                if rank == target:
                    image[piece.slices(self.held)] = buffer
                else:
                    self.communicator.swap({target: buffer}, {})


def _pieces(box: Box, dtype: np.dtype[Any]) -> Iterator[Box]:
    """Yield the rows of a box in pieces of limited size."""
    if not box.empty:
        rows = max(PIECE_BYTES // (box.shape[1] * dtype.itemsize), 1)
        for y in range(box.y0, box.y1, rows):
            yield Box(y, min(y + rows, box.y1), box.x0, box.x1)


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
