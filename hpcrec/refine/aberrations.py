"""Refinement of the probe's aberrations: a few numbers instead of a free probe, or beside it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, FloatArray, array_module, numbers_to_host, to_host
from hpcrec.backend.fft import fft2, ifft2
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.gradients import Gradients
from hpcrec.models.placement import Copies, beside
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.options import options
from hpcrec.physics.probe import aberration_basis
from hpcrec.refine.base import Refinement, RefinementOptions
from hpcrec.refine.descent import add_to, bold_step


@options
class AberrationOptions(RefinementOptions):
    """Options of aberrations; with ``probe_start`` beyond the last sweep the probe stays a pure aberrated aperture.

    names : "C10" (defocus), "C12a", "C12b" (astigmatism), "C21a" … "C56b": C_nm cos mφ and sin mφ, to fifth order
    max_step_angstrom : largest change of defocus in one sweep; higher orders by the phase it makes at the edge
    """

    names: tuple[str, ...] = ("C10", "C12a", "C12b")
    max_step_angstrom: float = 10.0


class Aberrations(Refinement):
    """The aberrations of all probe modes, changed once a sweep: P̂ ← P̂ exp(−iΔχ).

    ``state.refined["aberrations"]`` holds what was added to each in Å, in the order of the names.
    """

    Options = AberrationOptions
    wanted = ("probe",)

    def __init__(self, model: PtychographyModel, options: AberrationOptions) -> None:
        super().__init__(model, options)
        self._options, self._copies = options, Copies()
        arguments = model.shape, model.sampling, model.wavelength
        self._basis = aberration_basis(*arguments, options.names)
        self._defocus = aberration_basis(*arguments, ("C10",))[0]

    def prepare(self, state: PtychographyState) -> None:
        """Begin with what the probe has."""
        n = len(self._options.names)
        state.refined.setdefault("aberrations", np.zeros(n))
        state.memory.setdefault("aberration_sums", np.zeros((2, n)))

    def collect(self, state: PtychographyState, batch: Batch, gradients: Gradients) -> dict[str, Array]:
        """Return gradients 2 Re Σ (∂L/∂P*)* ∂P/∂C and weights Σ|∂P/∂C|² Σ|O|², (2, aberration)."""
        changes, xp = self._directions(state), array_module(state.probe)
        slopes = [2 * xp.vdot(gradients.probe, change).real / self.model.curvature for change in changes]
        weights = [xp.sum(xp.abs(change) ** 2 * gradients.object_weight, dtype=np.float64) for change in changes]
        return {"aberrations": numbers_to_host(slopes + weights).reshape(2, -1)}

    def apply(self, state: PtychographyState, sums: Mapping[str, Array]) -> None:
        """Add up over the sweep."""
        add_to(state.memory, "aberration_sums", sums["aberrations"])

    def finish(self, state: PtychographyState) -> None:
        """Take the step of the sweep; from a device the probe's power comes to the host, and the phase goes there."""
        gradient, weight = state.memory["aberration_sums"]
        # In the unit of the defocus that makes as much phase over the probe's spectrum
        spectrum = fft2(state.probe)
        power = to_host(np.sum(np.abs(spectrum) ** 2, axis=0))
        spreads = [np.sqrt(np.sum(power * (b - _mean(power, b)) ** 2)) for b in (self._defocus, *self._basis)]
        unit = spreads[0] / np.maximum(spreads[1:], 1e-30)
        scaled = bold_step(
            state.memory, "aberration", gradient * unit, weight * unit**2, self._options.max_step_angstrom
        )
        state.refined["aberrations"] = state.refined["aberrations"] + scaled * unit
        phase = np.exp(-1j * np.tensordot(scaled * unit, self._basis, axes=1)).astype(spectrum.dtype)
        state.probe = ifft2(spectrum * beside(spectrum, phase)).astype(state.probe.dtype, copy=False)
        state.memory["aberration_sums"] = np.zeros_like(state.memory["aberration_sums"])

    def _directions(self, state: PtychographyState) -> list[ComplexArray]:
        """Return ∂P/∂C (mode, y, x) of each aberration, without the part that is only a phase of the probe."""
        spectrum = fft2(state.probe)
        power = np.sum(np.abs(spectrum) ** 2, axis=0)
        basis = self._copies.of("basis", self._basis, power)
        flat = [(b - _mean(power, b)).astype(power.dtype) for b in basis]
        return [ifft2(-1j * b * spectrum) for b in flat]


def _mean(power: FloatArray, values: FloatArray) -> Array:
    """Return the mean of ``values`` (ky, kx) under weights, a number where they live."""
    xp = array_module(power)
    found: Array = xp.sum(power * values) / xp.sum(power)
    return found
