"""What patterns are computed from, and where their gradients are added: the arguments of the multislice chains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray, IntArray
from hpcrec.errors import ConfigError
from hpcrec.models.events import Events, dense
from hpcrec.models.room import DEFAULT_BYTES
from hpcrec.objectives.losses import LOSSES

_ON_OBJECT: Final = ("obj", "illumination")
_ADDED: Final = ("totals", "spectrum", "variation", "background")
_OF_PATTERNS: Final = ("shifts", "coefficients", "moments", "scale")


@dataclass(frozen=True, kw_only=True, slots=True)
class Detector:
    """What turns exit waves into counts: Î = B(c Σ|Ψ|²) + b, and how these compare with measured counts.

    loss : name in :data:`hpcrec.objectives.losses.LOSSES`
    mask : (ky, kx) True = good, or None
    propagator : (ky, kx) factor of the way to a near-field detector; None: far field
    saturation : counts from which a pixel of a pattern says nothing
    blur : (ky, kx) transfer function of B, the transform of the point spread at [0, 0]; None: sharp pixels
    binning : model pixels along each side of a detector pixel
    """

    loss: str = "amplitude"
    mask: BoolArray | None = None
    propagator: ComplexArray | None = None
    saturation: float | None = None
    blur: ComplexArray | None = None
    binning: int = 1

    def pattern_shape(self, window: tuple[int, int]) -> tuple[int, int]:
        """Return the shape of a pattern; raises ConfigError where the detector does not fit the probe's window."""
        if self.loss not in LOSSES:
            raise ConfigError(f"loss: {self.loss!r} is not known; expected one of {', '.join(LOSSES)}")
        if any(n % self.binning for n in window):
            raise ConfigError(f"window: {list(window)} pixels cannot be binned by {self.binning}; take a multiple")
        pattern = (window[0] // self.binning, window[1] // self.binning)
        if self.mask is not None and self.mask.shape != pattern:
            raise ConfigError(f"mask: expected the shape {pattern} of a pattern, got {self.mask.shape}")
        return pattern


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """What a share of n patterns is computed from. Incoherent parts of a pattern: flight points × states × modes.

    On a device lie ``obj``, ``spectrum``, ``variation``, ``propagators``, ``rate``, ``background`` and the arrays of
    ``detector``; what has a row a pattern stays on the host.

    obj : (state, slice, y, x) complex
    corners : (n, flight, 2) first pixels of the windows in ``obj``'s own numbering
    shifts : (n, flight, 2) sub-pixel shifts δ of the probe in pixels
    spectrum : (mode, ky, kx) F of the probe; with ``whole`` pixels the probe itself, which no shift moves
    variation, coefficients : (m, ky, kx) F, or as it is, of what is added to mode 0, times (n, m) real; or both None
    propagators : (slice − 1, ky, kx) H of the gaps; rate : (ky, kx) dH/dΔz / (iH) in rad/Å
    tangents : (n, 2) or (1, 2) tan θ of the sample's tilt at each pattern; None: not tilted
    tilts : (n, slice − 1, 2) pixels by which a pattern's own tilt moves waves in a gap; None: what H holds is all
    scale : (n,) factor c of each pattern's intensity; background : (ky, kx) b; None: 1 and 0
    room : bytes of waves that a device may have at a time
    """

    obj: ComplexArray
    corners: IntArray
    shifts: FloatArray
    spectrum: ComplexArray
    propagators: ComplexArray
    rate: FloatArray
    detector: Detector
    variation: ComplexArray | None = None
    coefficients: FloatArray | None = None
    tangents: FloatArray | None = None
    tilts: FloatArray | None = None
    scale: FloatArray | None = None
    background: FloatArray | None = None
    room: int = DEFAULT_BYTES
    whole: bool = False

    @property
    def share(self) -> float:
        """Factor of the amplitude of each flight point and object state, which share a pattern's counts."""
        return float((self.corners.shape[1] * len(self.obj)) ** -0.5)

    @property
    def n_parts(self) -> int:
        """Number of incoherent parts of a pattern."""
        n_flight: int = self.corners.shape[1]
        return n_flight * len(self.obj) * len(self.spectrum)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainSums:
    """Where gradients are added; None where they are not wanted.

    On a device lie ``obj``, ``illumination``, ``spectrum``, ``variation`` and ``background``, the rest on the host.

    obj : (state, slice, y, x) ∂L/∂O*; illumination : (state, slice, y, x) Σ|ψ_s|²; from pixel ``origin`` of the object
    totals : (3,) float64: loss, Σ(√Î − √I)², ΣI over the good pixels
    spectrum : (mode, ky, kx) ∂L/∂(FP)*, or by P* with whole pixels
    shifts : (n, flight, 2) ∂L/∂δ per pixel
    variation : (m, ky, kx) ∂L/∂(FU)*; coefficients : (n, m) ∂L/∂a
    moments : (n, slice − 1, 3) Σ r Im(G* X), Σ q_y Im(G* X), Σ q_x Im(G* X) of each gap, with X the spectrum of the
        wave behind it, G the gradient by X*, r the rate and q in cycles per pixel
    scale : (n, 2) ∂L/∂c, and the modelled counts of the good pixels at c = 1
    background : (2, ky, kx) ∂L/∂b, and Σ ½/(Î + 1) over the patterns, its curvature for the amplitude loss
    """

    origin: tuple[int, int]
    obj: ComplexArray
    illumination: FloatArray
    totals: FloatArray
    spectrum: ComplexArray | None = None
    shifts: FloatArray | None = None
    variation: ComplexArray | None = None
    coefficients: FloatArray | None = None
    moments: FloatArray | None = None
    scale: FloatArray | None = None
    background: FloatArray | None = None

    @property
    def entry(self) -> bool:
        """Whether the gradient by the entering wave is needed."""
        return any(a is not None for a in (self.spectrum, self.shifts, self.variation))


@dataclass(frozen=True, slots=True)
class KeptWaves:
    """What the gradients of a share of n patterns leave for its responses, as the compiled kernels lay waves out.

    entering : (n, part, slice, floats) the waves in front of each slice
    leaving : (n, part, floats) ∂L/∂φ* of the exit waves φ
    """

    entering: FloatArray
    leaving: FloatArray

    def part(self, share: slice) -> KeptWaves:
        """Return what is kept of some of the patterns."""
        return KeptWaves(self.entering[share], self.leaving[share])


def part_of(chain: Chain, part: slice) -> Chain:
    """Return the chain of some of its patterns."""

    def cut(values: Any) -> Any:
        return values if values is None or len(values) == 1 else values[part]

    of_patterns = ("shifts", "coefficients", "tangents", "tilts", "scale")
    return replace(chain, corners=chain.corners[part], **{name: cut(getattr(chain, name)) for name in of_patterns})


def share_of(chain: Chain, good: BoolArray | None, share: slice) -> tuple[Chain, BoolArray | None]:
    """Return the chain of some of its patterns and what counts (n or 1, ky, kx) in these."""
    return part_of(chain, share), good if good is None or len(good) == 1 else good[share]


def joined(parts: list[ChainSums], *, lent: bool) -> ChainSums:
    """Return the sums of consecutive parts of a share, added to the arrays of the first.

    ``lent`` : object gradient and illumination stay apart.
    """
    first, *others = parts
    if not others:
        return first
    for other in others:
        for name in _ADDED if lent else (*_ADDED, *_ON_OBJECT):
            values = getattr(first, name)
            if values is not None:
                values += getattr(other, name)
    of_patterns: dict[str, Any] = {}
    for name in _OF_PATTERNS:
        if getattr(first, name) is not None:
            of_patterns[name] = np.concatenate([getattr(part, name) for part in parts])
    return replace(first, **of_patterns)


def good_pixels(detector: Detector, patterns: Array | Events, good: BoolArray | None) -> BoolArray | None:
    """Return the pixels (n or 1, ky, kx) that count: good in the mask and in each pattern's own, not saturated."""
    parts = [] if detector.mask is None else [detector.mask[None]]
    if good is not None:
        parts.append(good)
    if detector.saturation is not None:
        parts.append(dense(patterns) < detector.saturation)
    found: BoolArray | None = None
    for part in parts:
        found = part if found is None else found & part
    return found


def cleaned(patterns: Array, good: BoolArray | None) -> Array:
    """Return the patterns with zeros on bad pixels, which may hold anything, not-a-number included."""
    return patterns if good is None else np.where(good, patterns, patterns.dtype.type(0))
