"""Transforms of waves in place: hpcrec's own for the sizes that small radices make up, else FFTW's.

A wave is (ny, nx) complex64, flat and aligned to 64 bytes. Sixteen columns (or rows) at a time go through a transform
in the first-level cache: n = n1 · n2 (· n3), steps of one radix each, so that a wave is read and written once along y
and once along x. No plan is timed: the same size gives the same last digit in every process. Not normalised; forward
sign −.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from threading import Lock
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import cfunc, njit, types
from numba.extending import intrinsic

from hpcrec.backend.array import ComplexArray, FloatArray, IntArray
from hpcrec.backend.fft import aligned_empty, execute_address, inplace_plan_addresses
from hpcrec.backend.kernels.butterflies import (
    LANES,
    NUMBER,
    RADICES,
    WHOLE_ROWS,
    filtered_step,
    first_step,
    gather,
    last_step,
    plain_step,
    scatter,
    turned_step,
    whole_rows,
)

_compile: Any = njit(error_model="numpy", nogil=True, cache=True)

# Of two threads that fill a cache at once, one's plan would point to tables that the other's replaced
_PLANNING = Lock()
# Beyond, a column no longer fits into the second-level cache
_LARGEST = 1024

Plan = tuple[int, int, int, int]


@intrinsic  # type: ignore[untyped-decorator]
def _call(typing_context: Any, function: Any, handle: Any, source: Any, target: Any) -> Any:
    """Call a C function of three addresses."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [arguments[0].type] * 3)
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), code


@intrinsic  # type: ignore[untyped-decorator]
def _word(typing_context: Any, address: Any, place: Any) -> Any:
    """Return one of the int64 that begin at an address."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], arguments[1].type.as_pointer())
        return builder.load(builder.gep(pointer, [arguments[1]]))

    return types.intp(types.intp, types.intp), code


# The checker does not know that numba gives the first argument
_invoke: Any = _call
_read: Any = _word


@_compile
def transform(plan: Any, wave: Any, forward: bool) -> None:
    """Transform a wave in place by a plan of :func:`transform_plan`."""
    at = wave.ctypes.data
    _invoke(plan[0], plan[1] if forward else plan[2], at, at)


@_compile
def filter_wave(plan: Any, wave: Any, factors: Any) -> None:
    """Multiply the spectrum of a wave by factors along y and x: forward, product and backward, along y in one go.

    Only by a plan that knows how (``plan[3]``); factors: as :func:`filter_factors` lays them out.
    """
    _invoke(plan[3], plan[1], wave.ctypes.data, factors.ctypes.data)


@_compile
def _filter(handle: int, at: int, factors: int) -> None:
    """Do what :func:`filter_wave` says, by the numbers of :func:`_handles`."""
    ny, nx, room = _read(handle, 1), _read(handle, 2), _read(handle, 3)
    _along_x(at, ny, nx, handle + 8 * 8, room, 0)
    for i in range(nx // LANES):
        _filter_columns(at + i * NUMBER, 8 * nx, handle + 8 * 4, room, factors, factors + 8 * ny + i * NUMBER)
    _along_x(at, ny, nx, handle + 8 * 8, room, 1)


@_compile
def _filter_columns(at: int, row: int, axis: int, room: int, along: int, across: int) -> None:
    """Multiply the spectra of :data:`LANES` columns by factors along them (n pairs) and across (one vector)."""
    n1, n2, n3, factors = _read(axis, 0), _read(axis, 1), _read(axis, 2), _read(axis, 3)
    rest = n2 * n3
    n = n1 * rest
    work, inner_factors = room + n * NUMBER, factors + 8 * rest * (n1 - 1)
    more = work + n * NUMBER
    for b in range(rest):
        first_step(2 * n1, at + b * row, rest * row, room + b * NUMBER, rest * NUMBER, factors + 8 * b * (n1 - 1))
    for k in range(n1):
        inner = room + k * rest * NUMBER
        if n3 == 1:
            filtered_step(2 * n2, inner, NUMBER, work + k * NUMBER, n1 * NUMBER, along + 8 * k, across)
            continue
        for b in range(n3):
            turned_step(
                2 * n2, inner + b * NUMBER, n3 * NUMBER, more + b * NUMBER, n3 * NUMBER,
                inner_factors + 8 * b * (n2 - 1),
            )  # fmt: skip
        for j in range(n2):
            place = k + n1 * j
            filtered_step(
                2 * n3, more + j * n3 * NUMBER, NUMBER, work + place * NUMBER, n1 * n2 * NUMBER, along + 8 * place,
                across,
            )  # fmt: skip
    for b in range(rest):
        turned_step(
            2 * n1, work + b * NUMBER, rest * NUMBER, room + b * NUMBER, rest * NUMBER, factors + 8 * b * (n1 - 1)
        )
    for k in range(n1):
        _finish_columns(at + k * row, row, room + k * rest * NUMBER, more, n1, n2, n3, inner_factors, 1)


@_compile
def _finish_columns(
    at: int, row: int, inner: int, work: int, n1: int, n2: int, n3: int, factors: int, back: int
) -> None:
    """Do the steps after the first; results are n1 rows apart."""
    if n3 == 1:
        last_step(2 * n2 + back, inner, NUMBER, at, n1 * row, factors)
        return
    for b in range(n3):
        turned_step(2 * n2, inner + b * NUMBER, n3 * NUMBER, work + b * NUMBER, n3 * NUMBER, factors + 8 * b * (n2 - 1))
    for j in range(n2):
        last_step(2 * n3 + back, work + j * n3 * NUMBER, NUMBER, at + n1 * j * row, n1 * n2 * row, factors)


@_compile
def _own(handle: int, at: int, target: int) -> None:
    """Do what FFTW's ``execute`` does, by the numbers of :func:`_handle`."""
    back, ny, nx, room = _read(handle, 0), _read(handle, 1), _read(handle, 2), _read(handle, 3)
    if back == 0:
        _along_x(at, ny, nx, handle + 8 * 8, room, back)
    for i in range(nx // LANES):
        _columns(at + i * NUMBER, 8 * nx, handle + 8 * 4, room, back)
    if back == 1:
        _along_x(at, ny, nx, handle + 8 * 8, room, back)


@_compile
def _along_x(at: int, ny: int, nx: int, axis: int, room: int, back: int) -> None:
    radix, factors = nx // LANES, _read(axis, 4)
    if factors:
        n_rows = LANES // radix
        for i in range(ny // n_rows):
            whole_rows(2 * radix + back, at + i * n_rows * 8 * nx, 8 * nx, factors)
    else:
        for i in range(ny // LANES):
            _rows(at + i * LANES * 8 * nx, 8 * nx, axis, room, back)


@_compile
def _columns(at: int, row: int, axis: int, room: int, back: int) -> None:
    """Transform :data:`LANES` columns; rows are ``row`` bytes apart."""
    n1, n2, n3, factors = _read(axis, 0), _read(axis, 1), _read(axis, 2), _read(axis, 3)
    rest = n2 * n3
    for b in range(rest):
        first_step(
            2 * n1 + back, at + b * row, rest * row, room + b * NUMBER, rest * NUMBER, factors + 8 * b * (n1 - 1)
        )
    factors += 8 * rest * (n1 - 1)
    work = room + n1 * rest * NUMBER
    for k in range(n1):
        _finish_columns(at + k * row, row, room + k * rest * NUMBER, work, n1, n2, n3, factors, back)


@_compile
def _rows(at: int, row: int, axis: int, room: int, back: int) -> None:
    """Transform :data:`LANES` rows: as columns, after lanes and vectors changed roles."""
    n1, n2, n3, factors = _read(axis, 0), _read(axis, 1), _read(axis, 2), _read(axis, 3)
    n, rest = n1 * n2 * n3, n2 * n3
    work = room + n * NUMBER
    for i in range(n // 8):
        gather(back, at + 64 * i, row, room + 8 * i * NUMBER)
    for b in range(rest):
        turned_step(
            2 * n1, room + b * NUMBER, rest * NUMBER, work + b * NUMBER, rest * NUMBER, factors + 8 * b * (n1 - 1)
        )
    factors += 8 * rest * (n1 - 1)
    for k in range(n1):
        inner = work + k * rest * NUMBER
        if n3 == 1:
            plain_step(2 * n2, inner, NUMBER, room + k * NUMBER, n1 * NUMBER, factors)
            continue
        more = work + n * NUMBER
        for b in range(n3):
            turned_step(
                2 * n2, inner + b * NUMBER, n3 * NUMBER, more + b * NUMBER, n3 * NUMBER, factors + 8 * b * (n2 - 1)
            )
        for j in range(n2):
            plain_step(2 * n3, more + j * n3 * NUMBER, NUMBER, room + (k + n1 * j) * NUMBER, n1 * n2 * NUMBER, factors)
    for i in range(n // 8):
        scatter(back, room + 8 * i * NUMBER, row, at + 64 * i)


@cache
def transform_plan(ny: int, nx: int, place: int) -> Plan:
    """Return what :func:`transform` needs for waves (ny, nx): a function of C, and its handles forward and backward.

    Last comes the function of :func:`filter_wave`, 0 where FFTW transforms. Each ``place`` (a thread) has room of its
    own. All lives with the process.
    """
    if not (known_size(ny) and known_size(nx)):
        return execute_address(), *inplace_plan_addresses(ny, nx), 0
    with _PLANNING:
        kept = _handles(ny, nx, place)
        function, filtering = _own_functions()
        return function.address, kept[0].ctypes.data, kept[1].ctypes.data, filtering.address


@cache
def _handles(ny: int, nx: int, place: int) -> tuple[IntArray, IntArray, FloatArray]:
    """Return the numbers of a forward and of a backward transform, and the room that they point to.

    Numbers: whether backward, ny, nx, room; four of the columns' axis; five of the rows', see :func:`_axis`.
    """
    room = aligned_empty((3 * max(ny, nx) * NUMBER // 4,), np.float32)
    both = [np.array([back, ny, nx, room.ctypes.data, *_axis(ny)[0][:4], *_axis(nx)[0]], np.int64) for back in (0, 1)]
    return both[0], both[1], room


@cache
def _own_functions() -> tuple[Any, Any]:
    """Compile hpcrec's own transforms, or load them, as functions of C, so that no caller holds a copy.

    Kept for good: the code goes when the object goes, and plans know no more than its address.
    """
    compiled = cfunc(types.void(types.intp, types.intp, types.intp), cache=True, error_model="numpy")
    return compiled(_own_entry), compiled(_filter_entry)


def _own_entry(handle: int, at: int, target: int) -> None:
    _own(handle, at, target)


def _filter_entry(handle: int, at: int, factors: int) -> None:
    _filter(handle, at, factors)


def filter_factors(along_y: ComplexArray, along_x: ComplexArray) -> FloatArray:
    """Return factors (…, floats) of :func:`filter_wave` from those along y (…, ny) and x (…, nx).

    Those along y are interleaved; real parts of sixteen along x come before their imaginary parts.
    """
    lead, ny, nx = along_y.shape[:-1], along_y.shape[-1], along_x.shape[-1]
    out = aligned_empty((*lead, 2 * (ny + nx)), np.float32)
    out[..., : 2 * ny] = np.ascontiguousarray(along_y, np.complex64).view(np.float32)
    lanes = along_x.reshape(*lead, nx // LANES, LANES)
    out[..., 2 * ny :] = np.stack([lanes.real, lanes.imag], axis=-2).reshape(*lead, 2 * nx)
    return out


def known_size(n: int) -> bool:
    """Whether hpcrec's own transforms know a length."""
    return n % LANES == 0 and n <= _LARGEST and _radices(n) is not None


@cache
def _radices(n: int) -> tuple[int, int, int] | None:
    """Return two or three radices, the largest first, that make up a length."""
    pairs = [(a, b, 1) for a, b in product(RADICES, repeat=2) if a * b == n]
    triples = [(a, b, c) for a, b, c in product(RADICES, repeat=3) if a * b * c == n]
    found = pairs or triples
    return max(found) if found else None


@cache
def _axis(n: int) -> tuple[list[int], FloatArray, FloatArray]:
    """Return the numbers of an axis and what they point to.

    Numbers: radices, address of the factors between steps, and of those of whole rows (0 where these are not known).
    """
    n1, n2, n3 = _radices(n) or (0, 0, 0)
    table = [_factors(n, n1), _factors(n2 * n3, n2)] if n3 > 1 else [_factors(n, n1)]
    flat = np.concatenate([factors.ravel() for factors in table]).astype(np.complex64).view(np.float32)
    radix = n // LANES
    turns = np.exp(-2j * np.pi * np.outer(np.arange(radix), np.arange(LANES)) / n)
    whole = aligned_empty((radix, 2, LANES), np.float32)
    whole[:, 0], whole[:, 1] = turns.real, turns.imag
    return [n1, n2, n3, flat.ctypes.data, whole.ctypes.data if radix in WHOLE_ROWS else 0], flat, whole


def _factors(n: int, radix: int) -> Any:
    """Return exp(−2πi b k / n) for b < n / radix and 0 < k < radix."""
    return np.exp(-2j * np.pi * np.outer(np.arange(n // radix), np.arange(1, radix)) / n)
