"""Copies from the host to a GPU while it computes: two pinned buffers, and a stream of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from hpcrec.backend.array import Array


class _Slot:
    """A pinned buffer on the host, one on the GPU, and when each is free again."""

    def __init__(self, cupy: ModuleType, n_bytes: int) -> None:
        pinned = cupy.cuda.alloc_pinned_memory(n_bytes)
        self._cupy, self.n_bytes = cupy, n_bytes
        self.host = np.frombuffer(pinned, np.uint8, n_bytes)
        self.device = cupy.empty(n_bytes, np.uint8)
        self.copied, self.used = cupy.cuda.Event(disable_timing=True), cupy.cuda.Event(disable_timing=True)
        # What the pool gave may still be read by earlier work of the current stream
        self.used.record()

    def send(self, values: Array, stream: Any) -> Array:
        """Begin to copy ``values``; return where they will be on the GPU."""
        self.copied.synchronize()
        kind, n_bytes = values.dtype.newbyteorder("="), values.nbytes
        host = self.host[:n_bytes].view(kind).reshape(values.shape)
        host[...] = values
        there = self.device[:n_bytes].view(kind).reshape(values.shape)
        stream.wait_event(self.used)
        there.set(host, stream=stream)
        self.copied.record(stream)
        return there  # type: ignore[no-any-return]


def uploaded(cupy: ModuleType, arrays: Iterable[Array]) -> Iterator[Array]:
    """Yield copies of ``arrays`` on the current GPU, the next being copied while one is used.

    A copy lasts until the next is asked for: what work needs it must have been given to the current stream by then.
    """
    stream, current = cupy.cuda.Stream(non_blocking=True), cupy.cuda.get_current_stream
    slots: list[_Slot | None] = [None, None]
    before: tuple[_Slot, Array] | None = None
    try:
        for i, values in enumerate(arrays):
            slot = slots[i % 2]
            if slot is None or slot.n_bytes < values.nbytes:
                stream.synchronize()
                slot = slots[i % 2] = _Slot(cupy, max(values.nbytes, 1))
            coming = slot, slot.send(values, stream)
            if before is not None:
                yield from _handed(before, current())
            before = coming
        if before is not None:
            yield from _handed(before, current())
    finally:
        # No buffer goes back to the pool, for whoever asks next, while it is being written
        stream.synchronize()


def _handed(coming: tuple[_Slot, Array], stream: Any) -> Iterator[Array]:
    """Yield an array when it is there, and remember when its users are done."""
    slot, there = coming
    stream.wait_event(slot.copied)
    yield there
    slot.used.record(stream)
