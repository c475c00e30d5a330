"""``mpiexec -n 2 hpcrec run``: the answer of one process; a dead rank ends the job, and the next start continues it."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from ranks import LAUNCHER, launch

from hpcrec.errors import DataError
from hpcrec.io.results import read_volume
from hpcrec.run.observers import read_events

FAULTY = Path(__file__).with_name("faulty_rank.py")

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.timeout(200),
    pytest.mark.skipif(not LAUNCHER.exists(), reason=f"no mpiexec beside {sys.executable}"),
]


def run(job: Path, out: Path) -> tuple[object, ...]:
    return "run", job, "--out", out, "--until", "tomography", "--set", "parallel.group_size=2"


def distance(folder: Path, other: Path) -> float:
    a, b = (read_volume(f / "volume.h5").volume for f in (folder, other))
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def uninterrupted(whole_job: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CompletedProcess[str], Path]:
    """What two ranks told, and the run directory that they made without interruption."""
    out = tmp_path_factory.mktemp("ranks") / "out"
    done = launch(FAULTY, "list", *run(whole_job, out))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run directory") == 1, "one rank speaks for all"
    return done, out


@pytest.fixture(scope="module")
def two_ranks(uninterrupted: tuple[CompletedProcess[str], Path]) -> Path:
    return uninterrupted[1]


def test_ranks_load_no_library_that_they_do_not_use(uninterrupted: tuple[CompletedProcess[str], Path]) -> None:
    """Half a second and up to 90 MiB a rank; of a run without a report, the first rank's workers alone need Dask."""
    told = re.findall(r"^rank (\d) loaded: (.*)$", uninterrupted[0].stderr, re.MULTILINE)
    loaded = {int(rank): set(names.split(", ")) for rank, names in told}
    assert {"numba", "distributed"} <= loaded[0], "names as this test knows them"
    drawing = {"matplotlib", "optuna", "ase", "zarr", "tifffile"}
    assert loaded[0] & drawing == set()
    later = {"dask", "distributed", "scipy.stats", "scipy.signal", "scipy.interpolate", "skimage.filters"}
    assert loaded[1] & (drawing | later) == set()


def test_two_ranks_find_the_volume_of_one_process(two_ranks: Path, whole_run: Path) -> None:
    """Sums over ranks are rounded in another order, and the sweeps and the alignment amplify that a little."""
    assert distance(two_ranks, whole_run) < 1e-4


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_the_same_command_continues_it(
    whole_job: Path, two_ranks: Path, scheduler: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    began = time.monotonic()
    done = launch(FAULTY, "kill", *run(whole_job, out))
    assert done.returncode != 0
    assert time.monotonic() - began < 30
    assert len(list(out.glob("checkpoints/tilt_*.h5"))) == 1
    assert not (out / "volume.h5").exists()
    done = launch("-m", "hpcrec.cli.main", *run(whole_job, out), "--set", f"parallel.scheduler={scheduler}")
    assert done.returncode == 0, done.stderr
    started = [e["resumed_at"] for e in read_events(out / "events.jsonl") if e["event"] == "tilt_started"]
    assert sorted(started) == [0, 0, 0, 2], "three fresh starts, one of them continued after its second sweep"
    assert distance(out, two_ranks) < 1e-5


def test_an_exception_on_one_rank_ends_the_job_with_its_message(whole_job: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    done = launch(FAULTY, "raise", *run(whole_job, tmp_path / "out"))
    assert time.monotonic() - began < 30
    assert done.returncode == DataError.exit_code
    assert "rank 1: scan.h5: position 7 cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
