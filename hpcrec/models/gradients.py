"""What a model finds of a batch: loss, and gradients by all that was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpcrec.backend.array import Array, ComplexArray, FloatArray
from hpcrec.geometry.tiles import Box
from hpcrec.models.windows import WindowSums


@dataclass(frozen=True, slots=True)
class Gradients:
    """Sums over the patterns of one share; gradients are ∂L/∂z* of complex z, so dL = 2 Re Σ (∂L/∂z*)* dz.

    box : object pixels that ``obj`` and ``illumination`` cover
    obj : (slice, y, x) gradient by the object; illumination : (slice, y, x) Σ|ψ_s|² over patterns and parts
    loss, error, counts : the loss, Σ(√Î − √I)² and ΣI over the good pixels
    object_weight : (y, x) Σ|O_1|² over the windows, if anything of the probe is wanted
    probe : (mode, y, x) gradient by the probe
    windows : instead of ``obj`` and ``illumination``, which are empty then, where a caller asked for it
    of_patterns : arrays (n, …) float64 of the share's own patterns, ``added`` arrays summed over them, as far as
        wanted; each with its weight (``…_weight``), see :mod:`hpcrec.models.refined`:
        of_patterns: "positions" (n, 2) in 1/Å; "tilt" (n, 2) by tan θ; "coefficients" (n, m); "intensity" (n,) by c
        added: "thickness" (slice − 1,) in 1/Å; "variation" (m, y, x) by U*; "background" (ky, kx)
    """

    box: Box
    obj: ComplexArray
    illumination: FloatArray
    loss: float
    error: float
    counts: float
    object_weight: FloatArray
    probe: ComplexArray
    of_patterns: dict[str, FloatArray] = field(default_factory=dict)
    added: dict[str, Array] = field(default_factory=dict)
    windows: WindowSums | None = None
