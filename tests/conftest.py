"""What tests of several packages share: a tiny simulated tilt series and a job for it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import pytest

# numba's cache does not see a change in a file that a compiled function's own file imports
_KERNELS = sorted((Path(__file__).parents[1] / "hpcrec" / "backend" / "kernels").glob("*.py"))
_DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in _KERNELS)).hexdigest()[:16]
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"hpcrec-kernels-{os.getuid()}-{_DIGEST}"))

from hpcrec.data.experiment import (
    DetectorOptions,
    MultisliceOptions,
    OpticsOptions,
    ScanOptions,
    SimulationOptions,
    TiltOptions,
)
from hpcrec.data.specimen import SpecimenOptions
from hpcrec.io.simulated import write_simulated_series

TINY_JOB = """
version = 1
name = "tiny"
[data]
format = "hdf5"
path = "{path}"
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
iterations = 4
checkpoint_every = 2
"""


@pytest.fixture(scope="session")
def tiny_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tilts of one Co3O4 cell: 36 patterns of 32 × 32 pixels each, with the file's own truth."""
    path = tmp_path_factory.mktemp("series") / "tiny.h5"
    chosen = SimulationOptions(
        specimen=SpecimenOptions(kind="co3o4_cube", n_cells=(1, 1, 1)),
        optics=OpticsOptions(defocus_angstrom=50.0),
        scan=ScanOptions(shape=(6, 6), step_angstrom=1.6),
        detector=DetectorOptions(pixels=32, pixel_inverse_angstrom=0.15625),
        tilt=TiltOptions(first_deg=-40.0, last_deg=40.0, n_tilts=3),
        multislice=MultisliceOptions(grid_pixels=48, n_phonons=0),
    )
    write_simulated_series(path, chosen)
    return path


@pytest.fixture(scope="session")
def tiny_job_text(tiny_series: Path) -> str:
    """Text of a job for the tiny series: four sweeps, no later stage."""
    return TINY_JOB.format(path=tiny_series)


@pytest.fixture
def tiny_job(tiny_job_text: str, tmp_path: Path) -> Path:
    """A job file for the tiny series."""
    path = tmp_path / "tiny.toml"
    path.write_text(tiny_job_text)
    return path
