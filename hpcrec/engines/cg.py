"""Maximum likelihood by conjugate gradients with an exact line search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcrec.backend.array import ComplexArray, FloatArray
from hpcrec.engines.descent import SCALED, DescentEngine, DescentOptions, Products
from hpcrec.models.base import PtychographyState
from hpcrec.options import options

_WIDER, _NARROWER = 3.0, 0.2
# A minimum nearer to the start than this share of the interval is looked at again in a smaller one
_RESOLVED = 0.15


@options
class CgOptions(DescentOptions):
    """Options of the conjugate gradients: those of all engines that search along a line."""


class ConjugateGradient(DescentEngine):
    """ML by conjugate gradients (Thibault and Guizar-Sicairos, New J. Phys. 14, 063004 (2012)).

    d ← −z + β d with the scaled gradient z = g/M and β = max(0, ⟨g − g_old, z⟩/⟨g_old, z_old⟩) (Polak and Ribière);
    object and probe are one vector. The step is the minimum of the polynomial through the loss at a few steps up to
    twice the last one, its value and its slope at the start. For the Gaussian loss and one slice the loss is a
    polynomial of eighth degree, and that is exact; else it has the fourth, and the interval moves until the minimum
    lies well inside.
    """

    Options = CgOptions

    def step_names(self) -> tuple[str, ...]:
        """Return the direction's name."""
        return ("direction",)

    def gradient_names(self) -> tuple[str, ...]:
        """Return the names of this gradient and the last one."""
        return ("gradient", "old_gradient")

    def take_gradient(self, state: PtychographyState, gradient: tuple[ComplexArray, ComplexArray]) -> None:
        """Let the last gradient be the old one."""
        state.object_memory["old_gradient"] = state.object_memory["gradient"]
        state.memory["probe_old_gradient"] = state.memory["probe_gradient"]
        state.object_memory["gradient"], state.memory["probe_gradient"] = gradient

    def wanted_products(self, state: PtychographyState) -> list[tuple[str, str]]:
        """Return what β and the slope need."""
        z = f"{SCALED}gradient"
        return [("gradient", z), ("old_gradient", z), ("gradient", "direction")]

    def direction(self, state: PtychographyState, products: Products) -> dict[str, float]:
        """Return −z + β d, or −z where that is no descent or the history begins."""
        z = f"{SCALED}gradient"
        size, mixed = products["gradient", z], products["old_gradient", z]
        before = float(state.memory.get("old_size", np.zeros(1))[0])
        state.memory["old_size"] = np.array([size])
        began = state.memory["search"][1] > 0 and before > 0
        beta = max(0.0, (size - mixed) / before) if began else 0.0
        if beta * products["gradient", "direction"] >= size:
            beta = 0.0
        return {z: -1.0, "direction": beta}

    def first_steps(self, state: PtychographyState) -> list[float]:
        """Return steps up to twice the last one."""
        return self._nodes(2 * float(state.memory["search"][2]), state.n_slices)

    def judge(self, steps: Sequence[float], changes: Sequence[float], slope: float) -> tuple[float, list[float]]:
        """Return the polynomial's minimum, or the nodes of a wider or narrower interval."""
        end = steps[-1]
        if not np.isfinite([*changes, slope]).all():
            return 0.0, [s * _NARROWER for s in steps]
        best, lowest = polynomial_minimum(np.array(steps), np.array(changes), slope)
        if lowest >= 0:
            return 0.0, [s * _NARROWER for s in steps]
        if best == end:
            return 0.0, [s * _WIDER for s in steps]
        if best < _RESOLVED * end:
            return 0.0, [s * 2 * best / end for s in steps]
        return best, []

    def moved(self, state: PtychographyState, step: float, change: tuple[ComplexArray, ComplexArray]) -> None:
        """Keep the direction."""
        state.object_memory["direction"], state.memory["probe_direction"] = self._direction

    def _nodes(self, end: float, n_slices: int) -> list[float]:
        polynomial = self._model.detector.loss == "gaussian" and n_slices == 1
        n = 7 if polynomial else 3
        return (end * np.sin(0.5 * np.pi * np.arange(1, n + 1) / n)).tolist()  # type: ignore[no-any-return]


def polynomial_minimum(steps: FloatArray, changes: FloatArray, slope: float) -> tuple[float, float]:
    """Return where a polynomial p is lowest in (0, last step], and its value there.

    p(0) = 0, p'(0) = ``slope``, p(steps) = ``changes``, of the lowest degree that does it.
    """
    end = steps[-1]
    at = steps / end
    powers = np.arange(2, len(steps) + 2)
    higher = np.linalg.solve(at[:, None] ** powers, changes - slope * end * at)
    p = np.polynomial.Polynomial(np.concatenate([[0.0, slope * end], higher]))
    roots = p.deriv().roots()
    inside = roots.real[(abs(roots.imag) < 1e-9) & (roots.real > 0) & (roots.real < 1)]
    candidates = np.append(inside, 1.0)
    best = candidates[np.argmin(p(candidates))]
    return float(best * end), float(p(best))
