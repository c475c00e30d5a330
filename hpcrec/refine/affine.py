"""An affine scan: scale, asymmetry, rotation and shear shared by all positions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpcrec.backend.array import Array, FloatArray
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.gradients import Gradients
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.options import options
from hpcrec.refine.base import Refinement, RefinementOptions


@options
class AffineOptions(RefinementOptions):
    """Options of the affine constraint on positions; use it beside ``positions`` or ``annealing``.

    share : how far positions are drawn to their affine fit after each sweep; 1 leaves only the affine distortion
    """

    share: float = 0.2


class Affine(Refinement):
    """Draws refined positions to an affine map of their start (Odstrčil et al., Opt. Express 26, 3108 (2018))."""

    Options = AffineOptions
    wanted = ()

    def __init__(self, model: PtychographyModel, options: AffineOptions) -> None:
        super().__init__(model, options)
        self._options = options

    def prepare(self, state: PtychographyState) -> None:
        """Keep where positions started, and begin with the identity."""
        state.memory.setdefault("start_positions", state.positions.copy())
        state.refined.setdefault("affine", np.eye(2))

    def collect(self, state: PtychographyState, batch: Batch, gradients: Gradients) -> dict[str, Array]:
        """Need nothing: all ranks know all positions."""
        return {}

    def finish(self, state: PtychographyState) -> None:
        """Fit, keep the matrix, and draw the positions to it."""
        start = state.memory["start_positions"]
        matrix, fitted = affine_fit(start, state.positions)
        state.refined["affine"] = matrix
        state.positions = state.positions + self._options.share * (fitted - state.positions)

    def apply(self, state: PtychographyState, sums: Mapping[str, Array]) -> None:
        """Do nothing within a sweep."""


def affine_fit(start: FloatArray, found: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return A (2, 2) and the fitted positions A (R₀ − R̄₀) + R̄ (n, 2) of least squares.

    Positions on a line leave A open across it: it stays the identity there.
    """
    centre, mean = start.mean(axis=0), found.mean(axis=0)
    arm = start - centre
    # The change A − 1 of least norm keeps what the scan does not say
    change = np.linalg.lstsq(arm, found - mean - arm, rcond=1e-9)[0].T
    matrix = np.eye(2) + change
    return matrix, arm @ matrix.T + mean


def affine_parts(matrix: FloatArray) -> dict[str, float]:
    """Return what an affine map of (y, x) means: "scale", "asymmetry", "rotation_deg" and "shear_deg".

    A = R(ρ) [[s(1 + a/2), 0], [s h, s(1 − a/2)]] with the rotation R from x towards y, asymmetry a and shear tan⁻¹h.
    """
    across = matrix[:, 1]
    size = float(np.hypot(*across))
    rotation = float(np.arctan2(across[0], across[1]))
    c, s = np.cos(rotation), np.sin(rotation)
    # R turns x = (0, 1) into (sin ρ, cos ρ)
    upright = np.array([[c, -s], [s, c]]) @ matrix
    along = float(upright[0, 0])
    scale = 0.5 * (along + size)
    return {
        "scale": scale,
        "asymmetry": (along - size) / scale,
        "rotation_deg": float(np.degrees(rotation)),
        "shear_deg": float(np.degrees(np.arctan2(upright[1, 0], scale))),
    }
