"""The master: every item once, slow groups get fewer, events arrive, failures are told."""

import time

import pytest

from hpcrec.parallel.communicator import SerialCommunicator, run_ranks
from hpcrec.parallel.queue import Master

ITEMS = [f"tilt {i}" for i in range(24)]


def work(comm, group_size=1, pause=lambda comm: 0.0, items=ITEMS):
    """Take items until none is left; returns what this rank's group did and what rank 0 heard."""
    group = comm.split(comm.rank // group_size)
    heard, done = [], []
    with Master(comm, items if comm.rank == 0 else (), heard.append, group) as master:
        while (item := master.next()) is not None:
            time.sleep(pause(comm))
            done.append(item)
            master.report({"rank": comm.rank, "item": item})
    return done, heard


def check(results, group_size, items=ITEMS):
    leaders = results[::group_size]
    assert sorted(sum((done for done, _ in leaders), [])) == sorted(items)
    for rank, (done, heard) in enumerate(results):
        assert done == results[rank - rank % group_size][0], "a group must see the same items"
        told = [event["item"] for event in results[0][1] if event["rank"] == rank]
        assert told == done, "events of one rank arrive all and in order"
        assert rank == 0 or not heard


def test_one_rank_gets_all_in_order():
    done, heard = work(SerialCommunicator())
    assert done == ITEMS
    assert [event["item"] for event in heard] == ITEMS


@pytest.mark.parametrize(("size", "group_size"), [(2, 1), (5, 1), (4, 2), (5, 2)])
def test_every_item_once_and_every_event_heard(size, group_size):
    check(run_ranks(size, lambda comm: work(comm, group_size)), group_size)


@pytest.mark.parametrize("slow", [0, 2])
def test_slow_rank_gets_fewer(slow):
    # 20 times slower than the others; a fair deal would give it 8 of 24
    results = run_ranks(3, lambda comm: work(comm, pause=lambda comm: 0.1 if comm.rank == slow else 0.005))
    check(results, 1)
    assert len(results[slow][0]) <= 4


def test_no_items_and_falsy_items():
    check(run_ranks(3, lambda comm: work(comm, items=[])), 1, [])
    check(run_ranks(2, lambda comm: work(comm, items=[0, 0, 0])), 1, [0, 0, 0])


@pytest.mark.parametrize("group_size", [1, 2])
def test_dealt_in_turn_without_thread_support(group_size, caplog):
    def single_threaded(comm):
        comm.concurrent = False
        return work(comm, group_size)

    results = run_ranks(4, single_threaded)
    check(results, group_size)
    assert {len(done) for done, _ in results} == {len(ITEMS) * group_size // 4}
    assert "thread support" in caplog.text


def test_failing_listener_is_told_by_rank_0():
    def listen(event):
        raise KeyError("disk full")

    def report(comm):
        with Master(comm, ITEMS, listen) as master:
            while master.next() is not None:
                if comm.rank:
                    master.report({})
                time.sleep(0.002)

    with pytest.raises(KeyError, match="disk full"):
        run_ranks(2, report)


@pytest.mark.parametrize("rank", [0, 1])
def test_failing_rank_ends_the_others(rank):
    def fail(comm):
        with Master(comm, ITEMS) as master:
            master.next()
            if comm.rank == rank:
                raise ZeroDivisionError
            while master.next() is not None:
                pass

    with pytest.raises(ZeroDivisionError):
        run_ranks(3, fail, timeout=20)
