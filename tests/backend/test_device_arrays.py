"""The stand-in for CuPy refuses what CuPy refuses, else tests on it would prove nothing."""

import operator

import numpy as np
import pytest

from hpcrec.backend.array import array_module, to_host
from hpcrec.backend.fft import empty_beside, fft2, fft2_inplace, fftn, ifft2

HOST = np.arange(6.0).reshape(2, 3)
OPERATORS = (operator.add, operator.mul, operator.matmul, operator.lt, operator.iadd, operator.pow)


@pytest.mark.parametrize("operation", OPERATORS)
def test_arrays_of_both_kinds_do_not_mix(cupy, operation):
    there, square = cupy.asarray(np.ones((3, 3))), np.ones((3, 3))
    for pair in ((there, square), (square, there)):
        with pytest.raises(TypeError):
            operation(*pair)


@pytest.mark.parametrize(
    "call",
    [
        np.asarray,
        np.array,
        np.ascontiguousarray,
        lambda a: np.array([a[0, 0]]),
        lambda a: np.copyto(HOST.copy(), a),
        lambda a: HOST.copy().__setitem__(slice(None), a),
        lambda a: np.add(HOST, HOST, out=a),
        lambda a: np.add(a, a, out=HOST.copy()),
        lambda a: np.add.reduce(a),
        lambda a: np.concatenate([HOST, a]),
        lambda a: np.where(HOST > 0, a, a),
        lambda a: np.tensordot(HOST, a, axes=2),
        lambda a: a.__setitem__(slice(None), HOST),
        lambda a: a.max(initial=0),
        lambda a: np.sum(a, where=HOST > 0),
        lambda a: np.add(a, a, order="C"),
        lambda a: np.clip(a, min=0),
        lambda a: a.all(where=True),
        lambda a: np.fft.fft2(a, out=a),
    ],
)
def test_nothing_is_converted_in_silence(cupy, call):
    with pytest.raises(TypeError):
        call(cupy.asarray(HOST))


def test_a_condition_must_be_an_array(cupy):
    with pytest.raises(AttributeError):
        cupy.where(True, cupy.asarray(HOST), 0)


def test_bytes_in_another_order_are_refused(cupy):
    with pytest.raises(ValueError, match="dtype"):
        cupy.asarray(HOST.astype(">f8"))


def test_numbers_mix_and_functions_of_numpy_find_the_device(cupy):
    a = cupy.asarray(HOST)
    for found in (2 * a, np.float64(2) * a, a + a, np.add(a, a), np.multiply(a, 2, out=cupy.empty(HOST.shape))):
        assert isinstance(found, cupy.ndarray)
        np.testing.assert_array_equal(found.get(), 2 * HOST)
    total = np.sum(a)
    assert isinstance(total, cupy.ndarray)
    assert float(total) == HOST.sum()
    assert a[0, 0].shape == ()


def test_slices_are_views_and_get_copies(cupy):
    a = cupy.asarray(HOST)
    host = a.get()
    a[0] += 1
    a.real[1] *= 2
    np.testing.assert_array_equal(a.get(), [[1, 2, 3], [6, 8, 10]])
    np.testing.assert_array_equal(host, HOST)
    a.set(HOST)
    np.testing.assert_array_equal(a.get(), HOST)


def test_new_memory_holds_no_zeros(cupy):
    assert np.isnan(cupy.empty((2, 2), np.complex64).get()).all()
    for dtype in (np.uint16, np.int64, bool):
        assert cupy.empty(2, dtype).get().all()


def test_the_library_of_an_array(cupy):
    assert array_module(cupy.asarray(HOST)) is array_module(HOST, cupy.asarray(HOST)) is cupy
    assert array_module(HOST) is np
    assert to_host(HOST) is HOST
    np.testing.assert_array_equal(to_host(cupy.asarray(HOST)), HOST)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.complex128])
def test_transforms_are_those_of_the_host(cupy, dtype):
    a = (HOST + 1j if np.dtype(dtype).kind == "c" else HOST).astype(dtype)
    there = cupy.asarray(a)
    for transform in (fft2, ifft2, fftn):
        wanted, found = transform(a), transform(there)
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found.get(), wanted, rtol=1e-6 if wanted.dtype == np.complex64 else 1e-14)
    np.testing.assert_array_equal(there.get(), a)
    if np.dtype(dtype).kind == "c":
        room = empty_beside(there, there.shape)
        room[...] = there
        assert fft2_inplace(room) is room
        np.testing.assert_allclose(room.get(), fft2(a), rtol=1e-6)
