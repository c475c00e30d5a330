"""Messages in flight while a rank computes: what its neighbours wait for first, then what nobody else sees.

A rank's share of a batch is divided: patterns whose windows touch pixels that other ranks hold too come first, and what
they add to the object travels, in a thread of its own, while the patterns of the interior are done.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import replace
from typing import Final, Literal
from weakref import WeakKeyDictionary

import numpy as np

from hpcrec.backend.array import Array, IntArray
from hpcrec.geometry.tiles import Box, bounding_box
from hpcrec.models.base import Batch
from hpcrec.models.partial import Field, Partial, Total
from hpcrec.parallel.communicator import Communicator
from hpcrec.parallel.exchange import Exchange, peak, spread, sum_all
from hpcrec.parallel.tiled import Tiled

# Of a batch for each rank: a division costs a call of each kernel, and the turn of a thread (chosen, not measured)
FEW_PATTERNS: Final = 16
Accumulate = Callable[[Batch], Partial]
Overlap = Literal["auto", "always", "never"]

_asides: WeakKeyDictionary[Communicator, Communicator] = WeakKeyDictionary()


class Flight:
    """Totals of divided shares; all methods but :meth:`order` are collective over the exchange's ranks.

    ``waiting()`` gives what to enter while this rank waits for others.
    """

    def __init__(self, exchange: Tiled, waiting: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        self._exchange, self._waiting = exchange, waiting
        if exchange.communicator not in _asides:
            _asides[exchange.communicator] = exchange.communicator.duplicate(asleep=True)
        # The same tiles, with messages that cannot be taken for those of the main thread
        self._aside = copy(exchange)
        self._aside.communicator = _asides[exchange.communicator]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="messages")
        self._divided: Batch | None = None
        self._parts: tuple[Batch, Batch] | None = None

    def order(self, share: IntArray, positions: Array) -> IntArray:
        """Return the positions' indices (n,) with those first whose windows touch what other ranks hold too."""
        return share[np.argsort(~self._exchange.touches_others(positions[share]), kind="stable")]

    def pays(self, batch: Batch) -> bool:
        """Whether a batch has enough patterns to be divided; the same on all ranks."""
        return batch.n_global >= FEW_PATTERNS * self._exchange.communicator.size

    def total(self, accumulate: Accumulate, batch: Batch, positions: Array, peaks: tuple[str, ...] = ()) -> Total:
        """Return the total of what ``accumulate`` finds in all ranks' shares, see :meth:`Exchange.total`.

        ``accumulate`` is called for two parts of the share, whose partials are added; ``positions`` (n, 2) in Å are
        those of the tilt by now.
        """
        border, interior = self._parts_of(batch, positions)
        outer = accumulate(border)
        if not outer.fields:
            inner = accumulate(interior)
            with self._waiting():
                return self._exchange.total(outer + inner, peaks)
        names = sorted(outer.fields)
        corners = self._exchange.corners(positions[interior.indices])
        room = bounding_box(corners, self._exchange.window)
        sent = []
        for name in names:
            box = outer.fields[name].box.union(room)
            sent.append(Field(box, spread(outer.fields[name], box)))
        under_way = self._thread.submit(self._aside.fields_total, sent)
        inner = accumulate(interior)
        with self._waiting():
            fields = dict(zip(names, _joined(under_way), strict=True))
            for name, field in inner.fields.items():
                if not field.box.empty:
                    fields[name].values[(..., *field.box.slices(fields[name].box))] += field.values
            sums = {name: value + inner.sums[name] for name, value in outer.sums.items()}
            core = self._exchange.core
            found = np.array([_peak_within(fields[name], core) for name in peaks], np.float64)
            highest = self._exchange.communicator.max(found) if peaks else found
            return Total(
                fields,
                sum_all(self._exchange.communicator, sums),
                {name: float(value) for name, value in zip(peaks, highest, strict=True)},
            )

    def _parts_of(self, batch: Batch, positions: Array) -> tuple[Batch, Batch]:
        """Return the border's and the interior's part of a share; the same ones for all passes over a batch."""
        if self._parts is None or batch is not self._divided:
            touching = np.flatnonzero(self._exchange.touches_others(positions[batch.indices]))
            # What has moved to the border since the share was ordered takes along all before it
            n = int(touching[-1]) + 1 if len(touching) else 0
            self._divided = batch
            self._parts = _part(batch, slice(0, n), 0), _part(batch, slice(n, None), 1)
        return self._parts


def make_flight(
    exchange: Exchange, overlap: Overlap = "auto", waiting: Callable[[], AbstractContextManager[object]] = nullcontext
) -> Flight | None:
    """Return a flight for tiles of several ranks whose MPI bears several threads, else None; collective.

    ``overlap`` : "auto": only where the ranks are on several hosts. On one, messages take time of the same cores, and
    a division takes some too (``benchmarks/scaling/overlap.py``).
    """
    if overlap == "never" or not isinstance(exchange, Tiled):
        return None
    group = exchange.communicator
    if group.size == 1 or not group.concurrent or (overlap == "auto" and not _spread(group)):
        return None
    return Flight(exchange, waiting)


def _spread(group: Communicator) -> bool:
    hosts = group.gather(platform.node())
    return bool(group.broadcast(hosts is not None and len(set(hosts)) > 1))


def _part(batch: Batch, part: slice, number: int) -> Batch:
    good = None if batch.good is None else batch.good[part]
    return replace(batch, indices=batch.indices[part], patterns=batch.patterns[part], good=good, part=number)


def _joined(under_way: Future[list[Field]]) -> list[Field]:
    """Wait for the messages, and raise what they have raised."""
    return under_way.result()


def _peak_within(field: Field, core: Box) -> float:
    inner = field.box.intersect(core)
    return 0.0 if inner.empty else peak(field.values[(..., *inner.slices(field.box))])
