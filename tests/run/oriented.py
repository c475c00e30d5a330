"""A simulated scan whose frames are stored in any orientation, for the tests of the doctor."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from hpcrec.data.experiment import (
    DetectorOptions,
    MultisliceOptions,
    OpticsOptions,
    ScanOptions,
    SimulationOptions,
    TiltOptions,
)
from hpcrec.data.simulate import simulate_tilt
from hpcrec.data.specimen import SpecimenOptions, build_specimen
from hpcrec.direct.orientation import Orientation, rotation_matrix

JOB = """
version = 1
name = "oriented"
[data]
format = "numpy"
path = "{folder}/patterns.npy"
positions = "positions.npy"
pixel_size_angstrom = {pixel}
[beam]
energy_ev = 200e3
[probe]
semiangle_mrad = 30.0
defocus_angstrom = {defocus}
"""
PIXELS, PIXEL = 32, 0.2


@lru_cache
def simulated():
    """One Co3O4 cell that is tilted out of its symmetric view: patterns (position, 32, 32), positions in Å."""
    chosen = SimulationOptions(
        specimen=SpecimenOptions(kind="co3o4_cube", n_cells=(1, 1, 1)),
        optics=OpticsOptions(defocus_angstrom=60.0, aberrations_angstrom={"C12": 15.0, "phi12": 0.3}),
        scan=ScanOptions(shape=(11, 12), step_angstrom=1.0),
        detector=DetectorOptions(pixels=PIXELS, pixel_inverse_angstrom=1 / (PIXELS * PIXEL)),
        tilt=TiltOptions(first_deg=20.0, last_deg=20.0, n_tilts=1, axis_deg=35.0),
        multislice=MultisliceOptions(grid_pixels=48, n_phonons=0),
    )
    tilt = simulate_tilt(chosen, build_specimen(chosen.specimen), 0)
    return tilt.patterns, tilt.positions


def write_oriented(folder: Path, true: Orientation, pixels: int = PIXELS, defocus: float = 60.0) -> Path:
    """Store frames and positions so that a reader with the options of ``true`` puts them right; return a job for them.

    ``pixels`` below 32 cuts the frames about their zero frequency, which may make their side odd.
    """
    patterns, positions = simulated()
    k = np.arange(pixels) - pixels // 2
    stored_k = np.stack(np.meshgrid(k, k, indexing="ij"), axis=-1)
    right = (stored_k @ true.flip.T).astype(int) % PIXELS  # k' = D k; the Nyquist row is its own alias
    np.save(folder / "patterns.npy", patterns[:, right[..., 0], right[..., 1]])
    np.save(folder / "positions.npy", positions @ rotation_matrix(true.rotation))
    path = folder / "oriented.toml"
    path.write_text(JOB.format(folder=folder, pixel=PIXEL * PIXELS / pixels, defocus=defocus))
    return path
