"""A rank's patterns beside its object on a GPU: all of them where they fit, else batch after batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from hpcrec.backend.array import Array, IntArray
from hpcrec.backend.device import Device
from hpcrec.backend.uploads import uploaded
from hpcrec.data.batches import BatchReader


class PatternReader(Protocol):
    """What hands out the patterns of a rank's share."""

    def iterate(self, batches: Iterable[IntArray]) -> Iterator[Array]:
        """Yield the patterns (n, ky, kx) of each batch in turn."""

    def close(self) -> None:
        """Give memory back."""


class DeviceReader:
    """Patterns on a GPU, in the detector's type; ``reader`` has them on the host, and is closed with this one.

    ``room`` : bytes of the GPU's memory that patterns may take. All of the ``share`` (n,) stay there after their first
        use if they fit; then the host keeps none. Else each batch is copied while the one before is in use
    """

    def __init__(self, reader: BatchReader, share: IntArray, device: Device, room: int) -> None:
        self._reader, self._xp = reader, device.module
        self._share = np.unique(np.asarray(share, np.int64))
        self.resident = reader.nbytes(len(self._share)) <= room
        self._kept: Array | None = None

    def iterate(self, batches: Iterable[IntArray]) -> Iterator[Array]:
        """Yield the patterns (n, ky, kx) of each batch on the GPU; what uses them is to be started before the next."""
        if not self.resident:
            yield from uploaded(self._xp, self._reader.iterate(batches))
            return
        for batch in batches:
            if self._kept is None:
                self._kept = self._load()
            yield self._kept[self._xp.asarray(np.searchsorted(self._share, batch))]

    def _load(self) -> Array:
        """Return the patterns of the share, copied block by block."""
        blocks = np.array_split(self._share, max(-(-len(self._share) // self._reader.per_block), 1))
        kept, first = None, 0
        for patterns in uploaded(self._xp, self._reader.source_blocks(blocks)):
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
