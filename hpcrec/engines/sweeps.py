"""What every update rule does around its own formula: schedules, sums, constraints, gauges."""

from __future__ import annotations

from typing import Literal

import numpy as np

from hpcrec.backend.array import BoolArray, ComplexArray, array_module, real_dtype
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.partial import Field, Partial, Total
from hpcrec.models.ptychography import Gradients, PtychographyModel, Responses
from hpcrec.objectives.constraints import CONSTRAINTS
from hpcrec.options import options
from hpcrec.refine.modes import orthogonal_rotation, rotate_modes
from hpcrec.refine.positions import limit_moves, position_change, without_drift


@options
class SweepOptions:
    """Options of all engines.

    loss : what is minimised, "amplitude" Σ(√I − √I₀)² or "poisson", the likelihood of counts
    probe_start : first sweep (from 0) that updates the probe
    position_start : first sweep that refines positions; none: positions are trusted
    position_step : share of the least-squares position change that is taken
    position_max_step_pixels : largest change of a position in one update, pixels
    position_max_move_angstrom : largest distance of a position from its start along y and along x, Å; none: no bound
    object_constraint : "none", "amplitude_bound" (|O| ≤ 1) or "phase_only" (|O| = 1); with a constraint the probe's
        power is free, without one it is kept
    """

    loss: Literal["amplitude", "poisson"] = "amplitude"
    probe_start: int = 2
    position_start: int | None = None
    position_step: float = 0.5
    position_max_step_pixels: float = 0.1
    position_max_move_angstrom: float | None = None
    object_constraint: Literal["none", "amplitude_bound", "phase_only"] = "none"

    def probe_due(self, state: PtychographyState) -> bool:
        """Whether this sweep updates the probe."""
        return state.iteration >= self.probe_start

    def positions_due(self, state: PtychographyState) -> bool:
        """Whether this sweep refines positions."""
        return self.position_start is not None and state.iteration >= self.position_start


def prepare_state(state: PtychographyState) -> None:
    """Keep the start that gauges refer to: the probe's power and the positions."""
    state.memory.setdefault("probe_power", np.array([np.sum(abs(state.probe) ** 2, dtype=np.float64)]))
    state.memory.setdefault("start_positions", state.positions.copy())


def gradient_partial(
    model: PtychographyModel, state: PtychographyState, batch: Batch, options: SweepOptions
) -> Partial:
    """Return the sums of a share: fields ``object_gradient``, ``illumination``; what is due of probe and positions."""
    probe, positions = options.probe_due(state), options.positions_due(state)
    gradients = model.gradients(state, batch, probe=probe, positions=positions)
    fields = {
        "object_gradient": Field(gradients.box, gradients.obj),
        "illumination": Field(gradients.box, gradients.illumination),
    }
    sums = loss_sums(gradients)
    if probe:
        sums |= {"probe_gradient": gradients.probe, "object_weight": gradients.object_weight}
    if positions:
        for name, values in (("gradient", gradients.positions), ("weight", gradients.position_weight)):
            sums[f"position_{name}"] = np.zeros(state.positions.shape)
            sums[f"position_{name}"][batch.indices] = values
    return Partial(fields, sums)


def loss_sums(found: Gradients | Responses) -> dict[str, np.ndarray]:
    """Return the sums ``loss``, ``error``, ``counts``, each (1,) float64."""
    return {name: np.array([getattr(found, name)]) for name in ("loss", "error", "counts")}


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


def change_positions(model: PtychographyModel, state: PtychographyState, total: Total, options: SweepOptions) -> None:
    """Move the positions that the total touches, if it holds their sums."""
    if "position_gradient" not in total.sums:
        return
    change = position_change(
        total.sums["position_gradient"] / model.curvature,
        total.sums["position_weight"],
        model.sampling,
        step=options.position_step,
        max_step_pixels=options.position_max_step_pixels,
    )
    start = state.memory["start_positions"]
    state.positions = limit_moves(state.positions + change, start, options.position_max_move_angstrom)


def finish_sweep(state: PtychographyState, options: SweepOptions, momenta: tuple[str, ...] = ()) -> None:
    """Fix what the data leave open, and count the sweep.

    Modes are made orthogonal (``momenta`` names arrays of ``state.memory`` that turn with them); unless a constraint
    ties the object's amplitude, the probe gets its starting power back and the object takes the factor up; positions
    lose their common drift.
    """
    if options.probe_due(state):
        if len(state.probe) > 1:
            rotation = orthogonal_rotation(state.probe)
            state.probe = rotate_modes(rotation, state.probe)
            for name in momenta:
                state.memory[name] = rotate_modes(rotation, state.memory[name])
        if options.object_constraint == "none":
            _fix_scale(state)
    if options.positions_due(state):
        state.positions = without_drift(state.positions, state.memory["start_positions"])
    state.iteration += 1


def _fix_scale(state: PtychographyState) -> None:
    power = float(np.sum(abs(state.probe) ** 2, dtype=np.float64))
    if power > 0:
        factor = np.sqrt(state.memory["probe_power"][0] / power)
        real = real_dtype(state.probe.dtype).type
        state.probe *= real(factor)
        state.obj *= real(factor ** (-1 / len(state.obj)))
