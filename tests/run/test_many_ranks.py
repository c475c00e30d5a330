"""More ranks than there is work: than patterns of a batch, than patterns, than tilts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ranks import LAUNCH_KEYS, LAUNCHER

from hpcrec.io.base import open_series
from hpcrec.io.results import read_tilt_result, tilt_path
from hpcrec.parallel.communicator import Communicator, SerialCommunicator, run_ranks
from hpcrec.run import tilts
from hpcrec.run.config import load_job
from hpcrec.run.job import Job
from hpcrec.run.tilts import reconstruct_tilts

# Ranks are threads of this process, which may have loaded much
ONE = ["data.tilts=[1]", "ptychography.engine=lsqml", "parallel.threads=1", "parallel.memory_gib_per_rank=8"]
N_PATTERNS = 36


def result(job: Job, folder: Path, n_ranks: int) -> np.ndarray:
    folder.mkdir()

    def rank(world: Communicator) -> None:
        with open_series(job.data) as series:
            reconstruct_tilts(job, series, world, folder, lambda event: None)

    if n_ranks == 1:
        rank(SerialCommunicator())
    else:
        run_ranks(n_ranks, rank)
    return read_tilt_result(tilt_path(folder, 1)).obj


@pytest.mark.parametrize("n_ranks", [N_PATTERNS - 1, N_PATTERNS + 5])
@pytest.mark.parametrize("exchange", ["replicated", "tiled", "auto"])
def test_more_ranks_than_patterns(tiny_job: Path, tmp_path: Path, n_ranks: int, exchange: str) -> None:
    """Some ranks have no pattern at all, by messages ("auto": as threads); single precision, round-off only: 1e-5."""
    apart = [f"parallel.exchange={exchange}", *([] if exchange == "auto" else [f"parallel.group_size={n_ranks}"])]
    job, _ = load_job(tiny_job, [*ONE, *apart, "ptychography.iterations=2"])
    one, many = (result(job, tmp_path / str(n), n) for n in (1, n_ranks))
    assert np.linalg.norm(one - many) <= 1e-5 * np.linalg.norm(one)


def test_more_ranks_than_patterns_of_a_batch_and_than_tilts_left(tiny_job: Path, tmp_path: Path) -> None:
    """Twelve batches of three for groups of four; of three tilts two are done, so one of two groups has none."""
    words = ["ptychography.batch_size=3", "parallel.group_size=4", "parallel.exchange=replicated", *ONE[1:]]
    job, _ = load_job(tiny_job, words)
    one = result(job, tmp_path / "1", 1)
    for i in (0, 2):
        (tmp_path / "8").mkdir(exist_ok=True)
        tilt_path(tmp_path / "8", i).write_bytes(tilt_path(tmp_path / "1", i).read_bytes())

    def rank(world: Communicator) -> None:
        with open_series(job.data) as series:
            reconstruct_tilts(job, series, world, tmp_path / "8", lambda event: None)

    run_ranks(8, rank)
    many = read_tilt_result(tilt_path(tmp_path / "8", 1)).obj
    assert np.linalg.norm(one - many) <= 1e-5 * np.linalg.norm(one)


def test_ranks_that_find_all_done_go_on(tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tilts, "unfinished_tilts", lambda series, checkpoints: [])
    job, _ = load_job(tiny_job, ONE)

    def rank(world: Communicator) -> int:
        with open_series(job.data) as series:
            reconstruct_tilts(job, series, world, tmp_path, lambda event: None)
        return world.rank

    assert run_ranks(3, rank) == [0, 1, 2]
    assert not list(tmp_path.glob("*.h5"))


@pytest.mark.mpi
@pytest.mark.timeout(200)
@pytest.mark.skipif(not LAUNCHER.exists(), reason=f"no mpiexec beside {sys.executable}")
def test_more_processes_than_patterns_of_a_batch(tiny_job: Path, tmp_path: Path) -> None:
    """Five ranks share a tilt by messages, in batches of three."""
    words = [*ONE, "ptychography.batch_size=3", "parallel.group_size=5", "parallel.exchange=replicated"]
    job, _ = load_job(tiny_job, words)
    one = result(job, tmp_path / "one", 1)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCH_KEYS)}
    command = [str(LAUNCHER), "-n", "5", sys.executable, "-m", "hpcrec.cli.main", "run", str(tiny_job)]
    command += ["--out", str(tmp_path / "five"), "--until", "ptychography", *(f"--set={word}" for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, env={**kept, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    many = read_tilt_result(tilt_path(tmp_path / "five" / "checkpoints", 1)).obj
    assert np.linalg.norm(one - many) <= 1e-5 * np.linalg.norm(one)
