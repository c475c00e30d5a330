"""Unitary Fourier transforms over the last axes: FFTW on the CPU with a plan cache, cuFFT on a GPU."""

from __future__ import annotations

import ctypes
import math
import sys
import threading
import time
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, array_module


def _load() -> Any:
    """Import pyfftw without its interfaces to Dask and SciPy: they load both, and hpcrec uses neither.

    Where ``sys.modules`` holds None, an import raises ImportError (Python reference, 5.3.1); pyfftw then goes on.
    """
    unused = [name for name in ("dask.array.fft", "scipy.fftpack") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(unused))  # type: ignore[arg-type]
    try:
        import pyfftw
    finally:
        for name in unused:
            del sys.modules[name]
    return pyfftw


pyfftw = _load()
_PLANNING = threading.Lock()
_FFTW = ctypes.CDLL(pyfftw.pyfftw.__file__)
_PATIENT, _FORWARD, _BACKWARD = 32, -1, 1
_PLANNING_SECONDS, _TRIES, _TIMINGS = 6.0, 3, 50
_ALIGNMENT = 64
# A kept plan holds an array; for larger ones a new plan is made each time, which takes under a millisecond
_KEPT_BYTES = 1 << 22


@lru_cache(maxsize=256)
def _kept_plan(shape: tuple[int, ...], dtype: str, axes: tuple[int, ...], forward: bool, thread: int) -> Any:
    """Return one plan a thread, because a plan holds the array that it worked on last."""
    return _plan(pyfftw.empty_aligned(shape, dtype=dtype, n=_ALIGNMENT), axes, forward)


def _plan(a: ComplexArray, axes: tuple[int, ...], forward: bool) -> Any:
    """Plan one transform in place; what ``a`` holds stays."""
    with _PLANNING:
        return pyfftw.FFTW(
            a,
            a,
            axes=axes,
            direction="FFTW_FORWARD" if forward else "FFTW_BACKWARD",
            flags=("FFTW_ESTIMATE",),  # a measured plan, and so the last digit, would change from run to run
            threads=1,
            ortho=True,
            normalise_idft=False,
        )


def _run(a: ComplexArray, axes: tuple[int, ...], forward: bool) -> None:
    """Transform an aligned host array in place."""
    if a.nbytes > _KEPT_BYTES:
        _plan(a, axes, forward)()
    else:
        _kept_plan(a.shape, a.dtype.name, axes, forward, threading.get_ident())(input_array=a, output_array=a)


def _transform(a: Array, axes: tuple[int, ...], forward: bool) -> ComplexArray:
    xp = array_module(a)
    if xp is not np:
        dtype = np.result_type(a.dtype, np.complex64)
        if a.size == 0:
            return a.astype(dtype)
        return (xp.fft.fftn if forward else xp.fft.ifftn)(a, axes=axes, norm="ortho").astype(dtype, copy=False)  # type: ignore[no-any-return]
    if a.size == 0:
        return np.array(a)
    dtype = np.result_type(a.dtype, np.complex64)
    out = pyfftw.empty_aligned(a.shape, dtype=dtype, n=_ALIGNMENT)
    out[...] = a
    _run(out, axes, forward)
    return out  # type: ignore[no-any-return]


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an uninitialised host array as the in-place transforms and compiled kernels want it."""
    return pyfftw.empty_aligned(shape, dtype=dtype, n=_ALIGNMENT)  # type: ignore[no-any-return]


def empty_beside(like: Array, shape: tuple[int, ...]) -> Array:
    """Return an uninitialised array of the type of ``like`` where that lives; on the host :func:`aligned_empty`."""
    xp = array_module(like)
    return aligned_empty(shape, like.dtype) if xp is np else xp.empty(shape, like.dtype)


def fft2_inplace(a: ComplexArray) -> ComplexArray:
    """As :func:`fft2`, but overwrite and return ``a``: an array from :func:`aligned_empty`, ValueError else."""
    return _transform_inplace(a, True)


def ifft2_inplace(a: ComplexArray) -> ComplexArray:
    """As :func:`ifft2`, but overwrite and return ``a``: an array from :func:`aligned_empty`, ValueError else."""
    return _transform_inplace(a, False)


def _transform_inplace(a: ComplexArray, forward: bool) -> ComplexArray:
    if array_module(a) is not np:
        _run_on_device(a, forward, "ortho")
    elif a.size:
        _run(a, (-2, -1), forward)
    return a


def _run_on_device(a: ComplexArray, forward: bool, norm: str) -> None:
    """Transform an array of a device in place; CuPy keeps the plans of cuFFT that were used last."""
    if a.size == 0:
        return
    scipy_fft = import_module("cupyx.scipy.fft")
    made = (scipy_fft.fftn if forward else scipy_fft.ifftn)(a, axes=(-2, -1), norm=norm, overwrite_x=True)
    if made is not a and made.data.ptr != a.data.ptr:  # type: ignore[attr-defined]
        a[...] = made


def filter_inplace(a: ComplexArray, factor: Array) -> ComplexArray:
    """Overwrite ``a`` (…, y, x), as :func:`fft2_inplace` takes it, by F⁻¹ (factor · F a) and return it.

    On a device the transforms' norm goes with the factor, which saves two passes over the waves.
    """
    if array_module(a) is np:
        fft2_inplace(a)
        a *= factor
        return ifft2_inplace(a)
    _run_on_device(a, True, "backward")
    a *= factor * a.real.dtype.type(1 / math.prod(a.shape[-2:]))
    _run_on_device(a, False, "forward")
    return a


def fft2(a: Array) -> ComplexArray:
    """Unitary forward transform over the last two axes, F(k) = n^(−1/2) Σ f(r) exp(−2πi k·r); returns a new array."""
    return _transform(a, (-2, -1), True)


def ifft2(a: Array) -> ComplexArray:
    """Inverse (= adjoint) of :func:`fft2`; returns a new array."""
    return _transform(a, (-2, -1), False)


def fftn(a: Array, axes: tuple[int, ...] | None = None) -> ComplexArray:
    """Unitary forward transform over ``axes`` (default all); returns a new array."""
    return _transform(a, tuple(range(-a.ndim, 0)) if axes is None else axes, True)


def ifftn(a: Array, axes: tuple[int, ...] | None = None) -> ComplexArray:
    """Inverse (= adjoint) of :func:`fftn`; returns a new array."""
    return _transform(a, tuple(range(-a.ndim, 0)) if axes is None else axes, False)


@lru_cache(maxsize=16)
def inplace_plan_addresses(ny: int, nx: int) -> tuple[int, int]:
    """Return FFTW's own addresses of a forward and a backward plan for compiled kernels; they live with the process.

    The plans transform one complex64 array (ny, nx) in place, not normalised; its data must be aligned to 64 bytes.
    Planned patiently, but for at most six seconds each: the patience gains up to 1.7 times on 256². FFTW chooses by
    timing, and beside other work it chose plans half as fast: of several choices the fastest one is kept.
    """
    with _PLANNING:
        before, best = pyfftw.export_wisdom()[1], (math.inf, b"")
        begun, tries = time.perf_counter(), 0
        while tries < _TRIES and time.perf_counter() - begun < _TRIES * _PLANNING_SECONDS:
            _know(before)
            pair, wisdom = _plan_pair(ny, nx), pyfftw.export_wisdom()[1]
            best, tries = min(best, (_seconds(pair, ny, nx), wisdom)), tries + 1
        _know(best[1])
        return _plan_pair(ny, nx)


def _plan_pair(ny: int, nx: int) -> tuple[int, int]:
    plan, limit = _FFTW.fftwf_plan_dft_2d, _FFTW.fftwf_set_timelimit
    plan.restype = ctypes.c_void_p
    plan.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint]
    limit.restype, limit.argtypes = None, [ctypes.c_double]
    buffer = aligned_empty((ny, nx), np.complex64)
    at = buffer.ctypes.data
    limit(_PLANNING_SECONDS)
    pair = plan(ny, nx, at, at, _FORWARD, _PATIENT), plan(ny, nx, at, at, _BACKWARD, _PATIENT)
    limit(-1.0)
    return pair


def _seconds(pair: tuple[int, int], ny: int, nx: int) -> float:
    """Return the least time of a forward and a backward transform."""
    execute = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(execute_address())
    buffer, times = aligned_empty((ny, nx), np.complex64), []
    buffer[...] = 0
    for _ in range(_TIMINGS):
        start = time.perf_counter()
        for plan in pair:
            execute(plan, buffer.ctypes.data, buffer.ctypes.data)
        times.append(time.perf_counter() - start)
    return min(times)


def _know(wisdom: bytes) -> bool:
    """Forget all that FFTW learned but ``wisdom``; False if it cannot be read."""
    pyfftw.forget_wisdom()
    return bool(pyfftw.import_wisdom((b"", wisdom, b""))[1])


def plan_wisdom(ny: int, nx: int) -> bytes:
    """Plan what :func:`inplace_plan_addresses` gives and return what FFTW learned, for :func:`use_wisdom` elsewhere.

    This process uses it too from now on: what FFTW learned in limited time leads to other plans than it found first.
    """
    inplace_plan_addresses(ny, nx)
    wisdom = bytes(pyfftw.export_wisdom()[1])
    use_wisdom(wisdom)
    return wisdom


def use_wisdom(wisdom: bytes) -> bool:
    """Let this process choose the plans of another one, so that both round alike; False if FFTW cannot read it.

    All that this process planned before is forgotten.
    """
    with _PLANNING:
        known = _know(wisdom)
        _kept_plan.cache_clear()
        inplace_plan_addresses.cache_clear()
    return known


def execute_address() -> int:
    """Return the address of FFTW's ``fftwf_execute_dft(plan, in, out)``."""
    return int(ctypes.cast(_FFTW.fftwf_execute_dft, ctypes.c_void_p).value or 0)
