"""One vectorised loop for sparse sums of rows: target += Σ weight · row, with the sum kept in registers.

A compiler that vectorises plain loops stores the sum after every few rows; here it is stored once. The loop is written
in the compiler's intermediate language, in vectors of 64 bytes, which it splits where the processor's are shorter.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic

from hpcrec.backend.array import Array, FloatArray, IntArray

cgutils: Any = _cgutils  # untyped
LANES: Final = 16  # widths are multiples of it
ROW: Final = 64  # elements of a full row: four vectors of float32, eight of float64


def _add_rows(
    typing: Any, target: Any, to: Any, source: Any, starts: Any, weights: Any, first: Any, last: Any, width: Any
) -> Any:
    """Add Σ_t weights[t] · source[starts[t] : starts[t] + width], first ≤ t < last, to target[to : to + width].

    All arrays are flat and contiguous; ``starts`` int64, the others of one float type; ``width`` a multiple of
    :data:`LANES`, at most :data:`ROW` (others add nothing). Nothing is checked.
    """
    index = types.intp
    signature = types.void(target, index, source, starts, weights, index, index, index)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        arrays = (context.make_array(sig.args[i])(context, builder, args[i]).data for i in (0, 2, 3, 4))
        target_data, source_data, start_data, weight_data = arrays
        size = 4 if sig.args[0].dtype == types.float32 else 8
        vector = ir.VectorType(ir.FloatType() if size == 4 else ir.DoubleType(), 64 // size)
        count = builder.sub(args[6], args[5])

        def load(data: Any, position: Any) -> Any:
            pointer = builder.bitcast(builder.gep(data, [position]), vector.as_pointer())
            return builder.load(pointer, align=size)

        def sum_of(n_vectors: int) -> None:
            places = [ir.Constant(args[1].type, v * 64 // size) for v in range(n_vectors)]
            sums = [cgutils.alloca_once(builder, vector) for _ in places]
            for kept, place in zip(sums, places):
                builder.store(load(target_data, builder.add(args[1], place)), kept)
            with cgutils.for_range(builder, count) as loop:
                tap = builder.add(args[5], loop.index)
                start = builder.load(builder.gep(start_data, [tap]))
                one = builder.insert_element(
                    ir.Constant(vector, ir.Undefined),
                    builder.load(builder.gep(weight_data, [tap])),
                    ir.Constant(ir.IntType(32), 0),
                )
                everywhere = ir.Constant(ir.VectorType(ir.IntType(32), 64 // size), [0] * (64 // size))
                weight = builder.shuffle_vector(one, one, everywhere)
                for kept, place in zip(sums, places):
                    term = builder.fmul(load(source_data, builder.add(start, place)), weight, flags=("contract",))
                    builder.store(builder.fadd(builder.load(kept), term, flags=("contract",)), kept)
            for kept, place in zip(sums, places):
                pointer = builder.gep(target_data, [builder.add(args[1], place)])
                builder.store(builder.load(kept), builder.bitcast(pointer, vector.as_pointer()), align=size)

        for n_lanes in range(LANES, ROW + 1, LANES):
            with builder.if_then(builder.icmp_signed("==", args[7], ir.Constant(args[7].type, n_lanes))):
                sum_of(n_lanes * size // 64)
        return context.get_dummy_value()

    return signature, generate


add_rows: Any = intrinsic(_add_rows)


def _row_of(typing: Any, array: Any, start: Any, length: Any) -> Any:
    """View ``length`` elements of the contiguous ``array`` from flat index ``start`` on, for a loop inside a loop.

    Unlike a slice it is neither checked nor counted as a reference, which costs as much as a hundred elements do; it
    must not outlive ``array``.
    """
    view = types.Array(array.dtype, 1, "C")
    signature = view(array, types.intp, types.intp)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        whole = context.make_array(sig.args[0])(context, builder, args[0])
        row = context.make_array(view)(context, builder)
        size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(array.dtype)))
        context.populate_array(
            row,
            data=builder.gep(whole.data, [args[1]]),
            shape=cgutils.pack_array(builder, [args[2]]),
            strides=cgutils.pack_array(builder, [size]),
            itemsize=size,
            meminfo=None,
        )
        return row._getvalue()

    return signature, generate


row_of: Any = intrinsic(_row_of)


def add_rows_plain(
    target: FloatArray, to: int, source: FloatArray, starts: IntArray, weights: FloatArray, first: int, last: int,
    width: int,
) -> None:  # fmt: skip
    """Do the same as :func:`add_rows` in NumPy: its twin for tests."""
    taken = slice(first, last)
    rows = source[starts[taken, None] + np.arange(width)]
    target[to : to + width] += weights[taken] @ rows


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return zeros that start on a cache line, so that no row of 64 bytes spans two."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(n_bytes + 64, np.uint8)
    first = -raw.ctypes.data % 64
    found: Array = raw[first : first + n_bytes].view(dtype).reshape(shape)
    return found
