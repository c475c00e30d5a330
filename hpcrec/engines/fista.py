"""FISTA: projected gradient with Nesterov's momentum and restart."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from hpcrec.backend.array import FloatArray
from hpcrec.backend.kernels.volume import proximal_step
from hpcrec.engines.solvers import Scalars, SlabState, Solver
from hpcrec.options import options


@options
class FistaOptions:
    """Options of FISTA.

    n_iterations: gradient steps, one projection and one back projection each
    positivity: keep the coefficients non-negative
    sparsity: weight of the L1 penalty as a fraction of the weight that makes the volume zero (0 to 1); a per cent
        clears the vacuum between atoms; use 0 for objects that fill space
    blur_angstrom: standard deviation of the blobs that the volume is made of, the finest detail allowed; 0 = voxels
    """

    n_iterations: int = 25
    positivity: bool = True
    sparsity: float = 0.03
    blur_angstrom: float = 0.15


class Fista(Solver):
    """Accelerated proximal gradient: x⁺ = prox(y − ∇f(y)/L), y⁺ = x⁺ + ((t−1)/t⁺)(x⁺ − x).

    The momentum restarts when the loss at y grows. Literature: Beck & Teboulle, SIAM J. Imaging Sci. 2 (2009) 183;
    O'Donoghue & Candès, Found. Comput. Math. 15 (2015) 715.
    """

    Options: ClassVar[type[FistaOptions]] = FistaOptions

    def __init__(self, options: FistaOptions) -> None:
        self.options = options

    def scalars(self, before: Scalars | None, loss: float, norm: float, scale: float) -> Scalars:
        """Return step 1/‖A‖² and the next momentum; t falls back to 1 when the loss grew."""
        t = 1.0 if before is None or loss > before.loss else before.t
        t_next = (1 + np.sqrt(1 + 4 * t * t)) / 2
        return Scalars(
            step=1 / norm,
            momentum=(t - 1) / t_next,
            threshold=self.options.sparsity * scale / norm,
            t=t_next,
            loss=loss,
        )

    def update(self, state: SlabState, gradient: FloatArray, scalars: Scalars) -> SlabState:
        """Return the slab after one step and its extrapolation."""
        volume, point = proximal_step(
            state.point,
            state.volume,
            gradient,
            scalars.step,
            scalars.threshold,
            scalars.momentum,
            self.options.positivity,
        )
        return replace(state, volume=volume, point=point)
