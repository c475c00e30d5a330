"""Constraints that tie neighbours of one slice.

They act on the transmission O itself, not on its phase, so phases may wrap; where O turns fast, what they smooth away
lowers |O| a little. The edges of the grid are joined, as they are for the waves.
"""

from __future__ import annotations

import numpy as np

from hpcrec.backend.array import ComplexArray, FloatArray, array_module, real_dtype
from hpcrec.backend.fft import fft2, ifft2
from hpcrec.geometry.grid import Grid
from hpcrec.objectives.constraints import ConstraintOptions, ObjectConstraint, Surroundings
from hpcrec.objectives.regularizers import flatten_variation
from hpcrec.options import options


@options
class LateralVariationOptions(ConstraintOptions):
    """Options of the total variation in the plane.

    weight : τ of the proximal map, about the phase in rad by which flat noise is levelled each time
    n_iterations : of the inner solver
    """

    weight: float
    n_iterations: int = 20


@options
class SmoothnessOptions(ConstraintOptions):
    """Options of the smoothing in the plane.

    sigma_angstrom : standard deviation of the Gaussian
    strength : share of the smoothed object that is taken
    """

    sigma_angstrom: float
    strength: float = 1.0


@options
class ButterworthOptions(ConstraintOptions):
    """Options of the low-pass filter.

    cutoff_inverse_angstrom : frequency at which a wave keeps 1/√2 of its amplitude
    order : of the filter; the larger, the steeper
    """

    cutoff_inverse_angstrom: float
    order: int = 4


class LateralVariation(ObjectConstraint):
    """Proximal step of the total variation of each slice, Σ √(|∂_y O|² + |∂_x O|²) in differences of pixels."""

    Options = LateralVariationOptions
    pointwise = False
    by_slices = True

    def __init__(self, options: LateralVariationOptions) -> None:
        self._options = options

    def apply(self, obj: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the object with less variation, slice by slice to save memory."""
        found = array_module(obj).empty_like(obj)
        for index in np.ndindex(obj.shape[:-2]):
            found[index] = flatten_variation(obj[index], self._options.weight, (-2, -1), self._options.n_iterations)
        return found  # type: ignore[no-any-return]


class Smoothness(ObjectConstraint):
    """O ← (1 − s) O + s G∗O with a Gaussian G of standard deviation σ: Ĝ(k) = exp(−2π²σ²k²)."""

    Options = SmoothnessOptions
    pointwise = False
    by_slices = True

    def __init__(self, options: SmoothnessOptions) -> None:
        self._options = options

    def apply(self, obj: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the smoothed object."""
        sigma, share = self._options.sigma_angstrom, self._options.strength
        gaussian = array_module(obj).exp(-2 * np.pi**2 * sigma**2 * squared_frequency(obj, around))
        return filtered(obj, 1 - share + share * gaussian)


class Butterworth(ObjectConstraint):
    """Low-pass filter 1/√(1 + (k/k_c)^2n) of each slice (Butterworth, Wireless Eng. 7, 536 (1930))."""

    Options = ButterworthOptions
    pointwise = False
    by_slices = True

    def __init__(self, options: ButterworthOptions) -> None:
        self._options = options

    def apply(self, obj: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the filtered object."""
        relative = squared_frequency(obj, around) / self._options.cutoff_inverse_angstrom**2
        return filtered(obj, 1 / array_module(obj).sqrt(1 + relative**self._options.order))


def squared_frequency(obj: ComplexArray, around: Surroundings) -> FloatArray:
    """Return k² (y, x) in 1/Å² of the object's grid, zero at [0, 0], where the object lives."""
    grid = Grid(shape=(obj.shape[-2], obj.shape[-1]), sampling=around.sampling)
    ky, kx = (array_module(obj).asarray(k) for k in grid.frequencies())
    return ky**2 + kx**2  # type: ignore[no-any-return]


def filtered(obj: ComplexArray, factor: FloatArray) -> ComplexArray:
    """Return the object with the spectrum of each slice multiplied by ``factor`` (y, x), in its type."""
    spectrum = fft2(obj)
    spectrum *= factor.astype(real_dtype(obj.dtype))
    return ifft2(spectrum)
