"""A Dask scheduler with two workers beside the job, each under a nanny, on the loopback address."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.chaos.attempt import Attempt, wait_until

N_WORKERS: Final = 2
PATIENCE_S: Final = 120.0


@dataclass(frozen=True)
class DaskCluster:
    """Its ``address`` and processes."""

    address: str
    scheduler: Attempt
    started: tuple[Attempt, ...]

    def schedulers(self) -> list[int]:
        """The scheduler's process."""
        return [self.scheduler.process.pid] if self.scheduler.code is None else []

    def nannies(self) -> list[int]:
        """The processes that watch a worker each."""
        return [one.process.pid for one in self.started if one.code is None]

    def workers(self) -> list[int]:
        """The processes that compute."""
        return [pid for one in self.started for pid in one.workers()]


@contextmanager
def dask_cluster(environment: dict[str, str], folder: Path, name: str) -> Iterator[DaskCluster]:
    """Give a cluster whose workers have all come; it ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    common = ["--host", "127.0.0.1", "--no-dashboard"]
    commands = [["dask_scheduler", "--port", str(port), *common]]
    commands += [
        ["dask_worker", address, *common, "--nthreads", "1", "--local-directory", str(folder / f"{name}-scratch-{i}")]
        for i in range(N_WORKERS)
    ]
    with ExitStack() as stack:
        attempts = [
            stack.enter_context(
                Attempt(
                    [sys.executable, "-m", f"distributed.cli.{module}", *rest], environment, folder, f"{name}-dask-{i}"
                )
            )
            for i, (module, *rest) in enumerate(commands)
        ]
        workers = attempts[1:]
        if not wait_until(lambda: all("Registered to" in one.text for one in workers), PATIENCE_S):
            raise RuntimeError(f"Dask's workers did not come within {PATIENCE_S:g} s; see {folder}/{name}-dask-*.err")
        yield DaskCluster(address, attempts[0], tuple(workers))
