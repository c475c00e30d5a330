"""Crews: ranks of one host that share a tilt work as threads of the first of them.

Between processes the sums of every batch travel as messages and each step passes the interpreter; threads have one
object in memory and meet inside compiled loops. What a rank has to lend is a :class:`Spare`.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from hpcrec.backend.threads import own_cores
from hpcrec.parallel.communicator import Communicator


@dataclass(frozen=True, kw_only=True, slots=True)
class Crew:
    """A rank's part in the work of its group.

    group : the ranks that work together by messages, one of each crew; of a rank that lends its cores, its crew
    threads : of this rank
    size : ranks whose cores and memory this one may use, itself included; 0: it lends them and has nothing to do
    """

    group: Communicator
    threads: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Spare:
    """What a rank lends when it has run out of work: cores of its host, and how many threads it had on them."""

    host: str
    cores: frozenset[int]
    threads: int


def spare(threads: int, host: str | None = None) -> Spare:
    """Return what this rank could lend; ``host``: default the machine's name."""
    return Spare(host=host or platform.node(), cores=own_cores(), threads=threads)


def join(lent: Spare) -> bool:
    """Run on these cores beside those that this thread has; return whether the operating system lets it."""
    own = own_cores()
    if _take(own | lent.cores):
        return True
    _take(own)
    return False


def alone(group: Communicator, threads: int) -> Crew:
    """Return the crew of a rank that keeps its cores."""
    return Crew(group=group, threads=threads, size=1)


def muster(group: Communicator, threads: int, host: str | None = None) -> Crew:
    """Let the first rank on each host have the cores of the others in the group there, for good; collective.

    Cores that an operating system does not let another process use stay with their ranks, and so do all of the group's.
    ``host`` : of this rank; default: the machine's name.
    """
    hosts = group.broadcast(group.gather(host or platform.node()))
    crew = group.split(hosts.index(hosts[group.rank]))
    own = own_cores()
    offers = crew.gather((threads, own))
    taken = offers is None or _take(frozenset().union(*(cores for _, cores in offers)))
    if not all(group.broadcast(group.gather(taken))):
        _take(own)
        return alone(group, threads)
    leaders = group.split(int(crew.rank > 0))
    if offers is None:
        return Crew(group=crew, threads=threads, size=0)
    return Crew(group=leaders, threads=sum(n for n, _ in offers), size=crew.size)


def _take(cores: frozenset[int]) -> bool:
    """Run on these cores from now on, threads that are yet to start too; return whether that is so."""
    if cores == own_cores():
        return True
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        return False
    return cores == own_cores()
