"""Preconditioned gradient descent with Nesterov momentum or Adam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, array_module, real_dtype
from hpcrec.backend.kernels.updates import precondition, step_with_momentum
from hpcrec.engines.base import StreamingEngine, bounded, of_update
from hpcrec.engines.sweeps import (
    SweepOptions,
    change_object,
    change_refined,
    constrain_object,
    darken_round_off,
    finish_sweep,
    gradient_partial,
    prepare_state,
    round_off,
)
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.partial import Field, Partial, Total
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.models.stream import StepRule
from hpcrec.models.windows import WindowSums
from hpcrec.options import options
from hpcrec.refine.base import Refinement

_SECOND_DECAY = 0.999
_ADAM_FLOOR = 1e-8


@options
class GradientOptions(SweepOptions):
    """Options of the gradient engine, beside those of all engines.

    method : "nesterov" takes preconditioned steps with momentum, "adam" steps of adaptive size
    object_step : nesterov: 1 is the step of least squares; adam: change of the transmission in one update.
        None takes 0.5 and 0.01
    probe_step : the same for the probe; adam: in units of the probe's rms. None takes 0.5 and 0.01
    momentum : share of the last change that is kept
    weight_floor : share a of the largest illumination in the preconditioner √(((1−a)W)² + (a W_max)²)
    """

    method: Literal["nesterov", "adam"] = "nesterov"
    object_step: float | None = None
    probe_step: float | None = None
    momentum: float = 0.8
    weight_floor: float = 0.3


def _copies(options: GradientOptions, windowed: bool) -> tuple[float, float]:
    if options.method == "adam":
        return 2.5, 2.5 if windowed else 8.6
    return 2.0, 2.0 if windowed else bounded(options, 4.6)


def _box_copies(options: GradientOptions, windowed: bool) -> tuple[float, float]:
    """Return the copies of the box of a batch among those: the change, and what it is made of."""
    return (0.0, 0.0) if options.method == "adam" else of_update(_copies)(options, windowed)


class GradientEngine(StreamingEngine):
    """Descends the loss on object, probe and positions.

    The object's gradient is divided by √(((1−a)W)² + (a W_max)²), W the batch's illumination of the slice (py4DSTEM
    has the like: Varnavides et al., arXiv:2309.05250), the probe's by the largest Σ|O|². Nesterov (1983) momentum in
    the form v ← μv + u, z ← z + u + μv with the preconditioned step u; Adam (Kingma and Ba, arXiv:1412.6980) with |g|²
    as second moment. Momenta move only on pixels that the batch illuminates, so ranks' boxes do not change the result.
    """

    Options = GradientOptions
    default_batch_size = 64
    divided = ("update",)
    peaks = {"update": ("illumination",)}
    copies = staticmethod(_copies)
    box_copies = staticmethod(_box_copies)

    def __init__(
        self, model: PtychographyModel, options: GradientOptions, refinements: Sequence[Refinement] = ()
    ) -> None:
        self._model, self._options, self._refinements = model, options, refinements
        default = 0.5 if options.method == "nesterov" else 0.01
        self._object_step = default if options.object_step is None else options.object_step
        self._probe_step = default if options.probe_step is None else options.probe_step

    def prepare(self, state: PtychographyState) -> None:
        """Fill the momenta with zeros where they lack."""
        prepare_state(state, self._refinements)
        xp, real = array_module(state.obj), real_dtype(state.obj.dtype)
        for memory, like in ((state.object_memory, state.obj), (state.memory, state.probe)):
            prefix = "" if memory is state.object_memory else "probe_"
            memory.setdefault(f"{prefix}velocity", xp.zeros_like(like))
            if self._options.method == "adam":
                memory.setdefault(f"{prefix}square", xp.zeros(like.shape, real))
                state.memory.setdefault("updates", np.zeros(2))

    def accumulate(self, name: str, state: PtychographyState, batch: Batch) -> Partial:
        """Return gradients and weights of a share."""
        return gradient_partial(self._model, state, batch, self._options, self._refinements, windowed=True)

    def apply(self, name: str, state: PtychographyState, total: Total) -> None:
        """Take one step."""
        if total.peaks["illumination"] > 0:
            self._step_object(state, total)
        largest = float(total.sums["object_weight"].max()) if "probe_gradient" in total.sums else 0.0
        if largest > 0:
            self._step_probe(state, total.sums["probe_gradient"], largest)
        change_refined(state, total, self._refinements)

    def step_rule(self, state: PtychographyState) -> StepRule | None:
        """Return the rule of steps with momentum, unless refinements are due."""
        chosen, curvature = self._options, self._model.curvature
        if chosen.method != "nesterov" or any(refinement.due(state) for refinement in self._refinements):
            return None
        return StepRule(
            share=1 - chosen.weight_floor,
            floor_share=chosen.weight_floor,
            floor_of="illumination",
            scale=-self._object_step / (curvature * state.n_slices),
            curvature=curvature,
            quadratic=True,
            dark_share=round_off(state.obj.dtype, 1.0),
            bound=chosen.object_constraint,
            moves_probe=chosen.probe_due(state),
            probe_step=self._probe_step,
            probe_regularity=1.0,
            velocity="velocity",
            momentum=chosen.momentum,
        )

    def finish_iteration(self, state: PtychographyState) -> None:
        """Orthogonalise the modes, fix scale and drift."""
        finish_sweep(state, self._options, self._refinements, momenta=("probe_velocity",))

    def _step_object(self, state: PtychographyState, total: Total) -> None:
        chosen, peak = self._options, total.peaks["illumination"]
        # All slices move at once and to first order alike, so each takes its share of the step
        floor, scale = chosen.weight_floor, -self._object_step / (self._model.curvature * state.n_slices)
        if total.windows is not None and chosen.method == "adam":
            state.memory["updates"][0] += 1
            self._adam_windows(state, total.windows, round_off(state.obj.dtype, peak))
            return
        if total.windows is not None:
            total.windows.step(
                state.obj,
                share=1 - floor,
                floor=floor * peak,
                scale=scale,
                quadratic=True,
                dark=round_off(state.obj.dtype, peak),
                velocity=state.object_memory["velocity"],
                momentum=chosen.momentum,
                bound=chosen.object_constraint,
            )
            return
        field, weight = total.fields["object_gradient"], total.fields["illumination"].values
        darken_round_off(weight, peak)
        if chosen.method == "adam":
            state.memory["updates"][0] += 1
            self._adam_object(state, field, weight > 0)
        else:
            change = precondition(field.values, weight, 1 - floor, floor * peak, scale, quadratic=True)
            rows, columns = field.box.slices(state.box)
            velocity = state.object_memory["velocity"]
            corner = (rows.start, columns.start)
            step_with_momentum(state.obj, velocity, change, weight, corner, chosen.momentum)
        constrain_object(state, field.box, weight > 0, chosen.object_constraint)

    def _adam_windows(self, state: PtychographyState, windows: WindowSums, dark: float) -> None:
        first, n = self._options.momentum, int(state.memory["updates"][0])
        step, correction = self._object_step / (1 - first**n), 1 / (1 - _SECOND_DECAY**n)
        windows.adam(
            state.obj,
            state.object_memory["velocity"],
            state.object_memory["square"],
            numbers=(first, 1 - first, _SECOND_DECAY, 1 - _SECOND_DECAY, step, correction, _ADAM_FLOOR, dark),
            bound=self._options.object_constraint,
        )

    def _adam_object(self, state: PtychographyState, field: Field, touched: BoolArray) -> None:
        index = (slice(None), *field.box.slices(state.box))
        memory = {name: values[index] for name, values in state.object_memory.items()}
        change = self._adam(field.values, memory, "", int(state.memory["updates"][0]))
        xp = array_module(change)
        for name, values in memory.items():
            state.object_memory[name][index] = xp.where(touched, values, state.object_memory[name][index])
        change_object(state, field.box, xp.where(touched, -self._object_step * change, 0))

    def _step_probe(self, state: PtychographyState, gradient: ComplexArray, largest: float) -> None:
        if self._options.method == "adam":
            state.memory["updates"][1] += 1
            change: Array = self._adam(gradient, state.memory, "probe_", int(state.memory["updates"][1]))
            change = change * float(np.sqrt(np.mean(abs(state.probe) ** 2)))
        else:
            u, momentum = gradient / (largest * self._model.curvature), self._options.momentum
            state.memory["probe_velocity"] = (momentum * state.memory["probe_velocity"] + u).astype(gradient.dtype)
            change = u + momentum * state.memory["probe_velocity"]
        state.probe = (state.probe - self._probe_step * change).astype(state.probe.dtype, copy=False)

    def _adam(self, g: ComplexArray, memory: dict[str, Array], prefix: str, n_updates: int) -> ComplexArray:
        xp, first = array_module(g), self._options.momentum
        mean = first * memory[f"{prefix}velocity"] + (1 - first) * g
        square = _SECOND_DECAY * memory[f"{prefix}square"] + (1 - _SECOND_DECAY) * (g.real**2 + g.imag**2)
        memory[f"{prefix}velocity"], memory[f"{prefix}square"] = mean, square
        size = xp.sqrt(square / (1 - _SECOND_DECAY**n_updates)) + _ADAM_FLOOR
        return mean / (1 - first**n_updates) / size  # type: ignore[no-any-return]
