"""FFTW's plans: the process that plans and those that it tells round alike."""

import ctypes
import subprocess
import sys
import tracemalloc
from hashlib import sha256

import numpy as np
import pytest

from hpcrec.backend import fft

SHAPE = (120, 96)
TRIES = 3


@pytest.fixture(autouse=True)
def all_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the choice among several plans is tested too."""
    monkeypatch.setattr(fft, "_TRIES", TRIES)


def transformed() -> bytes:
    """The hash of both transforms of the same numbers, by the plans in use and by those of fft2."""
    start = np.random.default_rng(0).standard_normal((*SHAPE, 2)).astype(np.float32).view(np.complex64)[..., 0]
    a = fft.aligned_empty(SHAPE, np.complex64)
    a[...] = start
    execute = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(fft.execute_address())
    found = [fft.fft2(start[None]).tobytes()]
    for plan in fft.inplace_plan_addresses(*SHAPE):
        execute(plan, a.ctypes.data, a.ctypes.data)
        found.append(a.tobytes())
    return sha256(b"".join(found)).digest()


def told(wisdom: bytes) -> bytes:
    """The same in another process that was told the plans after it had made its own."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_fft; from hpcrec.backend import fft\n"
        "fft._PLANNING_SECONDS = 0.02\n"
        "test_fft.transformed()\n"
        "assert fft.use_wisdom(sys.stdin.buffer.read())\n"
        "sys.stdout.buffer.write(test_fft.transformed())"
    )
    folder = __file__.rpartition("/")[0]
    return subprocess.run([sys.executable, "-c", code, folder], input=wisdom, capture_output=True, check=True).stdout


def test_all_processes_round_as_the_one_that_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit; planning is cut short as it is for patterns of real size, where FFTW keeps what it began."""
    monkeypatch.setattr(fft, "_PLANNING_SECONDS", 0.2)
    fft.inplace_plan_addresses.cache_clear()
    transformed()
    wisdom = fft.plan_wisdom(*SHAPE)
    here = transformed()
    assert told(wisdom) == here
    assert fft.use_wisdom(wisdom)
    assert transformed() == here


@pytest.mark.parametrize("transform", [fft.fft2, fft.ifft2, fft.fftn, fft.ifftn])
def test_arrays_of_any_size_are_transformed_alike(transform, monkeypatch: pytest.MonkeyPatch) -> None:
    a = np.random.default_rng(1).standard_normal((3, 20, 18, 2)).view(np.complex128)[..., 0]
    small = transform(a)
    monkeypatch.setattr(fft, "_KEPT_BYTES", 0)
    np.testing.assert_array_equal(transform(a), small)
    name = {"fft2": "fftn", "ifft2": "ifftn"}.get(transform.__name__, transform.__name__)
    axes = (-2, -1) if transform.__name__.endswith("2") else None
    np.testing.assert_allclose(small, getattr(np.fft, name)(a, axes=axes, norm="ortho"), atol=1e-13)


def test_no_large_array_is_kept() -> None:
    """A plan holds the array that it worked on last: volumes and whole scans must not stay in memory."""
    tracemalloc.start()
    try:
        for rows in (300, 301, 302):
            fft.fftn(np.ones((rows, 64, 64), np.complex64), axes=(0,))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 300 * 64 * 64 * 8


def test_what_is_no_wisdom_is_refused() -> None:
    assert not fft.use_wisdom(b"(nonsense")


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_a_filter_in_place_is_two_transforms(cupy, dtype):
    """On a device in place too, with its norm in the factor; rounding to single or double precision."""
    rng = np.random.default_rng(6)
    a, factor = ((rng.normal(size=(3, 8, 12)) + 1j * rng.normal(size=(3, 8, 12))).astype(dtype) for _ in range(2))
    wanted = np.fft.ifft2(factor[0] * np.fft.fft2(a))
    host = fft.aligned_empty(a.shape, dtype)
    host[...] = a
    there = cupy.asarray(a)
    for found in (fft.filter_inplace(host, factor[0]), fft.filter_inplace(there, cupy.asarray(factor[0])).get()):
        assert found.dtype == dtype
        assert np.abs(found - wanted).max() <= 20 * np.finfo(dtype).eps * np.abs(wanted).max()
    assert np.abs(there.get() - wanted).max() <= 20 * np.finfo(dtype).eps * np.abs(wanted).max()
