"""Who lends cores, and who may borrow them: ranks that have run out of work help those that have not.

At the end of a list of work some ranks are without; until the longest item ends they would wait. A lender stays
asleep, and its cores go as threads to a rank on its host, to the one that would otherwise end last.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from hpcrec.parallel.crew import Spare


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """A rank at work: its host, how long it would work on with its ``threads``, in any unit that all share.

    ``most`` : threads that are of use to it
    """

    host: str
    left: float
    threads: int
    most: int


class Loans:
    """What is there to lend, and what ranks at work have said last of what is before them; several threads may call."""

    def __init__(self) -> None:
        self._spares: list[Spare] = []
        self._needs: dict[int, Need] = {}
        self._lock = threading.Lock()

    def lend(self, rank: int, spares: tuple[Spare, ...]) -> None:
        """Take what a rank without work lends."""
        with self._lock:
            self._needs.pop(rank, None)
            self._spares.extend(spares)

    def borrow(self, rank: int, need: Need) -> tuple[Spare, ...]:
        """Return what a rank at work gets, to keep.

        Each spare of its host goes to the rank that would end last, all before it having been dealt out so; the others'
        stay until they ask.
        """
        with self._lock:
            self._needs[rank] = need
            needs = {r: n for r, n in self._needs.items() if n.host == need.host and n.left > 0}
            given = []
            for spare in sorted(self._spares, key=lambda s: -s.threads):
                takers = [r for r, n in needs.items() if n.threads + spare.threads <= n.most]
                if spare.host != need.host or not takers:
                    continue
                last = max(takers, key=lambda r: needs[r].left)
                needs[last] = _helped(needs[last], spare)
                if last == rank:
                    given.append(spare)
            for spare in given:
                self._spares.remove(spare)
            self._needs[rank] = needs.get(rank, need)
            return tuple(given)


def _helped(need: Need, spare: Spare) -> Need:
    threads = need.threads + spare.threads
    return replace(need, left=need.left * need.threads / threads, threads=threads)
