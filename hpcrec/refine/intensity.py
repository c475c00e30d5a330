"""Refinement of each pattern's intensity: beam current, dead time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpcrec.backend.array import Array
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.gradients import Gradients
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.options import options
from hpcrec.refine.base import Refinement, RefinementOptions, spread


@options
class IntensityOptions(RefinementOptions):
    """Options of the intensity of each pattern.

    step : share of the least-squares step that is taken
    largest_factor : bound of the factor, and of its inverse
    """

    start_iteration: int = 1
    step: float = 0.5
    largest_factor: float = 10.0


class Intensity(Refinement):
    """The factor of each pattern's intensity, changed with its batch; their geometric mean stays 1."""

    Options = IntensityOptions
    wanted = ("intensity",)

    def __init__(self, model: PtychographyModel, options: IntensityOptions) -> None:
        super().__init__(model, options)
        self._options = options

    def prepare(self, state: PtychographyState) -> None:
        """Begin with 1."""
        state.refined.setdefault("intensity", np.ones(len(state.positions)))

    def collect(self, state: PtychographyState, batch: Batch, gradients: Gradients) -> dict[str, Array]:
        """Return gradients and counts at c = 1, (position, 2)."""
        of = gradients.of_patterns
        both = np.stack([of["intensity"] / self.model.curvature, of["intensity_weight"]], axis=1)
        return {"intensity": spread(batch, len(state.positions), both)}

    def apply(self, state: PtychographyState, sums: Mapping[str, Array]) -> None:
        """Take a share of the least-squares step: the loss's curvature along c is Σ P²/(2Î) ≈ ΣP/(2c)."""
        gradient, counts = sums["intensity"].T
        factor = state.refined["intensity"]
        step = np.divide(2 * factor * gradient, counts, out=np.zeros_like(counts), where=counts > 0)
        largest = self._options.largest_factor
        state.refined["intensity"] = np.clip(factor - self._options.step * step, 1 / largest, largest)

    def finish(self, state: PtychographyState) -> None:
        """Give the common factor to the probe."""
        mean = float(np.exp(np.mean(np.log(state.refined["intensity"]))))
        state.refined["intensity"] = state.refined["intensity"] / mean
        factor = state.probe.real.dtype.type(np.sqrt(mean))
        state.probe = state.probe * factor
        if "probe_power" in state.memory:
            state.memory["probe_power"] = state.memory["probe_power"] * mean
