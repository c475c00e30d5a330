"""A rank's patterns beside its object on a GPU: all of them where they fit, else batch after batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

import numpy as np

from hpcrec.backend.array import Array, IntArray
from hpcrec.backend.device import Device
from hpcrec.backend.uploads import uploaded
from hpcrec.data.batches import BatchReader
from hpcrec.models.events import Events, event_bytes, events_of, joined

# Events of all patterns, of what those of the first ones let expect
_MARGIN: Final = 1.25


class PatternReader(Protocol):
    """What hands out the patterns of a rank's share."""

    def iterate(self, batches: Iterable[IntArray]) -> Iterator[Array | Events]:
        """Yield the patterns (n, ky, kx) of each batch in turn."""

    def close(self) -> None:
        """Give memory back."""


class DeviceReader:
    """Patterns on a GPU, in the detector's type; ``reader`` has them on the host, and is closed with this one.

    room : bytes of the GPU's memory that patterns may take. All of the ``share`` (n,) stay there after their first use
        if they fit; then the host keeps none. Else each batch is copied while the one before is in use
    events : whether electrons' places are as welcome as arrays; they are kept where they take less. Where arrays do
        not fit, they are kept anyhow
    """

    def __init__(
        self, reader: BatchReader, share: IntArray, device: Device, room: int, *, events: bool = False
    ) -> None:
        self._reader, self._xp, self._room, self._events = reader, device.module, room, events
        self._share = np.unique(np.asarray(share, np.int64))
        self._blocks = np.array_split(self._share, max(-(-len(self._share) // reader.per_block), 1))
        self._kept: Array | Events | None = None
        self._decided: tuple[bool, bool] | None = None

    @property
    def resident(self) -> bool:
        """Whether all patterns stay on the GPU."""
        return self._decide()[0]

    def _decide(self) -> tuple[bool, bool]:
        """Return whether all patterns stay on the GPU, and whether as events; the first ones stand for all."""
        if self._decided is None:
            dense = self._reader.nbytes(len(self._share))
            self._decided = dense <= self._room, False
            if len(self._share) and (self._events or dense > self._room):
                sparse = self._event_bytes()
                if sparse < dense and sparse <= self._room:
                    self._decided = True, True
        return self._decided

    def _event_bytes(self) -> float:
        """Return the bytes that all patterns would take as events; infinite where they are no counts."""
        (first,) = self._reader.source_blocks(self._blocks[:1])
        if first.dtype.kind not in "iu" or first.min() < 0:
            return float("inf")
        return event_bytes(first) / len(first) * len(self._share) * _MARGIN

    def iterate(self, batches: Iterable[IntArray]) -> Iterator[Array | Events]:
        """Yield the patterns (n, ky, kx) of each batch on the GPU; what uses them is to be started before the next."""
        if not self.resident:
            yield from uploaded(self._xp, self._reader.iterate(batches))
            return
        for batch in batches:
            if self._kept is None:
                self._kept = self._load()
            yield self._kept[self._xp.asarray(np.searchsorted(self._share, batch))]

    def _load(self) -> Array | Events:
        """Return the patterns of the share, copied block by block."""
        there = uploaded(self._xp, self._reader.source_blocks(self._blocks))
        if self._decide()[1]:
            return joined([events_of(patterns) for patterns in there])
        kept, first = None, 0
        for patterns in there:
            if kept is None:
                kept = self._xp.empty((len(self._share), *patterns.shape[1:]), patterns.dtype)
            kept[first : first + len(patterns)] = patterns
            first += len(patterns)
        assert kept is not None
        return kept  # type: ignore[no-any-return]

    def close(self) -> None:
        """Give the memory of GPU and host back."""
        self._kept = None
        self._reader.close()
