"""What array code does to the waves of a chunk on a device in one pass each: windows of the object, the detector.

The kernels are those of ``kernels/windows.cuh`` and ``kernels/weigh.cuh``; their plain twins stand in
``models/cuts.py`` and ``models/detector.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray, IntArray, array_module, to_host
from hpcrec.backend.cuda import COUNTS, LOSSES, address
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
# The struct WeighArguments of weigh.cuh
WEIGH: Final = np.dtype(
    [(name, np.uint64) for name in ("far", "counts", "good", "totals")]
    + [(name, np.int32) for name in ("n_pixels", "n_parts", "good_step", "n_blocks")]
    + [("floor", np.float32)],
    align=True,
)
WEIGHED: Final = COUNTS | {"uint32": "unsigned int", "int32": "int", "float32": "float"}
"""Types of counts that :func:`weigh` takes."""
# Stretches of a pattern that a thread takes one after the other: so many blocks a pattern and no more
_BLOCKS_OF_PATTERN: Final = 16
# Beyond these each thread takes several items: more blocks than a GPU runs at a time
_MOST_BLOCKS: Final = 1 << 16


def kernel_names() -> list[str]:
    """Return the C++ names of all variants of the kernels."""
    names = [f"{kernel}<{kind}>" for kernel in ("window_times", "window_products") for kind in _TYPES.values()]
    return names + [f"window_weigh<{loss}, {kind}>" for loss in sorted({*LOSSES.values()}) for kind in WEIGHED.values()]


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


def weigh(
    far: ComplexArray,
    counts: Array,
    good: BoolArray | None,
    loss: str,
    floor: float,
    *,
    launch: Launch = launch,
) -> FloatArray:
    """Multiply waves by ∂L/∂I of their pattern's intensity; return the sums (3,) of loss, error Σ(√Î − √I)² and counts.

    far : (pattern, part, ky, kx) complex64, contiguous, overwritten; counts : (pattern, ky, kx) of :data:`WEIGHED`
    good : (pattern or 1, ky, kx), True = good, or None; loss, floor : of ``cuda.LOSSES``, and its ε
    """
    xp, (n, n_parts, ny, nx) = array_module(far), far.shape
    if n == 0:
        return np.zeros(3)
    n_blocks = min(-(-ny * nx // THREADS), _BLOCKS_OF_PATTERN)
    counts, totals = xp.ascontiguousarray(counts), xp.zeros((n, n_blocks, THREADS // 32, 3), np.float64)
    masks = None if good is None else xp.ascontiguousarray(good)
    arguments = np.zeros((), WEIGH)
    arguments["far"], arguments["counts"], arguments["totals"] = map(address, (far, counts, totals))
    if masks is not None:
        arguments["good"], arguments["good_step"] = address(masks), ny * nx if len(masks) > 1 else 0
    arguments["n_pixels"], arguments["n_parts"], arguments["n_blocks"] = ny * nx, n_parts, n_blocks
    arguments["floor"] = floor
    launch(f"window_weigh<{LOSSES[loss]}, {WEIGHED[counts.dtype.name]}>", (n_blocks, n), THREADS, 0, arguments)
    return to_host(totals).sum(axis=(0, 1, 2))  # type: ignore[no-any-return]


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
