"""The data sets of the comparison: simulated by hpcrec's own model, and written as one ``.npz`` that any program reads.

A phase object with smooth random structure under a defocused probe, scanned at jittered positions that are not on whole
pixels; Poisson counts. What a program may know: patterns (position, ky, kx) uint16 with zero frequency at n//2,
positions (position, 2) Å as (y, x), energy, pixel size, and a start probe (mode, y, x) whose defocus is 8 % wrong. What
only the comparison knows: the true phase, summed over the slices, and the pixel of it where position (0, 0) lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from hpcrec.geometry.grid import Grid, object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import PtychographyState
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.physics.beam import electron_beam
from hpcrec.physics.probe import aberrated_probe, orthogonal_start_modes

ENERGY_EV, SAMPLING, SEMIANGLE, COUNTS = 200e3, 0.2, 25e-3, 1e5
DEFOCUS_ERROR, TRUE_SHARE, START_SHARE = 0.08, 0.15, 0.05


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One row of the comparison.

    n : pixels along a pattern; side : positions along the scan; step Å; defocus Å, underfocus; thickness Å of a slice;
    phase : standard deviation of each slice's phase, rad; seconds : of reconstruction after which errors are compared
    """

    n: int = 128
    side: int = 32
    step: float = 2.0
    defocus: float = 200.0
    modes: int = 1
    slices: int = 1
    thickness: float = 0.0
    phase: float = 0.3
    seconds: float = 6.0


SETS = {
    "ss128": DataSet(),
    "mm128": DataSet(modes=3, seconds=10.0),
    "ms128": DataSet(slices=6, thickness=30.0, phase=0.06, seconds=20.0),
    "ss256": DataSet(n=256, side=24, step=3.0, defocus=400.0, seconds=12.0),
}


def scan(chosen: DataSet, rng: np.random.Generator) -> np.ndarray:
    """Return jittered positions (position, 2) in Å."""
    line = (np.arange(chosen.side) - (chosen.side - 1) / 2) * chosen.step
    raster = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    return raster + rng.uniform(-0.2, 0.2, raster.shape) * chosen.step


def phases(chosen: DataSet, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Return the phase (slice, y, x) of each slice in rad: structure of 0.4 Å on structure of 1.6 Å.

    Half of the power is common to all slices, as columns of atoms have it.
    """
    noise = rng.standard_normal((2, chosen.slices, *grid.shape))
    noise = (noise + rng.standard_normal((2, 1, *grid.shape))) / np.sqrt(2)
    fine, coarse = (gaussian_filter(a, (0, s, s), mode="wrap") for a, s in zip(noise, (2, 8)))
    mixed = fine / fine.std() + coarse / coarse.std()
    return mixed * chosen.phase / mixed.std()


def probe(chosen: DataSet, defocus: float, share: float) -> np.ndarray:
    """Return the modes (mode, y, x) of a probe that carries the counts of one pattern, in front of the first slice."""
    beam = electron_beam(ENERGY_EV)
    shape, sampling = (chosen.n, chosen.n), (SAMPLING, SAMPLING)
    wave = aberrated_probe(shape, sampling, beam.wavelength, SEMIANGLE, {"C10": -defocus})
    return (np.sqrt(COUNTS) * orthogonal_start_modes(wave, chosen.modes, share)).astype(np.complex64)


def write(name: str, path: Path) -> None:
    """Simulate a data set and write it."""
    chosen, rng, beam = SETS[name], np.random.default_rng(7), electron_beam(ENERGY_EV)
    positions = scan(chosen, rng)
    grid = object_grid(positions, (chosen.n, chosen.n), (SAMPLING, SAMPLING))
    phase = phases(chosen, grid, rng)
    state = PtychographyState(
        obj=np.exp(1j * phase).astype(np.complex64),
        probe=probe(chosen, chosen.defocus, TRUE_SHARE),
        positions=positions,
        grid=grid,
        box=Box(0, grid.shape[0], 0, grid.shape[1]),
    )
    model = PtychographyModel((chosen.n, chosen.n), grid.sampling, beam.wavelength, chosen.thickness)
    mean = np.concatenate([model.simulate(state, part) for part in np.array_split(np.arange(len(positions)), 16)])
    counts = np.fft.fftshift(rng.poisson(mean), axes=(1, 2)).astype(np.uint16)
    np.savez(
        path,
        data=counts,
        positions=positions,
        probe=probe(chosen, chosen.defocus * (1 + DEFOCUS_ERROR), START_SHARE),
        sampling=SAMPLING,
        energy_ev=ENERGY_EV,
        wavelength=beam.wavelength,
        semiangle=SEMIANGLE,
        defocus=chosen.defocus * (1 + DEFOCUS_ERROR),
        slices=chosen.slices,
        thickness=chosen.thickness,
        true_phase=phase.sum(axis=0).astype(np.float32),
        true_origin=grid.to_pixels(np.zeros(2)),
    )
