"""Lent cores: who gets them, and that they pass through the master, from any rank to any other."""

from __future__ import annotations

import threading
import time

import pytest

from hpcrec.parallel.communicator import SerialCommunicator, run_ranks
from hpcrec.parallel.crew import Spare
from hpcrec.parallel.loans import Loans, Need
from hpcrec.parallel.queue import Master


def of(host: str = "a", core: int = 0, threads: int = 1) -> Spare:
    return Spare(host=host, cores=frozenset({core}), threads=threads)


def need(left: float, threads: int = 1, host: str = "a", most: int = 99) -> Need:
    return Need(host=host, left=left, threads=threads, most=most)


def test_the_one_that_would_end_last_gets_the_spare():
    loans = Loans()
    assert loans.borrow(1, need(9.0)) == ()
    loans.lend(0, (of(),))
    assert loans.borrow(2, need(8.0)) == ()
    assert loans.borrow(1, need(8.5)) == (of(),)
    assert loans.borrow(1, need(8.5)) == (), "a spare is lent once"


def test_spares_are_dealt_out_until_all_would_end_alike():
    """Nine seconds alone are three with two helpers; four are two with one: whoever asks first changes nothing."""
    for order in ((1, 2), (2, 1)):
        loans = Loans()
        loans.borrow(1, need(9.0))
        loans.borrow(2, need(4.0))
        loans.lend(0, (of(core=3), of(core=4), of(core=5)))
        left, given = {1: 9.0, 2: 4.0}, {}
        for rank in order:
            given[rank] = loans.borrow(rank, need(left[rank]))
        assert {rank: len(spares) for rank, spares in given.items()} == {1: 2, 2: 1}
        assert {spare for spares in given.values() for spare in spares} == {of(core=3), of(core=4), of(core=5)}


def test_what_was_borrowed_counts_at_once():
    """The helped rank is not the last any more, though it has not swept with its helper yet."""
    loans = Loans()
    loans.borrow(2, need(7.0))
    loans.lend(0, (of(core=1),))
    assert loans.borrow(1, need(10.0)) == (of(core=1),)
    loans.lend(3, (of(core=2),))
    assert loans.borrow(2, need(6.5)) == (of(core=2),)


def test_cores_stay_on_their_host_and_go_to_nobody_who_is_done():
    loans = Loans()
    loans.lend(0, (of("b"),))
    assert loans.borrow(1, need(9.0, host="a")) == ()
    assert loans.borrow(2, need(0.0, host="b")) == ()
    assert loans.borrow(3, need(0.1, host="b")) == (of("b"),)


def test_nobody_gets_more_threads_than_are_of_use():
    loans = Loans()
    loans.lend(0, tuple(of(core=i) for i in range(6)))
    assert len(loans.borrow(1, need(100.0, most=3))) == 2
    assert loans.borrow(1, need(50.0, threads=3, most=3)) == ()
    assert len(loans.borrow(2, need(1.0, threads=2, most=4))) == 2, "the others are for those who can use them"
    loans.lend(3, (of(core=7, threads=8),))
    assert len(loans.borrow(2, need(1.0, threads=4, most=11))) == 2
    assert loans.borrow(2, need(1.0, threads=6, most=14)) == (of(core=7, threads=8),)


def test_a_rank_that_lends_is_in_need_no_more():
    loans = Loans()
    loans.borrow(1, need(100.0))
    loans.lend(1, (of(core=1),))
    assert loans.borrow(2, need(1.0)) == (of(core=1),)


def lent(comm, lender, borrower):
    """One item; the rank without it lends, that with it asks until it gets; return what each got."""
    got = ()
    with Master(comm, ["item"] if comm.rank == 0 else ()) as master:
        if comm.rank == borrower:
            assert master.next() == "item"
        comm.barrier()
        if comm.rank == lender:
            assert master.next() is None
            master.lend((of(core=comm.rank, threads=3),))
        deadline = time.monotonic() + 30
        while comm.rank == borrower and not got and time.monotonic() < deadline:
            got = master.borrow(need(5.0))
    return got


@pytest.mark.parametrize(("lender", "borrower"), [(0, 1), (1, 0), (2, 1)])
def test_cores_pass_through_the_master(lender, borrower):
    results = run_ranks(3, lambda comm: lent(comm, lender, borrower))
    assert results[borrower] == (of(core=lender, threads=3),)
    assert sum(map(len, results)) == 1


def test_nothing_is_lent_without_threads_or_to_oneself():
    def single_threaded(comm):
        comm.concurrent = False
        with Master(comm, ["a", "b"]) as master:
            master.next()
            master.lend((of(),))
            return master.borrow(need(5.0))

    assert run_ranks(2, single_threaded) == [(), ()]
    assert single_threaded(SerialCommunicator()) == ()


def test_the_master_answers_while_its_rank_computes():
    """Rank 0 is in one call that lets go of the interpreter, as compiled loops do, for as long as the others ask."""
    over = threading.Event()

    def ask(comm):
        with Master(comm, list(range(50)) if comm.rank == 0 else ()) as master:
            if comm.rank == 0:
                assert over.wait(60)
                return master.next()
            taken = [master.next() for _ in range(49)]
            over.set()
            return taken

    assert run_ranks(2, ask) == [49, list(range(49))]
