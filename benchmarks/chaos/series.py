"""The small tilt series and its job, made once for all faults."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final, Literal

import hpcrec

N_TILTS: Final = 5
ITERATIONS: Final = 16
CHECKPOINT_EVERY: Final = 4
ROUNDS: Final = 4
VOLUME_ITERATIONS: Final = 12
N_RANKS: Final = 2
Ranks = Literal["apart", "together", "tiles"]
# Each rank has a tilt of its own, or both share one: all of its object each, or a tile each
SETTINGS: Final[dict[Ranks, dict[str, str]]] = {
    "apart": {"group_size": "1"},
    "together": {"group_size": "2", "exchange": "replicated"},
    "tiles": {"group_size": "2", "exchange": "tiled"},
}

LAUNCH_KEYS: Final = ("PMI_", "PMIX_", "OMPI_", "SLURM_")

# Windows of 44 pixels: transforms by FFTW, whose plans are then part of the run
SAMPLE: Final = f"""
dose_electrons_per_angstrom2 = 46000.0
[specimen]
kind = "co3o4_cube"
n_cells = [1, 1, 1]
[optics]
defocus_angstrom = 50.0
[scan]
shape = [12, 12]
step_angstrom = 1.4
[detector]
pixels = 44
pixel_inverse_angstrom = 0.11363636
[tilt]
first_deg = -60.0
last_deg = 60.0
n_tilts = {N_TILTS}
[multislice]
grid_pixels = 66
n_phonons = 0
"""

JOB: Final = f"""
version = 1
name = "chaos"
[data]
format = "hdf5"
path = "series.h5"
patterns = "diffraction"
positions = "scan_positions_A"
tilt_angles = "tilt_angles_deg"
detector_pixel_inverse_angstrom = "attribute:detector_pixel_invA"
[beam]
energy_ev = 200e3
[probe]
semiangle_mrad = 30.0
defocus_angstrom = 50.0
[ptychography]
engine = "gradient"
iterations = {ITERATIONS}
checkpoint_every = {CHECKPOINT_EVERY}
[parallel]
workers = 2
[tomography]
binning = 2
half_sets = false
[tomography.alignment]
bins = [2]
rounds = [{ROUNDS}]
volume_iterations = 4
[tomography.denoise]
method = "none"
[tomography.fista]
n_iterations = {VOLUME_ITERATIONS}
"""


def make_series(folder: Path) -> Path:
    """Simulate the series into ``folder`` if it is not there, and return the path of its job."""
    folder.mkdir(parents=True, exist_ok=True)
    sample, job, series = (folder / name for name in ("sample.toml", "job.toml", "series.h5"))
    sample.write_text(SAMPLE)
    job.write_text(JOB)
    if not series.exists():
        command = [sys.executable, "-m", "hpcrec", "simulate", str(sample), "--out", str(series)]
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment(folder), timeout=300)
    return job


def environment(folder: Path) -> dict[str, str]:
    """Return what the run's processes shall see: this package, a cache of its own, no launcher that runs the driver."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCH_KEYS)}
    path = os.pathsep.join(filter(None, [str(Path(hpcrec.__file__).parents[1]), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def run_command(job: Path, out: Path, ranks: Ranks, scheduler: str = "") -> list[str]:
    """Return the command that runs or continues the job on two ranks, through the tomography stage."""
    command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(N_RANKS), sys.executable, "-m", "hpcrec"]
    command += ["run", str(job), "--out", str(out), "--until", "tomography"]
    settings = SETTINGS[ranks] | ({"scheduler": scheduler} if scheduler else {})
    return command + [f"--set=parallel.{name}={value}" for name, value in settings.items()]
