"""The object of LSQ-ML in compact batches: sums over a sweep, one update at its end, and a momentum that fits."""

from __future__ import annotations

import numpy as np

from hpcrec.backend.array import ComplexArray, array_module, numbers_to_host, real_dtype
from hpcrec.backend.kernels.updates import precondition
from hpcrec.engines.descent import real_product
from hpcrec.engines.sweeps import constrain_object
from hpcrec.geometry.tiles import EMPTY_BOX, Box
from hpcrec.models.base import PtychographyState
from hpcrec.models.partial import Field, Partial, Total

_UPDATES = ("update_1", "update_2")


class SweepObject:
    """Numerators N = Σψ*χ and weights W of a sweep; O += α N / √(W² + (δ W_max)²), α the least step of its batches.

    Momentum (Odstrčil et al., Opt. Express 26, 3108 (2018)): where this update u correlates with the last two, by ρ₁
    and ρ₂ > 0, friction f is that of ρ_i = exp(−f i), fitted; v ← (1−f) v + u and O += gain · v. Else v is halved.
    """

    def __init__(self, weight_floor: float, gain: float, constraint: str) -> None:
        self._floor, self._gain, self._constraint = weight_floor, gain, constraint
        self._peak = 0.0

    def prepare(self, state: PtychographyState) -> None:
        """Begin with empty sums and no updates."""
        for name in ("sum", "velocity", *_UPDATES):
            state.object_memory.setdefault(name, np.zeros_like(state.obj))
        weight = array_module(state.obj).zeros(state.obj.shape, real_dtype(state.obj.dtype))
        state.object_memory.setdefault("sum_weight", weight)
        state.memory.setdefault("sweep_sums", np.array([0.0, np.inf]))
        state.memory.setdefault("update_sizes", np.zeros(2))

    def add(self, state: PtychographyState, total: Total, step: float, n_patterns: int) -> bool:
        """Add a batch's gradient (as −N) and weight, and its ``step``; return whether the sweep is complete."""
        field = total.fields["object_gradient"]
        index = (slice(None), *field.box.slices(state.box))
        state.object_memory["sum"][index] += field.values
        state.object_memory["sum_weight"][index] += total.fields["illumination"].values
        seen, least = state.memory["sweep_sums"].tolist()
        state.memory["sweep_sums"] = np.array([seen + n_patterns, min(least, step)])
        return bool(seen + n_patterns >= state.n_visited)

    def weights(self, state: PtychographyState) -> Partial:
        """Return the summed weight on this rank's core: the exchange finds its peak."""
        core = self._core(state)
        box = EMPTY_BOX if core.empty else core
        return Partial({"sum_weight": Field(box, state.object_memory["sum_weight"][self._index(state)].copy())})

    def take_peak(self, total: Total) -> None:
        """Keep the peak of the summed weight."""
        self._peak = total.peaks["sum_weight"]

    def products(self, state: PtychographyState) -> Partial:
        """Return Re⟨u, u⟩ and Re⟨u, u_i⟩ with the last two updates over this rank's core."""
        update, index = self._update(state), self._index(state)
        others = [update, *(state.object_memory[name] for name in _UPDATES)]
        return Partial({}, {"products": numbers_to_host([real_product(update[index], u[index]) for u in others])})

    def finish(self, state: PtychographyState, total: Total) -> None:
        """Update the object, with momentum; begin the next sums."""
        update, memory = self._update(state), state.object_memory
        size, *products = total.sums["products"].tolist()
        sizes = state.memory["update_sizes"]
        state.obj += update
        friction = fitted_friction(size, products, sizes.tolist())
        if friction is None:
            memory["velocity"] = 0.5 * memory["velocity"]
        else:
            memory["velocity"] = (1 - friction) * memory["velocity"] + update
            state.obj += self._gain * memory["velocity"]
        constrain_object(state, state.box, memory["sum_weight"] > 0, self._constraint)
        memory["update_2"], memory["update_1"] = memory["update_1"], update
        state.memory["update_sizes"] = np.array([size, sizes[0]])
        memory["sum"], memory["sum_weight"] = np.zeros_like(state.obj), np.zeros_like(memory["sum_weight"])
        state.memory["sweep_sums"] = np.array([0.0, np.inf])

    def _update(self, state: PtychographyState) -> ComplexArray:
        memory, floor = state.object_memory, self._floor * self._peak
        scale = -float(state.memory["sweep_sums"][1])
        return precondition(memory["sum"], memory["sum_weight"], 1.0, floor, scale, quadratic=True)

    def _core(self, state: PtychographyState) -> Box:
        return state.box if state.core is None else state.core

    def _index(self, state: PtychographyState) -> tuple[slice, ...]:
        return (slice(None), *self._core(state).slices(state.box))


def fitted_friction(size: float, products: list[float], sizes: list[float]) -> float | None:
    """Return f of ρ_i = exp(−f i), between 0 and 1, or None where updates are missing or do not correlate.

    ``size`` ⟨u, u⟩ of this update; ``products`` ⟨u, u_i⟩ and ``sizes`` ⟨u_i, u_i⟩ of the last two.
    """
    if size <= 0 or min(sizes) <= 0 or min(products) <= 0:
        return None
    logarithms = [np.log(p / np.sqrt(size * s)) for p, s in zip(products, sizes)]
    friction = -sum(i * value for i, value in enumerate(logarithms, 1)) / 5
    return float(np.clip(friction, 0, 1))
