"""The multislice chain through the compiled kernels: the same functions as :mod:`hpcrec.models.multislice`.

Single precision, host memory, one thread. The first call of a process loads the compiled code from its cache on disk.
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from typing import Any

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray, IntArray
from hpcrec.backend.fft import aligned_empty
from hpcrec.backend.kernels import line, responses, waves
from hpcrec.backend.kernels import ptychography as kernels
from hpcrec.backend.kernels.transforms import Plan, filter_factors, known_size, transform_plan
from hpcrec.models.chain import Chain, ChainSums, Detector, KeptWaves
from hpcrec.objectives.losses import AMPLITUDE_FLOOR, ANSCOMBE_FLOOR, GAUSSIAN_FLOOR, LOSSES, POISSON_FLOOR

_LOSSES = {
    "amplitude": (waves.AMPLITUDE, np.float32(AMPLITUDE_FLOOR)),
    "anscombe": (waves.AMPLITUDE, np.float32(ANSCOMBE_FLOOR)),
    "poisson": (waves.POISSON, np.float32(POISSON_FLOOR)),
    "gaussian": (waves.GAUSSIAN, np.float32(GAUSSIAN_FLOOR)),
}
# Floats between two waves: keeps the same pixel of both out of one cache set
_PAD = 64
# Largest difference of factors of gaps from products of one along each axis, both in single precision
_SEPARABLE = 5e-7


def fault(detector: Detector, precision: str) -> str | None:
    """Say what the compiled kernels do not know, or return None."""
    if precision != "single":
        return "the compiled kernel works in single precision"
    if detector.blur is not None or detector.binning != 1:
        return "the compiled kernel has sharp detector pixels, as large as the model's"
    return None


def chain_intensities(chain: Chain) -> FloatArray:
    """Return the modelled counts (n, ky, kx)."""
    n_modes, ny, nx = chain.spectrum.shape
    out = np.empty((len(chain.corners), ny * nx), np.float32)
    scale, background = _scale_and_background(chain)
    plan = plan_of(chain, threading.get_ident())
    kernels.intensities(plan, waves_of(chain), scale, background, wave_room(chain, n_modes + 2), out)
    return out.reshape(-1, ny, nx)


def add_gradients(
    chain: Chain,
    patterns: Array,
    good: BoolArray | None,
    sums: ChainSums,
    kept: KeptWaves | None = None,
    revision: tuple[float, float] | None = None,
) -> None:
    """Add the gradients of ``patterns`` (n, ky, kx) to ``sums``, whose arrays are contiguous; fill ``kept``.

    ``revision`` : β and γ of :func:`hpcrec.models.revised.revised_gradients`.
    """
    n_modes, ny, nx = chain.spectrum.shape
    n = len(chain.corners)
    optional = (sums.spectrum, sums.shifts, sums.variation, sums.moments, sums.scale, sums.background)
    background = np.zeros((2, 0), np.float32) if sums.background is None else sums.background.reshape(2, -1)
    if kept is None:
        room = wave_room(chain, 1, chain.n_parts, chain.obj.shape[1])
        kept = KeptWaves(room, np.zeros((0, 1, 1), np.float32))
    kernels.gradients(
        plan_of(chain, threading.get_ident()),
        waves_of(chain),
        detector_of(chain, patterns, np.arange(len(patterns)), good),
        np.array(sums.origin),
        (kept.entering, kept.leaving),
        wave_room(chain, chain.n_parts + 3),
        wave_room(chain, n_modes),
        frequencies_of(chain),
        sums.obj.view(np.float32),
        sums.illumination,
        _sums_of(sums.spectrum),
        np.zeros((0, 0, 2)) if sums.shifts is None else sums.shifts,
        _sums_of(sums.variation),
        np.zeros((0, 0)) if sums.coefficients is None else sums.coefficients,
        np.zeros((0, 0, 3)) if sums.moments is None else sums.moments,
        np.zeros((n, 2)) if sums.scale is None else sums.scale,
        background,
        sums.totals,
        tuple(a is not None for a in optional),
        (revision is not None, *(np.float32(number) for number in revision or (0, 0))),
    )


def add_responses(
    chain: Chain,
    patterns: Array,
    good: BoolArray | None,
    obj: ComplexArray,
    origin: tuple[int, int],
    spectrum: ComplexArray,
    sums: ChainSums,
) -> FloatArray:
    """Return the terms (n, 5) of the answers to a change of object and probe."""
    terms = np.zeros((len(chain.corners), 5))
    kernels.responses(
        plan_of(chain, threading.get_ident()),
        waves_of(chain),
        detector_of(chain, patterns, np.arange(len(patterns)), good),
        np.float32(-1 / LOSSES[chain.detector.loss].curvature),
        np.array(origin),
        _floats(obj),
        _flat(spectrum),
        bool(spectrum.any()),
        wave_room(chain, 4, chain.n_parts),
        wave_room(chain, len(spectrum) + 1),
        terms,
        sums.totals,
    )
    return terms


def kept_responses(
    chain: Chain, obj: ComplexArray, origin: tuple[int, int], spectrum: ComplexArray, kept: KeptWaves
) -> FloatArray:
    """Return the terms (n, 5) as :func:`add_responses`, from waves that :func:`add_gradients` kept; far field only."""
    terms, room = np.zeros((len(chain.corners), 5)), wave_room(chain, len(spectrum) + 2)
    responses.kept_responses(
        plan_of(chain, threading.get_ident()),
        waves_of(chain),
        _scale_and_background(chain)[0],
        np.float32(-1 / LOSSES[chain.detector.loss].curvature),
        np.array(origin),
        _floats(obj),
        _flat(spectrum),
        bool(spectrum.any()),
        (kept.entering, kept.leaving),
        room[:2],
        room[2:],
        terms,
    )
    return terms


def chain_loss(chain: Chain, patterns: Array, good: BoolArray | None) -> float:
    """Return the loss of ``patterns`` (n, ky, kx)."""
    totals, n_modes = np.zeros(3), len(chain.spectrum)
    detector = detector_of(chain, patterns, np.arange(len(patterns)), good)
    line.losses(plan_of(chain, threading.get_ident()), waves_of(chain), detector, wave_room(chain, n_modes + 4), totals)
    return float(totals[0])


def room_to_keep(n: int, n_parts: int, n_slices: int, pixels: int) -> KeptWaves:
    """Return room for the waves of n patterns of ``pixels`` each."""
    floats = room_floats(pixels)
    entering = aligned_empty((n, n_parts, n_slices, floats), np.float32)
    return KeptWaves(entering, aligned_empty((n, n_parts, floats), np.float32))


def plan_of(chain: Chain, place: int) -> Plan:
    """Return the plan of transforms of one wave for a thread."""
    ny, nx = chain.spectrum.shape[-2:]
    return transform_plan(ny, nx, place)


def waves_of(chain: Chain) -> tuple[Any, ...]:
    """Return object, corners, spectrum, variation, coefficients, ramps, gaps, near field … as the kernels take them.

    Gaps: factors (slice − 1, …), the same along each axis (slice − 1 or 0, forward or conjugate, …), whether patterns
    have tilts of their own, and these as ramps along y and x. Last come whether the probe is not shifted, and its
    share.
    """
    n = len(chain.corners)
    ny, nx = chain.spectrum.shape[-2:]
    pixels = ny * nx
    share = 1.0 if chain.whole else chain.share / math.sqrt(pixels)
    ramps = _ramps(chain.shifts, (ny, nx), share, chain.shifts.shape[:-1])
    variation = np.zeros((0, 2 * pixels), np.float32) if chain.variation is None else _flat(chain.variation)
    mixed = np.zeros((n, 0)) if chain.coefficients is None else chain.coefficients
    coefficients = np.ascontiguousarray(mixed, np.float32)
    near = chain.detector.propagator
    factor = np.zeros(2, np.float32) if near is None else _floats(near * np.float32(1 / pixels)).ravel()
    of_gaps = (n, max(len(chain.propagators), 1))
    gaps = *gaps_of(chain.propagators), chain.tilts is not None, *_ramps(chain.tilts, (ny, nx), 1.0, of_gaps)
    back = _ramps(None if near is None else -chain.shifts, (ny, nx), 1.0, chain.shifts.shape[:-1])
    return (
        _floats(chain.obj), chain.corners, _flat(chain.spectrum), variation, coefficients, ramps, gaps,
        (near is not None, factor, *back), (chain.whole, np.float32(chain.share)),
    )  # fmt: skip


def _ramps(
    shifts: FloatArray | None, shape: tuple[int, int], factor: float, lead: tuple[int, ...]
) -> tuple[FloatArray, FloatArray]:
    """Return the ramps along y, times ``factor``, and along x of shifts (…, 2) in pixels, see shift_ramps.

    ``lead`` is the shape of what stands before the last axis. Without shifts the ramps are room that nobody reads.
    """
    found = []
    for axis, (n, scale) in enumerate(zip(shape, (factor, 1.0))):
        ramps = np.empty((*lead, 2 * n), np.float32)
        if shifts is not None:
            waves.fill_ramps(shifts[..., axis].ravel(), scale, ramps.reshape(-1, 2 * n))
        found.append(ramps)
    return found[0], found[1]


def detector_of(chain: Chain, patterns: Array, rows: IntArray, good: BoolArray | None) -> tuple[Any, ...]:
    """Return patterns, which of them to take (n,), their type, masks, loss, its floor, scale and background.

    Last comes whether scale and background say nothing.
    """
    pixels = chain.rate.size
    known = patterns if patterns.dtype in waves.COUNTS else patterns.astype(np.float32)
    counts = np.ascontiguousarray(known).reshape(len(known), pixels).view(np.uint8)
    masks = _ones(pixels)
    if good is not None:
        masks = np.ascontiguousarray(good.reshape(-1, pixels)).view(np.uint8)
    bare = chain.scale is None and chain.background is None
    kind = waves.COUNTS.index(known.dtype.type)
    return counts, rows, kind, masks, *_LOSSES[chain.detector.loss], *_scale_and_background(chain), bare


def _scale_and_background(chain: Chain) -> tuple[FloatArray, FloatArray]:
    n, pixels = len(chain.corners), chain.rate.size
    scale = np.ones(n, np.float32) if chain.scale is None else chain.scale.astype(np.float32)
    ground = chain.background
    return scale, np.zeros(pixels, np.float32) if ground is None else np.ascontiguousarray(ground, np.float32).ravel()


@lru_cache(maxsize=8)
def _ones(pixels: int) -> Array:
    return np.ones((1, pixels), np.uint8)


def frequencies_of(chain: Chain) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the rate (ny·nx) and the cycles per pixel along y and x, for the kernels."""
    return chain.rate.ravel(), _frequencies(chain.rate.shape[0]), _frequencies(chain.rate.shape[1])


@lru_cache(maxsize=8)
def _frequencies(n: int) -> FloatArray:
    return np.fft.fftfreq(n).astype(np.float32)


class _Gaps(threading.local):
    """The factors of gaps that were last asked for in a thread, and what the kernels take instead."""

    asked: ComplexArray | None = None
    found: tuple[FloatArray, FloatArray] = np.zeros((0, 0), np.float32), np.zeros((0, 2, 0), np.float32)


_last_gaps = _Gaps()


def gaps_of(factors: ComplexArray) -> tuple[FloatArray, FloatArray]:
    """Return the factors (gap, ky, kx) over ny·nx, flat, and along each axis; the model keeps its from batch to batch.

    The second, (gap, forward or conjugate, …) as :func:`filter_factors` says, is of no gap unless all are products of
    one factor along each axis and hpcrec's own transforms know the size.
    """
    if _last_gaps.asked is not factors:
        pixels = factors.shape[1] * factors.shape[2]
        _last_gaps.asked = factors
        _last_gaps.found = _flat(factors * np.float32(1 / pixels)), _axes_of(factors, 1 / pixels)
    return _last_gaps.found


def _axes_of(factors: ComplexArray, scale: float) -> FloatArray:
    n, ny, nx = factors.shape
    along_y, along_x = factors[:, :, 0], factors[:, 0]
    apart = along_y[:, :, None] * along_x[:, None] - factors
    # H is 1 at zero frequency; each factor is rounded to single precision
    if n == 0 or not (known_size(ny) and known_size(nx)) or np.abs(apart).max() > _SEPARABLE:
        return np.zeros((0, 2, 2 * (ny + nx)), np.float32)
    return filter_factors(*(np.stack([axis, axis.conj()], 1) for axis in (along_y * np.float32(scale), along_x)))


def _sums_of(spectra: ComplexArray | None) -> FloatArray:
    none = np.zeros((0, 0), np.float32)
    return none if spectra is None else spectra.view(np.float32).reshape(len(spectra), 2 * spectra[0].size)


def wave_room(chain: Chain, *shape: int) -> FloatArray:
    """Return room for waves (…, floats), each aligned to 64 bytes; whoever asks next in this thread gets it too."""
    return _kept_room((*shape, room_floats(chain.rate.size)), threading.get_ident())


def room_floats(pixels: int) -> int:
    """Return the floats from one wave to the next, so that each begins aligned."""
    return -(-2 * pixels // 16) * 16 + _PAD


@lru_cache(maxsize=32)
def _kept_room(shape: tuple[int, ...], thread: int) -> FloatArray:
    return aligned_empty(shape, np.float32)


def _floats(a: ComplexArray) -> FloatArray:
    return np.ascontiguousarray(a, np.complex64).view(np.float32)


def _flat(a: ComplexArray) -> FloatArray:
    return _floats(a).reshape(len(a), 2 * a.shape[1] * a.shape[2])
