"""Dask workers: work is shared among them, their faults are told, and a dead worker never leaves the run waiting."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil
import pytest

import hpcrec.run.cluster as cluster_module
from hpcrec.backend.threads import THREAD_VARIABLES
from hpcrec.errors import DataError, ParallelError, StoppedError
from hpcrec.run.cluster import LARGE_BYTES, DaskExecutor, WorkersLostError, cluster

pytestmark = pytest.mark.timeout(120)

LARGE = LARGE_BYTES // 8 + 1
# Workers are looked at every 3 s; the rest is for a busy machine
PATIENCE = 15.0


@pytest.fixture(scope="module")
def workers() -> Iterator[DaskExecutor]:
    with cluster(2) as executor:
        yield executor


@pytest.fixture
def executor(workers: DaskExecutor) -> DaskExecutor:
    """An executor of two living workers; those that a test has killed are back."""
    until(lambda: sum(map(living, processes(workers))) == len(processes(workers)) == 2, seconds=60)
    return DaskExecutor(workers.client)


def process_of(_: Any) -> int:
    time.sleep(0.2)
    return os.getpid()


def thread_settings(_: Any) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in THREAD_VARIABLES}


def total(array: np.ndarray, factor: float) -> float:
    return float(array.sum() * factor)


def counting(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float64)


def refuse(i: int) -> int:
    if i == 1:
        raise DataError(f"item {i} is damaged")
    return i


def late(_: Any) -> None:
    raise TimeoutError("the function's own")


def wait_for_end(folder: Path, i: int) -> int:
    (folder / f"started_{i}_{os.getpid()}").touch()
    until((folder / "end").exists, 60)
    return i


def test_results_keep_the_order_of_the_items(executor: DaskExecutor) -> None:
    assert executor.n_workers == 2
    assert executor.map(pow, range(7), [2] * 7) == [0, 1, 4, 9, 16, 25, 36]
    assert executor.map(abs, []) == []


def test_work_is_spread_over_processes_of_one_thread(executor: DaskExecutor) -> None:
    pids = set(executor.map(process_of, range(4)))
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert executor.map(thread_settings, [0]) == [dict.fromkeys(THREAD_VARIABLES, "1")]


def test_kept_and_shared_values_stay_away_until_they_are_asked_for(executor: DaskExecutor) -> None:
    """Small and large arrays, handles of kept results and of shared values: a worker sees the values behind all."""
    kept = executor.keep(counting, [10, LARGE])
    assert not any(isinstance(handle, np.ndarray) for handle in kept)
    assert executor.map(total, kept, [1.0, 2.0]) == [45.0, float(LARGE * (LARGE - 1))]
    shared = executor.share(np.ones(LARGE))
    assert not isinstance(shared, np.ndarray)
    assert executor.map(total, [shared, shared, np.ones(LARGE)], [1.0, 2.0, 3.0]) == [LARGE, 2 * LARGE, 3 * LARGE]


def test_a_fault_of_the_function_passes_through(executor: DaskExecutor) -> None:
    with pytest.raises(DataError, match="item 1 is damaged"):
        executor.map(refuse, range(3))
    assert executor.map(refuse, [0, 2]) == [0, 2], "the workers go on"


def test_a_function_that_times_out_does_not_wait_for_ever(executor: DaskExecutor) -> None:
    waiting = background(executor.map, late, [0])
    assert isinstance(waiting.exception(timeout=PATIENCE), TimeoutError | WorkersLostError)


def background(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Call a function that may never return in a thread that nobody waits for."""
    result: Future[Any] = Future()

    def call() -> None:
        try:
            result.set_result(function(*arguments))
        except Exception as fault:  # noqa: BLE001 - handed on to whoever asks
            result.set_exception(fault)

    Thread(target=call, daemon=True).start()
    return result


def processes(executor: DaskExecutor) -> list[int]:
    """Return the process ids of the workers."""
    return sorted(executor.client.run(os.getpid, on_error="ignore").values())


def living(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.mark.parametrize("how_many", [1, 2])
def test_a_killed_worker_is_noticed_while_a_task_runs(executor: DaskExecutor, tmp_path: Path, how_many: int) -> None:
    pids = processes(executor)
    waiting = background(executor.map, wait_for_end, [tmp_path] * 2, range(2))
    until(lambda: len(list(tmp_path.glob("started_*"))) == 2)
    kill(pids[:how_many])
    fault = waiting.exception(timeout=PATIENCE)
    (tmp_path / "end").touch()
    assert isinstance(fault, WorkersLostError)
    assert "'wait_for_end'" in str(fault)
    assert "start the same command again" in str(fault)


def test_a_worker_killed_as_its_results_are_fetched_is_noticed(
    executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The narrow gap between the end of the work and the results' way home; what was sent to the dead is lost."""
    client, pids, fetch = executor.client, processes(executor), executor.client._gather_remote

    async def die_first(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        kill(pids)
        return await fetch(*arguments, **options)

    monkeypatch.setattr(client, "_gather_remote", die_first)
    waiting = background(executor.map, total, [np.ones(LARGE), np.ones(LARGE)], [1.0, 1.0])
    assert isinstance(waiting.exception(timeout=PATIENCE), WorkersLostError)


def test_what_only_a_dead_worker_held_is_not_waited_for(executor: DaskExecutor) -> None:
    handle = executor.share(np.ones(LARGE))
    kill(processes(executor))
    waiting = background(executor.map, total, [handle], [1.0])
    assert isinstance(waiting.exception(timeout=PATIENCE), WorkersLostError)
    with pytest.raises(WorkersLostError):
        executor.share(np.ones(LARGE))


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    patient = cluster_module.Client
    monkeypatch.setattr(cluster_module, "Client", lambda address, timeout: patient(address, timeout="1s"))
    with (
        pytest.raises(ParallelError, match=r"tcp://127\.0\.0\.1:9.*parallel\.scheduler"),
        cluster(1, "tcp://127.0.0.1:9"),
    ):
        pass


def test_a_stop_while_results_are_awaited_is_all_that_is_told(caplog, monkeypatch) -> None:
    """What the client's tasks found when it was closed comes up whenever they are thrown away."""

    def stopped(name: str) -> None:
        raise StoppedError("stopped on request")

    monkeypatch.setattr(cluster_module, "WATCH_SECONDS", 0.2)
    with cluster(1) as executor:
        executor.map(abs, range(2))
        monkeypatch.setattr(executor, "_check_workers", stopped)
        with pytest.raises(StoppedError):
            executor.map(process_of, range(20))
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_what_a_launcher_sends_to_all_ends_no_worker(tmp_path: Path) -> None:
    """Nor what Python starts beside them, once in a process, so it is a new one here; that one itself hears it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import re, signal, psutil\n"
        "from pathlib import Path\n"
        "from hpcrec.run.cluster import cluster\n"
        "def deaf(process):\n"
        "    status = Path(f'/proc/{process.pid}/status').read_text(encoding='utf-8')\n"
        "    return int(re.search(r'SigBlk:\\s*(\\w+)', status)[1], 16) >> (signal.SIGUSR1 - 1) & 1\n"
        "if __name__ == '__main__':\n"
        "    with cluster(2) as executor:\n"
        "        me = psutil.Process()\n"
        "        print(deaf(me), *(deaf(one) for one in me.children(recursive=True)), executor.map(abs, [-1]))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    itself, *helpers, answer = done.stdout.split()
    assert (itself, answer) == ("0", "[1]")
    assert len(helpers) >= 3
    assert set(helpers) == {"1"}


def test_a_killed_scheduler_is_named(tmp_path: Path, monkeypatch) -> None:
    """Nobody waits long for workers that nobody could tell of."""
    monkeypatch.setattr(cluster_module, "RETURN_SECONDS", 1.0)
    known = tmp_path / "scheduler.json"
    here = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(known)]
    scheduler = start_dask("dask_scheduler", "--port", "0", *here)
    until(known.exists, 60)
    worker = start_dask("dask_worker", *here, "--nthreads", "1", "--no-nanny", "--death-timeout", "60")
    try:
        with cluster(1, str(known)) as executor:
            executor.client.wait_for_workers(1, timeout=60)
            executor = DaskExecutor(executor.client, n_recoveries=3)
            assert executor.map(abs, [-1]) == [1]
            scheduler.kill()
            scheduler.wait()
            with pytest.raises(WorkersLostError, match="Dask scheduler is gone: start one again"):
                executor.map(abs, [-2])
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()


def start_dask(module: str, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"distributed.cli.{module}", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
