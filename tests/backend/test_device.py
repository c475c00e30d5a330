"""How a rank finds its device, on a pretended CuPy: no GPU has run this."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from hpcrec.backend.array import array_module
from hpcrec.backend.device import describe, use_device
from hpcrec.errors import DeviceError


class CUDARuntimeError(RuntimeError):
    """As CuPy has it."""


@pytest.fixture
def machine(monkeypatch):
    """A CuPy that sees two GPUs of 40 GiB, 30 of them free; it records what is asked of it."""
    module, asked = ModuleType("cupy"), SimpleNamespace(used=[], limit=None, n=2, busy=False)

    def count():
        if asked.n is None:
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return asked.n

    def use(number):
        if asked.busy:
            raise CUDARuntimeError("cudaErrorDevicesUnavailable")
        asked.used.append(number)

    properties = {"name": b"Pretended", "totalGlobalMem": 40 << 30, "major": 9, "minor": 0}
    module.ndarray = type("ndarray", (), {})
    module.cuda = SimpleNamespace(
        Device=lambda number: SimpleNamespace(use=lambda: use(number)),
        runtime=SimpleNamespace(
            getDeviceCount=count,
            getDeviceProperties=lambda number: properties,
            memGetInfo=lambda: (30 << 30, 40 << 30),
            CUDARuntimeError=CUDARuntimeError,
        ),
    )
    module.get_default_memory_pool = lambda: SimpleNamespace(
        set_limit=lambda size: setattr(asked, "limit", size), free_all_blocks=lambda: None
    )
    plans = SimpleNamespace(set_size=lambda size: setattr(asked, "plans", size))
    module.fft = SimpleNamespace(config=SimpleNamespace(get_plan_cache=lambda: plans))
    monkeypatch.setitem(sys.modules, "cupy", module)
    return asked


@pytest.mark.parametrize("name", ["auto", "gpu"])
def test_ranks_of_a_host_take_turns(machine, name):
    assert [use_device(name, rank, 5).number for rank in range(5)] == machine.used == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(("local_rank", "n_local", "sharers"), [(0, 1, 1), (1, 2, 1), (0, 3, 2), (1, 3, 1), (4, 5, 3)])
def test_ranks_on_one_gpu_share_its_free_memory(machine, local_rank, n_local, sharers):
    device = use_device("gpu", local_rank, n_local, memory_share=0.5)
    assert device.kind == "gpu"
    assert device.module is sys.modules["cupy"]
    assert device.pool_bytes == machine.limit == (15 << 30) // sharers
    assert machine.plans == 4


def test_a_limit_in_bytes_is_taken_as_it_is(machine):
    assert use_device("gpu", 0, 2, memory_bytes=1 << 20).pool_bytes == machine.limit == 1 << 20


def test_the_processor_asks_nothing_of_a_gpu(machine):
    device = use_device("cpu")
    assert (device.kind, device.module, device.number) == ("cpu", np, None)
    assert machine.used == []
    assert machine.limit is None


@pytest.mark.parametrize("n", [0, None])
def test_no_gpu_is_told_once_and_clearly(machine, n):
    machine.n = n
    assert use_device("auto").kind == "cpu"
    with pytest.raises(DeviceError, match=r"CUDA sees no GPU.*CUDA_VISIBLE_DEVICES"):
        use_device("gpu")
    assert describe().startswith("none: CUDA sees no GPU")


@pytest.mark.parametrize("name", ["auto", "gpu"])
def test_a_gpu_that_is_there_and_fails_is_no_reason_to_go_on_quietly(machine, name):
    machine.busy = True
    with pytest.raises(DeviceError, match="GPU 1 of 2 cannot be used: cudaErrorDevicesUnavailable"):
        use_device(name, 1)


def test_a_missing_cupy_is_told(monkeypatch):
    monkeypatch.setattr("hpcrec.backend.device.import_module", _raiser(ModuleNotFoundError("no cupy", name="cupy")))
    assert use_device("auto").kind == "cpu"
    with pytest.raises(DeviceError, match=r"CuPy is not installed; install hpcrec\[gpu\]"):
        use_device("gpu")
    assert describe() == "none: CuPy is not installed; install hpcrec[gpu]"


def test_a_cupy_that_cannot_be_loaded_is_told_and_leaves_nothing_behind(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libcuda.so.1: cannot open shared object file')\n")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DeviceError, match=r"cannot be loaded \(libcuda.so.1"):
        use_device("gpu")
    assert "cupy" not in sys.modules
    assert array_module(np.zeros(1)) is np


def test_gpus_are_described(machine):
    assert describe() == "; ".join(f"{i}: Pretended, 40.0 GiB, compute capability 9.0" for i in range(2))
    assert machine.used == []


def _raiser(error):
    def call(*args):
        raise error

    return call
