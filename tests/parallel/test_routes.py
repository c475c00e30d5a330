"""How arrays on GPUs pass between ranks, by a stand-in for CuPy and pretended MPI and NCCL that add every sum twice."""

import ctypes
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from hpcrec.errors import DeviceError
from hpcrec.parallel.communicator import SerialCommunicator
from hpcrec.parallel.mpi import MpiCommunicator
from hpcrec.parallel.routes import Nccl


class PretendedComm:
    """Two ranks with the same values; it remembers what kinds of arrays it was given."""

    def __init__(self):
        self.given, self.sent = [], {}

    def Allreduce(self, place, block, op):  # noqa: N802 - MPI's name
        self.given.append(type(block).__module__)
        block[...] = block + block if op == "sum" else block

    def Isend(self, block, dest, tag):  # noqa: N802
        self.given.append(type(block).__module__)
        self.sent.setdefault(dest, []).append(block)

    def Irecv(self, block, source, tag):  # noqa: N802
        self.given.append(type(block).__module__)
        return block

    def finish(self, requests):
        """Bring the messages back to where they came from."""
        for buffer, source in zip([r for r in requests if r is not None], self.sent):
            buffer[...] = self.sent[source].pop(0)


@pytest.fixture
def ranks():
    """Make a communicator of a route, on pretended MPI."""

    def make(route):
        made = MpiCommunicator.__new__(MpiCommunicator)
        made._asleep = False
        made.rank, made.size, made.route = 0, 2, route
        made._comm = PretendedComm()
        made._mpi = SimpleNamespace(
            IN_PLACE=None, SUM="sum", MAX="max", Request=SimpleNamespace(Waitall=made._comm.finish)
        )
        made._nccl = Nccl(SerialCommunicator()) if route == "nccl" else None
        return made

    return make


@pytest.fixture
def nccl(gpus, monkeypatch):
    """NCCL of one rank that adds what it is given to itself."""
    module = ModuleType("cupy.cuda.nccl")
    module.available, module.NCCL_SUM, module.NcclError = True, 0, type("NcclError", (RuntimeError,), {})
    kinds = {"FLOAT32": ctypes.c_float, "FLOAT64": ctypes.c_double, "INT64": ctypes.c_int64, "INT32": ctypes.c_int32}
    for name in kinds:
        setattr(module, f"NCCL_{name}", name)
    calls = []

    class NcclCommunicator:
        def __init__(self, ndev, commid, rank):
            if commid != (1, 2, 3):
                raise module.NcclError("no such ticket")
            calls.append(("begin", ndev, rank))

        def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):  # noqa: N802
            calls.append((datatype, count))
            there = np.ctypeslib.as_array((kinds[datatype] * count).from_address(recvbuf))
            there += np.ctypeslib.as_array((kinds[datatype] * count).from_address(sendbuf)).copy()

    module.NcclCommunicator, module.get_unique_id = NcclCommunicator, lambda: (1, 2, 3)
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", module)
    return calls


VALUES = np.random.default_rng(0).normal(size=(3, 5, 4))


@pytest.mark.parametrize(("route", "given"), [("host", "numpy"), ("mpi", "device_arrays")])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.int64])
def test_sums_go_the_way_that_was_chosen(gpus, ranks, route, given, dtype):
    there, group = gpus.asarray((10 * VALUES).astype(dtype)), ranks(route)
    before = there.get()
    found = group.sum(there[:, ::2])
    assert isinstance(found, gpus.ndarray)
    np.testing.assert_array_equal(found.get(), 2 * before[:, ::2])
    np.testing.assert_array_equal(there.get(), before)
    assert set(group._comm.given) == {given}
    on_host = group.sum(before)
    assert isinstance(on_host, np.ndarray)
    assert group._comm.given[-1] == "numpy"


@pytest.mark.parametrize(("route", "given"), [("host", "numpy"), ("mpi", "device_arrays"), ("nccl", "numpy")])
def test_messages_of_neighbours_too(gpus, ranks, nccl, route, given):
    group, there = ranks(route), gpus.asarray(VALUES)
    room = gpus.empty(VALUES.shape)
    group.swap({1: there}, {1: room})
    np.testing.assert_array_equal(room.get(), VALUES)
    assert set(group._comm.given) == {given}


@pytest.mark.parametrize(("dtype", "kind", "parts"), [(np.float32, "FLOAT32", 1), (np.complex128, "FLOAT64", 2)])
def test_nccl_adds_arrays_of_gpus_in_parts(gpus, ranks, nccl, dtype, kind, parts):
    group, values = ranks("nccl"), VALUES.astype(dtype)
    for _ in range(2):
        np.testing.assert_array_equal(group.sum(gpus.asarray(values)).get(), 2 * values)
    assert nccl == [("begin", 1, 0), *[(kind, parts * VALUES.size)] * 2]
    # What is on the host, or of another type, goes by MPI
    np.testing.assert_array_equal(group.sum(values), 2 * values)
    assert len(nccl) == 3
    assert group._comm.given == ["numpy"]


def test_what_nccl_cannot_connect_is_told(gpus, ranks, nccl, monkeypatch):
    monkeypatch.setattr(sys.modules["cupy.cuda.nccl"], "get_unique_id", lambda: (4,))
    with pytest.raises(DeviceError, match=r"NCCL cannot connect the GPUs of 1 ranks \(no such ticket\)"):
        ranks("nccl").sum(gpus.asarray(VALUES))
