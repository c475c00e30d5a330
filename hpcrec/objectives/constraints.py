"""Constraints on the object: pointwise projections onto what a transmission function may be."""

from __future__ import annotations

from collections.abc import Callable

from hpcrec.backend.array import ComplexArray, array_module

_TINY = 1e-20


def unconstrained(obj: ComplexArray) -> ComplexArray:
    """Return the object as it is."""
    return obj


def amplitude_bound(obj: ComplexArray) -> ComplexArray:
    """Return the object with |O| ≤ 1: nothing in the sample emits."""
    xp = array_module(obj)
    return obj / xp.maximum(xp.abs(obj), 1)  # type: ignore[no-any-return]


def phase_only(obj: ComplexArray) -> ComplexArray:
    """Return the object with |O| = 1: nothing absorbs; a zero stays zero."""
    xp = array_module(obj)
    return obj / xp.maximum(xp.abs(obj), _TINY)  # type: ignore[no-any-return]


CONSTRAINTS: dict[str, Callable[[ComplexArray], ComplexArray]] = {
    "none": unconstrained,
    "amplitude_bound": amplitude_bound,
    "phase_only": phase_only,
}
