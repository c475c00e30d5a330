"""Refinement of a background on the detector, the same under all patterns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.ndimage import gaussian_filter1d

from hpcrec.backend.array import Array, BoolArray, FloatArray, array_module
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.gradients import Gradients
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.options import options
from hpcrec.refine.base import Refinement, RefinementOptions
from hpcrec.refine.descent import add_to


@options
class BackgroundOptions(RefinementOptions):
    """Options of the background.

    step : share of the least-squares step that is taken after each sweep
    smoothing_pixels : width over which the background is smoothed, 0: each pixel is free
    start_counts : counts per pixel to begin with
    """

    step: float = 0.5
    smoothing_pixels: float = 2.0
    start_counts: float = 0.01


class Background(Refinement):
    """Counts b ≥ 0 (ky, kx) beside those of the sample, changed once a sweep; they live where the object does."""

    Options = BackgroundOptions
    wanted = ("background",)

    def __init__(self, model: PtychographyModel, options: BackgroundOptions) -> None:
        super().__init__(model, options)
        self._options = options

    def prepare(self, state: PtychographyState) -> None:
        """Begin with the counts of the options."""
        shape, xp = self.model.pattern_shape, array_module(state.obj)
        state.refined.setdefault("background", xp.full(shape, self._options.start_counts, np.float64))
        state.memory.setdefault("background_sums", xp.zeros((2, *shape)))

    def collect(self, state: PtychographyState, batch: Batch, gradients: Gradients) -> dict[str, Array]:
        """Return gradient and weight (2, ky, kx)."""
        gradient, weight = (gradients.added[f"background{more}"].astype(np.float64) for more in ("", "_weight"))
        return {"background": array_module(weight).stack([gradient / self.model.curvature, weight])}

    def apply(self, state: PtychographyState, sums: Mapping[str, Array]) -> None:
        """Add up over the sweep."""
        add_to(state.memory, "background_sums", sums["background"])

    def finish(self, state: PtychographyState) -> None:
        """Take a share of the least-squares step, smooth, and keep what is positive."""
        gradient, weight = state.memory["background_sums"]
        step = gradient / np.where(weight > 0, weight, np.inf)
        found = state.refined["background"] - self._options.step * step
        if self._options.smoothing_pixels > 0:
            found = smoothed(found, weight > 0, self._options.smoothing_pixels)
        state.refined["background"] = np.maximum(found, 0)
        state.memory["background_sums"] = np.zeros_like(state.memory["background_sums"])


def smoothed(values: FloatArray, known: BoolArray, width: float) -> FloatArray:
    """Return the mean of the ``known`` values (ky, kx) under a Gaussian of ``width`` pixels; far from them, ``values``.

    Bad pixels would else draw their neighbours to what they happen to hold.
    """
    xp = array_module(values)
    along_y, along_x = (xp.asarray(_gaussian(n, width)) for n in values.shape)
    light = along_y @ known.astype(np.float64) @ along_x.T
    total = along_y @ xp.where(known, values, 0.0) @ along_x.T
    near = light > 1e-6
    return xp.where(near, total / xp.where(near, light, 1), values)  # type: ignore[no-any-return]


def _gaussian(n: int, width: float) -> FloatArray:
    """Return G (n, n) that smooths n values, the last beside the first, under a Gaussian of ``width``."""
    found: FloatArray = gaussian_filter1d(np.eye(n), width, axis=0, mode="wrap")
    return found
