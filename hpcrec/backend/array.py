"""Which array library an array belongs to, and moves between host and device."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
FloatArray: TypeAlias = NDArray[np.floating[Any]]
ComplexArray: TypeAlias = NDArray[np.complexfloating[Any, Any]]
IntArray: TypeAlias = NDArray[np.integer[Any]]
BoolArray: TypeAlias = NDArray[np.bool_]


_PIECE = 1 << 24


def array_module(*arrays: Any) -> ModuleType:
    """Return ``cupy`` if any of the arrays lives on a GPU, else ``numpy``."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and any(isinstance(a, cupy.ndarray) for a in arrays):
        return cupy
    return np


def to_host(a: Any) -> Array:
    """Copy an array from the device to host memory; a NumPy array comes back as it is."""
    return a.get() if array_module(a) is not np else np.asarray(a)


def numbers_to_host(numbers: Sequence[Any]) -> FloatArray:
    """Return numbers (n,) float64 on the host; from a device, where each is an array of no dimension, in one copy."""
    if not numbers:
        return np.zeros(0)
    found = array_module(*numbers).stack([number.astype(np.float64) for number in numbers])
    return to_host(found)


def all_finite(a: Array) -> bool:
    """Whether an array of the host holds finite numbers alone; what this needs is small beside large arrays."""
    flat = a.reshape(-1)
    return all(bool(np.isfinite(flat[first : first + _PIECE]).all()) for first in range(0, flat.size, _PIECE))


def real_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the real type of the same precision: complex64 → float32, complex128 → float64."""
    return np.zeros(0, dtype).real.dtype


def complex_dtype(precision: str) -> np.dtype[Any]:
    """Return the complex type of ``"single"`` or ``"double"`` precision."""
    return np.dtype({"single": np.complex64, "double": np.complex128}[precision])
