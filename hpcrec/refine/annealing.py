"""Refinement of scan positions by random trials: it finds what a gradient cannot, positions that are far off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hpcrec.backend.array import Array, BoolArray
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.gradients import Gradients
from hpcrec.models.placement import batch_beside
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.options import options
from hpcrec.refine.base import Refinement, RefinementOptions, spread
from hpcrec.refine.positions import limit_moves, without_drift

# Patterns that are widened at a time
_FEW = 64


@options
class AnnealingOptions(RefinementOptions):
    """Options of position annealing; it ends with ``stop_iteration``, which must be given.

    radius_angstrom : of the circle in which trials lie at first; it shrinks to nothing at the end
    trials : random shifts tried for each position in each sweep
    max_move_angstrom : largest distance of a position from its start along y and along x; none: no bound
    seed : of the shifts
    """

    radius_angstrom: float = 1.0
    trials: int = 4
    max_move_angstrom: float | None = None
    seed: int = 1
    stop_iteration: int | None = 30


class Annealing(Refinement):
    """Each position takes the best of a few random shifts (Maiden et al., Ultramicroscopy 120, 64 (2012)).

    The shifts are drawn for all positions of the scan from the seed and the sweep, whatever rank works on them. Shifts
    that would leave the object's grid are not tried.
    """

    Options = AnnealingOptions
    wanted = ()

    def __init__(self, model: PtychographyModel, options: AnnealingOptions) -> None:
        super().__init__(model, options)
        self._options = options

    def prepare(self, state: PtychographyState) -> None:
        """Keep where positions started."""
        state.memory.setdefault("start_positions", state.positions.copy())

    def collect(self, state: PtychographyState, batch: Batch, gradients: Gradients) -> dict[str, Array]:
        """Return the best shift (position, 2) of each position of the batch, whose patterns move to the object once."""
        positions, n = state.positions, len(state.positions)
        batch = batch_beside(state.obj, batch)
        best = np.zeros((len(batch.indices), 2))
        lowest = self._errors(state, batch)
        for trial in self._trials(state.iteration, n):
            moved = limit_moves(positions + trial, state.memory["start_positions"], self._options.max_move_angstrom)
            moved = np.where(self._inside(state, moved)[:, None], moved, positions)
            errors = self._errors(replace(state, positions=moved), batch)
            better = errors < lowest
            best[better] = (moved - positions)[batch.indices][better]
            lowest = np.where(better, errors, lowest)
        return {"annealing": spread(batch, n, best)}

    def apply(self, state: PtychographyState, sums: Mapping[str, Array]) -> None:
        """Move the positions of the batch."""
        state.positions = state.positions + sums["annealing"]

    def finish(self, state: PtychographyState) -> None:
        """Take the common drift out, within the bound."""
        start = state.memory["start_positions"]
        state.positions = limit_moves(without_drift(state.positions, start), start, self._options.max_move_angstrom)

    def _errors(self, state: PtychographyState, batch: Batch) -> Array:
        """Return the errors (n,) of a batch, which may be all patterns, a few of them widened at a time."""
        found = []
        for first in range(0, max(len(batch.indices), 1), _FEW):
            few = slice(first, first + _FEW)
            good = None if batch.good is None else batch.good[few]
            part = replace(batch, indices=batch.indices[few], patterns=batch.patterns[few], good=good)
            found.append(self.model.pattern_errors(state, part))
        return np.concatenate(found)

    def _inside(self, state: PtychographyState, positions: Array) -> BoolArray:
        """Return which positions (n,) have all their windows on the object's grid."""
        points = positions[:, None] + self.model.flight
        corners = self.model.windows(points, state.grid)[0]
        room = np.array(state.grid.shape) - self.model.shape
        return np.all((corners >= 0) & (corners <= room), axis=(1, 2))  # type: ignore[no-any-return]

    def _trials(self, iteration: int, n: int) -> Array:
        """Return shifts (trial, position, 2), even over the circle of this sweep."""
        chosen = self._options
        stop = chosen.start_iteration + 1 if chosen.stop_iteration is None else chosen.stop_iteration
        share = (stop - iteration) / max(stop - chosen.start_iteration, 1)
        generator = np.random.default_rng((chosen.seed, iteration))
        radius = chosen.radius_angstrom * share * np.sqrt(generator.random((chosen.trials, n)))
        angle = 2 * np.pi * generator.random((chosen.trials, n))
        return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=-1)
