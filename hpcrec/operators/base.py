"""Linear maps with exact adjoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from hpcrec.backend.array import Array


class LinearOperator(ABC):
    """A linear map from arrays of shape ``domain`` to arrays of shape ``range``; ``dtype`` is that of both."""

    domain: tuple[int, ...]
    range: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def apply(self, a: Array) -> Array:
        """Return A a, of shape ``range``."""

    @abstractmethod
    def adjoint(self, b: Array) -> Array:
        """Return Aᴴ b, of shape ``domain``: ⟨A a, b⟩ = ⟨a, Aᴴ b⟩."""

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """Return the map that applies ``other`` first."""
        return Composition(self, other)


class Composition(LinearOperator):
    """The map a ↦ outer(inner(a))."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        if outer.domain != inner.range:
            raise ValueError(f"cannot compose: the outer map takes {outer.domain}, the inner one gives {inner.range}")
        self._outer, self._inner = outer, inner
        self.domain, self.range, self.dtype = inner.domain, outer.range, outer.dtype

    def apply(self, a: Array) -> Array:
        """Return outer(inner(a))."""
        return self._outer.apply(self._inner.apply(a))

    def adjoint(self, b: Array) -> Array:
        """Return innerᴴ(outerᴴ(b))."""
        return self._inner.adjoint(self._outer.adjoint(b))


def dot_test(operator: LinearOperator, rng: np.random.Generator) -> float:
    """Return |⟨A a, b⟩ − ⟨a, Aᴴ b⟩| / (‖A a‖ ‖b‖) for random a and b: round-off if the adjoint is exact."""
    a, b = (_random(shape, operator.dtype, rng) for shape in (operator.domain, operator.range))
    image, back = operator.apply(a), operator.adjoint(b)
    left = complex(np.vdot(image.astype(np.complex128), b))
    right = complex(np.vdot(a, back.astype(np.complex128)))
    return float(abs(left - right) / (np.linalg.norm(image) * np.linalg.norm(b)))


def _random(shape: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
    values = rng.standard_normal(shape)
    return (values + 1j * rng.standard_normal(shape) if dtype.kind == "c" else values).astype(dtype)
