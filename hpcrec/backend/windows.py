"""Windows of an object on a device, for array code: one kernel for a chunk of patterns instead of one a window.

The kernels are those of ``kernels/windows.cuh``; their plain twins stand beside them in ``models/multislice.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, FloatArray, IntArray, array_module
from hpcrec.backend.cuda import address
from hpcrec.backend.launch import Launch, launch

_ADDRESSES = ("object", "wave", "gradient", "result", "light", "corners")
_NUMBERS = ("n_planes", "n_windows", "n_parts", "height", "width", "ny", "nx", "conjugate")
# The struct WindowArguments of windows.cuh
ARGUMENTS: Final = np.dtype(
    [(name, np.uint64) for name in _ADDRESSES]
    + [(name, np.int64) for name in ("n_items", "object_step")]
    + [(name, np.int32) for name in _NUMBERS],
    align=True,
)
_TYPES: Final = {"complex64": "float2", "complex128": "double2"}
THREADS: Final = 256
# Beyond these each thread takes several items: more blocks than a GPU runs at a time
_MOST_BLOCKS: Final = 1 << 16


def kernel_names() -> list[str]:
    """Return the C++ names of all variants of the kernels."""
    return [f"{kernel}<{kind}>" for kernel in ("window_times", "window_products") for kind in _TYPES.values()]


def times(
    wave: ComplexArray,
    obj: ComplexArray,
    corners: IntArray,
    out: ComplexArray,
    *,
    conjugate: bool = False,
    launch: Launch = launch,
) -> ComplexArray:
    """Write ψ O, or ψ O*, to ``out`` and return it.

    wave, out : (window, plane, part, y, x), contiguous, may be the same; obj : (plane, Y, X), contiguous planes
    corners : (window, 2) first pixels of the windows, on the host
    """
    numbers = _numbers(wave, obj, corners) | {"conjugate": int(conjugate), "n_items": wave.size}
    _start("window_times", wave.dtype.name, {"object": obj, "wave": wave, "result": out}, corners, numbers, launch)
    return out


def add_products(
    obj: ComplexArray,
    light: FloatArray,
    wave: ComplexArray,
    gradient: ComplexArray,
    corners: IntArray,
    *,
    launch: Launch = launch,
) -> None:
    """Add Σ ψ* g to ``obj`` and Σ|ψ|² to ``light`` (plane, Y, X); waves and gradients as :func:`times` takes them."""
    numbers = _numbers(wave, obj, corners) | {"n_items": obj.shape[0] * obj.shape[1] * obj.shape[2]}
    arrays: dict[str, Array] = {"wave": wave, "gradient": gradient, "result": obj, "light": light}
    _start("window_products", wave.dtype.name, arrays, corners, numbers, launch)


def _numbers(wave: ComplexArray, obj: ComplexArray, corners: IntArray) -> dict[str, int]:
    n_windows, n_planes, n_parts, ny, nx = wave.shape
    return {
        "n_windows": n_windows,
        "n_planes": n_planes,
        "n_parts": n_parts,
        "height": obj.shape[1],
        "width": obj.shape[2],
        "ny": ny,
        "nx": nx,
        "object_step": obj.strides[0] // obj.itemsize,
    }


def _start(
    kernel: str,
    dtype: str,
    arrays: Mapping[str, Array],
    corners: IntArray,
    numbers: dict[str, int],
    launch: Launch,
) -> None:
    if numbers["n_items"] == 0 or len(corners) == 0:
        return
    xp, arguments = array_module(arrays["wave"]), np.zeros((), ARGUMENTS)
    places = xp.asarray(np.ascontiguousarray(corners, np.int32))
    for name, values in arrays.items():
        # Of planes that lie apart each is contiguous
        arguments[name] = address(values[0] if values.ndim == 3 else values)
    arguments["corners"] = address(places)
    for name, number in numbers.items():
        arguments[name] = number
    blocks = min(-(-numbers["n_items"] // THREADS), _MOST_BLOCKS)
    launch(f"{kernel}<{_TYPES[dtype]}>", (blocks, 1), THREADS, 0, arguments)
