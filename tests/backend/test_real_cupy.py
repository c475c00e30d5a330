"""What hpcrec and the stand-in ask of CuPy is there in CuPy itself; it needs no GPU, but CuPy installed."""

import inspect
import re
from operator import attrgetter
from types import SimpleNamespace

import device_arrays
import numpy as np
import pytest

from hpcrec.backend import cuda, stripes

cupy = pytest.importorskip("cupy", reason="CuPy is not installed (hpcrec[gpu])", exc_type=ImportError)

NAMES = [name for name in device_arrays.KNOWN if name not in device_arrays.UFUNCS]
OF_FFT, OF_LINALG = ("fft2", "ifft2", "fftn", "ifftn", "fftfreq"), ("eigh", "norm")
NAMES += [f"fft.{name}" for name in OF_FFT] + [f"linalg.{name}" for name in OF_LINALG]
ASKED = """
RawModule RawKernel.max_dynamic_shared_size_bytes cuda.Device.use cuda.Device.id cuda.Event.record
cuda.Event.synchronize cuda.get_elapsed_time cuda.runtime.CUDARuntimeError cuda.runtime.memGetInfo
cuda.runtime.getDeviceCount cuda.runtime.getDeviceProperties cuda.MemoryPool.free_all_blocks
cuda.runtime.deviceGetPCIBusId cuda.get_current_stream cuda.Stream.synchronize cuda.alloc_pinned_memory
fft.config.get_plan_cache cuda.memory.OutOfMemoryError get_default_memory_pool ndarray.itemsize ndarray.strides
"""
METHODS = ("all", "any", "argmax", "conj", "copy", "ravel", "reshape", "transpose", "sum", "mean", "max", "min")


def keywords(function):
    """Names of a function's arguments; of compiled ones as their first line of help tells them."""
    try:
        return set(inspect.signature(function).parameters)
    except ValueError:
        told = re.match(r"[\w.]+\(([^)]*)\)", function.__doc__)[1]
        return {part.partition("=")[0].strip().split()[-1].lstrip("*") for part in told.split(",")}


def has_gpu():
    try:
        return cupy.cuda.runtime.getDeviceCount() > 0
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


@pytest.mark.parametrize("name", sorted(device_arrays.UFUNCS - {"matmul"}))
def test_element_wise_functions_are_those_of_cupy(name):
    found = getattr(cupy, name)
    assert isinstance(found, cupy.ufunc)
    for refused in keywords(getattr(np, name)) - device_arrays.OF_UFUNCS - {"x", "x1", "x2"}:
        with pytest.raises(TypeError, match="Wrong arguments"):
            found(*[1.0] * found.nin, **{refused: None})


@pytest.mark.parametrize("name", [*NAMES, "matmul", "asarray", "where", "empty"])
def test_functions_take_what_the_stand_in_lets_pass(name):
    """Each keyword of NumPy's that CuPy lacks is refused by the stand-in, or names an argument that comes first."""
    theirs, numpys = keywords(attrgetter(name)(cupy)), keywords(attrgetter(name)(np))
    lacking = numpys - theirs - device_arrays.OF_NUMPY_ALONE
    first = {"shape", "start_or_stop", "arrays", "x1", "x2", "kwargs", "m"}
    assert lacking - first <= ({"out"} if name.startswith("fft.") else set())


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_what_the_stand_in_lets_pass(name):
    lacking = keywords(getattr(np, name)) if hasattr(np, name) else set()
    theirs = keywords(getattr(cupy.ndarray, name))
    assert "self" in theirs
    if name in ("sum", "mean", "max", "min"):
        assert keywords(getattr(device_arrays.ndarray, name)) == theirs
    elif name not in ("conj", "copy", "ravel", "reshape", "transpose"):
        assert lacking - theirs - device_arrays.OF_NUMPY_ALONE <= {"a"}


def test_what_devices_and_launches_ask_for_is_there():
    for name in ASKED.split():
        assert attrgetter(name)(cupy) is not None
    assert {"size"} <= keywords(cupy.cuda.MemoryPool.set_limit)
    assert {"a", "axes"} <= keywords(attrgetter("get_fft_plan")(pytest.importorskip("cupyx.scipy.fftpack")))
    assert {"arr", "stream"} <= keywords(cupy.ndarray.set)
    assert {"stream"} <= keywords(cupy.cuda.Event.record)
    assert {"event"} <= keywords(cupy.cuda.Stream.wait_event)
    transforms = pytest.importorskip("cupyx.scipy.fft")
    for transform in (transforms.fftn, transforms.ifftn):
        assert {"axes", "norm", "overwrite_x"} <= keywords(transform)
    timed = keywords(pytest.importorskip("cupyx.profiler").benchmark)
    assert {"func", "n_repeat", "n_warmup", "max_duration", "name"} <= timed


@pytest.mark.parametrize("kernels", ["fused", "stripes"])
def test_a_module_takes_source_options_and_names(kernels, monkeypatch):
    """CuPy hands the source on as it is, and our options among its own."""
    compiler = pytest.importorskip("cupy.cuda.compiler")
    source, options, names = cuda.source(kernels), cuda.compile_options(), ("some<1, true>",)
    module = cupy.RawModule(code=source, options=options, name_expressions=names)
    assert (module.options, module.name_expressions) == (options, names)
    asked = {}

    class Enough(Exception):
        pass

    def compiled(code, given=(), **more):
        asked.update(more, code=code, given=given)
        raise Enough

    monkeypatch.setattr(compiler, "_compile_module_with_cache", compiled)
    with pytest.raises(Enough):
        cupy._core.core.compile_with_cache(source, options, prepend_cupy_headers=False, name_expressions=names)
    assert asked["code"] == source
    assert [option for option in asked["given"] if not option.startswith("-I")] == list(options)
    assert (asked["backend"], asked["name_expressions"]) == ("nvrtc", names)


@pytest.mark.skipif(has_gpu(), reason="where a GPU is, kernels are launched in earnest: see the tests marked gpu")
@pytest.mark.parametrize("dtype", [cuda.ARGUMENTS, stripes.ARGUMENTS])
def test_arguments_go_by_value(dtype):
    """A launch reads its arguments first and misses the GPU then; what it cannot read is a TypeError."""
    function = cupy.cuda.function.Function
    kernel, stream = function.__new__(function), SimpleNamespace(ptr=0)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        kernel((1, 1), (32,), (np.zeros((), dtype),), shared_mem=0, stream=stream)
    with pytest.raises(TypeError, match="size one"):
        kernel((1, 1), (32,), (np.zeros(2, dtype),), shared_mem=0, stream=stream)
    with pytest.raises(TypeError, match="Unsupported type"):
        kernel((1, 1), (32,), ("text",), shared_mem=0, stream=stream)
    # A kernel's arguments: CUDA C++ Programming Guide, 4 KiB on every architecture
    assert dtype.itemsize <= 4096
    assert dtype.itemsize % dtype.alignment == 0
