"""Constraints on the probe: where it is, which angles it has, how much of it there is."""

from __future__ import annotations

import numpy as np

from hpcrec.backend.array import ComplexArray, FloatArray, array_module, real_dtype
from hpcrec.backend.fft import fft2, ifft2
from hpcrec.geometry.grid import Grid
from hpcrec.objectives.constraints import ConstraintOptions, ProbeConstraint, Surroundings
from hpcrec.options import options


@options
class SupportOptions(ConstraintOptions):
    """Options of the probe's support, a disc around the middle of the window.

    radius_angstrom : of the disc
    edge_angstrom : width over which it falls to zero, half of it inside
    """

    radius_angstrom: float
    edge_angstrom: float = 0.0


@options
class ApertureOptions(ConstraintOptions):
    """Options of the probe's aperture, a disc around the optic axis.

    semiangle_mrad : of the disc
    edge_mrad : width over which it falls to zero, half of it inside
    """

    semiangle_mrad: float
    edge_mrad: float = 0.0


@options
class PowerOptions(ConstraintOptions):
    """Options of the probe's power.

    counts : of a pattern without a sample; none: the mean of the patterns, with which the probe starts
    """

    counts: float | None = None


class Support(ProbeConstraint):
    """P ← m P with a soft disc m in real space."""

    Options = SupportOptions

    def __init__(self, options: SupportOptions) -> None:
        self._radius, self._edge = options.radius_angstrom, options.edge_angstrom

    def apply(self, waves: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the waves within the disc."""
        y, x = ((np.arange(n) - n // 2) * d for n, d in zip(waves.shape[-2:], around.sampling))
        return multiplied(waves, soft_disc(np.hypot(y[:, None], x), self._radius, self._edge))


class Aperture(ProbeConstraint):
    """P̂ ← m P̂ with a soft disc m of angles λk."""

    Options = ApertureOptions

    def __init__(self, options: ApertureOptions) -> None:
        self._semiangle, self._edge = options.semiangle_mrad * 1e-3, options.edge_mrad * 1e-3

    def apply(self, waves: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the waves within the aperture."""
        ky, kx = Grid(shape=(waves.shape[-2], waves.shape[-1]), sampling=around.sampling).frequencies()
        disc = soft_disc(around.wavelength * np.hypot(ky, kx), self._semiangle, self._edge)
        return ifft2(multiplied(fft2(waves), disc))


class Power(ProbeConstraint):
    """Σ|P|² over all modes is that of the measured beam: it sets the scale of |O|."""

    Options = PowerOptions
    linear = False

    def __init__(self, options: PowerOptions) -> None:
        self._counts = options.counts

    def apply(self, waves: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the scaled waves; a dark probe stays dark."""
        wanted = around.power if self._counts is None else self._counts
        power = float(np.sum(abs(waves) ** 2, dtype=np.float64))
        return waves * waves.real.dtype.type(np.sqrt(wanted / power) if power > 0 else 1)


def soft_disc(distance: FloatArray, radius: float, edge: float) -> FloatArray:
    """Return 1 inside of ``radius``, 0 outside, and over the width ``edge`` around it half a period of a cosine."""
    if edge == 0:
        return (distance <= radius).astype(np.float64)
    across = np.clip((distance - radius) / edge + 0.5, 0, 1)
    found: FloatArray = 0.5 * (1 + np.cos(np.pi * across))
    return found


def multiplied(waves: ComplexArray, mask: FloatArray) -> ComplexArray:
    """Return the waves times a real mask (y, x) of the host, in their type; the mask moves to where they live."""
    return waves * array_module(waves).asarray(mask.astype(real_dtype(waves.dtype)))  # type: ignore[no-any-return]
