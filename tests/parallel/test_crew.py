"""Crews: who works, who lends, with how many threads; and what cannot be taken stays where it is."""

from __future__ import annotations

import os
import threading

import pytest

from hpcrec.parallel import crew
from hpcrec.parallel.communicator import run_ranks
from hpcrec.parallel.crew import Spare, alone, join, muster, spare


def mustered(hosts, threads=2):
    """Return size, threads, and size and rank of the group of each rank's crew."""

    def rank(world):
        found = muster(world, threads, hosts[world.rank])
        return found.size, found.threads, found.group.size, found.group.rank

    return run_ranks(len(hosts), rank)


def test_the_first_rank_of_a_host_has_the_threads_of_all():
    assert mustered("aaa") == [(3, 6, 1, 0), (0, 2, 3, 1), (0, 2, 3, 2)]


def test_hosts_work_together_by_messages():
    """Two ranks on one host, one on another between them: two work, one lends."""
    assert mustered("aba") == [(2, 4, 2, 0), (1, 2, 2, 1), (0, 2, 2, 1)]


def test_ranks_on_hosts_of_their_own_stay_apart():
    found = mustered("abc")
    assert [(size, threads, n) for size, threads, n, _ in found] == [(1, 2, 3)] * 3


@pytest.fixture
def bound(monkeypatch):
    """Rank r is bound to core r; the mask of each thread, as the operating system would keep it."""
    masks: dict[int, set[int]] = {}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: masks[threading.get_ident()])
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: masks.__setitem__(threading.get_ident(), cores))
    return masks


def with_cores(bound, hosts):
    def rank(world):
        bound[threading.get_ident()] = {world.rank}
        found = muster(world, 1, hosts[world.rank])
        return found.size, found.threads, sorted(bound[threading.get_ident()])

    return run_ranks(len(hosts), rank)


def test_bound_ranks_lend_their_cores(bound):
    assert with_cores(bound, "aab") == [(2, 2, [0, 1]), (0, 1, [1]), (1, 1, [2])]


def test_nobody_lends_if_cores_cannot_be_taken_anywhere(bound, monkeypatch):
    """The system keeps rank 2 to its core: its group stays as it is, on all hosts."""
    take = crew.os.sched_setaffinity
    monkeypatch.setattr(crew.os, "sched_setaffinity", lambda pid, cores: None if 2 in cores else take(pid, cores))
    assert with_cores(bound, "aabb") == [(1, 1, [0]), (1, 1, [1]), (1, 1, [2]), (1, 1, [3])]


def test_a_refusal_of_the_system_is_no_fault(bound, monkeypatch):
    def refuse(pid, cores):
        raise PermissionError

    monkeypatch.setattr(crew.os, "sched_setaffinity", refuse)
    assert with_cores(bound, "aa") == [(1, 1, [0]), (1, 1, [1])]


def test_alone_keeps_group_and_threads():
    def rank(world):
        found = alone(world, 3)
        return found.group is world, found.threads, found.size

    assert run_ranks(2, rank) == [(True, 3, 1)] * 2


def test_lent_cores_are_joined_to_those_that_a_rank_has(bound):
    def rank(world):
        bound[threading.get_ident()] = {world.rank}
        lent = world.broadcast(spare(2, "a"), root=1)
        assert lent == Spare(host="a", cores=frozenset({1}), threads=2)
        return join(lent), sorted(bound[threading.get_ident()])

    assert run_ranks(3, rank) == [(True, [0, 1]), (True, [1]), (True, [1, 2])]


def test_cores_that_cannot_be_joined_leave_a_rank_as_it_was(bound, monkeypatch):
    """The system gives only some of what is asked for: a mask of its own cuts the rest off."""
    take = crew.os.sched_setaffinity
    monkeypatch.setattr(crew.os, "sched_setaffinity", lambda pid, cores: take(pid, set(cores) - {1}))

    def rank(world):
        bound[threading.get_ident()] = {0, 2}
        return join(Spare(host="a", cores=frozenset({1, 3}), threads=2)), sorted(bound[threading.get_ident()])

    assert run_ranks(1, rank) == [(False, [0, 2])]
