"""The forward model of ptychography, one or many slices, one or many probe modes, and its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from hpcrec.backend.array import (
    Array,
    BoolArray,
    ComplexArray,
    FloatArray,
    IntArray,
    complex_dtype,
    real_dtype,
    to_host,
)
from hpcrec.backend.fft import fft2, ifft2
from hpcrec.errors import ConfigError, DataError
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.tiles import Box, bounding_box
from hpcrec.models import compiled, multislice
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.multislice import Chain, ChainSums
from hpcrec.models.partial import Field
from hpcrec.objectives.losses import LOSSES
from hpcrec.physics.propagation import fresnel_factor, propagation_fault


@dataclass(frozen=True, slots=True)
class Gradients:
    """Sums over the patterns of one share; gradients are ∂L/∂z* of complex z, so dL = 2 Re Σ (∂L/∂z*)* dz.

    box : object pixels that ``obj`` and ``illumination`` cover
    obj : (slice, y, x) gradient by the object; illumination : (slice, y, x) Σ|ψ_s|² over patterns and modes
    probe : (mode, y, x) gradient by the probe; object_weight : (y, x) Σ|O_1|² over the windows
    positions : (n, 2) gradient in 1/Å; position_weight : (n, 2) Σ|P ∂O|² in counts/Å², float64
    loss, error, counts : the loss, Σ(√I − √I₀)² and ΣI₀ over the good pixels
    """

    box: Box
    obj: ComplexArray
    illumination: FloatArray
    probe: ComplexArray
    object_weight: FloatArray
    positions: FloatArray
    position_weight: FloatArray
    loss: float
    error: float
    counts: float


@dataclass(frozen=True, slots=True)
class Responses:
    """First-order answers of far fields to a change: ``terms`` (n, 5), see multislice.add_responses; sums as above."""

    terms: FloatArray
    loss: float
    error: float
    counts: float


class PtychographyModel:
    """Patterns of a multislice object under a partially coherent probe.

    Parameters
    ----------
    shape : (ny, nx) pixels of a pattern and of the probe's window
    sampling : (dy, dx) Å of a pixel of probe and object
    wavelength : Å
    slice_thickness : Å between two slices; the number of slices is the object's
    mask : (ky, kx) boolean, True = good pixel, zero frequency at [0, 0]; None: all good
    loss : name in :data:`hpcrec.objectives.losses.LOSSES`
    precision : "single" or "double"
    band_limit : square band limit of the propagator as a fraction of Nyquist; None keeps all frequencies
    kernel : "compiled" loops, the plain "numpy" twin, or "auto": compiled in single precision

    The probe stays in real space, centred at n//2; a window's first pixel is round(pixel) − n//2, the rest of the
    position is an exact Fourier shift of the probe.

    Raises
    ------
    ConfigError : unknown loss; mask of another shape; slices too thick for the grid; compiled in double precision.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        sampling: tuple[float, float],
        wavelength: float,
        slice_thickness: float = 0.0,
        *,
        mask: BoolArray | None = None,
        loss: str = "amplitude",
        precision: Literal["single", "double"] = "single",
        band_limit: float | None = None,
        kernel: Literal["auto", "numpy", "compiled"] = "auto",
    ) -> None:
        if loss not in LOSSES:
            raise ConfigError(f"loss: {loss!r} is not known; expected one of {', '.join(LOSSES)}")
        if mask is not None and mask.shape != shape:
            raise ConfigError(f"mask: expected the shape {shape} of a pattern, got {mask.shape}")
        fault = propagation_fault(shape, sampling, wavelength, slice_thickness, band_limit)
        if fault:
            raise ConfigError(f"slice_thickness: {fault}")
        self.shape, self.sampling, self.loss = shape, sampling, loss
        self.curvature = LOSSES[loss].curvature
        self.dtype = complex_dtype(precision)
        self._mask = None if mask is None or mask.all() else mask
        self._propagator = fresnel_factor(shape, sampling, wavelength, slice_thickness, band_limit, self.dtype)
        single = precision == "single"
        if kernel == "compiled" and not single:
            raise ConfigError(
                "kernel: the compiled kernel works in single precision; use 'numpy' or 'auto' with double"
            )
        self._code = multislice if kernel == "numpy" or not single else compiled

    def windows(self, positions: FloatArray, grid: Grid) -> tuple[IntArray, FloatArray]:
        """Return the windows' first pixels (n, 2) on the whole grid and the sub-pixel shifts (n, 2) of the probe."""
        pixels = grid.to_pixels(positions)
        nearest = np.rint(pixels)
        return nearest.astype(np.int64) - np.array(self.shape) // 2, pixels - nearest

    def box(self, positions: FloatArray, grid: Grid) -> Box:
        """Return the smallest box of object pixels around the windows of some positions (n, 2) in Å."""
        return bounding_box(self.windows(positions, grid)[0], self.shape)

    def simulate(self, state: PtychographyState, positions: FloatArray) -> FloatArray:
        """Return the intensities (n, ky, kx) at positions (n, 2) in Å, zero frequency at [0, 0]."""
        found: FloatArray = self._code.chain_intensities(self._chain(state, positions)[0])
        return found

    def gradients(
        self, state: PtychographyState, batch: Batch, *, probe: bool = True, positions: bool = False
    ) -> Gradients:
        """Return the gradients of a batch; those by probe or positions are zero unless asked for."""
        chain, box = self._chain(state, state.positions[batch.indices])
        real = real_dtype(self.dtype)
        sums = ChainSums(
            origin=(box.y0 - state.box.y0, box.x0 - state.box.x0),
            obj=np.zeros((len(state.obj), *box.shape), self.dtype),
            illumination=np.zeros((len(state.obj), *box.shape), real),
            spectrum=np.zeros_like(chain.spectrum),
            shifts=np.zeros((len(chain.corners), 2)),
            totals=np.zeros(3),
        )
        self._code.add_gradients(chain, self._good(batch.patterns), sums, probe=probe, shifts=positions)
        loss, error, counts = sums.totals.tolist()
        return Gradients(
            box=box,
            obj=sums.obj,
            illumination=sums.illumination,
            probe=ifft2(sums.spectrum),
            object_weight=self._object_weight(chain) if probe else np.zeros(self.shape, real),
            positions=sums.shifts / self.sampling,
            position_weight=self._position_weight(state, chain, box) if positions else np.zeros_like(sums.shifts),
            loss=loss,
            error=error,
            counts=counts,
        )

    def responses(
        self, state: PtychographyState, batch: Batch, obj_change: Field, probe_change: ComplexArray
    ) -> Responses:
        """Return the answers of a batch's far fields to a change of object (slice, y, x) and probe (mode, y, x).

        ``obj_change`` must cover the windows of the batch.
        """
        chain, box = self._chain(state, state.positions[batch.indices])
        if not obj_change.box.contains(box):
            raise ValueError(f"the change covers {obj_change.box}, the windows of the batch {box}")
        origin = (obj_change.box.y0 - state.box.y0, obj_change.box.x0 - state.box.x0)
        totals = np.zeros(3)
        change = obj_change.values.astype(self.dtype, copy=False)
        patterns, direction = self._good(batch.patterns), self._spectrum(probe_change)
        terms = self._code.add_responses(chain, patterns, change, origin, direction, totals)
        loss, error, counts = totals.tolist()
        return Responses(terms, loss, error, counts)

    def _good(self, patterns: Array) -> Array:
        """Return the patterns with zeros on bad pixels, which may hold anything, not-a-number included."""
        return patterns if self._mask is None else np.where(self._mask, patterns, patterns.dtype.type(0))

    def _spectrum(self, probe: Array) -> ComplexArray:
        return fft2(probe.astype(self.dtype, copy=False))

    def _chain(self, state: PtychographyState, positions: FloatArray) -> tuple[Chain, Box]:
        """Return the chain of some positions and the box their windows touch on the whole grid."""
        corners, shifts = self.windows(to_host(positions), state.grid)
        box = bounding_box(corners, self.shape)
        if not state.box.contains(box):
            raise DataError(
                f"probe windows reach {box}, outside of the object's {state.box}: positions moved further than the "
                "margin allows; raise the margin of the object or limit how far positions may move"
            )
        chain = Chain(
            obj=state.obj.astype(self.dtype, copy=False),
            corners=corners - (state.box.y0, state.box.x0),
            spectrum=self._spectrum(state.probe),
            shifts=shifts,
            propagator=self._propagator,
            mask=self._mask,
            loss=self.loss,
        )
        return chain, box

    def _object_weight(self, chain: Chain) -> FloatArray:
        weight = np.zeros(self.shape, real_dtype(self.dtype))
        for y, x in chain.corners:
            patch = chain.obj[0, y : y + self.shape[0], x : x + self.shape[1]]
            weight += patch.real**2 + patch.imag**2
        return weight

    def _position_weight(self, state: PtychographyState, chain: Chain, box: Box) -> FloatArray:
        """Return Σ|P ∂O|² along y and x, with O the product of all slices and P the probe in front of them.

        Differences of neighbours that both lie in the window, so that the weight of a position is its own, whatever
        else is in the batch.
        """
        product = np.prod(chain.obj[(slice(None), *box.slices(state.box))], axis=0)
        power = np.sum(np.abs(state.probe) ** 2, axis=0)
        corners = chain.corners + (state.box.y0 - box.y0, state.box.x0 - box.x0)
        weight = np.empty((len(corners), 2))
        for axis in range(2):
            squared = np.abs(np.diff(product, axis=axis) / self.sampling[axis]) ** 2
            between = np.moveaxis(power, axis, 0)
            between = np.moveaxis(0.5 * (between[1:] + between[:-1]), 0, axis)
            ny, nx = between.shape
            for j, (y, x) in enumerate(corners):
                weight[j, axis] = np.vdot(squared[y : y + ny, x : x + nx], between)
        return weight
