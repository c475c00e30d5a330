"""Exchanges: they turn the partial sums of all ranks into totals, and know which rank holds what.

Reductions use one message for all small sums and one for all boxes; fields go in sorted order of their names, so every
rank enters the same collectives in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, Final, Protocol, cast

import numpy as np

from hpcrec.backend.array import Array, IntArray, array_module, to_host
from hpcrec.errors import ParallelError
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.scan import hilbert_order, split_positions
from hpcrec.geometry.tiles import EMPTY_BOX, Box, bounding_box, window_corners
from hpcrec.models.partial import Field, Partial, Total
from hpcrec.parallel.communicator import Communicator

Room = Callable[[tuple[int, ...], Any], Array]
EXCHANGES: Final = {
    "replicated": "hpcrec.parallel.exchange:Replicated",
    "tiled": "hpcrec.parallel.tiled:Tiled",
}


class Exchange(Protocol):
    """Who processes which positions of one tilt, who holds which pixels, and how partial sums become totals.

    Made by :func:`make_exchange` from ``(communicator, positions, grid, window, margin, reach, weights)``: all
    positions (n, 2) in Å of the tilt, the object's grid, the probe's window (ny, nx) in pixels, the halo margin in
    pixels, what the probe reaches of its window (None: all of it) and a weight for each rank's share of the positions
    (None: equal), the same on all ranks. All methods but :meth:`share` are collective over ``communicator``. The cores
    of all ranks, each within the ``held`` box, are the whole grid, every pixel once.
    """

    communicator: Communicator
    held: Box
    core: Box

    def share(self, indices: IntArray) -> IntArray:
        """Return those of ``indices`` that this rank processes, along the Hilbert curve; the owner never changes."""

    def total(self, partial: Partial, peaks: tuple[str, ...] = ()) -> Total:
        """Add the partials of all ranks; ``peaks`` names the fields whose maximum over the object is wanted.

        Each field of the total covers the part of the touched box (smallest box around all ranks' boxes) that this
        rank holds. A peak counts untouched pixels as zero. Raises :class:`ParallelError` where a partial reaches
        beyond what its rank holds.
        """

    def whole(self, values: Array, room: Room = np.empty) -> Array | None:
        """Gather ``values`` (…, y, x) on the held boxes to the whole grid on rank 0 (host memory); None elsewhere.

        ``room(shape, dtype)`` gives the array that is filled, where rank 0 has none yet.
        """

    def place(self, whole: Array | None) -> Array:
        """Hand out rank 0's array (…, y, x) of the whole grid: return the values on the held box (host memory).

        The other ranks' argument is not read and may be None.
        """

    def by_images(self, values: Array, work: Callable[[Array], Array]) -> Array:
        """Return ``values`` (…, y, x) on the held box (host memory), each image of the whole grid changed by ``work``.

        ``work`` gets an image (y, x) in host memory and returns one there. Each is done by one rank; no rank needs room
        for more than one beside its own values.
        """

    def refresh(self, values: Array) -> None:
        """Fill, in place, what totals do not bring up to date of ``values`` (…, y, x) on the held box.

        That is the part beyond the probe's ``reach``, where totals are zero; it comes from the owners' cores. Without
        a reach nothing travels.
        """

    def update_positions(self, positions: Array) -> None:
        """Check that every window of the refined positions (n, 2) in Å stays in its rank's held box.

        Raises :class:`ParallelError` on all ranks alike; the positions must be the same on all ranks.
        """


def make_exchange(
    kind: str,
    communicator: Communicator,
    positions: Array,
    grid: Grid,
    window: tuple[int, int],
    margin: int = 8,
    reach: Box | None = None,
    weights: Sequence[float] | None = None,
) -> Exchange:
    """Return the exchange named ``kind`` in :data:`EXCHANGES`; arguments as in :class:`Exchange`."""
    module, name = EXCHANGES[kind].split(":")
    made = getattr(import_module(module), name)(communicator, positions, grid, window, margin, reach, weights)
    return cast(Exchange, made)


class Ownership:
    """Which rank owns which position: the shares of a layout, looked up by index."""

    def __init__(self, shares: Iterable[IntArray], positions: Array) -> None:
        n_positions = len(positions)
        self.owner = np.zeros(n_positions, np.int64)
        for rank, share in enumerate(shares):
            self.owner[share] = rank
        self._place = np.empty(n_positions, np.int64)
        self._place[hilbert_order(positions)] = np.arange(n_positions)

    def share(self, indices: IntArray, rank: int) -> IntArray:
        """Return those of ``indices`` that ``rank`` owns, along the Hilbert curve."""
        indices = np.asarray(indices, np.int64)
        own = indices[self.owner[indices] == rank]
        return cast(IntArray, own[np.argsort(self._place[own], kind="stable")])


def sum_all(communicator: Communicator, sums: dict[str, Array]) -> dict[str, Array]:
    """Return the sums over all ranks of arrays by name, with one reduction for each type of number and library."""
    if communicator.size == 1 or not sums:
        return dict(sums)
    totals: dict[str, Array] = {}
    names = sorted(sums)
    kinds = {name: (array_module(sums[name]).__name__, sums[name].dtype.str) for name in names}
    for kind in sorted(set(kinds.values())):
        group = [name for name in names if kinds[name] == kind]
        xp = array_module(sums[group[0]])
        flat, start = communicator.sum(xp.concatenate([sums[name].reshape(-1) for name in group])), 0
        for name in group:
            stop = start + sums[name].size
            totals[name] = flat[start:stop].reshape(sums[name].shape)
            start = stop
    return totals


def spread(part: Field, box: Box) -> Array:
    """Return the values of ``part`` on ``box``, which contains it, zero around."""
    if part.box == box:
        return part.values
    values = array_module(part.values).zeros(part.values.shape[:-2] + box.shape, part.values.dtype)
    if not part.box.empty:
        values[(..., *part.box.slices(box))] = part.values
    return values  # type: ignore[no-any-return]


def as_images(values: Array) -> Array:
    """Return ``values`` (…, y, x) as (image, y, x), whose images may have no pixels."""
    return values.reshape(math.prod(values.shape[:-2]), *values.shape[-2:])


def peak(values: Array) -> float:
    """Return the largest of real ``values``, at least 0 (untouched pixels are zero); not-a-number wins."""
    if values.dtype.kind == "c":
        raise TypeError("complex values have no peak: ask for the peak of a real field")
    return max(float(values.max()), 0.0) if values.size else 0.0


class Replicated:
    """Every rank holds the whole object; fields are added densely on the smallest box around all ranks' boxes.

    Positions are shared as runs of the Hilbert curve, equal within one or in proportion to ``weights``. Memory and
    traffic of a rank do not shrink with the number of ranks; nothing limits where positions move inside the grid.
    There are no halos, so ``reach`` changes nothing.
    """

    def __init__(
        self,
        communicator: Communicator,
        positions: Array,
        grid: Grid,
        window: tuple[int, int],
        margin: int = 0,
        reach: Box | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.communicator = communicator
        self.held = Box(0, grid.shape[0], 0, grid.shape[1])
        rows = np.linspace(0, grid.shape[0], communicator.size + 1).astype(int).tolist()
        self.core = Box(rows[communicator.rank], rows[communicator.rank + 1], 0, grid.shape[1])
        self._grid, self._window = grid, window
        self._ownership = Ownership(split_positions(positions, communicator.size, weights), positions)
        self.update_positions(positions)

    def share(self, indices: IntArray) -> IntArray:
        """Return those of ``indices`` that this rank processes, along the Hilbert curve."""
        return self._ownership.share(indices, self.communicator.rank)

    def total(self, partial: Partial, peaks: tuple[str, ...] = ()) -> Total:
        """Add the partials of all ranks; every rank sees the whole touched box."""
        names = sorted(partial.fields)
        fields = dict(partial.fields)
        if self.communicator.size > 1 and names:
            for name, box in zip(names, self._touched([fields[name].box for name in names]), strict=True):
                fields[name] = Field(box, self.communicator.sum(spread(fields[name], box)))
        windows = partial.windows
        if windows is not None:
            return Total(fields, dict(partial.sums), {name: windows.peak() for name in peaks}, windows)
        return Total(
            fields, sum_all(self.communicator, partial.sums), {name: peak(fields[name].values) for name in peaks}
        )

    def _touched(self, boxes: list[Box]) -> list[Box]:
        """Return the smallest boxes around those of all ranks, by one maximum over (−y0, y1, −x0, x1)."""
        nothing = (-(2**62),) * 4
        edges = np.array([nothing if b.empty else (-b.y0, b.y1, -b.x0, b.x1) for b in boxes], np.int64)
        edges = self.communicator.max(edges)
        return [
            EMPTY_BOX if row[0] == nothing[0] else Box(-int(row[0]), int(row[1]), -int(row[2]), int(row[3]))
            for row in edges
        ]

    def whole(self, values: Array, room: Room = np.empty) -> Array | None:
        """Return the values on rank 0, which has them all; None elsewhere."""
        return to_host(values) if self.communicator.rank == 0 else None

    def place(self, whole: Array | None) -> Array:
        """Return rank 0's array on every rank."""
        return cast(Array, self.communicator.broadcast(whole))

    def by_images(self, values: Array, work: Callable[[Array], Array]) -> Array:
        """Return the values with each image changed by one of the ranks."""
        images = as_images(to_host(values))
        found = np.empty(images.shape, values.dtype)
        for i in range(self.communicator.rank, len(images), self.communicator.size):
            found[i] = work(images[i])
        for i in range(len(images) if self.communicator.size > 1 else 0):
            found[i] = self.communicator.broadcast(found[i], i % self.communicator.size)
        return found.reshape(values.shape)

    def refresh(self, values: Array) -> None:
        """Do nothing: totals reach everywhere."""

    def update_positions(self, positions: Array) -> None:
        """Check that every window lies in the grid."""
        touched = bounding_box(window_corners(positions, self._grid, self._window), self._window)
        if not self.held.contains(touched):
            raise ParallelError(
                f"probe windows cover the object pixels {touched}, beyond the grid {self._grid.shape}: "
                "limit the largest move of positions or make the margin of the object grid larger"
            )
