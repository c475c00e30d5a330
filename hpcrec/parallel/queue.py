"""The master: it hands items of work (tilts) to groups of ranks as they ask, and collects what ranks report.

Rank 0 answers from a small thread of its own, on a message space of its own, so it also computes. Which group gets
which item depends on the clock; what is computed for an item does not. Ranks that have run out of items may lend their
cores to others through the master, see :mod:`hpcrec.parallel.loans`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

from hpcrec.parallel.communicator import Communicator
from hpcrec.parallel.crew import Spare
from hpcrec.parallel.loans import Loans, Need

logger = logging.getLogger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Event = Mapping[str, Any]
OnEvent = Callable[[Event], None]

_TO_MASTER: Final = 1
_ANSWER: Final = 2
_POLL_S: Final = 0.001


class _Line(Protocol[T_co]):
    """The way from one rank to the list of items and to the listener on rank 0."""

    def take(self) -> tuple[bool, T_co | None]:
        """Return (True, the next item), or (False, None) when all are handed out."""

    def report(self, event: Event) -> None:
        """Bring one event to the listener."""

    def lend(self, spares: tuple[Spare, ...]) -> None:
        """Let others have what this rank needs no more."""

    def borrow(self, need: Need) -> tuple[Spare, ...]:
        """Return what others have lent and this rank is to use."""

    def close(self) -> None:
        """Wait, asleep, until all ranks have closed and all events have been heard."""

    def give_up(self) -> None:
        """Stop serving without waiting for anybody: this rank has failed."""


class Master(Generic[T]):
    """Hands out ``items`` (picklable) to groups of ranks one at a time, in order, and hears their events on rank 0.

    ``communicator`` : all ranks; making the master, and :meth:`close`, are collective over it
    ``items`` : rank 0's are used; put the longest work first
    ``on_event`` : called on rank 0 only, with one event at a time, possibly from another thread; what it raises
    reaches rank 0's next call of the master
    ``group`` : the ranks that work on an item together (default: each rank alone); its rank 0 asks for all. Rank 0
    of ``communicator`` must be rank 0 of its group.

    Use it as a context manager. Where MPI lacks full thread support items are dealt out in turn, with a warning, and
    events are heard at :meth:`close`.
    """

    def __init__(
        self,
        communicator: Communicator,
        items: Sequence[T],
        on_event: OnEvent = lambda event: None,
        group: Communicator | None = None,
    ) -> None:
        self.items = tuple(items)
        self._group = group
        self._line = _make_line(communicator, self.items, on_event, group is None or group.rank == 0)

    def next(self) -> T | None:
        """Return the next item for this rank's group, the same on all its ranks; None when no item is left."""
        if self._group is None:
            return self._line.take()[1]
        answer = self._line.take() if self._group.rank == 0 else None
        item: T | None = self._group.broadcast(answer)[1]
        return item

    def report(self, event: Event) -> None:
        """Bring a (picklable) event to ``on_event`` on rank 0; events of one rank arrive in order."""
        self._line.report(event)

    def lend(self, spares: tuple[Spare, ...]) -> None:
        """Let others have this rank's cores: it has been told that no item is left."""
        self._line.lend(spares)

    def borrow(self, need: Need) -> tuple[Spare, ...]:
        """Return what others have lent for this rank to use, and to lend on when it has no item left; often nothing."""
        return self._line.borrow(need)

    def close(self) -> None:
        """Wait, asleep, until all ranks have closed and all events have been heard."""
        self._line.close()

    def __enter__(self) -> Master[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if error is None:
            self.close()
        else:
            self._line.give_up()
        return False


def _make_line(communicator: Communicator, items: Sequence[T], on_event: OnEvent, leader: bool) -> _Line[T]:
    if communicator.size == 1:
        return _Here(items, on_event)
    if not communicator.concurrent:
        if communicator.rank == 0:
            logger.warning("MPI lacks full thread support: tilts are dealt out in turn, progress is shown at the end")
        return _Dealt(communicator, items, on_event, leader)
    line = communicator.duplicate()
    return _Served(line, items, on_event) if communicator.rank == 0 else _Asking(line)


class _Here(Generic[T]):
    """The only rank: a plain loop over the items."""

    def __init__(self, items: Sequence[T], on_event: OnEvent) -> None:
        self._items, self._on_event = deque(items), on_event

    def take(self) -> tuple[bool, T | None]:
        return (True, self._items.popleft()) if self._items else (False, None)

    def report(self, event: Event) -> None:
        self._on_event(event)

    def lend(self, spares: tuple[Spare, ...]) -> None:
        """Nobody to take it."""

    def borrow(self, need: Need) -> tuple[Spare, ...]:
        return ()

    def close(self) -> None:
        """Nobody to wait for."""

    def give_up(self) -> None:
        """Nobody to tell."""


class _Asking(Generic[T]):
    """A rank other than 0: asks by message and waits for the answer asleep."""

    def __init__(self, line: Communicator) -> None:
        self._line = line

    def take(self) -> tuple[bool, T | None]:
        answer: tuple[bool, T | None] = self._ask("next", None)
        return answer

    def _ask(self, kind: str, content: Any) -> Any:
        self._line.send((kind, self._line.rank, content), 0, _TO_MASTER)
        while not self._line.poll(_ANSWER, 0):
            time.sleep(_POLL_S)
        return self._line.receive(0, _ANSWER)

    def report(self, event: Event) -> None:
        self._line.send(("event", self._line.rank, event), 0, _TO_MASTER)

    def lend(self, spares: tuple[Spare, ...]) -> None:
        self._line.send(("lend", self._line.rank, spares), 0, _TO_MASTER)

    def borrow(self, need: Need) -> tuple[Spare, ...]:
        spares: tuple[Spare, ...] = self._ask("borrow", need)
        return spares

    def close(self) -> None:
        self._line.send(("close", self._line.rank, None), 0, _TO_MASTER)
        self._line.idle_barrier()

    def give_up(self) -> None:
        """The job ends with this rank's exception; nobody waits for a farewell."""


class _Served(Generic[T]):
    """Rank 0: takes from the list itself; a thread answers the others until each has closed."""

    def __init__(self, line: Communicator, items: Sequence[T], on_event: OnEvent) -> None:
        self._line, self._items, self._on_event = line, deque(items), on_event
        self._taking, self._hearing, self._loans = threading.Lock(), threading.Lock(), Loans()
        self._stop = threading.Event()
        pool = ThreadPoolExecutor(1, thread_name_prefix="master")
        self._server: Future[None] = pool.submit(self._serve)
        pool.shutdown(wait=False)

    def _serve(self) -> None:
        open_ranks = self._line.size - 1
        while open_ranks and not self._stop.is_set():
            if not self._line.poll(_TO_MASTER):
                time.sleep(_POLL_S)
                continue
            kind, rank, content = self._line.receive(None, _TO_MASTER)
            match kind:
                case "next":
                    self._line.send(self._pop(), rank, _ANSWER)
                case "event":
                    self._hear(content)
                case "lend":
                    self._loans.lend(rank, content)
                case "borrow":
                    self._line.send(self._loans.borrow(rank, content), rank, _ANSWER)
                case _:
                    open_ranks -= 1

    def _pop(self) -> tuple[bool, T | None]:
        with self._taking:
            return (True, self._items.popleft()) if self._items else (False, None)

    def _hear(self, event: Event) -> None:
        with self._hearing:
            self._on_event(event)

    def _check(self) -> None:
        """Raise here what the thread raised."""
        if self._server.done():
            self._server.result()

    def take(self) -> tuple[bool, T | None]:
        self._check()
        return self._pop()

    def report(self, event: Event) -> None:
        self._check()
        self._hear(event)

    def lend(self, spares: tuple[Spare, ...]) -> None:
        self._check()
        self._loans.lend(self._line.rank, spares)

    def borrow(self, need: Need) -> tuple[Spare, ...]:
        self._check()
        return self._loans.borrow(self._line.rank, need)

    def close(self) -> None:
        self._server.result()
        self._line.idle_barrier()

    def give_up(self) -> None:
        self._stop.set()


class _Dealt(Generic[T]):
    """Any rank where only one thread may use MPI: group i of n gets items i, i + n, …; events wait for the end."""

    def __init__(self, communicator: Communicator, items: Sequence[T], on_event: OnEvent, leader: bool) -> None:
        self._communicator, self._on_event = communicator, on_event
        self._events: list[Event] = []
        leaders = communicator.gather(leader)
        found: tuple[list[bool], Sequence[T]] = communicator.broadcast((leaders, tuple(items)))
        flags, rank = found[0], communicator.rank
        self._items = deque(found[1][sum(flags[:rank]) :: sum(flags)] if leader else ())

    def take(self) -> tuple[bool, T | None]:
        return (True, self._items.popleft()) if self._items else (False, None)

    def report(self, event: Event) -> None:
        if self._communicator.rank == 0:
            self._on_event(event)
        else:
            self._events.append(event)

    def lend(self, spares: tuple[Spare, ...]) -> None:
        """Nobody hears of it before the end."""

    def borrow(self, need: Need) -> tuple[Spare, ...]:
        return ()

    def close(self) -> None:
        self._communicator.idle_barrier()
        for events in self._communicator.gather(self._events) or ():
            for event in events:
                self._on_event(event)

    def give_up(self) -> None:
        """The job ends with this rank's exception."""
