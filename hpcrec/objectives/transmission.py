"""Pointwise constraints: what the transmission of one pixel of one slice may be.

Phases are taken between −π and π; a slice that turns the phase further must be cut into thinner ones.
"""

from __future__ import annotations

from typing import Literal

from hpcrec.backend.array import ComplexArray, FloatArray, array_module
from hpcrec.objectives.constraints import ConstraintOptions, ObjectConstraint, Surroundings, phase_only
from hpcrec.objectives.regularizers import shrink
from hpcrec.options import options

_TINY = 1e-20
_DARKEST = 1e-3


@options
class PositivePhaseOptions(ConstraintOptions):
    """Options of the phase's sign.

    sign : "positive" for electrons in a specimen's potential, "negative" for photons, whom matter speeds up
    """

    sign: Literal["positive", "negative"] = "positive"


@options
class AmplitudeBoundOptions(ConstraintOptions):
    """Options of the bounds of |O|; with the defaults nothing in the sample emits.

    A bound from above sets the scale only where |O| reaches it by itself. At few counts it cuts noise off on that side
    alone, and the probe's power grows sweep by sweep: add "probe_power", which holds it.

    lowest, highest : bounds of |O|
    """

    lowest: float = 0.0
    highest: float = 1.0


@options
class ComplexRatioOptions(ConstraintOptions):
    """Options of one material.

    ratio : ln|O| over the phase: −V_imaginary/V for electrons, +β/δ for photons, whose phase is negative
    strength : share of the way to the nearest transmission with this ratio
    """

    ratio: float
    strength: float = 1.0


@options
class SparsePhaseOptions(ConstraintOptions):
    """Options of the sparse phase.

    threshold_rad : by how much phases are drawn to zero each time
    """

    threshold_rad: float


class PositivePhase(ObjectConstraint):
    """Phases of the wrong sign become zero; |O| stays. The object's phase must be that against vacuum."""

    Options = PositivePhaseOptions

    def __init__(self, options: PositivePhaseOptions) -> None:
        self._sign = 1 if options.sign == "positive" else -1

    def apply(self, obj: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the object with phases of one sign."""
        xp = array_module(obj)
        return xp.where(self._sign * xp.angle(obj) < 0, xp.abs(obj), obj).astype(obj.dtype, copy=False)  # type: ignore[no-any-return]


class AmplitudeBound(ObjectConstraint):
    """lowest ≤ |O| ≤ highest, phases stay; a zero becomes the lowest."""

    Options = AmplitudeBoundOptions
    ties_scale = True

    def __init__(self, options: AmplitudeBoundOptions) -> None:
        self._lowest, self._highest = options.lowest, options.highest

    def apply(self, obj: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the object within the bounds."""
        return with_amplitude(obj, array_module(obj).clip(abs(obj), self._lowest, self._highest))


class PhaseOnly(ObjectConstraint):
    """|O| = 1: nothing absorbs; a zero stays zero."""

    Options = ConstraintOptions
    ties_scale = True

    def __init__(self, options: ConstraintOptions) -> None:
        """There is nothing to choose."""

    def apply(self, obj: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the object with its phases only."""
        return phase_only(obj)


class ComplexRatio(ObjectConstraint):
    """ln|O| = ratio · phase, for a sample of one material (Clark et al., Opt. Express 18, 1981 (2010)).

    (ln|O|, φ) is drawn to the nearest point of this line; what is darker than 10⁻³ counts as that.
    """

    Options = ComplexRatioOptions
    ties_scale = True

    def __init__(self, options: ComplexRatioOptions) -> None:
        self._ratio, self._strength = options.ratio, options.strength

    def apply(self, obj: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the object nearer to the line."""
        xp, ratio, share = array_module(obj), self._ratio, self._strength
        log, phase = xp.log(xp.maximum(xp.abs(obj), _DARKEST)), xp.angle(obj)
        along = (phase + ratio * log) / (1 + ratio**2)
        found = (1 - share) * (log + 1j * phase) + share * along * (ratio + 1j)
        return xp.exp(found).astype(obj.dtype, copy=False)  # type: ignore[no-any-return]


class SparsePhase(ObjectConstraint):
    """Soft threshold of the phase, the proximal map of τ Σ|φ|; |O| stays."""

    Options = SparsePhaseOptions

    def __init__(self, options: SparsePhaseOptions) -> None:
        self._threshold = options.threshold_rad

    def apply(self, obj: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the object with phases nearer to zero."""
        xp = array_module(obj)
        phase = shrink(xp.angle(obj), self._threshold)
        return (xp.abs(obj) * xp.exp(1j * phase)).astype(obj.dtype, copy=False)  # type: ignore[no-any-return]


def with_amplitude(obj: ComplexArray, amplitude: FloatArray) -> ComplexArray:
    """Return ``amplitude`` with the phases of ``obj``, in its type; the phase of a zero is zero."""
    xp = array_module(obj)
    size = xp.abs(obj)
    unit = xp.where(size > _TINY, obj / xp.maximum(size, _TINY), 1)
    return (amplitude * unit).astype(obj.dtype, copy=False)  # type: ignore[no-any-return]
