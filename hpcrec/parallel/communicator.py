"""Communicators: what the rest of the package knows of other ranks.

:class:`Communicator` is the interface; :class:`SerialCommunicator` is one process alone, :class:`ThreadedCommunicator`
runs ranks as threads of one process (tests and examples), ``parallel.mpi`` holds the real one.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np

from hpcrec.backend.array import Array
from hpcrec.errors import ParallelError

T = TypeVar("T")


class Communicator(Protocol):
    """A group of ranks. Arrays keep shape and type; every collective must be entered by all ranks of the group.

    ``rank`` counts from 0 to ``size`` − 1. ``concurrent`` says whether several threads of one rank may communicate.
    Tags of messages lie between 0 and 1000. ``handle`` is what libraries that speak MPI take; None where ranks are not
    processes of MPI.
    """

    rank: int
    size: int
    concurrent: bool
    handle: Any

    def sum(self, a: Array) -> Array:
        """Return the sum of ``a`` over all ranks, the same on each."""

    def max(self, a: Array) -> Array:
        """Return the element-wise maximum of real ``a`` over all ranks, the same on each; not-a-number wins."""

    def broadcast(self, obj: Any, root: int = 0) -> Any:
        """Return the root's (picklable) object on every rank."""

    def gather(self, obj: Any, root: int = 0) -> list[Any] | None:
        """Return the list of all ranks' objects on the root, None elsewhere."""

    def swap(self, outgoing: dict[int, Array], incoming: dict[int, Array]) -> None:
        """Send ``outgoing[r]`` to each neighbour r and fill the buffers ``incoming[r]`` from them; no deadlock.

        Needs only the ranks that exchange something. Buffers are contiguous arrays, on the host or a GPU, of the
        sender's shape and type.
        """

    def send(self, obj: Any, dest: int, tag: int = 0) -> None:
        """Send a (picklable) object to one rank."""

    def receive(self, source: int | None = None, tag: int = 0) -> Any:
        """Wait for a message with this tag from ``source`` (None: from any rank) and return it."""

    def poll(self, tag: int = 0, source: int | None = None) -> bool:
        """Whether a message with this tag (from ``source``, None: from any rank) waits to be received."""

    def barrier(self) -> None:
        """Wait until every rank has come here."""

    def idle_barrier(self) -> None:
        """Wait until every rank has come here, asleep: for waits of seconds and more."""

    def split(self, colour: int) -> Communicator:
        """Return the sub-group of the ranks that gave the same colour, in rank order."""

    def duplicate(self, *, asleep: bool = False) -> Communicator:
        """Return the same group with a message space of its own; collective.

        ``asleep`` : sums, maxima and swaps leave the core to other threads while they wait
        """


def check_same_form(arrays: list[Array]) -> None:
    """Raise :class:`ParallelError` unless all ranks' arrays have one shape and one type."""
    forms = {(a.shape, a.dtype.str) for a in arrays}
    if len(forms) > 1:
        raise ParallelError(f"ranks entered a reduction with different arrays (shape, type): {sorted(map(str, forms))}")


class SerialCommunicator:
    """One rank alone: every collective returns a copy of its argument, messages go to itself."""

    def __init__(self) -> None:
        self.rank, self.size, self.concurrent, self.handle = 0, 1, True, None
        self._mail: dict[int, deque[bytes]] = {}

    def sum(self, a: Array) -> Array:
        """Return a copy of ``a``."""
        return a.copy()

    def max(self, a: Array) -> Array:
        """Return a copy of ``a``."""
        return a.copy()

    def broadcast(self, obj: Any, root: int = 0) -> Any:
        """Return ``obj``."""
        return obj

    def gather(self, obj: Any, root: int = 0) -> list[Any] | None:
        """Return ``[obj]``."""
        return [obj]

    def swap(self, outgoing: dict[int, Array], incoming: dict[int, Array]) -> None:
        """Copy what this rank sends to itself."""
        for source, buffer in incoming.items():
            buffer[...] = outgoing[source]

    def send(self, obj: Any, dest: int, tag: int = 0) -> None:
        """Keep the object for a later :meth:`receive`."""
        self._mail.setdefault(tag, deque()).append(pickle.dumps(obj))

    def receive(self, source: int | None = None, tag: int = 0) -> Any:
        """Return the oldest message; raise :class:`ParallelError` if there is none, for none can come."""
        if not self.poll(tag):
            raise ParallelError(f"one rank alone waits for a message with tag {tag} that it never sent to itself")
        return pickle.loads(self._mail[tag].popleft())

    def poll(self, tag: int = 0, source: int | None = None) -> bool:
        """Whether a message was sent and not yet received."""
        return bool(self._mail.get(tag))

    def barrier(self) -> None:
        """Return at once."""

    def idle_barrier(self) -> None:
        """Return at once."""

    def split(self, colour: int) -> SerialCommunicator:
        """Return a new group of this rank alone."""
        return SerialCommunicator()

    def duplicate(self, *, asleep: bool = False) -> SerialCommunicator:
        """Return a new group of this rank alone."""
        return SerialCommunicator()


class _Fate:
    """What all groups of one :func:`run_ranks` share: once a rank has failed, every wait ends."""

    def __init__(self) -> None:
        self.failed = threading.Event()
        self._lock = threading.Lock()
        self._groups: list[_Group] = []

    def add(self, group: _Group) -> None:
        with self._lock:
            self._groups.append(group)
        if self.failed.is_set():
            group.barrier.abort()

    def fail(self) -> None:
        with self._lock:
            self.failed.set()
            for group in self._groups:
                group.barrier.abort()
                with group.arrived:
                    group.arrived.notify_all()


class _OtherRankFailedError(ParallelError):
    """A wait ended because another rank failed; never the reason itself."""


class _Group:
    """The shared memory of one threaded communicator: a slot a rank for collectives, a mailbox a rank."""

    def __init__(self, size: int, fate: _Fate) -> None:
        self.size, self.fate = size, fate
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)
        self.arrived = threading.Condition()
        self.mail: list[list[tuple[int, int, bytes]]] = [[] for _ in range(size)]
        fate.add(self)

    def wait(self) -> None:
        try:
            self.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise _OtherRankFailedError("another rank failed") from error


class ThreadedCommunicator:
    """One of several ranks that are threads of this process; :func:`run_ranks` makes them.

    Semantics follow MPI: messages and results are copies, reductions add in rank order, a shape that differs between
    ranks is an error. A collective may be entered by one thread of a rank at a time.
    """

    _SWAP_TAG = -1

    def __init__(self, group: _Group, rank: int) -> None:
        self._group = group
        self.rank, self.size, self.concurrent, self.handle = rank, group.size, True, None

    def _all(self, obj: Any) -> list[Any]:
        """Return what every rank has put in; collective."""
        self._group.slots[self.rank] = obj
        self._group.wait()
        found = list(self._group.slots)
        self._group.wait()
        return found

    def _reduce(self, a: Array, combine: Callable[[Array, Array], Array]) -> Array:
        arrays = self._all(a.copy())
        check_same_form(arrays)
        result = arrays[0].copy()
        for other in arrays[1:]:
            result[...] = combine(result, other)
        return result  # type: ignore[no-any-return]

    def sum(self, a: Array) -> Array:
        """Return the sum of ``a`` over all ranks, added in rank order."""
        return self._reduce(a, np.add)

    def max(self, a: Array) -> Array:
        """Return the element-wise maximum of ``a`` over all ranks."""
        return self._reduce(a, np.maximum)

    def broadcast(self, obj: Any, root: int = 0) -> Any:
        """Return a copy of the root's object."""
        message = self._all(pickle.dumps(obj) if self.rank == root else b"")[root]
        return pickle.loads(message)

    def gather(self, obj: Any, root: int = 0) -> list[Any] | None:
        """Return copies of all ranks' objects on the root, None elsewhere."""
        messages = self._all(pickle.dumps(obj))
        return [pickle.loads(m) for m in messages] if self.rank == root else None

    def swap(self, outgoing: dict[int, Array], incoming: dict[int, Array]) -> None:
        """Exchange arrays with neighbours; raise :class:`ParallelError` if a buffer has another shape or type."""
        for dest, array in outgoing.items():
            self.send(array, dest, self._SWAP_TAG)
        for source, buffer in incoming.items():
            array = self.receive(source, self._SWAP_TAG)
            check_same_form([buffer, array])
            buffer[...] = array

    def send(self, obj: Any, dest: int, tag: int = 0) -> None:
        """Put a copy of ``obj`` into the mailbox of rank ``dest``."""
        message = (self.rank, tag, pickle.dumps(obj))
        with self._group.arrived:
            self._group.mail[dest].append(message)
            self._group.arrived.notify_all()

    def _find(self, source: int | None, tag: int) -> int | None:
        """Return the place of the oldest fitting message; call with the lock held."""
        if self._group.fate.failed.is_set():
            raise _OtherRankFailedError("another rank failed")
        for i, (sender, its_tag, _) in enumerate(self._group.mail[self.rank]):
            if its_tag == tag and source in (None, sender):
                return i
        return None

    def receive(self, source: int | None = None, tag: int = 0) -> Any:
        """Wait for a message with this tag from ``source`` (None: from any rank) and return it."""
        with self._group.arrived:
            while (place := self._find(source, tag)) is None:
                self._group.arrived.wait()
            message = self._group.mail[self.rank].pop(place)[2]
        return pickle.loads(message)

    def poll(self, tag: int = 0, source: int | None = None) -> bool:
        """Whether a fitting message waits to be received."""
        with self._group.arrived:
            return self._find(source, tag) is not None

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        self._group.wait()

    def idle_barrier(self) -> None:
        """Wait until every rank has come here; a waiting thread sleeps anyway."""
        self._group.wait()

    def split(self, colour: int) -> ThreadedCommunicator:
        """Return the sub-group of the ranks that gave the same colour, in rank order."""
        colours = self._all(colour)
        members = [rank for rank, its_colour in enumerate(colours) if its_colour == colour]
        made = _Group(len(members), self._group.fate) if self.rank == members[0] else None
        return ThreadedCommunicator(self._all(made)[members[0]], members.index(self.rank))

    def duplicate(self, *, asleep: bool = False) -> ThreadedCommunicator:
        """Return the same group with mailboxes and slots of its own."""
        return self.split(0)


def run_ranks(n_ranks: int, function: Callable[[ThreadedCommunicator], T], timeout: float = 120.0) -> list[T]:
    """Run ``function(communicator)`` on ``n_ranks`` threads and return their results in rank order.

    An exception in one rank ends the waits of all others and is raised again here. Ranks that are not done after
    ``timeout`` seconds (a deadlock) give :class:`ParallelError`.
    """
    fate = _Fate()
    group = _Group(n_ranks, fate)

    def end_all(future: Future[T]) -> None:
        if future.exception() is not None:
            fate.fail()

    with ThreadPoolExecutor(n_ranks, thread_name_prefix="rank") as pool:
        futures = [pool.submit(function, ThreadedCommunicator(group, rank)) for rank in range(n_ranks)]
        for future in futures:
            future.add_done_callback(end_all)
        deadline = time.monotonic() + timeout
        errors: list[BaseException] = []
        for future in futures:
            try:
                error = future.exception(timeout=max(deadline - time.monotonic(), 0.0))
            except TimeoutError:
                fate.fail()
                error = ParallelError(f"the ranks were not done after {timeout:g} s: they wait for one another")
            if error is not None:
                errors.append(error)
        reasons = [error for error in errors if not isinstance(error, _OtherRankFailedError)]
    if errors:
        raise (reasons or errors)[0]
    return [future.result() for future in futures]
