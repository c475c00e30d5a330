"""Losses: how far modelled intensities lie from measured ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hpcrec.backend.array import Array, BoolArray, FloatArray, array_module

AMPLITUDE_FLOOR = 1e-2
ANSCOMBE_FLOOR = 3 / 8
POISSON_FLOOR = 1e-2
GAUSSIAN_FLOOR = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """A loss of intensities in counts per pixel.

    ``evaluate(modelled, measured, mask)`` takes arrays (…, ky, kx) and a mask that broadcasts to them, True = good, or
    None; it returns the loss Σ over the good pixels, a number where they live, and the weight w = ∂L/∂I (…, ky, kx),
    zero on bad pixels, so that the gradient of a far field is ∂L/∂Ψ* = w Ψ.
    ``curvature`` is the loss's second derivative near the optimum in units of that of Σ(√I − √I₀)²: engines divide by
    it and so need no step size of their own for each loss.
    """

    evaluate: Callable[[FloatArray, FloatArray, BoolArray | None], tuple[Array, FloatArray]]
    curvature: float


def amplitude_loss(modelled: FloatArray, measured: FloatArray, mask: BoolArray | None) -> tuple[Array, FloatArray]:
    """L = Σ (√(I+ε) − √(I₀+ε))², w = 1 − √((I₀+ε)/(I+ε)): Poisson noise of stabilised variance.

    Thibault and Guizar-Sicairos, New J. Phys. 14, 063004 (2012). At a zero of the far field its phase, and so the
    gradient of Σ(√I − √I₀)², jumps: round-off would then grow to 1e-4 of the object in ten sweeps. The background
    ε = 0.01 counts, in model and data alike, makes the gradient smooth there.
    """
    return _root_loss(modelled, measured, mask, AMPLITUDE_FLOOR)


def anscombe_loss(modelled: FloatArray, measured: FloatArray, mask: BoolArray | None) -> tuple[Array, FloatArray]:
    """The amplitude loss with ε = 3/8, of Poisson counts whose variance is stable down to four counts.

    Anscombe, Biometrika 35, 246 (1948): 2√(I + 3/8) has a variance of 1.
    """
    return _root_loss(modelled, measured, mask, ANSCOMBE_FLOOR)


def _root_loss(
    modelled: FloatArray, measured: FloatArray, mask: BoolArray | None, floor: float
) -> tuple[Array, FloatArray]:
    xp = array_module(modelled)
    found, wanted = xp.sqrt(modelled + floor), xp.sqrt(measured + floor)
    difference = _masked(found - wanted, mask)
    return xp.vdot(difference, difference), difference / found


def gaussian_loss(modelled: FloatArray, measured: FloatArray, mask: BoolArray | None) -> tuple[Array, FloatArray]:
    """L = Σ (I − I₀)²/v, w = 2 (I − I₀)/v: of counts with Gaussian noise of variance v = I₀ + 1.

    Godard et al., Opt. Express 20, 25914 (2012); the count added to the variance stands for the detector's own noise.
    """
    xp = array_module(modelled)
    difference = _masked(modelled - measured, mask)
    weight = 2 * difference / (measured + GAUSSIAN_FLOOR)
    return xp.vdot(difference, weight) / 2, weight


def poisson_loss(modelled: FloatArray, measured: FloatArray, mask: BoolArray | None) -> tuple[Array, FloatArray]:
    """L = Σ I − I₀ − (I₀+ε) ln((I+ε)/(I₀+ε)), w = 1 − (I₀+ε)/(I+ε): of Poisson counts, 0 at I = I₀.

    Thibault and Guizar-Sicairos, New J. Phys. 14, 063004 (2012). The background ε = 0.01 counts, in model and data
    alike, bounds the pull of single counts in dark places (a detector's own background is of that order).
    """
    xp = array_module(modelled)
    ratio = (measured + POISSON_FLOOR) / (modelled + POISSON_FLOOR)
    values = modelled - measured + (measured + POISSON_FLOOR) * xp.log(ratio)
    return _masked(values, mask).sum(dtype=float), _masked(1 - ratio, mask)


def amplitude_error(modelled: FloatArray, measured: FloatArray, mask: BoolArray | None) -> tuple[Array, Array]:
    """Return Σ(√I − √I₀)² and ΣI₀ over the good pixels, numbers where these live: the data error is their ratio."""
    xp = array_module(modelled)
    difference = _masked(xp.sqrt(modelled) - xp.sqrt(measured), mask)
    return xp.vdot(difference, difference), _masked(measured, mask).sum(dtype=float)


def _masked(values: FloatArray, mask: BoolArray | None) -> FloatArray:
    return values if mask is None else values * mask


FLOORS = {"amplitude": AMPLITUDE_FLOOR, "anscombe": ANSCOMBE_FLOOR, "poisson": POISSON_FLOOR}
"""ε of the losses that the kernels of a GPU know."""
LOSSES = {
    "amplitude": Loss(evaluate=amplitude_loss, curvature=1.0),
    "poisson": Loss(evaluate=poisson_loss, curvature=2.0),
    "gaussian": Loss(evaluate=gaussian_loss, curvature=4.0),
    "anscombe": Loss(evaluate=anscombe_loss, curvature=1.0),
}
