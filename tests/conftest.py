"""What tests of several packages share: a tiny simulated tilt series and a job for it, and processes side by side."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# numba's cache does not see a change in a file that a compiled function's own file imports
_KERNELS = sorted((Path(__file__).parents[1] / "hpcrec" / "backend" / "kernels").glob("*.py"))
_DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in _KERNELS)).hexdigest()[:16]
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"hpcrec-kernels-{os.getuid()}-{_DIGEST}"))
# FFTW plans of tests are not those of users
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / f"hpcrec-tests-{os.getuid()}")
# Processes of tests share the cores already
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import device_arrays
import device_runtime
from numba.core.caching import IndexDataCacheFile

from hpcrec.backend import fft
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


def _one_at_a_time(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let no two processes of the tests touch numba's cache at once.

    numba reads the index of a kernel, writes it, and then the code: of two processes that keep a kernel for different
    types at once, the one's index would name the other's code.
    """

    def call(*arguments: Any) -> Any:
        with locked(Path(os.environ["NUMBA_CACHE_DIR"]) / "lock"):
            return method(*arguments)

    return call


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, for which other processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


IndexDataCacheFile.load = _one_at_a_time(IndexDataCacheFile.load)
IndexDataCacheFile.save = _one_at_a_time(IndexDataCacheFile.save)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that no process is left alone with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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


@pytest.fixture(scope="session", autouse=True)
def first_plan() -> Iterator[None]:
    """Take the plans that FFTW finds first: looking for faster ones costs more than the tests' transforms gain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fft, "_TRIES", 1)
        yield


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The stand-in for CuPy, for the time of a test."""
    monkeypatch.setitem(sys.modules, "cupy", device_arrays.MODULE)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.fft", device_arrays.TRANSFORMS)
    return device_arrays.MODULE


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The stand-in for CuPy with two GPUs, streams and memory; ``used`` are the GPUs made current."""
    module = device_runtime.with_runtime()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setitem(sys.modules, "cupyx.scipy.fft", device_arrays.TRANSFORMS)
    return module


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Return a folder by name; the first process of the session that asks fills it, for all others to read."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def find(name: str, fill: Callable[[Path], None]) -> Path:
        folder, filled = shared / name, shared / f"{name}.filled"
        with locked(shared / f"{name}.lock"):
            if not filled.exists():
                folder.mkdir(exist_ok=True)
                fill(folder)
                filled.touch()
        return folder

    return find


@pytest.fixture(scope="session")
def tiny_series(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """Three tilts of one Co3O4 cell: 36 patterns of 32 × 32 pixels each, with the file's own truth."""
    chosen = SimulationOptions(
        specimen=SpecimenOptions(kind="co3o4_cube", n_cells=(1, 1, 1)),
        optics=OpticsOptions(defocus_angstrom=50.0),
        scan=ScanOptions(shape=(6, 6), step_angstrom=1.6),
        detector=DetectorOptions(pixels=32, pixel_inverse_angstrom=0.15625),
        tilt=TiltOptions(first_deg=-40.0, last_deg=40.0, n_tilts=3),
        multislice=MultisliceOptions(grid_pixels=48, n_phonons=0),
    )
    return made_once("series", lambda folder: write_simulated_series(folder / "tiny.h5", chosen)) / "tiny.h5"


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
