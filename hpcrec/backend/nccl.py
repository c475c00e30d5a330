"""Sums over the GPUs of several processes by NCCL, as CuPy brings it."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import numpy as np

from hpcrec.backend.array import Array, array_module
from hpcrec.errors import DeviceError

# Parts of a number, and NCCL's name of their type
_PARTS: Final = {
    "float32": (1, "NCCL_FLOAT32"),
    "float64": (1, "NCCL_FLOAT64"),
    "complex64": (2, "NCCL_FLOAT32"),
    "complex128": (2, "NCCL_FLOAT64"),
    "int64": (1, "NCCL_INT64"),
    "int32": (1, "NCCL_INT32"),
}


def takes(a: Array) -> bool:
    """Whether an array is on a GPU and of a type that NCCL adds."""
    return array_module(a) is not np and a.dtype.name in _PARTS


def ticket() -> Any:
    """Return what one process hands to the others, so that they find one another."""
    return _nccl().get_unique_id()


class Reducer:
    """The current GPUs of ``size`` processes, this one being number ``rank`` of them; made by all at once.

    Raises
    ------
    DeviceError : NCCL cannot connect them, e.g. two processes have the same GPU.
    """

    def __init__(self, size: int, ticket: Any, rank: int) -> None:
        self._nccl = _nccl()
        try:
            self._group = self._nccl.NcclCommunicator(size, ticket, rank)
        except self._nccl.NcclError as fault:
            raise DeviceError(
                f"NCCL cannot connect the GPUs of {size} ranks ({fault}): it needs a GPU for each rank; set "
                "parallel.gpu_messages = 'host'"
            ) from None

    def sum(self, a: Array) -> Array:
        """Return the sum of an array on the GPU over all processes, the same on each."""
        xp = array_module(a)
        result = xp.ascontiguousarray(a).copy()
        parts, name = _PARTS[a.dtype.name]
        address, count = result.data.ptr, parts * result.size
        kind, stream = getattr(self._nccl, name), xp.cuda.get_current_stream().ptr
        self._group.allReduce(address, address, count, kind, self._nccl.NCCL_SUM, stream)
        return result  # type: ignore[no-any-return]


def available() -> bool:
    """Whether CuPy has NCCL here."""
    try:
        return bool(_nccl().available)
    except (ImportError, OSError):
        return False


def _nccl() -> Any:
    return import_module("cupy.cuda.nccl")
