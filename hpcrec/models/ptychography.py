"""The forward model of ptychography, one or many slices, one or many probe modes, and its gradients."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Literal

import numpy as np

from hpcrec.backend.array import (
    Array,
    BoolArray,
    ComplexArray,
    FloatArray,
    IntArray,
    array_module,
    complex_dtype,
    real_dtype,
    to_host,
)
from hpcrec.backend.threads import Threads
from hpcrec.errors import ConfigError, DataError
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.tiles import Box, bounding_box
from hpcrec.models import compiled, launched, multislice, trusted
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import Chain, ChainSums, Detector, KeptWaves, cleaned, good_pixels, joined, share_of
from hpcrec.models.events import Events, dense
from hpcrec.models.gradients import Gradients
from hpcrec.models.placement import Copies, batch_beside, beside
from hpcrec.models.refined import object_weight, probe_gradient, refined_gradients
from hpcrec.models.room import DEFAULT_BYTES, Room
from hpcrec.models.spectra import spectra_of
from hpcrec.models.stream import Block, StepRule, stream
from hpcrec.models.windows import WindowSums
from hpcrec.objectives.losses import LOSSES
from hpcrec.physics.propagation import propagation_fault, propagation_rate, tilted_factor

_BLOCK_PIXELS = 1 << 26
Wanted = Literal["probe", "positions", "tilt", "thickness", "variation", "intensity", "background"]


class PtychographyModel:
    """Patterns of a multislice object under a partially coherent probe.

    Parameters
    ----------
    shape : (ny, nx) pixels of the probe's window; a pattern has 1/binning of them along each side
    sampling : (dy, dx) Å of a pixel of probe and object
    wavelength : Å
    slice_thickness : Å between two slices; the number of slices is the object's
    detector : what turns waves into counts, and the loss
    flight : (point, 2) Å, where the probe is during one exposure, from the position; None: at rest
    propagation : "fresnel" or "exact", between slices
    precision : "single" or "double"
    band_limit : square band limit of the propagator as a fraction of Nyquist; None keeps all frequencies
    kernel : "compiled" loops; "array" code, their plain twin, which takes arrays of a device too; "launched", a
        device's own kernels; or "auto": compiled loops where they know precision (single) and detector (sharp pixels,
        no binning), for an object on a device its own kernels where they know what is asked for and agree with array
        code, array code else
    threads : of the compiled kernel; each has object sums of its own. :class:`Threads` may grow between two calls
    wave_bytes : of waves that a device may have at a time, 0: two gibibytes; halved where its memory does not suffice
    deterministic : on a device, gradients are the same to the last bit from run to run: sums of kernels are in fixed
        point

    The probe stays in real space, centred at n//2; a window's first pixel is round(pixel) − n//2, the rest of the
    position is an exact Fourier shift of the probe. ``state.refined`` may hold what departs from these parameters,
    see :class:`hpcrec.models.base.PtychographyState`.

    Raises
    ------
    ConfigError : unknown loss; mask of another shape; slices too thick; a kernel that does not know what is asked.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        sampling: tuple[float, float],
        wavelength: float,
        slice_thickness: float = 0.0,
        *,
        detector: Detector | None = None,
        flight: FloatArray | None = None,
        propagation: Literal["fresnel", "exact"] = "fresnel",
        precision: Literal["single", "double"] = "single",
        band_limit: float | None = None,
        kernel: Literal["auto", "array", "compiled", "launched"] = "auto",
        threads: int | Threads = 1,
        wave_bytes: int = 0,
        deterministic: bool = False,
    ) -> None:
        fault = propagation_fault(shape, sampling, wavelength, slice_thickness, band_limit)
        if fault:
            raise ConfigError(f"slice_thickness: {fault}")
        self.shape, self.sampling, self.wavelength, self.slice_thickness = shape, sampling, wavelength, slice_thickness
        self.detector = detector = Detector() if detector is None else detector
        self.pattern_shape = detector.pattern_shape(shape)
        self.curvature = LOSSES[detector.loss].curvature
        self.dtype = complex_dtype(precision)
        self.flight = np.zeros((1, 2)) if flight is None else np.asarray(flight, np.float64)
        self._band_limit = band_limit
        self._evanescent = propagation_rate(shape, sampling, wavelength, propagation)
        self.rate = np.nan_to_num(self._evanescent).astype(real_dtype(self.dtype))
        self._propagators: tuple[bytes, ComplexArray] = (b"", np.zeros((0, *shape), self.dtype))
        fault = compiled.fault(detector, precision)
        if kernel == "compiled" and fault:
            raise ConfigError(f"kernel: {fault}; use 'array' or 'auto'")
        self._kernel = kernel
        self._on_host = multislice if kernel == "array" or fault else compiled
        self._copies, self._waves = Copies(), Room(wave_bytes or DEFAULT_BYTES)
        self.threads = Threads(threads) if isinstance(threads, int) else threads
        self.deterministic = deterministic
        self._lent = np.zeros((0, 0, 0, 0), self.dtype), np.zeros((0, 0, 0, 0), real_dtype(self.dtype))

    def windows(self, positions: FloatArray, grid: Grid) -> tuple[IntArray, FloatArray]:
        """Return the windows' first pixels (…, 2) on the whole grid and the sub-pixel shifts (…, 2) of the probe."""
        pixels = grid.to_pixels(positions)
        nearest = np.rint(pixels)
        return nearest.astype(np.int64) - np.array(self.shape) // 2, pixels - nearest

    def box(self, positions: FloatArray, grid: Grid) -> Box:
        """Return the smallest box of object pixels around the windows of some positions (n, 2) in Å."""
        return bounding_box(self.windows(self._points(positions), grid)[0].reshape(-1, 2), self.shape)

    def simulate(self, state: PtychographyState, indices: IntArray) -> FloatArray:
        """Return the modelled counts (n, ky, kx) of the positions ``indices`` (n,), zero frequency at [0, 0]."""
        chain, code = self._chain(state, indices)[0], self.code(state)
        return self._waves.use(lambda room: code.chain_intensities(replace(chain, room=room)))

    def code(self, state: PtychographyState) -> ModuleType:
        """Return the module whose functions take chains of a state, by the kernel and by where the object lives."""
        on_host = array_module(state.obj) is np
        if self._kernel == ("launched" if on_host else "compiled"):
            where = "on the processor" if on_host else "on a GPU"
            raise ConfigError(f"kernel: {self._kernel!r} cannot be used where the object lives, {where}; use 'auto'")
        on_device = {"launched": launched, "array": multislice}.get(self._kernel, trusted)
        return self._on_host if on_host else on_device

    def streams_on(self, state: PtychographyState) -> bool:
        """Whether :meth:`stream` takes steps of this state: by the compiled kernel, with the object on the host."""
        return self.code(state) is compiled

    def gradients(
        self,
        state: PtychographyState,
        batch: Batch,
        wanted: Collection[Wanted] = (),
        *,
        windowed: bool = False,
        kept: KeptWaves | None = None,
        revision: tuple[float, float] | None = None,
    ) -> Gradients:
        """Return the gradients of a batch by the object, and by what else is ``wanted``.

        ``windowed`` : the object's gradient and illumination stay in :class:`WindowSums`, for the compiled kernel.
        ``kept`` : to be filled for :func:`hpcrec.models.responses.responses`. ``revision`` : what
        :func:`hpcrec.models.revised.revised_gradients` asks of the compiled kernel.
        """
        chain, box = self._chain(state, batch.indices, shifted="positions" in wanted)
        lent = self._lend(state) if windowed and self.code(state) is compiled else None
        sums = self._waves.use(
            lambda room: self._summed(state, replace(chain, room=room), box, batch, wanted, lent, kept, revision)
        )
        windows = None
        if lent is not None:
            corners = chain.corners.reshape(-1, 2)
            windows = WindowSums(corners[np.argsort(corners[:, 1])], self.shape, *lent, self.threads)
        loss, error, counts = sums.totals.tolist()
        of_probe = "probe" in wanted or "variation" in wanted
        weight = object_weight(chain) if of_probe else np.zeros_like(chain.rate)
        more = refined_gradients(state, chain, box, sums, self.sampling, self.thicknesses(state))
        return Gradients(
            box=box,
            obj=_flat_states(sums.obj, empty=lent is not None),
            illumination=_flat_states(sums.illumination, empty=lent is not None),
            loss=loss,
            error=error,
            counts=counts,
            object_weight=weight,
            probe=probe_gradient(chain, sums),
            of_patterns=more.of_patterns,
            added=more.added,
            windows=windows,
        )

    def block_patterns(self, state: PtychographyState) -> int:
        """Return how many patterns a block may have so that its call ends, and may be interrupted, soon."""
        work = self.shape[0] * self.shape[1] * len(state.probe) * len(state.obj) * len(self.flight)
        return max(_BLOCK_PIXELS // work, 1)

    def stream(self, state: PtychographyState, block: Block, rule: StepRule) -> FloatArray:
        """Take the steps of all batches of a block by the compiled kernel; return the sums of loss, error, counts."""
        chain, _ = self._chain(state, block.indices)
        saturated = self.detector.saturation is not None
        good = good_pixels(self.detector, block.patterns[block.rows] if saturated else block.patterns, block.good)
        return stream(state, chain, block, good, rule, self._lend(state))

    def _summed(
        self,
        state: PtychographyState,
        chain: Chain,
        box: Box,
        batch: Batch,
        wanted: Collection[Wanted],
        lent: tuple[ComplexArray, FloatArray] | None,
        kept: KeptWaves | None,
        revision: tuple[float, float] | None,
    ) -> ChainSums:
        """Return the sums of a batch, made by this rank's threads."""
        code = self.code(state)
        batch = batch_beside(state.obj, batch, events=code in (launched, trusted))
        good, calls, rooms = self.good(batch), [], []
        for i, share in enumerate(self._shares(state, batch)):
            part, own_good = share_of(chain, good, share)
            rooms.append(self._room(state, part, box, wanted, None if lent is None else (lent[0][i], lent[1][i])))
            call = partial(code.add_gradients, part, batch.patterns[share], own_good, rooms[-1])
            if code in (launched, trusted):
                call = partial(call, deterministic=self.deterministic)
            if kept is not None or revision is not None:
                call = partial(call, kept=None if kept is None else kept.part(share), revision=revision)
            calls.append(call)
        self.threads.run(calls)
        return joined(rooms, lent=lent is not None)

    def _lend(self, state: PtychographyState) -> tuple[ComplexArray, FloatArray]:
        """Return a gradient and an illumination (thread, slice, y, x) of zeros, kept as users clear what they take."""
        shape = (self.threads.n_threads, *state.obj.shape)
        if self._lent[0].shape != shape:
            self._lent = np.zeros(shape, self.dtype), np.zeros(shape, real_dtype(self.dtype))
        return self._lent

    def pattern_errors(self, state: PtychographyState, batch: Batch) -> FloatArray:
        """Return Σ(√Î − √I)² over the good pixels of each pattern of a batch, (n,) float64."""
        batch = batch_beside(state.obj, batch)
        modelled, good = self.simulate(state, batch.indices), self.good(batch)
        # Roots of 8-bit counts would be of half precision
        difference = np.sqrt(modelled) - np.sqrt(self.clean(batch).astype(modelled.dtype, copy=False))
        squares = difference**2 if good is None else difference**2 * good
        return to_host(np.sum(squares, axis=(1, 2), dtype=np.float64))

    def _shares(self, state: PtychographyState, batch: Batch) -> list[slice]:
        """Return which patterns of a batch each thread takes."""
        return self.threads.shares(len(batch.indices)) if self.code(state) is compiled else [slice(None)]

    def clean(self, batch: Batch) -> Array:
        """Return the patterns with zeros on bad pixels, which may hold anything, not-a-number included."""
        patterns = dense(batch.patterns)
        mask = self._copies.of("mask", self.detector.mask, patterns)
        return cleaned(cleaned(patterns, mask), batch.good)

    def good(self, batch: Batch) -> BoolArray | None:
        """Return the pixels (n or 1, ky, kx) that count, where the patterns are; None: all."""
        patterns = batch.patterns
        like = patterns.places if isinstance(patterns, Events) else patterns
        return good_pixels(self._copies.of_detector(self.detector, like), patterns, batch.good)

    def _entering(self, whole: bool, probe: Array) -> ComplexArray:
        """Return waves of the probe as chains take them: their spectra, or with whole pixels themselves."""
        waves: ComplexArray = array_module(probe).ascontiguousarray(probe, self.dtype)
        return waves if whole else spectra_of(waves)

    def _by_state(self, state: PtychographyState, values: Array) -> ComplexArray:
        """Return an object's array (state · slice, y, x) as (state, slice, y, x)."""
        return values.astype(self.dtype, copy=False).reshape(state.n_states, state.n_slices, *values.shape[1:])

    def _points(self, positions: FloatArray) -> FloatArray:
        """Return where the probe is (n, flight, 2) in Å."""
        return to_host(positions)[:, None] + self.flight  # type: ignore[no-any-return]

    def _chain(self, state: PtychographyState, indices: IntArray, *, shifted: bool = False) -> tuple[Chain, Box]:
        """Return the chain of some positions and the box their windows touch on the whole grid.

        ``shifted`` : whether the probe must pass through its spectrum, where positions are on whole pixels too.
        """
        corners, shifts = self.windows(self._points(state.positions[indices]), state.grid)
        whole = state.whole_pixels and not shifted
        if state.whole_pixels:
            shifts = np.zeros_like(shifts)
        box = bounding_box(corners.reshape(-1, 2), self.shape)
        if not state.box.contains(box):
            raise DataError(
                f"probe windows reach pixels {_ends(box)}, outside of the object's {_ends(state.box)}: positions moved "
                "further than parallel.halo_margin_angstrom; raise it, or limit how far refined positions may move"
            )
        refined = state.refined
        variation, background = (beside(state.obj, refined.get(name)) for name in ("variation", "background"))
        chain = Chain(
            obj=self._by_state(state, state.obj),
            corners=corners - (state.box.y0, state.box.x0),
            shifts=shifts,
            spectrum=self._entering(whole, state.probe),
            propagators=self._copies.of("propagators", self._gaps(state), state.obj),
            rate=self._copies.of("rate", self.rate, state.obj),
            detector=self._copies.of_detector(self.detector, state.obj),
            variation=None if variation is None else self._entering(whole, variation),
            coefficients=None if variation is None else refined["coefficients"][indices],
            tangents=self._tangents(state, indices),
            tilts=self._tilts(state, indices),
            scale=refined["intensity"][indices] if "intensity" in refined else None,
            background=None if background is None else background.astype(real_dtype(self.dtype)),
            room=self._waves.nbytes,
            whole=whole,
        )
        return chain, box

    def thicknesses(self, state: PtychographyState) -> FloatArray:
        """Return the distances (slice − 1,) in Å between the slices."""
        given = state.refined.get("thickness")
        return np.full(state.n_slices - 1, self.slice_thickness) if given is None else given

    def _gaps(self, state: PtychographyState) -> ComplexArray:
        """Return the factors (slice − 1, ky, kx) of the gaps, kept until thickness or tilt change."""
        distances, tilt = self.thicknesses(state), state.refined.get("tilt", np.zeros(2))
        key = np.concatenate([distances, tilt]).tobytes()
        if key != self._propagators[0] or len(self._propagators[1]) != len(distances):
            made = {
                d: tilted_factor(self._evanescent, self.sampling, d, (tilt[0], tilt[1]), self._band_limit, self.dtype)
                for d in set(distances.tolist())
            }
            factors = [made[d] for d in distances.tolist()]
            self._propagators = key, np.stack(factors) if factors else np.zeros((0, *self.shape), self.dtype)
        return self._propagators[1]

    def _tangents(self, state: PtychographyState, indices: IntArray) -> FloatArray | None:
        tangents = [np.tan(state.refined["tilt"])[None]] if "tilt" in state.refined else []
        if "position_tilt" in state.refined:
            tangents.append(np.tan(state.refined["position_tilt"][indices]))
        return sum(tangents, np.zeros((1, 2))) if tangents else None

    def _tilts(self, state: PtychographyState, indices: IntArray) -> FloatArray | None:
        """Return the shifts (n, slice − 1, 2) in pixels that positions' own tilts add in each gap; or None."""
        tilts = state.refined.get("position_tilt")
        if tilts is None or state.n_slices == 1:
            return None
        return -self.thicknesses(state)[:, None] * np.tan(tilts[indices])[:, None] / self.sampling  # type: ignore[no-any-return]

    def _room(
        self,
        state: PtychographyState,
        chain: Chain,
        box: Box,
        wanted: Collection[Wanted],
        lent: tuple[ComplexArray, FloatArray] | None = None,
    ) -> ChainSums:
        """Return empty sums for what is wanted; those on the object in the ``lent`` arrays (slice, y, x)."""
        n, n_flight = chain.corners.shape[:2]
        xp, real, shape = array_module(chain.obj), real_dtype(self.dtype), (*chain.obj.shape[:2], *box.shape)
        varied = "variation" in wanted and chain.variation is not None and chain.coefficients is not None
        gaps = ("tilt" in wanted or "thickness" in wanted) and len(chain.propagators) > 0
        origin = (box.y0 - state.box.y0, box.x0 - state.box.x0)
        if lent is None:
            lent = xp.zeros(shape, self.dtype), xp.zeros(shape, real)
        else:
            origin, shape = (0, 0), (*chain.obj.shape[:2], *state.obj.shape[1:])
        return ChainSums(
            origin=origin,
            obj=lent[0].reshape(shape),
            illumination=lent[1].reshape(shape),
            totals=np.zeros(3),
            spectrum=np.zeros_like(chain.spectrum) if "probe" in wanted else None,
            shifts=np.zeros((n, n_flight, 2)) if "positions" in wanted else None,
            variation=np.zeros_like(chain.variation) if varied else None,
            coefficients=np.zeros_like(chain.coefficients, np.float64) if varied else None,
            moments=np.zeros((n, len(chain.propagators), 3)) if gaps else None,
            scale=np.zeros((n, 2)) if "intensity" in wanted else None,
            background=xp.zeros((2, *self.pattern_shape), real) if "background" in wanted else None,
        )


def _ends(box: Box) -> str:
    return f"{box.y0}…{box.y1 - 1} × {box.x0}…{box.x1 - 1}"


def _flat_states(values: Array, *, empty: bool) -> Array:
    """Return an array (state, slice, y, x) as (state · slice, y, x), or no row of it."""
    values = values[:, :, :0] if empty else values
    return values.reshape(values.shape[0] * values.shape[1], *values.shape[2:])
