"""The logarithm of the Poisson loss as vector code; the C library's takes one number at a time, as long as two FFTs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

_compile: Any = njit(fastmath=True, error_model="numpy", nogil=True, cache=True)
_MANTISSA_BITS = 23
_ROOT = int(np.float32(math.sqrt(0.5)).view(np.int32))
_LN2 = np.float32(math.log(2))


def _coefficients() -> tuple[np.float32, ...]:
    """Return c_0 … c_7 of Σ c_k f^k ≈ (ln(1 + f) − f + f²/2) / f³ for √½ ≤ 1 + f ≤ √2, equal at Chebyshev points."""
    low, high = math.sqrt(0.5) - 1, math.sqrt(2) - 1
    points = (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(8) + 0.5) / 8)
    values = (np.log1p(points) - points + points**2 / 2) / points**3
    found = np.polynomial.Chebyshev.fit(points, values, 7, domain=[low, high]).convert(kind=np.polynomial.Polynomial)
    return tuple(np.float32(c) for c in found.coef)


_C0, _C1, _C2, _C3, _C4, _C5, _C6, _C7 = _coefficients()


@intrinsic  # type: ignore[untyped-decorator]
def _bits_of(typing_context: Any, number: Any) -> Any:
    """Return the bits of a float32."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), code


@intrinsic  # type: ignore[untyped-decorator]
def _number_of(typing_context: Any, bits: Any) -> Any:
    """Return the float32 of some bits."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), code


# The checker does not know that numba gives the first argument
_bits: Any = _bits_of
_number: Any = _number_of


@_compile
def excess(ratio: Any, off: Any) -> Any:
    """Return ratio · ln(ratio) − off of a float32 ratio > 0, whose ``off`` = ratio − 1 may be known better than it.

    Relative precision 1e-6: ratio = 2^e (1 + f), and near 1 f²/2 + …, where nothing cancels.
    """
    half, one = np.float32(0.5), np.float32(1)
    bits = _bits(np.float32(ratio))
    e = np.int32((bits - np.int32(_ROOT)) >> np.int32(_MANTISSA_BITS))
    f = off if e == 0 else _number(np.int32(bits - (e << np.int32(_MANTISSA_BITS)))) - one
    p = ((((((_C7 * f + _C6) * f + _C5) * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _C0
    near = f * f * (half + f * (p * (one + f) - half))
    far = ratio * (np.float32(e) * _LN2 + f * (one - f * (half - f * p))) - off
    return near if e == 0 else far
