"""Refinement of the sample's tilt against the beam: of the whole scan, or position by position."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.ndimage import gaussian_filter

from hpcrec.backend.array import Array, FloatArray
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.gradients import Gradients
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.options import options
from hpcrec.refine.base import Refinement, RefinementOptions, spread
from hpcrec.refine.descent import add_to, bold_step


@options
class TiltOptions(RefinementOptions):
    """Options of the tilt of the sample against the beam (needs two slices or more, and a constraint that ties them).

    start_mrad : tilt (y, x) to begin with
    max_step_mrad : largest change in one sweep
    max_tilt_mrad : largest tilt along y and along x
    """

    start_mrad: tuple[float, float] = (0.0, 0.0)
    max_step_mrad: float = 1.0
    max_tilt_mrad: float = 50.0


class Tilt(Refinement):
    """The direction of the sample's columns, θ = (θy, θx), one for the scan, changed once a sweep.

    A free object takes a tilt up as a shear of its slices: only where a constraint makes slices alike (smooth along z,
    identical) do the patterns tell the tilt.

    A tilt moves each slice against the one before by Δz tan θ (Sha, Cui and Yu, Sci. Adv. 8, eabn2275 (2022)), so its
    weight is that of the positions times the squared lever of the slices.
    """

    Options = TiltOptions
    wanted = ("tilt",)

    def __init__(self, model: PtychographyModel, options: TiltOptions) -> None:
        super().__init__(model, options)
        self._options = options

    def prepare(self, state: PtychographyState) -> None:
        """Begin with the tilt of the options."""
        state.refined.setdefault("tilt", 1e-3 * np.array(self._options.start_mrad))
        state.memory.setdefault("tilt_sums", np.zeros((2, 2)))

    def collect(self, state: PtychographyState, batch: Batch, gradients: Gradients) -> dict[str, Array]:
        """Return the gradient by tan θ and its weight, (2, 2)."""
        of = gradients.of_patterns
        if "tilt" not in of:
            return {"tilt": np.zeros((2, 2))}
        return {"tilt": np.stack([of["tilt"].sum(axis=0) / self.model.curvature, of["tilt_weight"].sum(axis=0)])}

    def apply(self, state: PtychographyState, sums: Mapping[str, Array]) -> None:
        """Add up over the sweep."""
        add_to(state.memory, "tilt_sums", sums["tilt"])

    def finish(self, state: PtychographyState) -> None:
        """Take the step of the sweep."""
        gradient, weight = state.memory["tilt_sums"]
        largest = 1e-3 * self._options.max_tilt_mrad
        change = bold_step(state.memory, "tilt", gradient, weight, 1e-3 * self._options.max_step_mrad)
        state.refined["tilt"] = np.clip(state.refined["tilt"] + change, -largest, largest)
        state.memory["tilt_sums"] = np.zeros((2, 2))


@options
class PositionTiltOptions(RefinementOptions):
    """Options of the tilt of each position, for bent samples; it adds to the tilt of the scan.

    max_step_mrad : largest change of a position's tilt in one sweep
    max_tilt_mrad : largest tilt along y and along x
    smoothing_angstrom : width over which neighbouring positions' gradients are averaged, and so their tilts
    """

    max_step_mrad: float = 1.0
    max_tilt_mrad: float = 20.0
    smoothing_angstrom: float = 10.0


class PositionTilt(Refinement):
    """The tilt of each position, changed once a sweep by gradients smoothed over the scan; its mean stays zero.

    Unlike a tilt of the whole scan, the object cannot take these up: neighbouring windows share its slices.
    """

    Options = PositionTiltOptions
    wanted = ("tilt",)

    def __init__(self, model: PtychographyModel, options: PositionTiltOptions) -> None:
        super().__init__(model, options)
        self._options = options

    def prepare(self, state: PtychographyState) -> None:
        """Begin without tilt."""
        n = len(state.positions)
        state.refined.setdefault("position_tilt", np.zeros((n, 2)))
        state.memory.setdefault("position_tilt_sums", np.zeros((n, 4)))

    def collect(self, state: PtychographyState, batch: Batch, gradients: Gradients) -> dict[str, Array]:
        """Return gradients by tan θ and weights, (position, 4)."""
        of = gradients.of_patterns
        if "tilt" not in of:
            return {"position_tilt": np.zeros((len(state.positions), 4))}
        both = np.hstack([of["tilt"] / self.model.curvature, of["tilt_weight"]])
        return {"position_tilt": spread(batch, len(state.positions), both)}

    def apply(self, state: PtychographyState, sums: Mapping[str, Array]) -> None:
        """Add up over the sweep."""
        add_to(state.memory, "position_tilt_sums", sums["position_tilt"])

    def finish(self, state: PtychographyState) -> None:
        """Take the step of the sweep."""
        chosen = self._options
        sums = smoothed(state.memory["position_tilt_sums"], state.positions, chosen.smoothing_angstrom)
        gradient, weight = sums[:, :2], sums[:, 2:]
        change = bold_step(
            state.memory, "position_tilt", gradient, weight + 0.1 * weight.mean(axis=0), 1e-3 * chosen.max_step_mrad
        )
        tilt = state.refined["position_tilt"] + change - change.mean(axis=0)
        largest = 1e-3 * chosen.max_tilt_mrad
        state.refined["position_tilt"] = np.clip(tilt, -largest, largest)
        state.memory["position_tilt_sums"] = np.zeros_like(state.memory["position_tilt_sums"])


def smoothed(values: FloatArray, positions: FloatArray, width: float) -> FloatArray:
    """Return values (n, …) averaged over neighbouring positions (n, 2) with a Gaussian of standard deviation ``width``.

    Positions are sorted into cells of half the width, whose sums are smoothed: the cost does not grow with n².
    """
    if width <= 0:
        return values
    cell = 0.5 * width
    index = np.floor((positions - positions.min(axis=0)) / cell).astype(np.int64)
    shape = tuple(index.max(axis=0) + 1)
    flat = np.ravel_multi_index((index[:, 0], index[:, 1]), shape)
    columns = np.column_stack([values, np.ones(len(values))])
    sums = np.stack([np.bincount(flat, c, minlength=shape[0] * shape[1]).reshape(shape) for c in columns.T])
    wide = gaussian_filter(sums, (0, 2.0, 2.0), mode="constant")
    found: FloatArray = (wide[:-1] / np.maximum(wide[-1], 1e-12)).reshape(values.shape[1], -1)[:, flat].T
    return found
