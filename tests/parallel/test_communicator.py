"""Serial and threaded ranks keep the promises of the interface."""

import time

import numpy as np
import pytest

from hpcrec.errors import ParallelError
from hpcrec.parallel.communicator import SerialCommunicator, run_ranks

SIZES = [1, 2, 3, 5]


def everything(comm):
    """Use every method once and return what must not depend on the kind of communicator."""
    n, r = comm.size, comm.rank
    following, previous = (r + 1) % n, (r - 1) % n
    total = comm.sum(np.full((2, 3), r + 1, np.complex64))
    assert total.dtype == np.complex64
    assert (total == n * (n + 1) / 2).all()
    assert comm.sum(np.zeros((2, 0))).shape == (2, 0)
    highest = comm.max(np.array([r, np.nan if r == n - 1 else 0.0], np.float32))
    assert highest.dtype == np.float32
    assert highest[0] == n - 1
    assert np.isnan(highest[1])
    assert comm.broadcast({"root": r}, n - 1) == {"root": n - 1}
    gathered = comm.gather(r**2, n - 1)
    assert gathered == ([i**2 for i in range(n)] if r == n - 1 else None)
    buffer = np.zeros(4)
    comm.swap({following: np.arange(4.0) + r}, {previous: buffer})
    assert buffer.tolist() == (np.arange(4.0) + previous).tolist()
    comm.send(("first", r), following, 3)
    comm.send(("other tag", r), following, 4)
    comm.send(("second", r), following, 3)
    assert comm.receive(None, 4) == ("other tag", previous)
    assert [comm.receive(previous, 3)[0], comm.receive(None, 3)[0]] == ["first", "second"]
    comm.idle_barrier()
    assert not comm.poll(3)
    twin = comm.duplicate()
    twin.send("on the twin", r, 3)
    while not twin.poll(3):  # under MPI a message is on its way for a moment; the launcher's time limit ends this
        pass
    assert not comm.poll(3), "a duplicate must have a message space of its own"
    assert twin.receive(r, 3) == "on the twin"
    half = comm.split(r % 2)
    assert (half.rank, half.size) == (r // 2, len(range(r % 2, n, 2)))
    assert half.sum(np.array(r)) == sum(range(r % 2, n, 2))
    return r


def test_serial_keeps_the_interface():
    everything(SerialCommunicator())


@pytest.mark.parametrize("size", SIZES)
def test_threads_keep_the_interface(size):
    assert run_ranks(size, everything) == list(range(size))


def test_results_are_copies():
    shared = np.ones(3)

    def change_all(comm):
        got = [comm.broadcast(shared), comm.sum(shared)]
        comm.send(shared, comm.rank)
        got.append(comm.receive())
        for a in got:
            a += 100 * (comm.rank + 1)
        comm.barrier()
        return got[0][0]

    assert run_ranks(2, change_all) == [101, 201]
    assert (shared == 1).all()


def test_serial_reduction_is_a_copy():
    a = np.ones(2)
    SerialCommunicator().sum(a)[0] = 5
    assert a[0] == 1


@pytest.mark.parametrize("form", [np.zeros(3), np.zeros(2, np.float32)])
def test_arrays_of_different_form_are_refused(form):
    with pytest.raises(ParallelError, match="different arrays"):
        run_ranks(2, lambda comm: comm.sum(form if comm.rank else np.zeros(2)))


@pytest.mark.parametrize("wait", ["barrier", "receive", "sum", "split", "poll"])
def test_exception_in_one_rank_ends_all_waits(wait):
    def fail(comm):
        group = comm.split(0)
        if comm.rank == 2:
            raise ZeroDivisionError("rank 2")
        if wait == "poll":
            while not group.poll():
                time.sleep(0.001)
        elif wait == "sum":
            group.sum(np.zeros(2))
        elif wait == "split":
            group.split(1)
        else:
            getattr(group, wait)()

    with pytest.raises(ZeroDivisionError, match="rank 2"):
        run_ranks(4, fail)


def test_deadlock_is_an_error():
    with pytest.raises(ParallelError, match="wait for one another"):
        run_ranks(2, lambda comm: comm.receive(), timeout=0.2)


def test_serial_waits_for_nothing_that_cannot_come():
    with pytest.raises(ParallelError, match="tag 7"):
        SerialCommunicator().receive(tag=7)
