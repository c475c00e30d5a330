"""From the power of waves at the detector to counts, and back from the loss's weights: the plain form."""

from __future__ import annotations

import numpy as np

from hpcrec.backend import windows
from hpcrec.backend.array import (
    Array,
    BoolArray,
    ComplexArray,
    FloatArray,
    array_module,
    numbers_to_host,
    real_dtype,
    to_host,
)
from hpcrec.backend.fft import fft2, ifft2
from hpcrec.models.chain import Chain, ChainSums, Detector
from hpcrec.models.served import served
from hpcrec.objectives.losses import FLOORS, LOSSES, amplitude_error


def detected(chain: Chain, part: slice, power: FloatArray) -> FloatArray:
    """Return the counts Î = B(c P) + b (n, ky, kx) of powers P = Σ|Ψ|² (n, ky, kx) of the patterns ``part``."""
    counts = _spread(chain.detector, power)
    if chain.scale is not None:
        counts = counts * pattern_factors(chain.scale[part], power)
    return counts if chain.background is None else counts + chain.background


def weighs_waves(chain: Chain, patterns: Array, sums: ChainSums) -> bool:
    """Whether :func:`weigh_waves` does all that is wanted at the detector: on a device that compiles kernels."""
    detector = chain.detector
    plain = detector.propagator is None and detector.blur is None and detector.binning == 1
    alone = chain.scale is None and chain.background is None and sums.scale is None and sums.background is None
    known = detector.loss in FLOORS and patterns.dtype.name in windows.WEIGHED and chain.obj.dtype == np.complex64
    return served(chain.obj) and plain and alone and known


def weigh_waves(chain: Chain, far: ComplexArray, patterns: Array, good: BoolArray | None, sums: ChainSums) -> None:
    """Multiply waves (n, part, ky, kx) at the detector by ∂L/∂(power), and add to ``sums.totals``, by one kernel."""
    loss = chain.detector.loss
    sums.totals[:] += windows.weigh(far, patterns, good, loss, FLOORS[loss])


def weigh(
    chain: Chain, part: slice, power: FloatArray, patterns: Array, good: BoolArray | None, sums: ChainSums
) -> FloatArray:
    """Return ∂L/∂P (n, ky, kx); add loss, error, counts and what is wanted of scale and background to ``sums``."""
    detector = chain.detector
    counts = _spread(detector, power)
    modelled = detected(chain, part, power)
    measured = patterns.astype(power.dtype, copy=False)
    loss, weight = LOSSES[detector.loss].evaluate(modelled, measured, good)
    sums.totals[:] += numbers_to_host((loss, *amplitude_error(modelled, measured, good)))
    if sums.background is not None:
        curvature = 0.5 / (modelled + 1)
        sums.background[0] += weight.sum(axis=0)
        sums.background[1] += (curvature if good is None else curvature * good).sum(axis=0)
    if sums.scale is not None:
        seen = counts if good is None else counts * good
        both = [np.sum(values, axis=(1, 2), dtype=np.float64) for values in (weight * counts, seen)]
        sums.scale[part] += to_host(array_module(weight).stack(both, axis=1))
    back = _gather(detector, weight)
    return back if chain.scale is None else back * pattern_factors(chain.scale[part], power)


def pattern_factors(scale: FloatArray, power: FloatArray) -> FloatArray:
    """Return factors (n,) of the host beside powers (n, ky, kx), to be multiplied with them."""
    factors: FloatArray = array_module(power).asarray(scale.astype(power.dtype))
    return factors[:, None, None]


def _spread(detector: Detector, power: FloatArray) -> FloatArray:
    """Apply B: the point spread, then the sum over the model pixels of each detector pixel."""
    if detector.blur is not None:
        # Round-off makes dark pixels negative, whose roots are not numbers
        power = np.maximum(_filtered(power, detector.blur), 0)
    for axis in (-2, -1):
        power = _bin(power, detector.binning, axis)
    return power


def _gather(detector: Detector, weight: FloatArray) -> FloatArray:
    """Apply the adjoint of B."""
    for axis in (-2, -1):
        weight = _unbin(weight, detector.binning, axis)
    return weight if detector.blur is None else _filtered(weight, detector.blur.conj())


def _filtered(values: FloatArray, factor: Array) -> FloatArray:
    wide = values.astype(np.result_type(values.dtype, np.complex64))
    return array_module(wide).ascontiguousarray(ifft2(fft2(wide) * factor).real, real_dtype(wide.dtype))  # type: ignore[no-any-return]


def _taps(binning: int) -> dict[int, float]:
    """Return the weights of the model pixels around the centre of a detector pixel; an even number shares its edges."""
    half = binning // 2
    if binning % 2:
        return {t: 1.0 for t in range(-half, half + 1)}
    return {t: 0.5 if abs(t) == half else 1.0 for t in range(-half, half + 1)}


def _bin(values: FloatArray, binning: int, axis: int) -> FloatArray:
    """Sum model pixels of an axis to detector pixels, with the zero frequency at [0] before and after."""
    if binning == 1:
        return values
    total = sum((w * np.roll(values, -t, axis) for t, w in _taps(binning).items()), np.zeros_like(values))
    chosen = np.arange(values.shape[axis] // binning)
    chosen = np.where(chosen < (len(chosen) + 1) // 2, chosen, chosen - len(chosen)) * binning
    return np.take(total, array_module(total).asarray(chosen % values.shape[axis]), axis)  # type: ignore[no-any-return]


def _unbin(values: FloatArray, binning: int, axis: int) -> FloatArray:
    """Apply the adjoint of :func:`_bin`."""
    if binning == 1:
        return values
    n = values.shape[axis]
    chosen = np.arange(n)
    chosen = np.where(chosen < (n + 1) // 2, chosen, chosen - n) * binning % (n * binning)
    xp, shape = array_module(values), list(values.shape)
    shape[axis] = n * binning
    wide: FloatArray = xp.zeros(shape, values.dtype)
    np.moveaxis(wide, axis, 0)[xp.asarray(chosen)] = np.moveaxis(values, axis, 0)
    return sum((w * np.roll(wide, t, axis) for t, w in _taps(binning).items()), np.zeros_like(wide))
