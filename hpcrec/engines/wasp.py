"""The weighted average of sequential projections, WASP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hpcrec.backend.array import ComplexArray, FloatArray, array_module
from hpcrec.engines.base import Engine
from hpcrec.engines.epie import EpieOptions, step_object, step_probe
from hpcrec.engines.sweeps import change_refined, constrain_object, finish_sweep, gradient_partial, prepare_state
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.partial import Partial, Total
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.options import options
from hpcrec.refine.base import Refinement


@options
class WaspOptions(EpieOptions):
    """Options of WASP: those of rPIE for the steps in between, and the number of sub-sweeps.

    object_regularity, probe_regularity : γ, as in rPIE
    inertia : what the old object weighs in the average, as a share of the largest weight; holds the dim rim still
    groups : parts of a sweep that start from the same object and probe and are averaged; the job's choice, whatever
        the ranks
    """

    object_regularity: float = 0.1
    probe_regularity: float = 0.5
    inertia: float = 1e-3
    groups: int = 1


class Wasp(Engine):
    """WASP (Maiden, Mei and Li, Opt. Express 32, 21327 (2024)).

    The patterns of a sweep are visited in groups, each beginning with the object and probe of the last sweep; within a
    group updates follow each other as in rPIE. All revised exit waves φ + χ of the sweep then make, in one overlap
    projection, O = Σ ψ*(φ + χ) / Σ|ψ|² and P = Σ O*(φ + χ) / Σ|O|²; here with ψ*φ = |ψ|² O and the exact gradient for
    ψ*χ, the same for one slice and without sub-pixel shifts of the probe. Serial with ``batch_size = 1``; a larger
    batch moves as in the batch form of ePIE. Where groups end depends on batches alone.
    """

    Options = WaspOptions
    default_batch_size = 8
    divided = ("update",)
    peaks = {"update": ("illumination",)}
    # The average at the end of a sweep finds the windows' sums still there
    copies = staticmethod(lambda options, windowed: (7.1 if windowed else 4.5, 8.0))

    def __init__(self, model: PtychographyModel, options: WaspOptions, refinements: Sequence[Refinement] = ()) -> None:
        self._model, self._options, self._refinements = model, options, refinements

    def prepare(self, state: PtychographyState) -> None:
        """Begin with empty sums."""
        prepare_state(state, self._refinements)
        if "start" not in state.object_memory:
            self._begin_sweep(state)

    def accumulate(self, name: str, state: PtychographyState, batch: Batch) -> Partial:
        """Return numerators and weights of a share, and how many patterns it has."""
        partial = gradient_partial(self._model, state, batch, self._options, self._refinements, windowed=True)
        counted = {"patterns": np.array([float(len(batch.indices))])}
        return replace(partial, sums=partial.sums | counted)

    def apply(self, name: str, state: PtychographyState, total: Total) -> None:
        """Add the revised waves to the sums, and take the steps of rPIE; at the end of a group go back to the start."""
        curvature = self._model.curvature
        if state.memory["patterns_seen"][0] == 0:
            # Constraints may have changed both since the last sweep was finished
            self._keep_start(state)
        self._collect(state, total)
        step_object(state, total, self._options, curvature)
        step_probe(state, total, self._options, curvature)
        change_refined(state, total, self._refinements)
        before = self._group(state)
        state.memory["patterns_seen"] = state.memory["patterns_seen"] + total.sums["patterns"]
        if self._group(state) > before:
            state.obj, state.probe = state.object_memory["start"].copy(), state.memory["probe_start"].copy()

    def finish_iteration(self, state: PtychographyState) -> None:
        """Average the waves of the sweep; orthogonalise the modes, fix scale and drift."""
        if state.memory["patterns_seen"][0] > 0:
            self._average(state)
        finish_sweep(state, self._options, self._refinements)
        self._begin_sweep(state)

    def _average(self, state: PtychographyState) -> None:
        memory, small = state.object_memory, state.memory
        # The sum of the batches' peaks is at least the peak of the sum, and as well known to every rank
        inertia = self._options.inertia * float(small["peaks"][0])
        averaged = _averaged(memory["waves"], memory["weight"], memory["start"], inertia)
        state.obj = averaged.astype(state.obj.dtype, copy=False)
        constrain_object(state, state.box, memory["weight"] > 0, self._options.object_constraint)
        if self._options.probe_due(state):
            averaged = _averaged(small["probe_waves"], small["probe_weight"], small["probe_start"], 0.0)
            state.probe = averaged.astype(state.probe.dtype, copy=False)

    def _begin_sweep(self, state: PtychographyState) -> None:
        self._keep_start(state)
        memory, small, xp = state.object_memory, state.memory, array_module(state.obj)
        memory["waves"], memory["weight"] = xp.zeros_like(state.obj), xp.zeros(state.obj.shape, state.obj.real.dtype)
        small["probe_waves"] = xp.zeros_like(state.probe)
        small["probe_weight"] = xp.zeros(state.probe.shape[1:], state.probe.real.dtype)
        small["patterns_seen"], small["peaks"] = np.zeros(1), np.zeros(1)

    def _keep_start(self, state: PtychographyState) -> None:
        state.object_memory["start"], state.memory["probe_start"] = state.obj.copy(), state.probe.copy()

    def _group(self, state: PtychographyState) -> int:
        """Return the group that the next pattern belongs to; the last one lasts to the end of the sweep."""
        share = float(state.memory["patterns_seen"][0]) / state.n_visited
        return min(int(share * self._options.groups + 1e-9), self._options.groups - 1)

    def _collect(self, state: PtychographyState, total: Total) -> None:
        curvature = self._model.curvature
        share, memory = 1 / (curvature * state.n_slices), state.object_memory
        if total.windows is not None:
            total.windows.collect(state.obj, memory["waves"], memory["weight"], share=share)
        else:
            field, weight = total.fields["object_gradient"], total.fields["illumination"].values
            index = (slice(None), *field.box.slices(state.box))
            memory["waves"][index] += weight * state.obj[index] - share * field.values
            memory["weight"][index] += weight
        state.memory["peaks"] = state.memory["peaks"] + total.peaks["illumination"]
        if "probe_gradient" in total.sums:
            weight = total.sums["object_weight"]
            revised = weight * state.probe - total.sums["probe_gradient"] / curvature
            state.memory["probe_waves"] = state.memory["probe_waves"] + revised
            state.memory["probe_weight"] = state.memory["probe_weight"] + weight


def _averaged(waves: ComplexArray, weight: FloatArray, before: ComplexArray, inertia: float) -> ComplexArray:
    """Return (waves + κ before) / (weight + κ), and what was ``before`` where nothing was added."""
    size = np.where(weight > 0, weight + inertia, 1).astype(weight.dtype)
    found: ComplexArray = np.where(weight > 0, (waves + weight.dtype.type(inertia) * before) / size, before)
    return found
