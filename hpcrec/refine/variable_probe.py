"""A probe that varies from position to position: orthogonal probe relaxation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpcrec.backend.array import Array, FloatArray, array_module, to_host
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.gradients import Gradients
from hpcrec.models.placement import beside
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.options import options
from hpcrec.physics.probe import orthogonal_start_modes
from hpcrec.refine.base import Refinement, RefinementOptions, spread

_DAMPING = 0.1


@options
class VariableProbeOptions(RefinementOptions):
    """Options of the variable probe.

    modes : number of probe components whose weight varies with the position
    mode_step : largest change of a component in one update, as a share of its norm
    weight_step : share of the least-squares step of the weights; up to 2 is safe, since only half of a wave counts
    """

    modes: int = 2
    mode_step: float = 0.001
    weight_step: float = 1.5


class VariableProbe(Refinement):
    """P_j = P + Σ_i a_ij U_i in mode 0 (Odstrčil et al., Opt. Express 24, 8360 (2016)) with real weights a.

    The components begin as the probe times −i (ky, kx, ky² …) in Fourier space, what shifts and defocus of a drifting
    beam add first; the weights begin at zero and keep a mean of zero. Both change with each batch; U is orthonormalised
    once a sweep, which leaves Σ a U as it is.
    """

    Options = VariableProbeOptions
    wanted = ("variation",)

    def __init__(self, model: PtychographyModel, options: VariableProbeOptions) -> None:
        super().__init__(model, options)
        self._options = options

    def prepare(self, state: PtychographyState) -> None:
        """Begin with derivatives of the probe, made on the host, and without weights."""
        if "variation" not in state.refined:
            n = self._options.modes
            # −i k P̂ is a shift of the probe, −i k² P̂ its defocus: what real weights should bring
            modes = -1j * orthogonal_start_modes(to_host(state.probe[0]), n + 1, share=0.5 / n)[1:]
            norms = np.sqrt(np.sum(np.abs(modes) ** 2, axis=(1, 2), keepdims=True))
            state.refined["variation"] = beside(state.probe, (modes / norms).astype(state.probe.dtype))
            state.refined["coefficients"] = np.zeros((len(state.positions), n))

    def collect(self, state: PtychographyState, batch: Batch, gradients: Gradients) -> dict[str, Array]:
        """Return gradients and weights of the coefficients (position, 2m), and of the components."""
        of, added = gradients.of_patterns, gradients.added
        both = np.hstack([of["coefficients"], of["coefficients_weight"]])
        return {
            "coefficients": spread(batch, len(state.positions), both),
            "variation": added["variation"],
            "variation_weight": added["variation_weight"],
            "variation_object": gradients.object_weight,
        }

    def apply(self, state: PtychographyState, sums: Mapping[str, Array]) -> None:
        """Take shares of the damped least-squares steps, weights and components from the same gradients."""
        curvature, n = self.model.curvature, self._options.modes
        coefficients = state.refined["coefficients"]
        gradient, weight = sums["coefficients"][:, :n] / curvature, sums["coefficients"][:, n:]
        touched = weight.any(axis=1)
        if not touched.any():
            return
        damped = 2 * (weight[touched] + _DAMPING * weight[touched].mean(axis=0))
        changed = coefficients.copy()
        changed[touched] -= self._options.weight_step * gradient[touched] / damped
        # The least-squares step explains all that is left by these weights: far too long while they are young
        size = sums["variation_weight"] * float(sums["variation_object"].max()) / touched.sum()
        gain = np.divide(1, curvature * size, out=np.zeros_like(size), where=size > 0)
        step = sums["variation"] * beside(sums["variation"], gain)[:, None, None]
        length = np.sqrt(np.sum(np.abs(step) ** 2, axis=(1, 2), keepdims=True))
        share = np.minimum(1.0, self._options.mode_step / np.maximum(length, 1e-30))
        modes = state.refined["variation"] - share * step
        state.refined["variation"] = modes.astype(state.probe.dtype, copy=False)
        state.refined["coefficients"] = changed

    def finish(self, state: PtychographyState) -> None:
        """Make the weights' means zero, which the probe takes up, and the components orthonormal."""
        modes, coefficients = state.refined["variation"].astype(np.complex128), state.refined["coefficients"]
        mean, flat, xp = coefficients.mean(axis=0), modes.reshape(len(modes), -1), array_module(modes)
        change = beside(modes, mean.astype(modes.dtype)) @ flat
        probe = state.probe[0] + change.reshape(modes.shape[1:]).astype(state.probe.dtype)
        # Real weights allow a real turn only: orthonormal in the real sense, Re⟨U, U'⟩
        real = xp.concatenate([flat.real, flat.imag], axis=1)
        root, inverse = _roots(to_host(real @ real.T))
        flat = beside(modes, inverse.astype(modes.dtype)) @ flat
        state.refined["variation"] = flat.reshape(modes.shape).astype(state.probe.dtype)
        state.refined["coefficients"] = (coefficients - mean) @ root
        state.probe = xp.concatenate([probe[None], state.probe[1:]])


def _roots(gram: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return G^½ and G^(−½) (m, m) of a Gram matrix, with which components become orthonormal and turn least.

    Löwdin, J. Chem. Phys. 18, 365 (1950). Components of equal strength have no principal directions: of these round-off
    would choose, another one on other numbers of ranks.
    """
    values, vectors = np.linalg.eigh(gram)
    size = np.sqrt(np.maximum(values, 1e-30))
    return (vectors * size) @ vectors.T, (vectors / size) @ vectors.T
