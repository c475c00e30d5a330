"""RESIRE: the plain projected gradient of real-space iterative reconstruction."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from hpcrec.backend.array import FloatArray
from hpcrec.backend.kernels.volume import proximal_step
from hpcrec.engines.solvers import Scalars, SlabState, Solver
from hpcrec.options import options


@options
class ResireOptions:
    """Options of RESIRE.

    n_iterations: gradient steps, one projection and one back projection each
    relaxation: step in units of 1/‖A‖²; the iteration diverges from 2 on
    blur_angstrom: standard deviation of the blobs that the volume is made of, the finest detail allowed; 0 = voxels
    """

    n_iterations: int = 60
    relaxation: float = 1.9
    blur_angstrom: float = 0.15


class Resire(Solver):
    """V⁺ = max(0, V − (s/‖A‖²) Aᵀ(A V − b)).

    Literature: Pham et al., Sci. Rep. 13 (2023) 5624; Yang et al., Nature 592 (2021) 60. Published codes scale the step
    by K N instead of ‖A‖² and may diverge there.
    """

    Options: ClassVar[type[ResireOptions]] = ResireOptions

    def __init__(self, options: ResireOptions) -> None:
        self.options = options

    def scalars(self, before: Scalars | None, loss: float, norm: float, scale: float) -> Scalars:
        """Return the constant step."""
        return Scalars(step=self.options.relaxation / norm, loss=loss)

    def update(self, state: SlabState, gradient: FloatArray, scalars: Scalars) -> SlabState:
        """Return the slab after one step."""
        volume, _ = proximal_step(state.point, state.volume, gradient, scalars.step, 0.0, 0.0, True)
        return replace(state, volume=volume, point=volume)
