"""Where Dask workers come from: the ranks of the job, batch jobs; and which schedulers are refused."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from ranks import LAUNCHER, launch

import hpcrec.run.workers as workers_module
from hpcrec.errors import ConfigError, ParallelError
from hpcrec.parallel.communicator import SerialCommunicator
from hpcrec.run.cluster import cluster
from hpcrec.run.config import load_job
from hpcrec.run.schedulers import check_encrypted, quietly
from hpcrec.run.workers import described, lend, stage_workers

pytestmark = pytest.mark.timeout(240)


def job_with(path: Path, *changes: str) -> Any:
    return load_job(path, changes)[0]


@pytest.mark.parametrize(
    "address", ["tls://node7:8786", "tcp://127.0.0.1:8786", "localhost:8786", "tcp://[::1]:8786", "wss://node7:80"]
)
def test_schedulers_that_are_safe(address: str) -> None:
    check_encrypted(address)


@pytest.mark.parametrize("address", ["tcp://node7:8786", "10.0.0.7:8786", "ws://node7:80", "tcp://[fe80::1]:8786"])
def test_open_schedulers_on_other_hosts_are_refused(address: str, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"parallel\.scheduler: .*unencrypted_scheduler = true"),
        cluster(1, address),
    ):
        pass
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"address": address}))
    with pytest.raises(ConfigError, match="not encrypted"):
        check_encrypted(str(file))


def test_a_scheduler_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ParallelError, match="no Dask scheduler wrote its address"):
        check_encrypted(str(tmp_path / "s.json"))


def test_tls_without_credentials_is_told() -> None:
    with (
        pytest.raises(ParallelError, match=r"tls://127\.0\.0\.1:9.*distributed\.comm\.tls"),
        cluster(1, "tls://127.0.0.1:9"),
    ):
        pass


def test_two_sources_are_a_fault(tiny_job: Path) -> None:
    with pytest.raises(ConfigError, match=r"parallel\.cluster.*leave one out"):
        job_with(tiny_job, "parallel.cluster=mpi", "parallel.scheduler=tls://node7:8786")


def test_what_the_last_stage_would_stumble_over_is_told_first(tiny_job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"tcp://node7:8786 is on another host and not encrypted"):
        job_with(tiny_job, "parallel.scheduler=tcp://node7:8786")
    job_with(tiny_job, "parallel.scheduler=tcp://node7:8786", "parallel.unencrypted_scheduler=true")
    monkeypatch.setattr("hpcrec.run.faults.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'hpcrec\[jobqueue\]'"):
        job_with(tiny_job, "parallel.cluster=jobqueue")


@pytest.mark.parametrize("key", ["parallel.patience_s", "parallel.stall_s"])
def test_times_are_not_negative(tiny_job: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: must be 0 or more, got -1"):
        job_with(tiny_job, f"{key}=-1")


@pytest.fixture
def batch_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job file is taken as where dask-jobqueue is installed."""
    monkeypatch.setattr("hpcrec.run.faults.find_spec", lambda name: name)


@pytest.mark.usefixtures("batch_library")
def test_the_source_is_told(tiny_job: Path) -> None:
    assert described(job_with(tiny_job, "parallel.cluster=mpi"), 3) == "a Dask worker in each of 3 rank(s)"
    changes = "parallel.cluster=jobqueue", "parallel.batch_system=pbs", "parallel.batch_jobs=4"
    assert described(job_with(tiny_job, *changes), 1) == "Dask workers in 4 pbs job(s)"
    assert described(job_with(tiny_job, "parallel.scheduler=tls://n:1"), 1) == "Dask at tls://n:1"


def about(_: Any) -> tuple[int, str]:
    return os.getpid(), os.environ.get("OMP_NUM_THREADS", "")


def test_one_rank_is_its_own_worker(tiny_job: Path, tmp_path: Path) -> None:
    job, alone = job_with(tiny_job, "parallel.cluster=mpi", "parallel.threads=3"), SerialCommunicator()
    with stage_workers(job, alone, tmp_path) as executor:
        assert executor.client.scheduler.address.startswith("tls://127.0.0.1:")
        assert executor.n_slots == 1
        pid, threads = executor.map(about, [0])[0]
        assert pid != os.getpid()
        assert threads == "3"
    lend(job, alone)


RANKS = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from hpcrec.parallel import mpi
from hpcrec.run.config import load_job

def where(_):
    time.sleep(0.3)
    return os.getpid(), os.getppid()

if __name__ == "__main__":
    from hpcrec.run.workers import lend, stage_workers
    from hpcrec.tomography.executor import InlineExecutor
    from test_slabs import files, same, strike, volume_by
    world = mpi.world()
    job = load_job(Path(sys.argv[2]), ["parallel.cluster=mpi", "parallel.threads=1"])[0]
    folder = Path(sys.argv[3])
    if world.rank == 0:
        for turn in range(2):
            with stage_workers(job, world, folder) as executor:
                print("address", executor.client.scheduler.address)
                print("workers", len({pid for pid, _ in executor.map(where, range(6))}), executor.n_slots)
                if turn:
                    found = volume_by(executor, files(folder), strike(executor))
                    print("same", same(found, volume_by(InlineExecutor(), None)), executor.generation > 0)
    lend(job, world)
    world.idle_barrier()
    print(f"rank {world.rank} of {world.size} ended")
"""


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.skipif(not LAUNCHER.exists(), reason=f"no mpiexec beside {sys.executable}")
def test_ranks_become_workers_and_survive_the_death_of_one(tiny_job: Path, tmp_path: Path) -> None:
    """Twice, as the stage may try again; what is killed is the worker of a rank, not the rank."""
    script = tmp_path / "ranks_as_workers.py"
    script.write_text(RANKS)
    done = launch(script, Path(__file__).parent, tiny_job, tmp_path / "saved", n_ranks=3, timeout=220)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"address (tls://127\.0\.0\.1):", done.stdout) == ["tls://127.0.0.1"] * 2
    assert done.stdout.count("workers 3 3") == 2
    assert "same True True" in done.stdout, done.stdout + done.stderr
    assert sorted(re.findall(r"rank (\d) of 3 ended", done.stdout)) == ["0", "1", "2"]


@pytest.mark.usefixtures("batch_library")
def test_a_missing_library_is_told_in_a_sentence(
    tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue.slurm", None)
    job = job_with(tiny_job, "parallel.cluster=jobqueue")
    with (
        pytest.raises(ConfigError, match=r"pip install 'hpcrec\[jobqueue\]'"),
        stage_workers(job, SerialCommunicator(), tmp_path),
    ):
        pass


def test_jobs_that_nothing_describes(tiny_job: Path, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    job = job_with(tiny_job, "parallel.cluster=jobqueue", "parallel.batch_system=pbs")
    with (
        pytest.raises(ParallelError, match=r"Dask cannot make pbs jobs \(.*jobqueue\.yaml"),
        stage_workers(job, SerialCommunicator(), tmp_path),
    ):
        pass


@pytest.mark.slow
def test_batch_jobs_of_this_machine(tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own stand-in for a batch system starts its jobs here; all else is as with a real one."""
    pytest.importorskip("dask_jobqueue.local")
    import dask

    monkeypatch.setitem(workers_module.BATCH_SYSTEMS, "slurm", "LocalCluster")
    monkeypatch.setitem(sys.modules, "dask_jobqueue.slurm", sys.modules["dask_jobqueue.local"])
    settings = {"cores": 1, "memory": "1GB", "processes": 1, "interface": "lo", "death-timeout": 60}
    job = job_with(tiny_job, "parallel.cluster=jobqueue", "parallel.batch_jobs=2")
    configured = {f"jobqueue.local.{key}": value for key, value in settings.items()}
    with dask.config.set(configured), stage_workers(job, SerialCommunicator(), tmp_path) as executor:
        assert executor.client.scheduler.address.startswith("tls://127.0.0.1:")
        assert executor.n_slots == 2
        assert executor.map(abs, [-1, -2]) == [1, 2]
        folder = next(tmp_path.glob(".dask-*"))
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        keys = [path for path in folder.iterdir() if path.is_file()]
        assert keys
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in keys)
    assert not list(tmp_path.glob(".dask-*"))


def test_tracebacks_of_libraries_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """What is lost is told in a sentence of hpcrec's own; afterwards all is as it was."""
    before = logging.getLogger("asyncio").level
    with quietly():
        logging.getLogger("asyncio").error("Task exception was never retrieved")
        logging.getLogger("distributed.client").error("Failed to reconnect to scheduler")
        logging.getLogger("hpcrec.run.workers").warning("ours")
    assert [record.message for record in caplog.records] == ["ours"]
    assert logging.getLogger("asyncio").level == before
    logging.getLogger("asyncio").error("heard again")
    assert caplog.records[-1].message == "heard again"
