"""The first ptychographic iterative engine, PIE: the object under a known probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hpcrec.engines.base import Engine, bounded, of_update
from hpcrec.engines.sweeps import (
    NEVER,
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
from hpcrec.options import options
from hpcrec.refine.base import Refinement


@options
class PieOptions(SweepOptions):
    """Options of PIE, beside those of all engines; ``probe_start`` is not read, since the probe stays as given.

    object_step : β
    object_regularity : α, what is added to the illumination, as a share of its peak
    """

    object_step: float = 1.0
    object_regularity: float = 0.1


class Pie(Engine):
    """PIE (Faulkner and Rodenburg, Phys. Rev. Lett. 93, 023903 (2004); Rodenburg and Faulkner, Appl. Phys. Lett. 85,
    4795 (2004)).

    Over the batch B, with revised exit waves φ + χ, W = Σ_B |ψ|² and I = max |P|²:
    O += β √min(W/I, 1) Σ_B ψ*χ / (W + αI). A batch of one pattern is the published serial weight
    |P| P* / (max|P| (|P|² + α max|P|²)); in larger ones, crowded places take the weighted mean.
    """  # noqa: D205

    Options = PieOptions
    default_batch_size = 8
    divided = ("update",)
    moves_probe = False
    copies = staticmethod(lambda options, windowed: (1.0, 1.0 if windowed else bounded(options, 4.5)))
    box_copies = staticmethod(of_update(copies))

    def __init__(self, model: PtychographyModel, options: PieOptions, refinements: Sequence[Refinement] = ()) -> None:
        self._model, self._refinements = model, refinements
        self._options = replace(options, probe_start=NEVER)

    def prepare(self, state: PtychographyState) -> None:
        """Let refinements begin."""
        prepare_state(state, self._refinements)

    def accumulate(self, name: str, state: PtychographyState, batch: Batch) -> Partial:
        """Return numerators (as gradients, −Σψ*χ) and weights of a share."""
        return gradient_partial(self._model, state, batch, self._options, self._refinements, windowed=True)

    def apply(self, name: str, state: PtychographyState, total: Total) -> None:
        """Update the object."""
        chosen = self._options
        peak = float((np.abs(state.probe) ** 2).sum(axis=0).max())
        # All slices move at once and to first order alike, so each takes its share of the step
        step, floor = chosen.object_step / (self._model.curvature * state.n_slices), chosen.object_regularity * peak
        if total.windows is not None:
            bound = chosen.object_constraint
            total.windows.weigh_by_root(state.obj, peak=peak or 1.0, floor=floor, step=step, bound=bound)
        elif peak > 0 and not total.fields["object_gradient"].box.empty:
            field, weight = total.fields["object_gradient"], total.fields["illumination"].values
            share = weight / peak
            np.sqrt(np.minimum(share, 1, out=share), out=share)
            # Without a floor, pixels of the box that no pattern lights would be 0 / 0
            share /= np.maximum(weight + floor, np.finfo(weight.dtype).tiny)
            change_object(state, field.box, np.multiply(field.values, -step * share))
            constrain_object(state, field.box, weight > 0, chosen.object_constraint)
        change_refined(state, total, self._refinements)

    def finish_iteration(self, state: PtychographyState) -> None:
        """Let refinements end their sweep."""
        finish_sweep(state, self._options, self._refinements)
