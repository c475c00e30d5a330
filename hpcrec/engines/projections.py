"""What the projection engines share: exit waves between the overlap of object and probe and the measured moduli."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from hpcrec.backend.array import ComplexArray, FloatArray, IntArray, array_module, numbers_to_host
from hpcrec.engines.base import Engine
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
from hpcrec.models.waves import exit_waves, overlap_object, overlap_probe, stepped_waves
from hpcrec.options import options
from hpcrec.refine.base import Refinement
from hpcrec.refine.modes import orthogonal_rotation

# Patterns at a time: on a device large against the launch of a kernel; estimated, not measured
_CHUNK, _DEVICE_CHUNK = 32, 256


@options
class ProjectionOptions(SweepOptions):
    """Options of the projection engines, beside those of all engines; ``loss`` is what is reported and refinements use.

    overlap_turns : at most so many turns of object and probe in one projection on the overlap
    overlap_change : relative change of the probe at which the turns end
    object_inertia, probe_inertia : what the old values weigh, as a share of the largest weight
    noise_share : error of a pattern that is left alone, as a share of what Poisson noise makes; 0 for patterns
        without noise
    """

    overlap_turns: int = 10
    overlap_change: float = 0.05
    object_inertia: float = 1e-4
    probe_inertia: float = 1e-9
    noise_share: float = 0.5


class ProjectionEngine(Engine):
    """One step is ψ ← (1−a−b) ψ + a Qψ + b A(c Qψ + (1−c) ψ) with numbers (a, b, c) of the method.

    Qψ = P O is the projection on the overlap: O = (ΣP*ψ + κ O)/(Σ|P|² + κ) and P = (ΣO*ψ + κ P)/(Σ|O|² + κ) in turns
    (Thibault et al., Ultramicroscopy 109, 338 (2009)). A scales far fields to the measured moduli, all modes by one
    factor; see :func:`hpcrec.models.waves.with_measured_moduli`. The exit waves of a rank's own patterns stand in
    ``state.pattern_memory["waves"]``, where the object lives: all of them on a device too. They begin as PO, so that
    the first sweep moves them alone. Every sweep is one step over all patterns, for objects of one slice.
    """

    Options: type[ProjectionOptions] = ProjectionOptions
    passes = ("object", "probe", "waves")
    peaks = {"object": ("weight",)}
    default_batch_size = 0
    full_batch = True
    divided = ("object",)
    one_slice_only = True
    keeps_waves = True
    copies = staticmethod(lambda options, windowed: (2.5, 5.1))

    def __init__(
        self, model: PtychographyModel, options: ProjectionOptions, refinements: Sequence[Refinement] = ()
    ) -> None:
        self._model, self._options, self._refinements = model, options, refinements
        self._turns = 0
        self._pending: list[tuple[IntArray, ComplexArray]] = []

    @abstractmethod
    def numbers(self) -> tuple[float, float, float]:
        """Return (a, b, c) of the step."""

    def prepare(self, state: PtychographyState) -> None:
        """Begin with the modelled exit waves."""
        prepare_state(state, self._refinements)
        if "waves" not in state.pattern_memory:
            state.pattern_memory["waves"] = exit_waves(self._model, state, state.own_positions)

    def accumulate(self, name: str, state: PtychographyState, batch: Batch) -> Partial:
        """Return numerators (as residuals, Σ P*(PO − ψ)) and weights, or the sums of loss and refinements."""
        if name == "object":
            left, weight = overlap_object(self._model, state, batch.indices, self._waves(state, batch.indices))
            return Partial({"object": left, "weight": weight})
        if name == "probe":
            found, light = overlap_probe(self._model, state, batch.indices, self._waves(state, batch.indices))
            return Partial({}, {"probe": found, "object_weight": light})
        self._pending += [(b.indices, self._stepped(state, b)) for b in _chunks(batch, _chunk_size(state))]
        # The probe's gradient is not needed
        told = replace(self._options, probe_start=NEVER)
        return Partial({}, gradient_partial(self._model, state, batch, told, self._refinements).sums)

    def apply(self, name: str, state: PtychographyState, total: Total) -> str | None:
        """Fit object and probe to the waves in turns until the probe rests; then take the step of the waves."""
        if name == "object":
            self._fit_object(state, total)
            return None if self._options.probe_due(state) else "waves"
        if name == "probe":
            self._turns += 1
            if (
                self._fit_probe(state, total) > self._options.overlap_change
                and self._turns < self._options.overlap_turns
            ):
                return "object"
            return None
        for indices, waves in self._pending:
            state.pattern_memory["waves"][_places(state, indices)] = waves
        self._turns, self._pending = 0, []
        before = state.positions.copy()
        change_refined(state, total, self._refinements)
        self._follow(state, before)
        return None

    def finish_iteration(self, state: PtychographyState) -> None:
        """Orthogonalise the modes, of probe and waves alike; fix scale and drift, which waves follow."""
        if self._options.probe_due(state) and len(state.probe) > 1:
            waves = state.pattern_memory["waves"]
            rotation = array_module(waves).asarray(orthogonal_rotation(state.probe).astype(waves.dtype))
            by_mode, chunk = waves.reshape(-1, len(rotation), math.prod(waves.shape[2:])), _chunk_size(state)
            for part in range(0, len(by_mode), chunk):
                by_mode[part : part + chunk] = rotation @ by_mode[part : part + chunk]
        before = state.positions.copy()
        finish_sweep(state, self._options, self._refinements)
        self._follow(state, before)

    def _follow(self, state: PtychographyState, before: FloatArray) -> None:
        """Let waves go along with windows that refinements have moved from the positions ``before``."""
        after, waves, own = state.positions, state.pattern_memory["waves"], state.own_positions
        moved, chunk = own[(after != before)[own].any(axis=1)], _chunk_size(state)
        for start in range(0, len(moved), chunk):
            indices = moved[start : start + chunk]
            state.positions = before
            old = exit_waves(self._model, state, indices)
            state.positions = after
            waves[_places(state, indices)] += exit_waves(self._model, state, indices) - old

    def _waves(self, state: PtychographyState, indices: IntArray) -> ComplexArray:
        """Return a copy of the waves of the positions ``indices``."""
        return state.pattern_memory["waves"][_places(state, indices)]

    def _stepped(self, state: PtychographyState, batch: Batch) -> ComplexArray:
        old = self._waves(state, batch.indices)
        return stepped_waves(self._model, state, batch, old, self.numbers(), self._options.noise_share)

    def _fit_object(self, state: PtychographyState, total: Total) -> None:
        field, weight = total.fields["object"], total.fields["weight"].values
        peak = total.peaks["weight"]
        if peak > 0:
            change_object(state, field.box, _divided(field.values, weight, self._options.object_inertia * peak))
            constrain_object(state, field.box, weight > 0, self._options.object_constraint)

    def _fit_probe(self, state: PtychographyState, total: Total) -> float:
        """Return the relative change of the probe."""
        weight = total.sums["object_weight"]
        change = _divided(total.sums["probe"], weight, self._options.probe_inertia * float(weight.max()))
        moved, power = numbers_to_host([np.sum(np.abs(a) ** 2, dtype=float) for a in (change, state.probe)]).tolist()
        state.probe = (state.probe + change).astype(state.probe.dtype, copy=False)
        return math.sqrt(moved / power) if power > 0 else 0.0


def _chunk_size(state: PtychographyState) -> int:
    return _CHUNK if array_module(state.obj) is np else _DEVICE_CHUNK


def _places(state: PtychographyState, indices: IntArray) -> IntArray:
    """Return where the waves of the positions ``indices`` stand: an index that lives where they do."""
    return array_module(state.obj).asarray(state.rows(indices))  # type: ignore[no-any-return]


def _chunks(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch.indices), size):
        part = slice(start, start + size)
        good = None if batch.good is None else batch.good[part]
        yield replace(batch, indices=batch.indices[part], patterns=batch.patterns[part], good=good)


def _divided(left: ComplexArray, weight: FloatArray, inertia: float) -> ComplexArray:
    """Return −left / (weight + inertia), zero where the weight is zero."""
    size = np.where(weight > 0, weight + inertia, 1).astype(weight.dtype)
    return np.where(weight > 0, -left / size, 0)
