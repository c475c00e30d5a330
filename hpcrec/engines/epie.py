"""The extended ptychographic iterative engine, ePIE, for one or many slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcrec.backend.kernels.updates import precondition
from hpcrec.engines.base import StreamingEngine, bounded, of_update
from hpcrec.engines.sweeps import (
    SweepOptions,
    change_object,
    change_refined,
    constrain_object,
    finish_sweep,
    gradient_partial,
    prepare_state,
)
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.partial import Partial, Total
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.models.stream import StepRule
from hpcrec.options import options
from hpcrec.refine.base import Refinement


@options
class EpieOptions(SweepOptions):
    """Options of ePIE, beside those of all engines.

    object_step : α, shared by the slices
    probe_step : β. The publication takes 1 for both; ½ each lets the two share one step and averages noise better
    object_regularity, probe_regularity : γ; 1 is ePIE, smaller values give rPIE, which moves dim places faster
    """

    object_step: float = 0.5
    probe_step: float = 0.5
    object_regularity: float = 1.0
    probe_regularity: float = 1.0


class Epie(StreamingEngine):
    """ePIE (Maiden and Rodenburg, Ultramicroscopy 109, 1256 (2009)), rPIE (Maiden et al., Optica 4, 736 (2017)).

    Over the batch B, with revised exit waves φ + χ:
    O += α Σ_B ψ*χ / ((1−γ) W + γ max(W, I)), W = Σ_B |ψ|², I = max |P|²;
    P += β Σ_B O*χ / ((1−γ) V + γ max V), V = Σ_B |O|².
    A batch of one pattern is the serial algorithm (one slice: max(W, I) = I); its sums are as small as the window. In a
    larger batch, places that one pattern lights take the serial step, places that many light take their weighted mean,
    and no bright spot elsewhere holds either back. Slices behind the first see χ carried back by the exact adjoint
    (instead of the revised waves of 3PIE, Maiden et al., J. Opt. Soc. Am. A 29, 1606 (2012)).
    """

    Options = EpieOptions
    default_batch_size = 8
    divided = ("update",)
    copies = staticmethod(lambda options, windowed: (1.0, 1.0 if windowed else bounded(options, 3.6)))
    box_copies = staticmethod(of_update(copies))

    def __init__(self, model: PtychographyModel, options: EpieOptions, refinements: Sequence[Refinement] = ()) -> None:
        self._model, self._options, self._refinements = model, options, refinements

    def prepare(self, state: PtychographyState) -> None:
        """Keep the start that gauges refer to."""
        prepare_state(state, self._refinements)

    def accumulate(self, name: str, state: PtychographyState, batch: Batch) -> Partial:
        """Return numerators (as gradients, −Σψ*χ) and weights of a share."""
        return gradient_partial(self._model, state, batch, self._options, self._refinements, windowed=True)

    def apply(self, name: str, state: PtychographyState, total: Total) -> None:
        """Update object and probe, each with the other one as it was."""
        curvature = self._model.curvature
        step_object(state, total, self._options, curvature)
        step_probe(state, total, self._options, curvature)
        change_refined(state, total, self._refinements)

    def step_rule(self, state: PtychographyState) -> StepRule | None:
        """Return the rule, unless refinements are due."""
        chosen, curvature = self._options, self._model.curvature
        if any(refinement.due(state) for refinement in self._refinements):
            return None
        return StepRule(
            share=1 - chosen.object_regularity,
            floor_share=chosen.object_regularity,
            floor_of="probe",
            scale=-chosen.object_step / (curvature * state.n_slices),
            curvature=curvature,
            quadratic=False,
            dark_share=0.0,
            bound=chosen.object_constraint,
            moves_probe=chosen.probe_due(state),
            probe_step=chosen.probe_step,
            probe_regularity=chosen.probe_regularity,
        )

    def finish_iteration(self, state: PtychographyState) -> None:
        """Orthogonalise the modes, fix scale and drift."""
        finish_sweep(state, self._options, self._refinements)


def step_object(state: PtychographyState, total: Total, chosen: EpieOptions, curvature: float) -> None:
    """Move the object by α Σψ*χ / ((1−γ) W + γ max(W, I)), a share of it in each slice, and constrain it."""
    peak, gamma = float((np.abs(state.probe) ** 2).sum(axis=0).max()), chosen.object_regularity
    # All slices move at once and to first order alike, so each takes its share of the step
    scale = -chosen.object_step / (curvature * state.n_slices)
    if total.windows is not None:
        bound = chosen.object_constraint
        total.windows.step(state.obj, share=1 - gamma, floor=gamma * peak, scale=scale, bound=bound)
        return
    field, weight = total.fields["object_gradient"], total.fields["illumination"].values
    if peak > 0 and not field.box.empty:
        change = precondition(field.values, weight, 1 - gamma, gamma * peak, scale, quadratic=False)
        change_object(state, field.box, change)
        constrain_object(state, field.box, weight > 0, chosen.object_constraint)


def step_probe(state: PtychographyState, total: Total, chosen: EpieOptions, curvature: float) -> None:
    """Move the probe by β ΣO*χ / ((1−γ) V + γ max V), if the sums are there."""
    if "probe_gradient" in total.sums and total.sums["object_weight"].max() > 0:
        gamma, weight = chosen.probe_regularity, total.sums["object_weight"]
        scale = ((1 - gamma) * weight + gamma * weight.max()) * curvature
        scale[scale == 0] = 1
        change = total.sums["probe_gradient"] * (chosen.probe_step / scale)
        state.probe = (state.probe - change).astype(state.probe.dtype, copy=False)
