"""Refinement of scan positions from their gradient."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpcrec.backend.array import Array, FloatArray
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.gradients import Gradients
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.options import options
from hpcrec.refine.base import Refinement, RefinementOptions, spread

_DAMPING = 0.1


@options
class PositionOptions(RefinementOptions):
    """Options of the positions.

    step : share of the least-squares position change that is taken
    max_step_pixels : largest change of a position in one update, pixels
    max_move_angstrom : largest distance of a position from its start along y and along x; none: no bound
    momentum : share of the last change of a position that is added to the next one
    """

    step: float = 1.0
    max_step_pixels: float = 0.1
    max_move_angstrom: float | None = None
    momentum: float = 0.0


class Positions(Refinement):
    """Every position, changed with its batch; a common drift is taken out once a sweep."""

    Options = PositionOptions
    wanted = ("positions",)

    def __init__(self, model: PtychographyModel, options: PositionOptions) -> None:
        super().__init__(model, options)
        self._options = options

    def prepare(self, state: PtychographyState) -> None:
        """Keep where positions started."""
        state.memory.setdefault("start_positions", state.positions.copy())
        if self._options.momentum:
            state.memory.setdefault("position_velocity", np.zeros_like(state.positions))

    def collect(self, state: PtychographyState, batch: Batch, gradients: Gradients) -> dict[str, Array]:
        """Return gradients and weights (position, 4)."""
        of = gradients.of_patterns
        both = np.hstack([of["positions"] / self.model.curvature, of["positions_weight"]])
        return {"positions": spread(batch, len(state.positions), both)}

    def apply(self, state: PtychographyState, sums: Mapping[str, Array]) -> None:
        """Move the positions of the batch."""
        chosen, values = self._options, sums["positions"]
        change = position_change(
            values[:, :2], values[:, 2:], self.model.sampling, step=chosen.step, max_step_pixels=chosen.max_step_pixels
        )
        if chosen.momentum:
            touched = (values[:, 2:] > 0).any(axis=1, keepdims=True)
            velocity = np.where(touched, change + chosen.momentum * state.memory["position_velocity"], 0)
            state.memory["position_velocity"] = np.where(touched, velocity, state.memory["position_velocity"])
            change = velocity
        moved = state.positions + change
        state.positions = limit_moves(moved, state.memory["start_positions"], chosen.max_move_angstrom)

    def finish(self, state: PtychographyState) -> None:
        """Take the common drift out, within the bound."""
        start = state.memory["start_positions"]
        state.positions = limit_moves(without_drift(state.positions, start), start, self._options.max_move_angstrom)


def position_change(
    gradient: FloatArray, weight: FloatArray, sampling: tuple[float, float], *, step: float, max_step_pixels: float
) -> FloatArray:
    """Return the change (position, 2) in Å of all positions of a tilt; zero where ``weight`` is zero.

    ``gradient`` (position, 2) is ∂L/∂R of Σ(√I − √I₀)² in 1/Å and ``weight`` Σ|P ∂O|² in counts/Å²: the least-squares
    shift of the exit wave is −gradient / (2 weight) (Guizar-Sicairos and Fienup, Opt. Express 16, 7264 (2008);
    Odstrčil et al., Opt. Express 26, 3108 (2018)). The weight is raised by a tenth of its mean over the touched
    positions, since a window without structure cannot tell where it is. Taken ``step`` times, at most
    ``max_step_pixels`` along each axis.
    """
    touched = weight.sum(axis=1) > 0
    change = np.zeros_like(gradient)
    if touched.any():
        damped = weight[touched] + _DAMPING * weight[touched].mean(axis=0)
        # An object that is flat along one axis in all windows gives no weight, and no gradient either
        found = np.divide(-gradient[touched], 2 * damped, out=np.zeros_like(damped), where=damped > 0)
        limit = max_step_pixels * np.array(sampling)
        change[touched] = np.clip(step * found, -limit, limit)
    return change


def limit_moves(positions: FloatArray, start: FloatArray, max_move: float | None) -> FloatArray:
    """Return ``positions`` (position, 2) held within ``max_move`` Å of ``start`` along each axis; None: no bound."""
    if max_move is None:
        return positions
    return start + np.clip(positions - start, -max_move, max_move)


def without_drift(positions: FloatArray, start: FloatArray) -> FloatArray:
    """Return ``positions`` less the mean of their moves from ``start``: the object could follow any common shift."""
    drift: FloatArray = np.mean(positions - start, axis=0)
    return positions - drift
