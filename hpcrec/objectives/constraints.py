"""Constraints on object and probe, and gauges: what they are, when they act, and the tables of them.

A sweep of an engine ends with the constraints that are due, in the order of the tables: gauges, object, probe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from hpcrec.backend.array import ComplexArray, FloatArray, array_module
from hpcrec.backend.fft import fft2, ifft2
from hpcrec.geometry.tiles import Box
from hpcrec.objectives.region import Region
from hpcrec.options import options

GAUGES: Final = {
    "centre": "hpcrec.objectives.gauges:Centre",
    "ramp": "hpcrec.objectives.gauges:Ramp",
    "scale": "hpcrec.objectives.gauges:Scale",
}
OBJECT_CONSTRAINTS: Final = {
    "tv": "hpcrec.objectives.lateral:LateralVariation",
    "smoothness": "hpcrec.objectives.lateral:Smoothness",
    "butterworth": "hpcrec.objectives.lateral:Butterworth",
    "kz_filter": "hpcrec.objectives.depth:KzFilter",
    "layer_tv": "hpcrec.objectives.depth:LayerVariation",
    "z_smoothing": "hpcrec.objectives.depth:DepthSmoothing",
    "identical_slices": "hpcrec.objectives.depth:IdenticalSlices",
    "sparse_phase": "hpcrec.objectives.transmission:SparsePhase",
    "complex_ratio": "hpcrec.objectives.transmission:ComplexRatio",
    "positive_phase": "hpcrec.objectives.transmission:PositivePhase",
    "amplitude_bound": "hpcrec.objectives.transmission:AmplitudeBound",
    "phase_only": "hpcrec.objectives.transmission:PhaseOnly",
}
PROBE_CONSTRAINTS: Final = {
    "probe_aperture": "hpcrec.objectives.illumination:Aperture",
    "probe_support": "hpcrec.objectives.illumination:Support",
    "probe_power": "hpcrec.objectives.illumination:Power",
}
"""Name → "module:Class", in the order in which they act: gauges first, so that bounds hold in a fixed gauge; then what
smooths, then what bounds a pixel, so that bounds hold at the end."""

_TINY = 1e-20


@options
class ConstraintOptions:
    """When a constraint acts.

    every : sweeps from one time to the next
    start_iteration : first sweep (from 0) that counts
    stop_iteration : first sweep that no longer does; none: to the end
    """

    every: int = 1
    start_iteration: int = 0
    stop_iteration: int | None = None

    def active(self, iteration: int) -> bool:
        """Whether the constraint is in force in sweep ``iteration`` (from 0)."""
        stop = self.stop_iteration
        return self.start_iteration <= iteration and (stop is None or iteration < stop)

    def due(self, iteration: int) -> bool:
        """Whether the constraint acts after sweep ``iteration`` (from 0)."""
        return self.active(iteration) and (iteration - self.start_iteration + 1) % self.every == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What constraints know beside object and probe.

    sampling : (dy, dx) Å
    wavelength : Å
    gaps : (slice − 1,) Å between the slices
    power : counts of a pattern
    n_modes : how many of the waves are probe modes
    light : (y, x) illumination of the object's pixels that are at hand, its maximum 1, where the object lives; None for
        pointwise constraints
    region : which pixels these are, for gauges; none: all
    """

    sampling: tuple[float, float]
    wavelength: float
    gaps: FloatArray
    power: float
    n_modes: int = 1
    light: FloatArray | None = None
    region: Region | None = None


class ObjectConstraint(ABC):
    """A constraint on the object, or a step towards a smaller penalty.

    pointwise : whether a column of slices is changed by what itself holds only
    by_slices : whether a slice is; what is neither is a :class:`StackFilter`
    ties_scale : whether it fixes |O|; the probe's power is then free
    """

    pointwise: bool = True
    by_slices: bool = False
    ties_scale: bool = False

    @abstractmethod
    def apply(self, obj: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the changed object (state, slice, y, x), a new array of the same type."""


class StackFilter(ObjectConstraint):
    """A constraint that ties slices and neighbours: a factor of the spectrum of something that pixels hold.

    Nobody needs the whole object at once: pixels, whole rows and whole columns of all slices are enough.
    """

    pointwise = False

    @abstractmethod
    def start(self, obj: ComplexArray) -> ComplexArray:
        """Return what is filtered (state, slice, y, x), pixel by pixel, a new array."""

    @abstractmethod
    def filtered(self, spectrum: ComplexArray, shape: tuple[int, int], box: Box) -> ComplexArray:
        """Return the filtered spectrum over y and x (state, slice, k_y, k_x), of which ``box`` is at hand.

        ``shape`` : of the whole grid; zero frequency is at its [0, 0]
        """

    @abstractmethod
    def finish(self, obj: ComplexArray, found: ComplexArray, light: FloatArray | None) -> ComplexArray:
        """Return the changed object, pixel by pixel, from the old one and what was ``found`` in place of the start."""

    def apply(self, obj: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the changed object, which is at hand as a whole."""
        ny, nx = obj.shape[-2:]
        spectrum = self.filtered(fft2(self.start(obj)), (ny, nx), Box(0, ny, 0, nx))
        return self.finish(obj, ifft2(spectrum), around.light)


class ProbeConstraint(ABC):
    """A constraint on the probe. ``linear`` ones also act on what varies from position to position."""

    linear: bool = True

    @abstractmethod
    def apply(self, waves: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the changed waves (wave, y, x), centred at n//2, a new array of the same type."""


class Gauge(ABC):
    """A change of object and probe that changes no pattern.

    Of the object a region may be at hand: what is measured are sums over ``around.region.core``, added up by
    ``around.region.total``; what is changed are the pixels at hand, and what must come from elsewhere the region gives.
    """

    @abstractmethod
    def apply(self, obj: ComplexArray, waves: ComplexArray, around: Surroundings) -> tuple[ComplexArray, ComplexArray]:
        """Return the changed object (state, slice, y, x) and waves (wave, y, x): modes, then their variations.

        All ranks call this alike, and find the same waves.
        """


def constraint_class(name: str) -> Any:
    """Return the class of a constraint or gauge of the tables; its ``Options`` is the class of its options."""
    module, _, attribute = (GAUGES | OBJECT_CONSTRAINTS | PROBE_CONSTRAINTS)[name].partition(":")
    return getattr(import_module(module), attribute)


def unconstrained(obj: ComplexArray) -> ComplexArray:
    """Return the object as it is."""
    return obj


def amplitude_bound(obj: ComplexArray) -> ComplexArray:
    """Return the object with |O| ≤ 1: nothing in the sample emits."""
    xp = array_module(obj)
    return obj / xp.maximum(xp.abs(obj), 1)  # type: ignore[no-any-return]


def phase_only(obj: ComplexArray) -> ComplexArray:
    """Return the object with |O| = 1: nothing absorbs; a zero stays zero."""
    xp = array_module(obj)
    return obj / xp.maximum(xp.abs(obj), _TINY)  # type: ignore[no-any-return]


CONSTRAINTS: dict[str, Callable[[ComplexArray], ComplexArray]] = {
    "none": unconstrained,
    "amplitude_bound": amplitude_bound,
    "phase_only": phase_only,
}
