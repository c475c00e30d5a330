"""Electron scattering by neutral atoms, and the projected potential of a set of atoms.

Lobato & Van Dyck, Acta Cryst. A70 (2014) 636: an analytic fit to Dirac-Fock factors with the exact behaviour at both
ends, f(0) finite and f → Z/(2π²a₀k²) at large k (the Mott-Bethe limit). The parameters of Z = 1…103 lie in
``lobato2014.txt``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import constants

from hpcrec.backend.array import Array, FloatArray, IntArray
from hpcrec.backend.fft import ifft2
from hpcrec.errors import ConfigError
from hpcrec.geometry.grid import Grid

VOLT_ANGSTROM_SQUARED = float(1e20 * constants.h**2 / (2 * np.pi * constants.m_e * constants.e))
"""h²/(2πm₀e) = 47.878 V·Å²: turns a scattering factor in Å into the Fourier transform of a potential in V·Å³."""


@lru_cache(maxsize=1)
def _table() -> tuple[tuple[str, ...], FloatArray, FloatArray]:
    """Return the symbols (103,), and the parameters a in Å and b in Å², each (103, 5)."""
    lines = (Path(__file__).parent / "lobato2014.txt").read_text(encoding="ascii").splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    values = np.array([[float(word) for word in row[2:]] for row in rows])
    return tuple(row[1] for row in rows), values[:, :5], values[:, 5:]


def chemical_symbols() -> tuple[str, ...]:
    """Return the symbols of the elements with a scattering factor, H to Lr; atomic number Z stands at index Z − 1."""
    return _table()[0]


def atomic_number(symbol: str) -> int:
    """Return Z of a chemical symbol such as ``"Co"``; :class:`ConfigError` if there is no such element."""
    try:
        return chemical_symbols().index(symbol.strip().capitalize()) + 1
    except ValueError:
        raise ConfigError(
            f"expected a chemical symbol from H to Lr, got {symbol!r}: correct the element's name"
        ) from None


def scattering_factor(z: int, k: Array) -> FloatArray:
    """Return the electron scattering factor f(k) in Å (first Born, rest mass) of a neutral atom.

    f(k) = Σ a_i (2 + b_i k²)/(1 + b_i k²)², k = 1/d in 1/Å (any shape). Lobato & Van Dyck 2014.
    :class:`ConfigError` unless 1 ≤ z ≤ 103.
    """
    symbols, a, b = _table()
    if not 1 <= z <= len(symbols):
        raise ConfigError(f"expected an atomic number from 1 to {len(symbols)}, got {z}")
    k2 = np.asarray(k, np.float64)[..., None] ** 2
    f: FloatArray = (a[z - 1] * (2 + b[z - 1] * k2) / (1 + b[z - 1] * k2) ** 2).sum(axis=-1)
    return f


@lru_cache(maxsize=8)
def _potential_spectrum(grid: Grid, z: int, b_factor: float) -> FloatArray:
    """Return 47.878 f(k) exp(−B k²/4) in V·Å³ on the frequencies of ``grid``; (ky, kx)."""
    ky, kx = grid.frequencies()
    k2 = ky**2 + kx**2
    # f is smooth and radial: a table over k² costs far less than five rational terms a pixel.
    nodes = np.linspace(0.0, float(np.sqrt(k2.max())), 4096)
    f = np.interp(np.sqrt(k2), nodes, scattering_factor(z, nodes))
    spectrum: FloatArray = VOLT_ANGSTROM_SQUARED * f * np.exp(-b_factor * k2 / 4)
    return spectrum


def _structure_factor(grid: Grid, positions: FloatArray) -> Array:
    """Return Σ_j exp(−2πi k·(r_j − origin)), (ky, kx), as a product of two thin matrices."""
    ky, kx = grid.frequencies()
    y, x = (positions - grid.origin).T
    phase_y = np.exp(-2j * np.pi * ky * y[None, :]).astype(np.complex64)
    phase_x = np.exp(-2j * np.pi * x[:, None] * kx).astype(np.complex64)
    product: Array = phase_y @ phase_x
    return product


def projected_potential(
    numbers: IntArray, positions: FloatArray, grid: Grid, b_factors: FloatArray | float = 0.0
) -> FloatArray:
    """Return the projected potential Σ_j v_j(r − r_j) of independent atoms in V·Å, (y, x) float32.

    ``numbers`` (atom,) atomic numbers; ``positions`` (atom, 2) in Å (y, x), anywhere, not only on pixels; ``b_factors``
    Debye-Waller B in Å² for each atom or all, exp(−B k²/4). Synthesised in Fourier space, so atoms outside the grid
    come back on the opposite side: the caller leaves them out, or leaves a margin.
    Kirkland, Advanced Computing in Electron Microscopy (2010), chapter 5.
    """
    positions = np.asarray(positions, np.float64).reshape(-1, 2)
    kinds = np.column_stack([numbers, np.broadcast_to(b_factors, len(positions))])
    spectrum = np.zeros(grid.shape, np.complex64)
    for kind in np.unique(kinds, axis=0):
        chosen = positions[(kinds == kind).all(axis=1)]
        spectrum += _structure_factor(grid, chosen) * _potential_spectrum(grid, int(kind[0]), float(kind[1]))
    area = np.prod(np.multiply(grid.shape, grid.sampling))
    # The inverse of the unitary pair needs √n, so that the sum over k comes out plain.
    scale = np.sqrt(np.prod(grid.shape)) / area
    return np.ascontiguousarray((ifft2(spectrum) * np.float32(scale)).real, np.float32)


def mean_inner_potential(numbers: IntArray, volume: float) -> float:
    """Return V₀ = 47.878 Σ f_j(0)/Ω in V of independent atoms in a cell of ``volume`` Å³."""
    return VOLT_ANGSTROM_SQUARED * float(sum(scattering_factor(int(z), np.zeros(1))[0] for z in numbers)) / volume
