"""Does a partially coherent probe cost the picture? ``python benchmarks/mixed_states.py`` (needs the test data).

Four measured probe modes (70 kV, 32 mrad) scan a slab of a PdPt particle with measured coordinates: multislice in 2 Å
slices, Poisson counts. Reconstructed with 1, 2 and 4 modes and one slice of object per 5 Å, from the first mode alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.io import loadmat
from scipy.ndimage import gaussian_filter

from hpcrec.geometry.grid import Grid, object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.io.results import read_tilt_result, tilt_path
from hpcrec.models.base import PtychographyState
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.physics.beam import electron_beam
from hpcrec.physics.scattering import atomic_number, projected_potential

DATA = Path(os.environ.get("HPCREC_DATA", "../shared/data")) / "measured"
SAMPLING, N, ENERGY, THICKNESS, SLICE = 0.095, 192, 70e3, 10.0, 2.0
COUNTS, N_SCAN, STEP = 3e4, 16, 0.6

JOB = """
version = 1
name = "mixed-states"
[data]
format = "numpy"
path = "{folder}/data.npz"
positions = "positions"
probe = "probe"
zero_frequency = "corner"
pixel_size_angstrom = 0.095
[beam]
energy_ev = 70e3
[probe]
source = "file"
modes = {modes}
mode_share = 0.05
[ptychography]
engine = "lsqml"
iterations = 40
slices = 2
slice_thickness_angstrom = 5.0
"""


def slab() -> tuple[np.ndarray, np.ndarray]:
    """Return atomic numbers and positions (z, y, x) of a slab through the particle."""
    lines = (DATA / "atomic_models" / "PdPt_coreshell_EPB.xyz").read_text().splitlines()[2:]
    rows = [line.split() for line in lines if line.strip()]
    numbers = np.array([atomic_number(r[0]) for r in rows])
    positions = np.array([[float(v) for v in r[3:0:-1]] for r in rows])
    inside = (np.abs(positions[:, 0]) < THICKNESS / 2) & (np.abs(positions[:, 1:]) < 16).all(axis=1)
    return numbers[inside], positions[inside]


def simulate(folder: Path) -> tuple[np.ndarray, Grid]:
    """Write patterns, positions and the first probe mode; return the true summed phase and its grid."""
    beam = electron_beam(ENERGY)
    modes = np.moveaxis(loadmat(DATA / "paet_tblg_probes" / "EPIE_probe_1.mat")["pr"], -1, 0)
    probe = (modes * np.sqrt(COUNTS / np.sum(np.abs(modes) ** 2))).astype(np.complex64)
    rng = np.random.default_rng(1)
    y, x = np.meshgrid(np.arange(N_SCAN) * STEP, np.arange(N_SCAN) * STEP, indexing="ij")
    positions = np.stack([y.ravel(), x.ravel()], axis=1) - (N_SCAN - 1) * STEP / 2 + rng.normal(0, 0.03, (N_SCAN**2, 2))
    grid = object_grid(positions, (N, N), (SAMPLING, SAMPLING), 4)
    numbers, atoms = slab()
    planes = np.arange(-THICKNESS / 2, THICKNESS / 2, SLICE)
    potentials = []
    for z in planes:
        chosen = (atoms[:, 0] >= z) & (atoms[:, 0] < z + SLICE)
        potentials.append(projected_potential(numbers[chosen], atoms[chosen, 1:], grid, 0.5))
    phase = beam.interaction * np.stack(potentials)
    state = PtychographyState(
        obj=np.exp(1j * phase).astype(np.complex64),
        probe=probe,
        positions=positions,
        grid=grid,
        box=Box(0, grid.shape[0], 0, grid.shape[1]),
    )
    model = PtychographyModel((N, N), (SAMPLING, SAMPLING), beam.wavelength, SLICE, band_limit=2 / 3)
    patterns = rng.poisson(model.simulate(state, np.arange(len(positions)))).astype(np.uint16)
    np.savez(folder / "data.npz", data=patterns, positions=positions, probe=probe[:1])
    return phase.sum(axis=0), grid


def agreement(found: np.ndarray, truth: np.ndarray, grid: Grid) -> float:
    """Return the correlation of two phase images inside the scan, without what is slower than 4 Å."""
    reach = int(N_SCAN * STEP / 2 / SAMPLING * 0.9)
    cy, cx = np.rint(grid.to_pixels(np.zeros((1, 2)))[0]).astype(int)
    window = (slice(cy - reach, cy + reach), slice(cx - reach, cx + reach))
    fine = [a - gaussian_filter(a, 2.0 / SAMPLING) for a in (found, gaussian_filter(truth, 0.15 / SAMPLING))]
    return float(np.corrcoef(*(a[window].ravel() for a in fine))[0, 1])


def main() -> None:
    print("modes  data error  phase agrees with truth  mode powers (%)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth, grid = simulate(folder)
        for modes in (1, 2, 4):
            job = folder / f"job-{modes}.toml"
            job.write_text(JOB.format(folder=folder, modes=modes))
            command = [sys.executable, "-m", "hpcrec", "run", job, "--out", folder / f"out-{modes}"]
            command += ["--until", "ptychography"]
            subprocess.run([str(c) for c in command], check=True, capture_output=True, timeout=900)
            result = read_tilt_result(tilt_path(folder / f"out-{modes}" / "checkpoints", 0))
            phase = np.angle(result.obj).sum(axis=0)
            powers = np.sum(np.abs(result.probe) ** 2, axis=(1, 2))
            shares = " ".join(f"{100 * p / powers.sum():.1f}" for p in powers)
            print(
                f"{modes:5}  {result.data_error[-1]:10.4f}  {agreement(phase, truth, grid):23.3f}  {shares}", flush=True
            )


if __name__ == "__main__":
    main()
