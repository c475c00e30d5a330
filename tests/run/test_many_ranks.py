"""More ranks than there is work: than patterns of a batch, than patterns, than tilts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from all_tilts import reconstruct_all
from ranks import LAUNCHER, launch

from hpcrec.io.base import open_series
from hpcrec.io.results import read_tilt_result, tilt_path
from hpcrec.parallel.communicator import Communicator, run_ranks
from hpcrec.run import tilts
from hpcrec.run.config import load_job
from hpcrec.run.job import Job
from hpcrec.run.tilts import reconstruct_tilts

# Ranks are threads of this process, which may have loaded much
ONE = ["data.tilts=[1]", "ptychography.engine=lsqml", "parallel.threads=1", "parallel.memory_gib_per_rank=8"]
N_PATTERNS = 36


def result(job: Job, folder: Path, n_ranks: int) -> np.ndarray:
    reconstruct_all(job, folder, n_ranks)
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
    (tmp_path / "8").mkdir()
    for i in (0, 2):
        tilt_path(tmp_path / "8", i).write_bytes(tilt_path(tmp_path / "1", i).read_bytes())
    many = result(job, tmp_path / "8", 8)
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
    command = ["-m", "hpcrec.cli.main", "run", tiny_job, "--out", tmp_path / "five", "--until", "ptychography"]
    done = launch(*command, *(f"--set={word}" for word in words), n_ranks=5)
    assert done.returncode == 0, done.stderr
    many = read_tilt_result(tilt_path(tmp_path / "five" / "checkpoints", 1)).obj
    assert np.linalg.norm(one - many) <= 1e-5 * np.linalg.norm(one)
