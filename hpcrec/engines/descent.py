"""What engines share that search along a line: the gradient over all patterns, products over all pixels, the search.

Vectors have a part on the object and a part on the probe; they stand under one name in ``state.object_memory`` and,
with "probe_" in front, in ``state.memory``. "scaled:NAME" is the vector divided by the preconditioner.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, array_module, numbers_to_host
from hpcrec.backend.kernels.updates import precondition
from hpcrec.engines.base import DONE, Engine
from hpcrec.engines.sweeps import (
    SweepOptions,
    change_refined,
    constrain_object,
    finish_sweep,
    gradient_partial,
    prepare_state,
)
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.line import losses_along
from hpcrec.models.partial import Partial, Total
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.options import options
from hpcrec.refine.base import Refinement

Products = dict[tuple[str, str], float]
SCALED = "scaled:"
_MAX_SEARCHES = 8


@options
class DescentOptions(SweepOptions):
    """Options of engines that search along a line, beside those of all engines.

    weight_floor : share a of the largest illumination in the preconditioner √(((1−a)W)² + (a W_max)²)
    """

    weight_floor: float = 0.1


class DescentEngine(Engine):
    """Full-batch descent. Passes: "gradient"; "products" of vectors over the pixels; "line", until a step is found.

    The object's gradient is scaled by 1/(c S √(((1−a)W)² + (a W_max)²)), the probe's by 1/(c max Σ|O|²), with c the
    loss's curvature and S the number of slices, so that a step of 1 is about that of least squares. Vectors turn with
    the probe's modes, and take up the factor that fixes the probe's power.
    """

    passes = ("gradient", "products", "line")
    pixel_passes = ("products",)
    peaks = {"gradient": ("illumination",)}
    default_batch_size = 0
    full_batch = True
    divided = ("gradient",)
    copies = staticmethod(lambda options, windowed: (7.0, 12.0))

    def __init__(
        self, model: PtychographyModel, options: DescentOptions, refinements: Sequence[Refinement] = ()
    ) -> None:
        self._model, self._options, self._refinements = model, options, refinements
        # What pass "gradient" leaves for the others: its total, the preconditioner of object and probe
        self._total = Total({}, {})
        self._metric: tuple[Array, float] = (np.zeros(0), 0.0)
        # Of the search: the direction, the loss's slope along it, the steps to try, how often it was tried
        self._direction: tuple[ComplexArray, ComplexArray] = (np.zeros(0, complex), np.zeros(0, complex))
        self._slope = 0.0
        self._steps: list[float] = []
        self._searches = 0

    @abstractmethod
    def step_names(self) -> tuple[str, ...]:
        """Return the names of the vectors that are changes of object and probe."""

    @abstractmethod
    def gradient_names(self) -> tuple[str, ...]:
        """Return the names of the vectors that are gradients or differences of gradients, "gradient" among them."""

    @abstractmethod
    def take_gradient(self, state: PtychographyState, gradient: tuple[ComplexArray, ComplexArray]) -> None:
        """Put the new gradient in its place."""

    @abstractmethod
    def wanted_products(self, state: PtychographyState) -> list[tuple[str, str]]:
        """Return the pairs of vectors whose Re⟨u, v⟩ the direction needs."""

    @abstractmethod
    def direction(self, state: PtychographyState, products: Products) -> dict[str, float]:
        """Return the direction as factors of vectors; the product of each with "gradient" is among ``products``."""

    @abstractmethod
    def first_steps(self, state: PtychographyState) -> list[float]:
        """Return the steps that the search tries first."""

    @abstractmethod
    def judge(self, steps: Sequence[float], changes: Sequence[float], slope: float) -> tuple[float, list[float]]:
        """Return the step to take, or 0 and the steps to try next, from the ``changes`` of the loss at ``steps``."""

    @abstractmethod
    def moved(self, state: PtychographyState, step: float, change: tuple[ComplexArray, ComplexArray]) -> None:
        """Note the ``step`` and the ``change`` that it made; a step of 0: the search failed."""

    def prepare(self, state: PtychographyState) -> None:
        """Fill the vectors with zeros where they lack."""
        prepare_state(state, self._refinements)
        for name in (*self.step_names(), *self.gradient_names()):
            state.object_memory.setdefault(name, np.zeros_like(state.obj))
            state.memory.setdefault(f"probe_{name}", np.zeros_like(state.probe))
        # Whether the probe took part in the last update; updates since the start of the history; the last step
        state.memory.setdefault("search", np.array([0.0, 0.0, 1.0]))

    def accumulate(self, name: str, state: PtychographyState, batch: Batch) -> Partial:
        """Return gradients and weights of a share, products over this rank's core, or losses along the direction."""
        if name == "gradient":
            return gradient_partial(self._model, state, batch, self._options, self._refinements)
        if name == "products":
            found = [self._product(state, *pair) for pair in self.wanted_products(state)]
            return Partial({}, {"products": numbers_to_host(found)})
        return Partial({}, {"along": losses_along(self._model, state, batch, *self._direction, self._steps)})

    def apply(self, name: str, state: PtychographyState, total: Total) -> str | None:
        """Keep the gradient; choose the direction; search along it and take the step."""
        if name == "gradient":
            if total.peaks["illumination"] == 0:
                return DONE
            self._keep(state, total)
            return None
        if name == "products":
            self._choose(state, total.sums["products"])
            return None
        loss = float(self._total.sums["loss"][0])
        step, more = self.judge(self._steps, (total.sums["along"] - loss).tolist(), self._slope)
        self._searches += 1
        if not step and self._searches < _MAX_SEARCHES:
            self._steps = more
            return "line"
        self._move(state, step)
        change_refined(state, self._total, self._refinements)
        return None

    def finish_iteration(self, state: PtychographyState) -> None:
        """Orthogonalise the modes, fix scale and drift, of the vectors too."""
        names = [f"probe_{name}" for name in (*self.step_names(), *self.gradient_names())]
        if self._options.probe_due(state) and self._options.object_constraint == "none":
            power = float(np.sum(abs(state.probe) ** 2, dtype=np.float64))
            factor = float(np.sqrt(state.memory["probe_power"][0] / power)) if power > 0 else 1.0
            for name in self.gradient_names():
                state.object_memory[name] *= factor ** (1 / state.n_slices)
                state.memory[f"probe_{name}"] = state.memory[f"probe_{name}"] / factor
        finish_sweep(state, self._options, self._refinements, tuple(names), scaled=self.step_names())

    def vector(self, state: PtychographyState, name: str) -> tuple[ComplexArray, ComplexArray]:
        """Return the parts on object and probe of a vector."""
        bare = name.removeprefix(SCALED)
        obj = state.object_memory[bare]
        return obj if bare == name else np.multiply(obj, self._metric[0]), self._on_probe(state, name)

    def _on_probe(self, state: PtychographyState, name: str) -> ComplexArray:
        bare = name.removeprefix(SCALED)
        probe = state.memory[f"probe_{bare}"]
        return probe if bare == name else np.multiply(probe, self._metric[1])

    def _keep(self, state: PtychographyState, total: Total) -> None:
        field, weight = total.fields["object_gradient"], total.fields["illumination"].values
        index = (slice(None), *field.box.slices(state.box))
        floor = self._options.weight_floor
        scale = 1 / (self._model.curvature * state.n_slices)
        xp = array_module(state.obj)
        one = xp.ones(weight.shape, state.obj.dtype)
        inverse = precondition(one, weight, 1 - floor, floor * total.peaks["illumination"], scale, quadratic=True).real
        metric, gradient = xp.zeros(state.obj.shape, inverse.dtype), xp.zeros_like(state.obj)
        metric[index], gradient[index] = inverse, field.values
        probe, size = np.zeros_like(state.probe), 0.0
        if "probe_gradient" in total.sums:
            probe, size = total.sums["probe_gradient"], float(total.sums["object_weight"].max()) * self._model.curvature
        due = float(size > 0)
        if due != state.memory["search"][0]:
            state.memory["search"] = np.array([due, 0.0, 1.0])
        self._total, self._metric = total, (metric, 1 / size if size else 0.0)
        self.take_gradient(state, (gradient, probe))

    def _product(self, state: PtychographyState, first: str, second: str) -> Array:
        """Return Re⟨u, v⟩ over the object pixels of this rank's core, a number where the object lives."""
        index = (slice(None), *(state.box if state.core is None else state.core).slices(state.box))
        u, v = (state.object_memory[name.removeprefix(SCALED)][index] for name in (first, second))
        if second.startswith(SCALED):
            v = v * self._metric[0][index]
        return real_product(u, v)

    def _choose(self, state: PtychographyState, on_object: Array) -> None:
        pairs = self.wanted_products(state)
        on_probe = numbers_to_host([real_product(*(self._on_probe(state, name) for name in pair)) for pair in pairs])
        products: Products = dict(zip(pairs, (on_object + on_probe).tolist()))
        factors = self.direction(state, products)
        obj, probe = np.zeros_like(state.obj), np.zeros_like(state.probe)
        for name, factor in factors.items():
            parts = self.vector(state, name)
            obj += factor * parts[0]
            probe += factor * parts[1]
        self._direction = obj, probe
        self._slope = 2 * sum(
            f * products.get((n, "gradient"), products.get(("gradient", n), 0.0)) for n, f in factors.items()
        )
        self._steps, self._searches = self.first_steps(state), 0

    def _move(self, state: PtychographyState, step: float) -> None:
        before = state.obj, state.probe
        state.obj = (state.obj + step * self._direction[0]).astype(state.obj.dtype, copy=False)
        state.probe = (state.probe + step * self._direction[1]).astype(state.probe.dtype, copy=False)
        constrain_object(state, state.box, self._metric[0] > 0, self._options.object_constraint)
        _, count, last = state.memory["search"].tolist()
        state.memory["search"] = np.array([state.memory["search"][0], count + 1 if step else 0.0, step or last])
        self.moved(state, step, (state.obj - before[0], state.probe - before[1]))


def real_product(u: ComplexArray, v: ComplexArray) -> Array:
    """Return Re Σ u* v, summed in float64: a number where the vectors live."""
    found: Array = array_module(u).sum(u.real * v.real + u.imag * v.imag, dtype=np.float64)
    return found
