"""The multislice chain through the compiled kernels: the same functions as :mod:`hpcrec.models.multislice`.

Single precision, host memory, one thread. The first call of a process loads the compiled code from its cache on disk.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, FloatArray
from hpcrec.backend.fft import aligned_empty, inplace_plan_addresses
from hpcrec.backend.kernels import ptychography as kernels
from hpcrec.models.multislice import Chain, ChainSums
from hpcrec.objectives.losses import AMPLITUDE_FLOOR, LOSSES, POISSON_FLOOR
from hpcrec.operators.propagate import shift_ramps

_FLOORS = {"amplitude": AMPLITUDE_FLOOR, "poisson": POISSON_FLOOR}
# Floats between two waves: keeps the same pixel of both out of one cache set
_PAD = 64


def chain_intensities(chain: Chain) -> FloatArray:
    """Return the modelled intensities (n, ky, kx)."""
    n_modes, ny, nx = chain.spectrum.shape
    out = np.empty((len(chain.corners), ny * nx), np.float32)
    kernels.intensities(*_waves_arguments(chain), _room(chain, n_modes), out)
    return out.reshape(-1, ny, nx)


def add_gradients(chain: Chain, patterns: Array, sums: ChainSums, *, probe: bool, shifts: bool) -> None:
    """Add the gradients of ``patterns`` (n, ky, kx) to ``sums``, whose arrays are contiguous."""
    n_modes, ny, nx = chain.spectrum.shape
    kernels.gradients(
        *_waves_arguments(chain),
        *_detector_arguments(chain, patterns),
        np.array(sums.origin),
        _room(chain, n_modes, len(chain.obj)),
        _room(chain, n_modes + 1),
        sums.obj.view(np.float32),
        sums.illumination,
        sums.spectrum.view(np.float32).reshape(n_modes, -1),
        sums.shifts,
        sums.totals,
        probe,
        shifts,
        np.fft.fftfreq(ny).astype(np.float32),
        np.fft.fftfreq(nx).astype(np.float32),
    )


def add_responses(
    chain: Chain,
    patterns: Array,
    obj: ComplexArray,
    origin: tuple[int, int],
    spectrum: ComplexArray,
    totals: FloatArray,
) -> FloatArray:
    """Return the terms (n, 5) of the answers to a change of object and probe."""
    terms = np.zeros((len(chain.corners), 5))
    kernels.responses(
        *_waves_arguments(chain),
        *_detector_arguments(chain, patterns),
        np.float32(-1 / LOSSES[chain.loss].curvature),
        np.array(origin),
        _floats(obj),
        _flat(spectrum),
        bool(spectrum.any()),
        _room(chain, 4, len(spectrum)),
        terms,
        totals,
    )
    return terms


def _waves_arguments(chain: Chain) -> tuple[Any, ...]:
    """Return plans, object, corners, spectrum, ramps and propagator as the kernels take them."""
    ny, nx = chain.spectrum.shape[-2:]
    ramp_y, ramp_x = shift_ramps(chain.shifts, (ny, nx), np.complex64)
    ramps = _floats(ramp_y * np.float32(1 / math.sqrt(ny * nx))), _floats(ramp_x)
    propagator = _floats(chain.propagator * np.float32(1 / (ny * nx))).ravel()
    plans = inplace_plan_addresses(ny, nx)
    return plans, _floats(chain.obj), chain.corners, _flat(chain.spectrum), ramps, propagator


def _detector_arguments(chain: Chain, patterns: Array) -> tuple[Any, ...]:
    """Return patterns, mask, whether the loss is Poisson's, and its floor."""
    pixels = chain.propagator.size
    measured = np.ascontiguousarray(patterns, np.float32).reshape(len(patterns), pixels)
    mask = np.ones(pixels, np.float32) if chain.mask is None else chain.mask.ravel().astype(np.float32)
    return measured, mask, chain.loss == "poisson", np.float32(_FLOORS[chain.loss])


def _room(chain: Chain, *shape: int) -> FloatArray:
    """Return room for waves (…, floats), each aligned to 64 bytes."""
    return aligned_empty((*shape, -(-2 * chain.propagator.size // 16) * 16 + _PAD), np.float32)


def _floats(a: ComplexArray) -> FloatArray:
    return np.ascontiguousarray(a, np.complex64).view(np.float32)


def _flat(a: ComplexArray) -> FloatArray:
    return _floats(a).reshape(len(a), -1)
