"""Sums of gradients in fixed point, which are the same to the last bit in whatever order a GPU adds them.

Kernels round each number once to units of 1/scale and add 64-bit integers (``kernels/sums.cuh``). What goes beyond 63
bits on the way does no harm, as integers wrap around; the sum itself must fit. With a = Π max(1, |O_s|) Π max(1, |H|)
over slices and gaps, Q = Σ|P|² over pixels and modes, n patterns, C counts in the brightest, by Cauchy and Schwarz

    ‖ψ_s‖ ≤ √Q a_1…a_{s−1},  ‖g_s‖ ≤ ‖χ‖ a_{s+1}…,  so that at each pixel
    |Σ g_s ψ_s*| ≤ n √Q ‖χ‖ a,  Σ|ψ_s|² ≤ n Q a²,  |Σ ∂L/∂P*| ≤ n ‖χ‖ a,

where χ = wΨ at the detector. Amplitude losses have |χ|² ≤ (√Î − √I)² ≤ Î + I, so ‖χ‖² ≤ Q a² + C. Poisson's has
|χ|² ≤ Î where Î ≥ I, and else I² Î/(Î + ε)² ≤ I²/4ε, so ‖χ‖² ≤ Q a² + C²/4ε. Scales depend on these numbers alone,
never on how patterns are cut into chunks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Final

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, FloatArray, IntArray, array_module, to_host
from hpcrec.errors import ConfigError, DivergedError
from hpcrec.models.chain import Chain
from hpcrec.models.events import Events, largest_total
from hpcrec.objectives.losses import POISSON_FLOOR

# A sum's modulus stays below 2^62 units: single precision and rounding may go beyond the bounds, by far less than 2
_BITS: Final = 62
# Of a number of mean size, which single precision holds with 24
_LEAST_BITS: Final = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Scales:
    """Units in one, powers of two, of the sums of the object's gradient, its illumination and the probe's gradient."""

    gradient: float
    illumination: float
    probe: float


def scales_of(chain: Chain, patterns: Array | Events, factors: ComplexArray) -> Scales:
    """Return the scales of all sums over ``patterns`` (n, ky, kx).

    factors : (gap, 2, N) of the propagators, each over N, as ``cuda.pack_propagators`` makes them

    Raises
    ------
    DivergedError : object or probe hold what is not finite
    ConfigError : too many patterns, or an object that amplifies so much, that 63 bits are too few.
    """
    n, pixels = len(chain.corners), chain.spectrum.shape[-1] ** 2
    gain, power = _gain(chain, factors), _power(chain)
    counts = largest_total(patterns)
    measured = counts**2 / (4 * POISSON_FLOOR) if chain.detector.loss == "poisson" else counts
    residual = math.sqrt(power * gain**2 + measured)
    bounds = n * math.sqrt(power) * residual * gain, n * power * gain**2, n * residual * gain
    if not all(map(math.isfinite, bounds)):
        raise DivergedError("object, probe or counts hold values that are not finite, or too large to be added up")
    # The mean of |ψ|² over a window's pixels is Q/N²
    left = _BITS - math.log2(n * gain**2 * pixels)
    if left < _LEAST_BITS:
        raise ConfigError(
            f"deterministic: sums over {n} patterns behind an object that may amplify waves {gain:.3g} times leave "
            f"{left:.0f} bits for a number of mean size, {_LEAST_BITS} are needed; take smaller batches, or bound |O|"
        )
    return Scales(gradient=_scale(bounds[0]), illumination=_scale(bounds[1]), probe=_scale(bounds[2]))


def room_for(xp: ModuleType, shapes: dict[str, tuple[int, ...]]) -> dict[str, IntArray]:
    """Return zeros for the sums "object_gradient", "illumination" and "probe_gradient" of some shapes, as integers."""
    return {
        name: xp.zeros(shape if name == "illumination" else (*shape, 2), np.int64) for name, shape in shapes.items()
    }


def as_numbers(sums: dict[str, IntArray], scales: Scales, totals: FloatArray) -> dict[str, Array]:
    """Return the sums of :func:`room_for` as float32 and complex64.

    totals : loss, error and counts over the same patterns; integers know no not-a-number, which the totals of a wave
        that holds one do
    """
    known = 1.0 if np.isfinite(totals).all() else np.nan
    found: dict[str, Array] = {}
    for name, scale in (("object_gradient", scales.gradient), ("probe_gradient", scales.probe)):
        found[name] = (complex_sums(sums[name], scale) * known).astype(np.complex64)
    found["illumination"] = (real_sums(sums["illumination"], scales.illumination) * known).astype(np.float32)
    return found


def real_sums(fixed: IntArray, scale: float) -> FloatArray:
    """Return sums (…) of integers (…) as float64."""
    return fixed * (1 / scale)  # type: ignore[no-any-return]


def complex_sums(fixed: IntArray, scale: float) -> ComplexArray:
    """Return complex sums (…) of integers (…, 2) as complex128."""
    return fixed[..., 0] * (1 / scale) + fixed[..., 1] * (1j / scale)  # type: ignore[no-any-return]


def _scale(bound: float) -> float:
    # Within what single precision holds beside any number
    return 2.0 ** min(max(_BITS - math.frexp(bound)[1], -100), 100)


def _gain(chain: Chain, factors: ComplexArray) -> float:
    """Return a, by which object and propagators may amplify a wave."""
    n, xp = chain.spectrum.shape[-1], array_module(chain.obj)
    of_slices = to_host(xp.abs(chain.obj[0]).max(axis=(1, 2)))
    # (gap, axis)
    of_gaps = to_host(xp.abs(factors).max(axis=-1)) * n if len(factors) else np.ones((0, 2))
    largest = np.concatenate([of_slices, of_gaps.prod(axis=1)]).astype(np.float64)
    return float(np.maximum(largest, 1).prod())


def _power(chain: Chain) -> float:
    """Return Q."""
    return float((array_module(chain.spectrum).abs(chain.spectrum) ** 2).sum(dtype=np.float64))
