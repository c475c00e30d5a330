"""A small Co3O4 particle and its volume as a tilt series of ±70° would show it."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

CELL = 8.08
VOXEL = 0.2


# Generators of Fd-3m, origin at -3m, acting on (x, y, z) in cells.
GENERATORS = (
    lambda r: np.stack([0.75 - r[0], 0.25 - r[1], 0.5 + r[2]]),
    lambda r: np.stack([0.25 - r[0], 0.5 + r[1], 0.75 - r[2]]),
    lambda r: np.stack([r[2], r[0], r[1]]),
    lambda r: np.stack([0.75 + r[1], 0.25 + r[0], 0.5 - r[2]]),
    lambda r: -r,
    lambda r: r + np.array([[0.0], [0.5], [0.5]]),
    lambda r: r + np.array([[0.5], [0.0], [0.5]]),
)


def orbit(site):
    """All equivalent positions (n, 3) of a site in one cell."""
    sites = {tuple(np.round(np.mod(site, 1.0), 4) % 1.0)}
    while True:
        r = np.array(sorted(sites)).T
        grown = sites | {tuple(c) for g in GENERATORS for c in (np.round(np.mod(g(r), 1.0), 4) % 1.0).T}
        if grown == sites:
            return r.T
        sites = grown


def spinel(n_cells=1.6, oxygen=0.2631):
    """Positions (n, 3) Å in (z, y, x) and species of a cube of spinel Co3O4 about its centre."""
    cells = np.stack(np.meshgrid(*(np.arange(-2, 2),) * 3, indexing="ij"), -1).reshape(-1, 3)
    positions, species = [], []
    for site, name in (((0.125,) * 3, "Co"), ((0.5,) * 3, "Co"), ((oxygen,) * 3, "O")):
        atoms = (orbit(np.array(site))[:, None] + cells[None]).reshape(-1, 3)
        positions.append(atoms[np.abs(atoms).max(axis=1) < n_cells / 2] * CELL)
        species += [name] * len(positions[-1])
    return np.concatenate(positions), np.array(species)


def reconstruct(positions, species, *, noise=0.0, wedge_deg=70.0, cut=1.6, sigma=0.3, seed=0, rounds=0, size=104):
    """Gaussian atoms (Co 3 × O), seen through ±70° about y and a band limit; float32 (z, y, x), zero at n//2."""
    k = np.fft.fftfreq(size, VOXEL)
    centre = (size // 2) * VOXEL
    spectrum = np.zeros((size,) * 3, np.complex128)
    for name, height in (("Co", 1.0), ("O", 0.33)):
        phases = [np.exp(-2j * np.pi * np.outer(k, positions[species == name, i] + centre)) for i in range(3)]
        pairs = np.einsum("an,bn->abn", phases[0], phases[1]).reshape(size**2, -1)
        spectrum += height * (pairs @ phases[2].T).reshape(spectrum.shape)
    kz, ky, kx = np.meshgrid(k, k, k, indexing="ij", sparse=True)
    square = kz**2 + ky**2 + kx**2
    seen = (np.abs(kz) <= np.tan(np.deg2rad(wedge_deg)) * np.abs(kx) + 1e-9) & (square < cut**2)
    spectrum *= np.exp(-2 * np.pi**2 * sigma**2 * square) * (2 * np.pi) ** 1.5 * sigma**3 / VOXEL**3
    volume = np.fft.ifftn(spectrum * seen).real
    white = np.random.default_rng(seed).standard_normal(volume.shape)
    data = (spectrum + np.fft.fftn(noise * volume.max() * white)) * seen
    volume = np.fft.ifftn(data).real
    for _ in range(rounds):
        filled = np.fft.fftn(np.maximum(volume, 0))
        volume = np.fft.ifftn(np.where(seen, data, filled)).real
    return (np.maximum(volume, 0) if rounds else volume).astype(np.float32)


@pytest.fixture(scope="session")
def particle():
    """A rotated particle, so that no atom sits on a voxel: (positions, species)."""
    positions, species = spinel()
    turn = Rotation.from_rotvec([0.2, -0.1, 0.15]).as_matrix()
    return positions @ turn.T + np.array([0.07, -0.03, 0.05]), species


@pytest.fixture(scope="session")
def noisy_volume(particle):
    return reconstruct(*particle, noise=0.1, rounds=3)


@pytest.fixture(scope="session")
def reconstruct_particle():
    return reconstruct
