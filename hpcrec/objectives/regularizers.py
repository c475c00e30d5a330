"""Proximal maps of penalties, of real volumes and of complex objects."""

from __future__ import annotations

import numpy as np

from hpcrec.backend.array import Array, FloatArray, array_module
from hpcrec.backend.kernels.variation import flatten_plane


def shrink_positive(values: FloatArray, threshold: float) -> FloatArray:
    """Return max(v − τ, 0): the proximal map of τ Σ v on v ≥ 0 (positivity, with sparsity for τ > 0)."""
    xp = array_module(values)
    return xp.maximum(values - values.dtype.type(threshold), 0)  # type: ignore[no-any-return]


def shrink(values: FloatArray, threshold: float) -> FloatArray:
    """Return sign(v) max(|v| − τ, 0): the proximal map of τ Σ |v| (Donoho, IEEE TIT 41 (1995) 613)."""
    xp = array_module(values)
    return xp.sign(values) * xp.maximum(xp.abs(values) - values.dtype.type(threshold), 0)  # type: ignore[no-any-return]


def total_variation(values: Array, axes: tuple[int, ...]) -> float:
    """Return TV(v) = Σ √(Σ_axes |∂v|²) with forward differences, zero beyond the last pixel."""
    squares = sum(_squared(_difference(values, axis)) for axis in axes)
    return float(np.sum(np.sqrt(squares), dtype=np.float64))


def flatten_variation(
    values: Array, weight: float, axes: tuple[int, ...], n_iterations: int, threads: int | None = None
) -> Array:
    """Return argmin_x ½ Σ|x − v|² + τ TV(x), the proximal map of the total variation, nearly.

    Fast gradient projection on the dual (Beck and Teboulle, IEEE Trans. Image Process. 18, 2419 (2009); Chambolle, J.
    Math. Imaging Vis. 20, 89 (2004)) in ``n_iterations`` steps; ``weight`` τ in units of the values, real or complex.
    Needs five arrays of the size of ``values`` for one axis, eight for two. A plane (y, x) along both axes and a
    stack along its first take the compiled way, in ``threads`` threads (default those of the process).
    """
    xp = array_module(values)
    axes = tuple(axis % values.ndim for axis in axes)
    if xp is np and values.dtype.char in "fdFD" and weight > 0:
        if values.ndim == 2 and axes == (0, 1):
            return flatten_plane(values, weight, True, n_iterations, threads)
        if axes == (0,):
            plane = values.reshape(len(values), -1)
            return flatten_plane(plane, weight, False, n_iterations, threads).reshape(values.shape)
    return _flattened(values, weight, axes, n_iterations)


def _flattened(values: Array, weight: float, axes: tuple[int, ...], n_iterations: int) -> Array:
    """Do the same with whole arrays: the twin of the compiled loops, and the way on a GPU."""
    xp = array_module(values)
    step = values.dtype.type(1 / (4 * len(axes)))
    dual = [xp.zeros_like(values) for _ in axes]
    ahead = [d.copy() for d in dual]
    inertia = 1.0
    for _ in range(n_iterations):
        found = _primal(values, weight, ahead, axes)
        moved = [a + step / values.dtype.type(weight) * _difference(found, axis) for a, axis in zip(ahead, axes)]
        size = xp.maximum(xp.sqrt(sum(_squared(m) for m in moved)), 1)
        moved = [m / size for m in moved]
        grown = 0.5 * (1 + np.sqrt(1 + 4 * inertia**2))
        ahead = [m + values.dtype.type((inertia - 1) / grown) * (m - d) for m, d in zip(moved, dual)]
        dual, inertia = moved, grown
    return _primal(values, weight, dual, axes)


def _primal(values: Array, weight: float, dual: list[Array], axes: tuple[int, ...]) -> Array:
    """Return v − τ Σ ∂ᵀp."""
    found = values.copy()
    for p, axis in zip(dual, axes):
        found -= values.dtype.type(weight) * _adjoint(p, axis)
    return found


def _squared(values: Array) -> FloatArray:
    return values.real**2 + values.imag**2 if values.dtype.kind == "c" else values**2  # type: ignore[no-any-return]


def _difference(values: Array, axis: int) -> Array:
    """Return the forward difference along ``axis``, of the same shape, zero at the end."""
    xp = array_module(values)
    found = xp.zeros_like(values)
    moved, inner = xp.moveaxis(found, axis, 0), xp.moveaxis(values, axis, 0)
    moved[:-1] = inner[1:] - inner[:-1]
    return found  # type: ignore[no-any-return]


def _adjoint(dual: Array, axis: int) -> Array:
    """Return the adjoint of :func:`_difference`."""
    xp = array_module(dual)
    found = xp.zeros_like(dual)
    moved, inner = xp.moveaxis(found, axis, 0), xp.moveaxis(dual, axis, 0)
    moved[1:] += inner[:-1]
    moved[:-1] -= inner[:-1]
    return found  # type: ignore[no-any-return]
