"""What every update rule does around its own formula: schedules, sums, constraints, gauges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from hpcrec.backend.array import BoolArray, ComplexArray, FloatArray, array_module, real_dtype
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import KeptWaves
from hpcrec.models.gradients import Gradients
from hpcrec.models.partial import Field, Partial, Total
from hpcrec.models.ptychography import PtychographyModel, Wanted
from hpcrec.objectives.constraints import CONSTRAINTS
from hpcrec.options import options
from hpcrec.refine.base import Refinement
from hpcrec.refine.modes import orthogonal_rotation, rotate_modes

NEVER = 1 << 40
"""A sweep that does not come: ``probe_start`` of engines whose gradients leave the probe out."""


@options
class SweepOptions:
    """Options of all engines.

    loss : what is minimised: "amplitude" Σ(√I − √I₀)², "anscombe" the same above 3/8 counts, "poisson", the
        likelihood of counts, or "gaussian" Σ(I − I₀)²/(I₀ + 1)
    probe_start : first sweep (from 0) that updates the probe
    object_constraint : "none", "amplitude_bound" (|O| ≤ 1) or "phase_only" (|O| = 1); with a constraint the probe's
        power is free, without one it is kept. At few counts the bound cuts noise off above 1 only, and the power grows
        sweep by sweep: hold it by the constraint "probe_power"
    """

    loss: Literal["amplitude", "poisson", "gaussian", "anscombe"] = "amplitude"
    probe_start: int = 2
    object_constraint: Literal["none", "amplitude_bound", "phase_only"] = "none"

    def probe_due(self, state: PtychographyState) -> bool:
        """Whether this sweep updates the probe."""
        return state.iteration >= self.probe_start


def prepare_state(state: PtychographyState, refinements: Sequence[Refinement]) -> None:
    """Keep the start that gauges refer to, and let refinements begin."""
    state.memory.setdefault("probe_power", np.array([float(np.sum(abs(state.probe) ** 2, dtype=np.float64))]))
    for refinement in refinements:
        refinement.prepare(state)


def gradient_partial(
    model: PtychographyModel,
    state: PtychographyState,
    batch: Batch,
    options: SweepOptions,
    refinements: Sequence[Refinement],
    *,
    windowed: bool = False,
    kept: KeptWaves | None = None,
) -> Partial:
    """Return the sums of a share: fields ``object_gradient``, ``illumination``; what is due of probe and the rest.

    With ``windowed``, for engines that step by :class:`~hpcrec.models.windows.WindowSums`, these take the place of the
    fields where the state allows. ``kept`` takes the waves.
    """
    probe, due = options.probe_due(state), [r for r in refinements if r.due(state)]
    wanted: set[Wanted] = {name for r in due for name in r.wanted}
    if probe:
        wanted.add("probe")
    gradients = model.gradients(state, batch, sorted(wanted), windowed=windowed and state.windowed, kept=kept)
    fields = {
        "object_gradient": Field(gradients.box, gradients.obj),
        "illumination": Field(gradients.box, gradients.illumination),
    }
    if gradients.windows is not None:
        fields = {}
    sums = loss_sums(gradients)
    if probe:
        sums |= {"probe_gradient": gradients.probe, "object_weight": gradients.object_weight}
    for refinement in due:
        sums |= refinement.collect(state, batch, gradients)
    return Partial(fields, sums, gradients.windows)


def loss_sums(found: Gradients) -> dict[str, np.ndarray]:
    """Return the sums ``loss``, ``error``, ``counts``, each (1,) float64."""
    return {name: np.array([getattr(found, name)]) for name in ("loss", "error", "counts")}


def darken_round_off(weight: FloatArray, peak: float) -> None:
    """Set to zero, in place, what of a weight Σ|ψ|² is round-off of ``peak``, its largest value over the whole object.

    Where a probe ends, transforms leave ψ = O(ε) or zero by chance, another chance on other numbers of ranks: a step
    that asks whether a pixel was lit must not depend on it. Noise of ψ makes weights of some ε² of the peak; the limit
    ε^1.5 (4e-11 of the peak in single precision) lies well above them, and below any light that can be counted.
    """
    weight[weight <= round_off(weight.dtype, peak)] = 0


def round_off(dtype: np.dtype[Any], peak: float) -> float:
    """Return what counts as round-off of weights of ``peak`` in arrays of ``dtype``, real or complex."""
    return float(float(np.finfo(dtype).eps) ** 1.5 * peak)


def change_object(state: PtychographyState, box: Box, change: ComplexArray) -> None:
    """Add ``change`` (slice, y, x) on ``box``."""
    state.obj[(slice(None), *box.slices(state.box))] += change.astype(state.obj.dtype, copy=False)


def constrain_object(state: PtychographyState, box: Box, touched: BoolArray, constraint: str) -> None:
    """Apply a constraint of the table to the ``touched`` pixels (slice, y, x) of ``box``.

    Only those, whatever the box: so the answer does not depend on how boxes of ranks are cut.
    """
    if constraint != "none":
        index = (slice(None), *box.slices(state.box))
        old = state.obj[index]
        state.obj[index] = array_module(old).where(touched, CONSTRAINTS[constraint](old), old)


def change_refined(state: PtychographyState, total: Total, refinements: Sequence[Refinement]) -> None:
    """Let the refinements that are due take their steps."""
    for refinement in refinements:
        if refinement.due(state):
            refinement.apply(state, total.sums)


def finish_sweep(
    state: PtychographyState,
    options: SweepOptions,
    refinements: Sequence[Refinement],
    momenta: tuple[str, ...] = (),
    scaled: tuple[str, ...] = (),
) -> None:
    """Fix what the data leave open, and count the sweep.

    Modes are made orthogonal (``momenta`` names arrays of ``state.memory`` that turn with them); unless a constraint
    ties the object's amplitude, the probe gets its starting power back and the object takes the factor up (``scaled``
    names what does so too: arrays of ``state.object_memory`` and, with "probe_" in front, of ``state.memory``);
    refinements end their sweep.
    """
    if options.probe_due(state):
        if len(state.probe) > 1:
            rotation = orthogonal_rotation(state.probe)
            state.probe = rotate_modes(rotation, state.probe)
            for name in momenta:
                state.memory[name] = rotate_modes(rotation, state.memory[name])
        if options.object_constraint == "none":
            _fix_scale(state, scaled)
    for refinement in refinements:
        if refinement.due(state):
            refinement.finish(state)
    state.iteration += 1


def _fix_scale(state: PtychographyState, scaled: tuple[str, ...]) -> None:
    power = float(np.sum(abs(state.probe) ** 2, dtype=np.float64))
    if power > 0:
        factor = np.sqrt(state.memory["probe_power"][0] / power)
        real = real_dtype(state.probe.dtype).type
        of_probe, of_object = real(factor), real(factor ** (-1 / state.n_slices))
        state.probe *= of_probe
        if "variation" in state.refined:
            state.refined["variation"] = state.refined["variation"] * of_probe
        state.obj *= of_object
        for name in scaled:
            state.memory[f"probe_{name}"] = state.memory[f"probe_{name}"] * of_probe
            state.object_memory[name] *= of_object
