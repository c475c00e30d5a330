"""Beams: wavelength and strength of interaction from the beam energy (CODATA constants)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import constants

from hpcrec.errors import ConfigError

_ANGSTROM = 1e-10


@dataclass(frozen=True, kw_only=True, slots=True)
class Beam:
    """A monochromatic beam: ``wavelength`` in Å; ``interaction`` σ in rad/(V·Å), None for light."""

    wavelength: float
    interaction: float | None = None


def electron_beam(energy_ev: float) -> Beam:
    """Return the beam of electrons of kinetic energy E (eV), relativistic.

    λ = hc / √(E (E + 2 mc²)), σ = 2π / (λE) · (mc² + E) / (2 mc² + E): Kirkland, Advanced Computing in Electron
    Microscopy (2010), eqs. 2.5 and 5.6. Raises ConfigError if the energy is not positive.
    """
    energy = _positive(energy_ev) * constants.e
    rest = constants.m_e * constants.c**2
    wavelength = constants.h * constants.c / np.sqrt(energy * (energy + 2 * rest)) / _ANGSTROM
    interaction = 2 * np.pi / (wavelength * energy_ev) * (rest + energy) / (2 * rest + energy)
    return Beam(wavelength=float(wavelength), interaction=float(interaction))


def photon_beam(energy_ev: float) -> Beam:
    """Return the beam of photons of energy E (eV): λ = hc/E. Raises ConfigError if the energy is not positive."""
    return Beam(wavelength=constants.h * constants.c / (_positive(energy_ev) * constants.e) / _ANGSTROM)


def electron_energy(wavelength: float) -> float:
    """Return the kinetic energy E (eV) of electrons of ``wavelength`` λ (Å): E = √((hc/λ)² + (mc²)²) − mc²."""
    momentum = photon_energy(wavelength)
    rest = constants.m_e * constants.c**2 / constants.e
    return float(momentum**2 / (np.sqrt(momentum**2 + rest**2) + rest))


def photon_energy(wavelength: float) -> float:
    """Return the energy E = hc/λ (eV) of photons of ``wavelength`` λ (Å). Raises ConfigError if it is not positive."""
    if not (np.isfinite(wavelength) and wavelength > 0):
        raise ConfigError(f"expected a positive wavelength in Å, got {wavelength!r}")
    return float(constants.h * constants.c / (wavelength * _ANGSTROM) / constants.e)


def depth_of_field(wavelength: float, semiangle: float) -> float:
    """Return the depth of field λ/θ² in Å of a cone of half angle θ (rad).

    A wave front ±λ/(2θ²) from its focus departs by a quarter of a wave at the edge of the aperture, Rayleigh's limit
    (Born and Wolf, Principles of Optics, §8.8): what lies within acts like one plane. Structures that scatter to larger
    angles have less; Tsai et al., Opt. Express 24, 29089 (2016) find 5.2 δ²/λ for slices of a resolution δ.
    """
    return wavelength / semiangle**2


def _positive(energy_ev: float) -> float:
    if not (np.isfinite(energy_ev) and energy_ev > 0):
        raise ConfigError(f"energy_ev: expected a positive number of electron volts, got {energy_ev!r}")
    return energy_ev
