"""The threads that a rank works with: its own, and those on cores that others of its host lend at the end.

A rank without a tilt lends its cores to the rank that would otherwise end last, see :mod:`hpcrec.parallel.loans`. The
loan is taken between two sweeps, where the number of threads changes nothing but round-off.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Final, Protocol

from hpcrec.backend.threads import Threads
from hpcrec.parallel.crew import Crew, Spare, join, spare
from hpcrec.parallel.loans import Need
from hpcrec.run.costs import sweep_share
from hpcrec.run.observers import Event, Observer

# An answer takes a millisecond or two
_ASK_EVERY_S: Final = 0.1
# Of a batch for each thread: with fewer nobody has measured whether more threads are of use
_FEW_PATTERNS: Final = 4


class Lender(Protocol):
    """What of a master lends and borrows."""

    def lend(self, spares: tuple[Spare, ...]) -> None:
        """Take cores."""

    def borrow(self, need: Need) -> tuple[Spare, ...]:
        """Give cores."""


class Hands:
    """The threads of one rank.

    threads : for compiled loops; they may grow between two sweeps
    master : where cores are lent
    lends : whether this rank lends and borrows at all
    """

    def __init__(
        self,
        master: Lender,
        crew: Crew,
        lends: bool,
        clock: Callable[[], float] = time.monotonic,
        host: str | None = None,
    ) -> None:
        self.threads = Threads(crew.threads)
        self._master, self._lends, self._clock = master, lends, clock
        # A rank that works by messages with others would only wait for these
        self._borrows = lends and crew.group.size == 1 and _free_to_grow()
        self._spares: tuple[Spare, ...] = (spare(crew.threads, host),)
        self._asked = -_ASK_EVERY_S

    def listening(self, report: Observer, sweeps: float, batch: int) -> Observer:
        """Return an observer that passes events on, and borrows after each sweep of a tilt with ``sweeps`` to go.

        ``batch`` : patterns of an update
        """
        left = sweeps

        def hear(event: Event) -> None:
            nonlocal left
            report(event)
            share = sweep_share(event)
            left -= share
            if share and self._borrow(event["seconds"] * max(left, 0.0) / share, batch // _FEW_PATTERNS):
                report(
                    {
                        "event": "cores_lent",
                        "tilt": event["tilt"],
                        "iteration": event["iteration"],
                        "threads": self.threads.n_threads,
                    }
                )

        return hear

    def _borrow(self, seconds_left: float, most: int) -> bool:
        """Take what is lent to this rank; return whether it has become more."""
        if not self._borrows or seconds_left <= _ASK_EVERY_S or self._clock() - self._asked < _ASK_EVERY_S:
            return False
        self._asked, before = self._clock(), self.threads.n_threads
        need = Need(host=self._spares[0].host, left=seconds_left, threads=before, most=most)
        for lent in self._master.borrow(need):
            if self._borrows and join(lent):
                self._spares += (lent,)
                self.threads.n_threads += lent.threads
            else:
                # The system keeps this rank to its cores: others may have better luck
                self._borrows = False
                self._master.lend((lent,))
        return self.threads.n_threads > before

    def lend(self) -> None:
        """Let others have all cores that this rank works with: it has no tilt any more."""
        if self._lends:
            self._master.lend(self._spares)


def _free_to_grow() -> bool:
    """Whether a process may have more than its share of memory: nobody lends a limit of the address space."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
