"""A communicator that counts: calls, messages, bytes and seconds, by kind.

What a collective really sends is the library's choice. Counted is the least that any algorithm sends from a rank: a sum
or maximum of n bytes over P ranks takes 2 (P − 1)/P n bytes and 2 ⌈log₂ P⌉ messages (Rabenseifner, Proc. ICCS 2004); a
broadcast or a gather sends each object once. Neighbours' messages are counted as they are.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from hpcrec.backend.array import Array
from hpcrec.parallel.communicator import Communicator

KINDS: Final = ("sum", "max", "swap", "broadcast", "gather", "send", "receive", "barrier")


def reduction_bytes(n_bytes: float, size: int) -> float:
    """Return the bytes that a rank sends, and receives, in a sum of ``n_bytes`` over ``size`` ranks; at least."""
    return 2 * (size - 1) / size * n_bytes


def reduction_messages(size: int) -> int:
    """Return the messages that a rank sends in a sum over ``size`` ranks."""
    return 2 * (size - 1).bit_length()


@dataclass(slots=True)
class Count:
    """What one kind of communication cost a rank.

    ``payload`` : bytes of what was handed to collectives, whatever the number of ranks
    ``seconds`` : spent in the calls, waiting for others and sending alike; ``cpu`` : of the processor meanwhile
    """

    calls: int = 0
    messages: int = 0
    sent: float = 0.0
    received: float = 0.0
    payload: float = 0.0
    seconds: float = 0.0
    cpu: float = 0.0


@dataclass(slots=True)
class Ledger:
    """Counts by kind, of a communicator and all of its parts."""

    counts: dict[str, Count] = field(default_factory=lambda: {kind: Count() for kind in KINDS})
    lock: threading.Lock = field(default_factory=threading.Lock)

    def total(self, name: str, *kinds: str) -> float:
        """Return the sum of one figure over kinds (default: all)."""
        return sum(getattr(self.counts[kind], name) for kind in kinds or KINDS)

    def clear(self) -> None:
        """Begin anew."""
        with self.lock:
            self.counts = {kind: Count() for kind in KINDS}

    def add(self, kind: str, **figures: float) -> None:
        """Add figures to a kind."""
        with self.lock:
            count = self.counts[kind]
            for name, value in figures.items():
                setattr(count, name, getattr(count, name) + value)


class CountingCommunicator:
    """Passes everything on to ``inner`` and counts it in ``ledger``, which parts share.

    ``delay`` : seconds, asleep, by which neighbours' messages are late, as on a slow network
    """

    def __init__(self, inner: Communicator, ledger: Ledger | None = None, delay: float = 0.0) -> None:
        self.inner, self.ledger, self.delay = inner, ledger or Ledger(), delay
        self.rank, self.size, self.concurrent = inner.rank, inner.size, inner.concurrent

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        # Of this thread: ranks may be threads of one process
        began, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            seconds, used = time.perf_counter() - began, time.thread_time() - cpu
            self.ledger.add(kind, calls=1, seconds=seconds, cpu=used)

    def _reduced(self, kind: str, a: Array, reduce: Callable[[Array], Array]) -> Array:
        moved = reduction_bytes(a.nbytes, self.size)
        self.ledger.add(kind, sent=moved, received=moved, payload=a.nbytes, messages=reduction_messages(self.size))
        with self._timed(kind):
            return reduce(a)

    def sum(self, a: Array) -> Array:
        """Return the sum of ``a`` over all ranks."""
        return self._reduced("sum", a, self.inner.sum)

    def max(self, a: Array) -> Array:
        """Return the element-wise maximum of ``a`` over all ranks."""
        return self._reduced("max", a, self.inner.max)

    def broadcast(self, obj: Any, root: int = 0) -> Any:
        """Return the root's object on every rank."""
        with self._timed("broadcast"):
            found = self.inner.broadcast(obj, root)
        n_bytes, is_root = _object_bytes(found) if self.size > 1 else 0, self.rank == root
        if is_root:
            self.ledger.add("broadcast", sent=n_bytes, payload=n_bytes, messages=int(self.size > 1))
        else:
            self.ledger.add("broadcast", received=n_bytes)
        return found

    def gather(self, obj: Any, root: int = 0) -> list[Any] | None:
        """Return the list of all ranks' objects on the root, None elsewhere."""
        with self._timed("gather"):
            found = self.inner.gather(obj, root)
        if found is None:
            n_bytes = _object_bytes(obj)
            self.ledger.add("gather", sent=n_bytes, payload=n_bytes, messages=1)
        else:
            others = [part for rank, part in enumerate(found) if rank != root]
            self.ledger.add("gather", received=sum(map(_object_bytes, others)))
        return found

    def swap(self, outgoing: dict[int, Array], incoming: dict[int, Array]) -> None:
        """Exchange arrays with neighbours; what a rank sends to itself is no message."""
        out = [a.nbytes for rank, a in outgoing.items() if rank != self.rank]
        into = [a.nbytes for rank, a in incoming.items() if rank != self.rank]
        self.ledger.add("swap", messages=len(out), sent=sum(out), received=sum(into), payload=sum(out))
        with self._timed("swap"):
            self.inner.swap(outgoing, incoming)
            time.sleep(self.delay)

    def send(self, obj: Any, dest: int, tag: int = 0) -> None:
        """Send an object to one rank."""
        if dest != self.rank:
            n_bytes = _object_bytes(obj)
            self.ledger.add("send", messages=1, sent=n_bytes, payload=n_bytes)
        with self._timed("send"):
            self.inner.send(obj, dest, tag)

    def receive(self, source: int | None = None, tag: int = 0) -> Any:
        """Wait for a message and return it; one from an unknown source counts as another rank's."""
        with self._timed("receive"):
            found = self.inner.receive(source, tag)
        if source != self.rank and self.size > 1:
            self.ledger.add("receive", received=_object_bytes(found))
        return found

    def poll(self, tag: int = 0, source: int | None = None) -> bool:
        """Whether a message waits to be received; not counted."""
        return self.inner.poll(tag, source)

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        with self._timed("barrier"):
            self.inner.barrier()

    def idle_barrier(self) -> None:
        """Wait until every rank has come here, asleep."""
        with self._timed("barrier"):
            self.inner.idle_barrier()

    def split(self, colour: int) -> CountingCommunicator:
        """Return the sub-group of one colour; it counts in the same ledger."""
        return CountingCommunicator(self.inner.split(colour), self.ledger)

    def duplicate(self, *, asleep: bool = False) -> CountingCommunicator:
        """Return the same group with a message space of its own; it counts in the same ledger."""
        return CountingCommunicator(self.inner.duplicate(asleep=asleep), self.ledger, self.delay)


def _object_bytes(obj: Any) -> int:
    """Return the bytes of an object as it is sent, large buffers beside the pickle included."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(obj, protocol=5, buffer_callback=buffers.append)
    return len(head) + sum(buffer.raw().nbytes for buffer in buffers)
