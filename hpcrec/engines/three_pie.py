"""3PIE: the ptychographic iterative engine for several slices, with revised waves between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hpcrec.backend.array import Array
from hpcrec.engines.base import Engine, bounded, of_update
from hpcrec.engines.epie import EpieOptions, step_object, step_probe
from hpcrec.engines.sweeps import NEVER, change_refined, finish_sweep, gradient_partial, loss_sums, prepare_state
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.partial import Field, Partial, Total
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.models.revised import revised_gradients
from hpcrec.options import options
from hpcrec.refine.base import Refinement


@options
class ThreePieOptions(EpieOptions):
    """Options of 3PIE: those of ePIE, and how the waves between slices are revised.

    object_step : α, shared by the slices
    wave_step : β of the waves in front of each slice
    wave_regularity : γ of their denominators (1−γ)|O|² + γ max|O|²
    """

    object_step: float = 1.0
    wave_step: float = 1.0
    wave_regularity: float = 1.0


class ThreePie(Engine):
    """3PIE (Maiden, Humphry and Rodenburg, J. Opt. Soc. Am. A 29, 1606 (2012)).

    From the last slice to the first, the revised wave behind a slice updates the slice, and the wave in front of it,
    which propagates back to the slice before; see :func:`hpcrec.models.revised.revised_gradients`. Slices and probe
    then take the steps of ePIE: serial with ``batch_size = 1``, in a larger batch by its sums. The publication takes
    the whole step in each slice; here the slices share it. For the exact gradient use "epie".
    """

    Options = ThreePieOptions
    default_batch_size = 8
    divided = ("update",)
    copies = staticmethod(lambda options, windowed: (1.0, 1.0 if windowed else bounded(options, 3.6)))
    box_copies = staticmethod(of_update(copies))

    def __init__(
        self, model: PtychographyModel, options: ThreePieOptions, refinements: Sequence[Refinement] = ()
    ) -> None:
        self._model, self._options, self._refinements = model, options, refinements

    def prepare(self, state: PtychographyState) -> None:
        """Keep the start that gauges refer to."""
        prepare_state(state, self._refinements)

    def accumulate(self, name: str, state: PtychographyState, batch: Batch) -> Partial:
        """Return numerators (as gradients) and weights of a share; refinements see the exact gradient."""
        chosen = self._options
        sums: dict[str, Array] = {}
        if any(r.due(state) for r in self._refinements):
            told = replace(chosen, probe_start=NEVER)
            sums |= gradient_partial(self._model, state, batch, told, self._refinements).sums
        steps = chosen.wave_step, chosen.wave_regularity
        found = revised_gradients(self._model, state, batch, *steps, windowed=state.windowed)
        fields = {
            "object_gradient": Field(found.box, found.obj),
            "illumination": Field(found.box, found.illumination),
        }
        sums |= loss_sums(found)
        if chosen.probe_due(state):
            sums |= {"probe_gradient": found.probe, "object_weight": found.object_weight}
        return Partial(fields if found.windows is None else {}, sums, found.windows)

    def apply(self, name: str, state: PtychographyState, total: Total) -> None:
        """Update object and probe, each with the other one as it was."""
        step_object(state, total, self._options, self._model.curvature)
        step_probe(state, total, self._options, self._model.curvature)
        change_refined(state, total, self._refinements)

    def finish_iteration(self, state: PtychographyState) -> None:
        """Orthogonalise the modes, fix scale and drift."""
        finish_sweep(state, self._options, self._refinements)
