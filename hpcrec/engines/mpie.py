"""The momentum-accelerated ptychographic iterative engine, mPIE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hpcrec.backend.array import array_module
from hpcrec.engines.base import Engine, bounded
from hpcrec.engines.epie import EpieOptions, step_object, step_probe
from hpcrec.engines.sweeps import change_refined, finish_sweep, gradient_partial, prepare_state
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.partial import Partial, Total
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.models.windows import kick
from hpcrec.options import options
from hpcrec.refine.base import Refinement


@options
class MpieOptions(EpieOptions):
    """Options of mPIE: those of ePIE and its momentum.

    object_regularity, probe_regularity : γ, as in rPIE
    momentum : η, share of the velocity that is kept from one kick to the next
    kick : share of the velocity that is added to object and probe
    patterns_per_kick : patterns between two kicks; counted over sweeps
    """

    object_regularity: float = 0.1
    probe_regularity: float = 0.5
    momentum: float = 0.7
    kick: float = 0.7
    patterns_per_kick: int = 64


class Mpie(Engine):
    """mPIE (Maiden, Johnson and Li, Optica 4, 736 (2017)): rPIE with momentum.

    Each update is that of rPIE. After every T patterns, with B the object as the last kick left it: v ← ηv + O − B;
    O ← O + κv; B ← O; the same for the probe. The publication has κ = η. Serial with ``batch_size = 1``; in batches a
    kick follows the batch that completes T patterns, whoever holds them.
    """

    Options = MpieOptions
    default_batch_size = 8
    divided = ("update",)
    copies = staticmethod(lambda options, windowed: (3.0, 3.0 if windowed else bounded(options, 5.6)))

    def __init__(self, model: PtychographyModel, options: MpieOptions, refinements: Sequence[Refinement] = ()) -> None:
        self._model, self._options, self._refinements = model, options, refinements

    def prepare(self, state: PtychographyState) -> None:
        """Begin with velocities of zero."""
        prepare_state(state, self._refinements)
        for memory, like, prefix in ((state.object_memory, state.obj, ""), (state.memory, state.probe, "probe_")):
            memory.setdefault(f"{prefix}velocity", np.zeros_like(like))
            memory.setdefault(f"{prefix}before", like.copy())
        state.memory.setdefault("patterns_since_kick", np.zeros(1))

    def accumulate(self, name: str, state: PtychographyState, batch: Batch) -> Partial:
        """Return numerators and weights of a share, and how many patterns it has."""
        partial = gradient_partial(self._model, state, batch, self._options, self._refinements, windowed=True)
        counted = {"patterns": np.array([float(len(batch.indices))])}
        return replace(partial, sums=partial.sums | counted)

    def apply(self, name: str, state: PtychographyState, total: Total) -> None:
        """Update object and probe, each with the other one as it was; kick them when it is time."""
        step_object(state, total, self._options, self._model.curvature)
        step_probe(state, total, self._options, self._model.curvature)
        change_refined(state, total, self._refinements)
        state.memory["patterns_since_kick"] = state.memory["patterns_since_kick"] + total.sums["patterns"]
        if state.memory["patterns_since_kick"][0] >= self._options.patterns_per_kick:
            state.memory["patterns_since_kick"] = np.zeros(1)
            self._kick(state)

    def finish_iteration(self, state: PtychographyState) -> None:
        """Orthogonalise the modes, fix scale and drift."""
        momenta = ("probe_velocity", "probe_before")
        finish_sweep(state, self._options, self._refinements, momenta, scaled=("velocity", "before"))

    def _kick(self, state: PtychographyState) -> None:
        chosen, threads = self._options, self._model.threads
        memory, small = state.object_memory, state.memory
        state.probe = array_module(state.probe).ascontiguousarray(state.probe)
        for arrays, bound in (
            ((state.obj, memory["velocity"], memory["before"]), chosen.object_constraint),
            ((state.probe, small["probe_velocity"], small["probe_before"]), "none"),
        ):
            kick(*arrays, momentum=chosen.momentum, share=chosen.kick, bound=bound, threads=threads)
