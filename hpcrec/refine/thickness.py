"""Refinement of the distance between slices."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpcrec.backend.array import Array, FloatArray, numbers_to_host
from hpcrec.backend.fft import fft2
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.gradients import Gradients
from hpcrec.models.placement import Copies
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.options import options
from hpcrec.refine.base import Refinement, RefinementOptions
from hpcrec.refine.descent import add_to, bold_step


@options
class ThicknessOptions(RefinementOptions):
    """Options of the distance between slices (needs two slices or more).

    each_gap : refine every gap on its own; else one distance for all
    max_step_angstrom : largest change in one sweep
    max_change_share : largest change from the start, as a share of it
    """

    each_gap: bool = False
    max_step_angstrom: float = 0.5
    max_change_share: float = 0.5


class Thickness(Refinement):
    """The distance between slices, changed once a sweep by the gradient ∂L/∂Δz of the propagator.

    Its weight is the curvature of a defocus of the wave between the slices, Σ (r − r̄)² |X|² with the phase r per
    length, for which the patterns stand, or the probe's spectrum where they are not a far field.
    """

    Options = ThicknessOptions
    wanted = ("thickness",)

    def __init__(self, model: PtychographyModel, options: ThicknessOptions) -> None:
        super().__init__(model, options)
        self._options = options
        self._copies = Copies()

    def prepare(self, state: PtychographyState) -> None:
        """Begin with the model's distances."""
        state.refined.setdefault("thickness", self.model.thicknesses(state))
        state.memory.setdefault("thickness_sums", np.zeros(state.n_slices + 2))

    def collect(self, state: PtychographyState, batch: Batch, gradients: Gradients) -> dict[str, Array]:
        """Return gradients (slice − 1,), and ΣI, ΣIr, ΣIr² of the patterns, in one array."""
        light = self._light(state, batch)
        rate = self._copies.of("rate", self.model.rate, light)
        moments = numbers_to_host([np.sum(light * rate**power) for power in range(3)])
        gradient = gradients.added.get("thickness", np.zeros(state.n_slices - 1)) / self.model.curvature
        return {"thickness": np.concatenate([gradient, moments])}

    def _light(self, state: PtychographyState, batch: Batch) -> FloatArray:
        detector = self.model.detector
        if detector.propagator is None and detector.binning == 1:
            found: FloatArray = self.model.clean(batch).sum(axis=0, dtype=np.float64)
            return found
        power: FloatArray = np.sum(np.abs(fft2(state.probe)) ** 2, axis=0, dtype=np.float64)
        return len(batch.indices) * power

    def apply(self, state: PtychographyState, sums: Mapping[str, Array]) -> None:
        """Add up over the sweep."""
        add_to(state.memory, "thickness_sums", sums["thickness"])

    def finish(self, state: PtychographyState) -> None:
        """Take the step of the sweep."""
        gradient, (total, first, second) = np.split(state.memory["thickness_sums"], [-3])
        weight = np.full_like(gradient, max(second - first**2 / max(total, 1e-30), 0.0))
        if not self._options.each_gap:
            # Gaps that change together answer coherently: |Σ a|² ≤ n Σ|a|²
            gradient = np.full_like(gradient, gradient.sum())
            weight = np.full_like(weight, len(weight) * weight.sum())
        start = self.model.slice_thickness
        change = bold_step(state.memory, "thickness", gradient, weight, self._options.max_step_angstrom)
        bound = self._options.max_change_share * start
        state.refined["thickness"] = np.clip(state.refined["thickness"] + change, start - bound, start + bound)
        state.memory["thickness_sums"] = np.zeros_like(state.memory["thickness_sums"])
