"""Kernels of the project's own CUDA sources, compiled when first asked for, and started through CuPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any, Final

from hpcrec.backend.array import Array, array_module
from hpcrec.backend.cuda import Kernels, compile_options, source
from hpcrec.errors import DeviceError

Launch = Callable[[str, tuple[int, int], int, int, Array], None]
"""Starts a kernel: its C++ name, blocks along x and y, threads and bytes of shared memory of a block, argument."""
_PREFIXES: Final[dict[str, Kernels]] = {"stripe_": "stripes", "window_": "windows", "tomography_": "projector"}
# What a block may take without asking
_PLAIN_SHARED = 48 * 1024


@lru_cache(maxsize=64)
def _compiled(kernels: Kernels, name: str, device: int) -> Any:
    """Return a kernel of a device; CuPy keeps its code on disk, from 14.2 on that of templates too."""
    cupy = import_module("cupy")
    module = cupy.RawModule(code=source(kernels), options=compile_options(), name_expressions=(name,))
    return module.get_function(name)


def launch(name: str, blocks: tuple[int, int], threads: int, shared: int, argument: Array) -> None:
    """Start a kernel on the current device and stream.

    argument : a structure of one element, a NumPy array, which CuPy hands over by value (``_pointer`` of
        ``cupy/cuda/function.pyx``); it is read before this returns

    Raises
    ------
    DeviceError : the device has less shared memory for a block.
    """
    cupy = import_module("cupy")
    device = cupy.cuda.Device().id
    room = _properties(device)["sharedMemPerBlockOptin"]
    if shared > room:
        raise DeviceError(
            f"GPU {device} has {room // 1024} KiB of shared memory for a block, and {name} takes {shared / 1024:.1f}: "
            "choose the kernel 'array', or another GPU"
        )
    kernels = next((found for prefix, found in _PREFIXES.items() if name.startswith(prefix)), "fused")
    kernel = _compiled(kernels, name, device)
    if shared > _PLAIN_SHARED:
        kernel.max_dynamic_shared_size_bytes = shared
    kernel(blocks, (threads,), (argument,), shared_mem=shared)


def compiles(a: Array) -> bool:
    """Whether the library of an array compiles kernels: CuPy does, NumPy and what tests put in its place do not."""
    return hasattr(array_module(a), "RawModule")


def device_number() -> int:
    """Return the number of the current device."""
    return int(import_module("cupy").cuda.Device().id)


def shared_room() -> int:
    """Return the bytes of shared memory that a block may take on the current device."""
    return int(_properties(device_number())["sharedMemPerBlockOptin"])


@lru_cache(maxsize=16)
def _properties(device: int) -> dict[str, Any]:
    """Return CuPy's description of a device."""
    return dict(import_module("cupy").cuda.runtime.getDeviceProperties(device))


def resident_blocks(of_multiprocessor: int, shared: int = 0) -> int:
    """Return how many blocks of so much shared memory the current device runs at a time.

    of_multiprocessor : how many a multiprocessor's registers and threads have room for
    """
    found = _properties(device_number())
    taken = shared + found["reservedSharedMemPerBlock"]
    held = min(of_multiprocessor, found["sharedMemPerMultiprocessor"] // taken) if shared else of_multiprocessor
    return max(held, 1) * int(found["multiProcessorCount"])
