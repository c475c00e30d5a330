"""A stand-in for CuPy where there is no GPU: arrays of their own class that mix with NumPy's as little as CuPy's do.

NumPy does the arithmetic. As in CuPy, functions and operators take no NumPy arrays (numbers are fine), nothing turns
into a NumPy array but by ``get``, reductions give arrays of no dimension, and what a module lacks is an AttributeError.
Stricter than CuPy: NumPy arrays are no indices and cannot be assigned. ``empty`` holds what no test may survive.
The stand-in says nothing of streams, races, memory or speed.
"""

import functools
from types import ModuleType, SimpleNamespace

import numpy as np

IMPLICIT = (
    "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
)
# All of them are in CuPy, as test_real_cupy.py sees where that is installed
NAMES = """
abs absolute add all any arange argmax ascontiguousarray bitwise_and bitwise_or clip concatenate conj conjugate copy
cos diff divide equal exp full greater greater_equal hypot invert isfinite left_shift less less_equal log logical_and
logical_not matmul max maximum mean min minimum moveaxis multiply negative not_equal ones ones_like positive power
prod repeat reshape roll sign sin sqrt square stack subtract sum take tensordot transpose true_divide vdot zeros
zeros_like
"""
KNOWN = NAMES.split()
UFUNCS = {name for name in KNOWN if isinstance(getattr(np, name), np.ufunc)}
# Keyword arguments that CuPy's element-wise functions take, and those that its other functions lack of NumPy's
OF_UFUNCS = {"out", "dtype", "casting"}
OF_NUMPY_ALONE = {"where", "initial", "subok", "signature", "like", "device", "mode", "min", "max"}


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):  # noqa: N801 - the name that CuPy has
    """An array on the pretended device; ``_host`` is its memory, which only this file may touch."""

    __array_priority__ = 100

    def __init__(self, host):
        assert isinstance(host, np.ndarray)
        self._host = host

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(lambda self: self._host.flags)
    real = property(lambda self: ndarray(self._host.real))
    imag = property(lambda self: ndarray(self._host.imag))
    T = property(lambda self: ndarray(self._host.T))
    # Kernels that the CPU runs take the host's addresses
    data = property(lambda self: SimpleNamespace(ptr=self._host.ctypes.data))

    def __array__(self, *args, **kwargs):
        raise TypeError(IMPLICIT)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        # CuPy has no reduce, accumulate, … of NumPy's ufuncs
        if method != "__call__" or ufunc.__name__ not in UFUNCS:
            return NotImplemented
        if "out" in kwargs:
            (kwargs["out"],) = kwargs["out"]
        return _call(ufunc, *inputs, **kwargs)

    def __array_function__(self, func, types, args, kwargs):
        module = MODULE
        for name in func.__module__.split(".")[1:]:
            module = getattr(module, name, None)
        found = getattr(module, func.__name__, None)
        return NotImplemented if found is None else found(*args, **kwargs)

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (_wrapped(row) for row in self._host)

    def __getitem__(self, index):
        return _wrapped(self._host[_unwrapped(index)])

    def __setitem__(self, index, value):
        self._host[_unwrapped(index)] = _unwrapped(value)

    def __bool__(self):
        return bool(self._host)

    def __int__(self):
        return int(self._host)

    def __float__(self):
        return float(self._host)

    def __complex__(self):
        return complex(self._host)

    def __repr__(self):
        return f"device {self._host!r}"

    def get(self):
        """Copy to the host."""
        return self._host.copy()

    def set(self, values):
        """Copy from the host; the same type and shape only."""
        if not isinstance(values, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if values.dtype != self.dtype:
            raise TypeError(f"{values.dtype} array cannot be set to {self.dtype} array")
        if values.shape != self.shape:
            raise ValueError("Shape mismatch")
        self._host[...] = values

    def item(self):
        """Return the only number."""
        return self._host.item()

    def tolist(self):
        """Return Python numbers."""
        return self._host.tolist()

    def astype(self, dtype, copy=True):
        """Return another type."""
        return ndarray(self._host.astype(dtype, copy=copy))

    def view(self, dtype=None):
        """Return the same memory."""
        return ndarray(self._host.view() if dtype is None else self._host.view(dtype))

    def sum(self, axis=None, dtype=None, out=None, keepdims=False):
        """Return the sum."""
        return _call(np.sum, self, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    def mean(self, axis=None, dtype=None, out=None, keepdims=False):
        """Return the mean."""
        return _call(np.mean, self, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    def max(self, axis=None, out=None, keepdims=False):
        """Return the largest; CuPy knows no ``initial``."""
        return _call(np.max, self, axis=axis, out=out, keepdims=keepdims)

    def min(self, axis=None, out=None, keepdims=False):
        """Return the least; CuPy knows no ``initial``."""
        return _call(np.min, self, axis=axis, out=out, keepdims=keepdims)


def _method(name):
    def method(self, *args, **kwargs):
        return _call(getattr(np.ndarray, name), self, *args, **kwargs)

    return method


for _name in ("all", "any", "argmax", "conj", "copy", "ravel", "reshape", "transpose"):
    setattr(ndarray, _name, _method(_name))


def _wrapped(value):
    """Return what a function of NumPy gives, as CuPy has it: numbers are arrays of no dimension."""
    if isinstance(value, (tuple, list)):
        return type(value)(*map(_wrapped, value)) if hasattr(value, "_fields") else type(value)(map(_wrapped, value))
    return ndarray(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else value


def _unwrapped(value):
    """Return NumPy's form of an argument; raises TypeError for an array of NumPy."""
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (tuple, list)):
        return type(value)(map(_unwrapped, value))
    return value._host if isinstance(value, ndarray) else value


def _call(function, *args, **kwargs):
    lacking = OF_NUMPY_ALONE | ({"out"} if getattr(function, "__module__", "") == "numpy.fft" else set())
    unknown = kwargs.keys() - OF_UFUNCS if isinstance(function, np.ufunc) else kwargs.keys() & lacking
    if unknown:
        raise TypeError(f"{function.__name__}() got unexpected keyword arguments: {', '.join(sorted(unknown))}")
    out = kwargs.get("out")
    if out is not None and not isinstance(out, ndarray):
        raise TypeError(f"return arrays must be of this module, not {type(out)}")
    found = function(*map(_unwrapped, args), **{name: _unwrapped(value) for name, value in kwargs.items()})
    return out if out is not None else _wrapped(found)


def asarray(values, dtype=None):
    """Copy to the device what is not there."""
    if isinstance(values, ndarray):
        return values if dtype is None else values.astype(dtype, copy=False)
    made = np.array(values, dtype)
    if made.dtype.kind not in "biufc" or not made.dtype.isnative:
        raise ValueError(f"Unsupported dtype {made.dtype}")
    return ndarray(made)


def where(condition, x, y):
    """Choose; the condition must be an array, as ``cupy.where`` asks it for ``astype``."""
    if not isinstance(condition, (ndarray, np.ndarray)):
        raise AttributeError(f"{type(condition).__name__!r} object has no attribute 'astype'")
    return _call(np.where, condition, x, y)


def empty(shape, dtype=float):
    """Return not-a-numbers, the largest integer, or True."""
    made = np.empty(shape, dtype)
    made.fill(np.iinfo(made.dtype).max if made.dtype.kind in "iu" else np.nan)
    return ndarray(made)


def _make_module():
    module = ModuleType("cupy")
    module.ndarray, module.asarray, module.where, module.empty = ndarray, asarray, where, empty
    for name in KNOWN:
        setattr(module, name, functools.partial(_call, getattr(np, name)))
    module.fft, module.linalg = ModuleType("cupy.fft"), ModuleType("cupy.linalg")
    for name in ("fft2", "ifft2", "fftn", "ifftn", "fftfreq"):
        setattr(module.fft, name, functools.partial(_call, getattr(np.fft, name)))
    for name in ("eigh", "norm"):
        setattr(module.linalg, name, functools.partial(_call, getattr(np.linalg, name)))
    return module


MODULE = _make_module()
