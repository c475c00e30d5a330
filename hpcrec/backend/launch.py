"""Kernels of the project's own CUDA sources, compiled when first asked for, and started through CuPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any, Final

from hpcrec.backend.array import Array
from hpcrec.backend.cuda import Kernels, compile_options, source

Launch = Callable[[str, tuple[int, int], int, int, Array], None]
"""Starts a kernel: its C++ name, blocks along x and y, threads and bytes of shared memory of a block, argument."""
_PREFIXES: Final[dict[str, Kernels]] = {"stripe_": "stripes", "tomography_": "projector"}
# What a block may take without asking
_PLAIN_SHARED = 48 * 1024


@lru_cache(maxsize=64)
def _compiled(kernels: Kernels, name: str, device: int) -> Any:
    """Return a kernel of a device; CuPy keeps its code on disk."""
    cupy = import_module("cupy")
    module = cupy.RawModule(code=source(kernels), options=compile_options(), name_expressions=(name,))
    return module.get_function(name)


def launch(name: str, blocks: tuple[int, int], threads: int, shared: int, argument: Array) -> None:
    """Start a kernel on the current device and stream; ``argument``: a structure of one element, by value."""
    cupy = import_module("cupy")
    kernels = next((found for prefix, found in _PREFIXES.items() if name.startswith(prefix)), "fused")
    kernel = _compiled(kernels, name, cupy.cuda.Device().id)
    if shared > _PLAIN_SHARED:
        kernel.max_dynamic_shared_size_bytes = shared
    kernel(blocks, (threads,), (argument,), shared_mem=shared)


@lru_cache(maxsize=16)
def _multiprocessors(device: int) -> int:
    return int(import_module("cupy").cuda.runtime.getDeviceProperties(device)["multiProcessorCount"])


def resident_blocks(of_multiprocessor: int) -> int:
    """Return how many blocks the current device runs at a time if each multiprocessor holds so many."""
    return of_multiprocessor * _multiprocessors(import_module("cupy").cuda.Device().id)
