"""How a kernel is started, on a pretended CuPy: no GPU has run this."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from hpcrec.backend import cuda, launch
from hpcrec.errors import DeviceError

PROPERTIES = {
    "multiProcessorCount": 132, "sharedMemPerBlockOptin": 227 << 10, "sharedMemPerMultiprocessor": 228 << 10,
    "reservedSharedMemPerBlock": 1 << 10,
}  # fmt: skip


@pytest.fixture
def gpu(monkeypatch):
    """A CuPy that records what is compiled and started."""
    module = ModuleType("cupy")
    told = SimpleNamespace(compiled=[], started=[], limits=[], properties=dict(PROPERTIES))

    class Kernel:
        def __setattr__(self, name, value):
            assert name == "max_dynamic_shared_size_bytes"
            told.limits.append(value)

        def __call__(self, grid, block, args, *, shared_mem=0):
            assert all(isinstance(sizes, tuple) for sizes in (grid, block, args))
            told.started.append((grid, block, shared_mem, args[0].size))

    def raw_module(*, code, options, name_expressions):
        told.compiled.append((name_expressions, code, options))
        return SimpleNamespace(get_function=lambda name: Kernel())

    module.RawModule = raw_module
    module.cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(id=0), runtime=SimpleNamespace(getDeviceProperties=lambda n: told.properties)
    )
    monkeypatch.setitem(sys.modules, "cupy", module)
    for cached in (launch._compiled, launch._properties):
        cached.cache_clear()
    yield told
    for cached in (launch._compiled, launch._properties):
        cached.cache_clear()


def test_a_kernel_is_compiled_once_and_started_as_asked(gpu):
    name, argument = cuda.kernel_name(64, "amplitude", "uint8"), np.zeros((), cuda.ARGUMENTS)
    for blocks in ((2, 1), (3, 1)):
        launch.launch(name, blocks, 256, 1024, argument)
    assert gpu.compiled == [((name,), cuda.source("fused"), cuda.compile_options())]
    assert gpu.started == [((2, 1), (256,), 1024, 1), ((3, 1), (256,), 1024, 1)]
    launch.launch("stripe_forward<256, true>", (1, 1), 256, 1024, argument)
    assert gpu.compiled[1][:2] == (("stripe_forward<256, true>",), cuda.source("stripes"))


def test_more_shared_memory_than_usual_is_asked_for(gpu):
    launch.launch("stripe_forward<256, true>", (1, 1), 256, 48 << 10, np.zeros(()))
    assert gpu.limits == []
    launch.launch("stripe_forward<256, true>", (1, 1), 256, 227 << 10, np.zeros(()))
    assert gpu.limits == [227 << 10]


def test_more_shared_memory_than_there_is_is_told(gpu):
    gpu.properties["sharedMemPerBlockOptin"] = 99 << 10
    with pytest.raises(DeviceError, match="has 99 KiB of shared memory for a block, and add_gradients<128> takes 155"):
        launch.launch("add_gradients<128>", (1, 1), 1024, 155 << 10, np.zeros(()))
    assert gpu.started == []


def test_blocks_of_a_device_are_as_many_as_fit(gpu):
    assert launch.resident_blocks(4) == launch.resident_blocks(4, 44 << 10) == 4 * 132
    gpu.properties["sharedMemPerMultiprocessor"] = 164 << 10
    launch._properties.cache_clear()
    assert launch.resident_blocks(4, 44 << 10) == 3 * 132
