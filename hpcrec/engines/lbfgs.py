"""The quasi-Newton method of limited memory, L-BFGS."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcrec.backend.array import ComplexArray
from hpcrec.engines.descent import SCALED, DescentEngine, DescentOptions, Products
from hpcrec.models.base import PtychographyState
from hpcrec.options import options

_ARMIJO = 1e-4
_NEAREST, _FARTHEST = 0.1, 0.5


@options
class LbfgsOptions(DescentOptions):
    """Options of L-BFGS, beside those of all engines that search along a line.

    history : pairs of changes of object and gradient that are kept; each takes two copies of the object
    """

    history: int = 5


class Lbfgs(DescentEngine):
    """L-BFGS (Nocedal, Math. Comput. 35, 773 (1980); Liu and Nocedal, Math. Program. 45, 503 (1989)).

    The two loops over the pairs s, y need products of vectors only, so that all of them come at once (Chen, Wang and
    Zhou, Adv. Neural Inf. Process. Syst. 27, 1332 (2014)) and the loops run on factors. They start from the
    preconditioner, times ⟨s, y⟩/⟨y, y/M⟩. Steps of 1 are tried first and shortened until the loss falls enough
    (Armijo); pairs of no curvature are left out.
    """

    Options = LbfgsOptions
    copies = staticmethod(lambda options, windowed: (6.0 + 2 * options.history, 11.0 + 2 * options.history))
    _options: LbfgsOptions

    def step_names(self) -> tuple[str, ...]:
        """Return the names of the changes s of object and probe."""
        return tuple(f"step_{i}" for i in range(self._options.history))

    def gradient_names(self) -> tuple[str, ...]:
        """Return the names of the gradient and of its changes y."""
        return ("gradient", *(f"change_{i}" for i in range(self._options.history)))

    def take_gradient(self, state: PtychographyState, gradient: tuple[ComplexArray, ComplexArray]) -> None:
        """Complete the newest pair."""
        if state.memory["search"][1] > 0:
            newest = f"change_{self._slots(state)[-1]}"
            state.object_memory[newest] = gradient[0] - state.object_memory["gradient"]
            state.memory[f"probe_{newest}"] = gradient[1] - state.memory["probe_gradient"]
        state.object_memory["gradient"], state.memory["probe_gradient"] = gradient

    def wanted_products(self, state: PtychographyState) -> list[tuple[str, str]]:
        """Return all products of steps with gradients, and of scaled gradients with gradients."""
        slots = self._slots(state)
        gradients = ["gradient", *(f"change_{i}" for i in slots)]
        pairs = [(f"step_{i}", g) for i in slots for g in gradients]
        return pairs + [(g, SCALED + h) for k, g in enumerate(gradients) for h in gradients[k:]]

    def direction(self, state: PtychographyState, products: Products) -> dict[str, float]:
        """Return −H g by the two loops."""

        def scaled(g: str, h: str) -> float:
            return products.get((g, SCALED + h), products.get((h, SCALED + g), 0.0))

        curvatures = {i: products[f"step_{i}", f"change_{i}"] for i in self._slots(state)}
        used = [i for i, c in curvatures.items() if c > 1e-10 * scaled(f"change_{i}", f"change_{i}") and c > 0]
        on_gradients = {"gradient": 1.0}
        shares: dict[int, float] = {}
        for i in reversed(used):
            shares[i] = sum(f * products[f"step_{i}", g] for g, f in on_gradients.items()) / curvatures[i]
            on_gradients[f"change_{i}"] = -shares[i]
        size = 1.0
        if used:
            newest = f"change_{used[-1]}"
            size = curvatures[used[-1]] / scaled(newest, newest)
        on_steps: dict[int, float] = {}
        for i in used:
            name = f"change_{i}"
            back = size * sum(f * scaled(name, g) for g, f in on_gradients.items())
            back += sum(f * products[f"step_{k}", name] for k, f in on_steps.items())
            on_steps[i] = shares[i] - back / curvatures[i]
        found = {SCALED + g: -size * f for g, f in on_gradients.items()}
        return found | {f"step_{i}": -f for i, f in on_steps.items()}

    def first_steps(self, state: PtychographyState) -> list[float]:
        """Return 1."""
        return [1.0]

    def judge(self, steps: Sequence[float], changes: Sequence[float], slope: float) -> tuple[float, list[float]]:
        """Return the step if the loss falls enough, else a shorter one by the parabola through what is known."""
        step, change = steps[0], changes[0]
        if slope < 0 and change <= _ARMIJO * step * slope:
            return step, []
        curvature = change - slope * step
        lowest = -0.5 * slope * step**2 / curvature if curvature > 0 else _FARTHEST * step
        return 0.0, [float(np.clip(lowest, _NEAREST * step, _FARTHEST * step))]

    def moved(self, state: PtychographyState, step: float, change: tuple[ComplexArray, ComplexArray]) -> None:
        """Keep the change as the newest step; its slot is that of the oldest pair."""
        if step:
            newest = f"step_{self._slots(state)[-1]}"
            state.object_memory[newest], state.memory[f"probe_{newest}"] = change

    def _slots(self, state: PtychographyState) -> list[int]:
        """Return the places of the pairs, oldest first."""
        count, size = int(state.memory["search"][1]), self._options.history
        return [k % size for k in range(max(0, count - size), count)]
