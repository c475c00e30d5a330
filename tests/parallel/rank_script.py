"""What test_mpi.py starts under mpiexec: ``python rank_script.py TASK``; every rank runs it."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import test_communicator
import test_exchange
import test_flight
import test_queue

from hpcrec.errors import DataError
from hpcrec.parallel import mpi
from hpcrec.parallel.exchange import EXCHANGES


def checks(comm):
    """Run the same checks as on threads; also with blocks so small that every array travels in several."""
    test_communicator.everything(comm)
    for block_bytes in (mpi.MpiCommunicator.block_bytes, 3000):
        mpi.MpiCommunicator.block_bytes = block_bytes
        for kind in EXCHANGES:
            test_exchange.check_totals(kind, comm)
            test_exchange.check_place_and_whole(kind, comm)
        test_flight.check_totals(comm)
    for group_size in (1, 2):
        results = comm.gather(test_queue.work(comm, group_size, lambda comm: 0.002))
        if results is not None:
            test_queue.check(results, group_size)
    test_communicator.everything(comm.routed("host"))
    test_communicator.everything(comm.duplicate(asleep=True))
    assert not mpi.knows_gpus()  # MPICH as PyPI has it
    if comm.rank == 0:
        print("checked", comm.size)


def idle(comm):
    """Wait for rank 0 in an idle barrier; print the processor seconds that the wait cost each rank."""
    start = time.process_time()
    if comm.rank == 0:
        time.sleep(1.0)
    comm.idle_barrier()
    costs = comm.gather(time.process_time() - start)
    if costs is not None:
        print("idle", max(costs))


def fail(comm, how):
    """Let the last rank end in some way while the others wait for it in a collective, for ever."""
    if comm.rank == comm.size - 1:
        if how == "user":
            raise DataError("scan.h5 is not there")
        if how == "bug":
            raise ZeroDivisionError("a bug")
        if how == "exit":
            sys.exit(9)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    if how == "all":
        raise DataError("all see the same fault")
    comm.sum(np.zeros(1))


if __name__ == "__main__":
    with mpi.guard():
        world = mpi.world()
        if sys.argv[1] == "fail":
            fail(world, sys.argv[2])
        else:
            {"checks": checks, "idle": idle}[sys.argv[1]](world)
