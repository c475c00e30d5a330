"""The device of a rank: the processor, or one of its host's GPUs through CuPy."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np

from hpcrec.errors import DeviceError

DeviceName = Literal["auto", "cpu", "gpu"]


@dataclass(frozen=True, slots=True)
class Device:
    """Where a rank's arrays live.

    kind : "cpu" or "gpu"; number : of the GPU among those this process sees, None for the processor
    module : the library of its arrays, NumPy or CuPy
    pool_bytes : what CuPy's pool may take of the GPU's memory; 0: no limit
    """

    kind: Literal["cpu", "gpu"]
    module: ModuleType
    number: int | None = None
    pool_bytes: int = 0

    def __str__(self) -> str:
        return "the processor" if self.kind == "cpu" else f"GPU {self.number}"


PROCESSOR: Final = Device("cpu", np)
# Of cuFFT that CuPy keeps for a thread. By number: a plan that exceeds the cache's limit of bytes is an error in CuPy
_PLANS: Final = 4
PLAN_BYTES: Final = _PLANS << 27
"""What these plans take of a GPU's memory if each works in as much as array code transforms at a time."""


def use_device(
    name: DeviceName, local_rank: int = 0, n_local: int = 1, *, memory_share: float = 0.9, memory_bytes: int = 0
) -> Device:
    """Make a device current for this rank's thread and return it.

    ``local_rank`` of the ``n_local`` ranks that see the same GPUs takes the GPU ``local_rank`` modulo these: those of a
    host, but where the launcher binds GPUs and shows each rank its own only, that rank alone. "auto" takes a GPU
    if CuPy and a GPU are there, else the processor. The device is current in this thread alone. CuPy's pool may take
    ``memory_bytes``, or if they are 0 ``memory_share`` of the GPU's free memory, shared evenly by the ranks that get
    the same GPU.

    Raises
    ------
    DeviceError : "gpu" is asked for, and CuPy or a GPU is missing; or the GPU that is there cannot be used.
    """
    if name == "cpu":
        return PROCESSOR
    found, fault = _find()
    if found is None:
        if name == "gpu":
            raise DeviceError(f"device 'gpu': {fault}; or choose 'cpu'")
        return PROCESSOR
    cupy, n_devices = found
    number = local_rank % n_devices
    try:
        cupy.cuda.Device(number).use()
        # What a pool keeps is free, and plans of transforms keep room to work in
        cupy.get_default_memory_pool().free_all_blocks()
        cupy.fft.config.get_plan_cache().set_size(_PLANS)
        sharers = len(range(number, max(n_local, local_rank + 1), n_devices))
        limit = memory_bytes or int(memory_share * cupy.cuda.runtime.memGetInfo()[0] / sharers)
        cupy.get_default_memory_pool().set_limit(size=limit)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(f"GPU {number} of {n_devices} cannot be used: {error}; free it or choose 'cpu'") from error
    return Device("gpu", cupy, number, limit)


def visible() -> tuple[str, ...]:
    """Return names of the GPUs that this process sees, as no other GPU of its host has them; none without CuPy.

    A part of a GPU (MIG) is named by CUDA_VISIBLE_DEVICES, which then shows each process its own.
    """
    found, _ = _find()
    if found is None:
        return ()
    cupy, n_devices = found
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return (shown, *(str(cupy.cuda.runtime.deviceGetPCIBusId(number)) for number in range(n_devices)))


def out_of_memory() -> tuple[type[Exception], ...]:
    """Return what CuPy raises when a GPU's memory, or the limit of its pool, is used up; nothing without CuPy."""
    cupy = sys.modules.get("cupy")
    return () if cupy is None else (cupy.cuda.memory.OutOfMemoryError,)


def settle() -> None:
    """Wait until the current stream of the current GPU has done its work; nothing without CuPy."""
    cupy = sys.modules.get("cupy")
    if cupy is not None:
        cupy.cuda.get_current_stream().synchronize()


def free_unused() -> None:
    """Give blocks of CuPy's pool that no array uses back to the GPU."""
    cupy = sys.modules.get("cupy")
    if cupy is not None:
        cupy.get_default_memory_pool().free_all_blocks()


def library(kind: Literal["cpu", "gpu"]) -> ModuleType:
    """Return the library of arrays on the processor or on the current GPU: NumPy, or CuPy, which must be there."""
    return np if kind == "cpu" else import_module("cupy")


def gpu_fault() -> str | None:
    """Say why this process can use no GPU, or return None; no device becomes current."""
    found, fault = _find()
    return fault if found is None else None


def describe() -> str:
    """Say in one line which GPUs this process sees, or why none; no device becomes current."""
    found, fault = _find()
    if found is None:
        return f"none: {fault}"
    cupy, n_devices = found
    try:
        return "; ".join(_description(cupy, number) for number in range(n_devices))
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"{n_devices}, of which one does not answer: {error}"


def _description(cupy: Any, number: int) -> str:
    properties = cupy.cuda.runtime.getDeviceProperties(number)
    name = properties["name"]
    text = name.decode() if isinstance(name, bytes) else str(name)
    capability = f"{properties['major']}.{properties['minor']}"
    return f"{number}: {text}, {properties['totalGlobalMem'] / 2**30:.1f} GiB, compute capability {capability}"


def _find() -> tuple[tuple[Any, int] | None, str]:
    """Return CuPy and the number of its devices, or None and in words what is missing."""
    try:
        cupy = import_module("cupy")
    except (ImportError, OSError, RuntimeError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        why = "CuPy is not installed" if missing else f"CuPy cannot be loaded ({error})"
        return None, f"{why}; install hpcrec[gpu]"
    try:
        n_devices = int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return None, f"CUDA sees no GPU ({error}); check the driver and CUDA_VISIBLE_DEVICES"
    if n_devices == 0:
        return None, "CUDA sees no GPU; check the driver and CUDA_VISIBLE_DEVICES"
    return (cupy, n_devices), ""
