"""Dask: the workers of the tomography stage. The only home of dask."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any

import dask
import numpy as np
from distributed import Client, LocalCluster
from distributed.client import FutureCancelledError, FuturesCancelledError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from hpcrec.backend.threads import THREAD_VARIABLES
from hpcrec.errors import ParallelError

logger = logging.getLogger(__name__)
LARGE_BYTES = 1 << 16
WATCH_SECONDS = 3.0
LOSSES = (KilledWorker, FutureCancelledError, FuturesCancelledError, CommClosedError, TimeoutError)


class WorkersLostError(ParallelError):
    """A worker died, and what it alone held is gone; the stage can start again from its checkpoint."""


class DaskExecutor:
    """Runs pure functions on Dask workers; the :class:`hpcrec.tomography.reconstruct.Executor` of a cluster.

    Dask computes a lost worker's results again, but cannot bring back arrays that were sent to that worker only; it
    then waits for ever. So while results are awaited, the workers are watched, and :class:`WorkersLostError` is raised.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self._known = self._workers()

    def _workers(self) -> set[str]:
        return set(self.client.scheduler_info(n_workers=-1)["workers"])

    @property
    def n_workers(self) -> int:
        """Number of workers at the start."""
        return max(len(self._known), 1)

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        """Return ``function`` of the items as values, brought here in order."""
        futures = self.keep(function, *iterables)
        name = getattr(function, "__name__", str(function)).strip("_")
        with self._watching(name):
            # Also the way home of results may never end when their worker dies: watch until they are here
            loop: Any = self.client.loop
            coming = asyncio.run_coroutine_threadsafe(self.client.gather(futures, asynchronous=True), loop.asyncio_loop)
            try:
                while not wait([coming], WATCH_SECONDS).done:
                    self._check_workers(name)
                return coming.result()  # type: ignore[no-any-return]
            finally:
                coming.cancel()

    def _check_workers(self, name: str) -> None:
        lost = self._known - self._workers()
        if lost:
            raise WorkersLostError(_lost(f"{len(lost)} Dask worker(s)", name))

    @contextmanager
    def _watching(self, name: str) -> Iterator[None]:
        """Turn what Dask raises when a worker is gone into :class:`WorkersLostError`."""
        try:
            yield
        except LOSSES as fault:
            raise WorkersLostError(_lost(f"Dask workers ({fault})", name)) from None

    def keep(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        """Return handles of the results, which stay on the workers that computed them."""
        columns = [self._sent(list(items)) for items in iterables]
        with self._watching("submitting"):
            return self.client.map(function, *columns, pure=False)  # type: ignore[no-any-return]

    def _sent(self, items: list[Any]) -> list[Any]:
        """Send large arrays ahead of the tasks that need them: task descriptions stay small."""
        large = [i for i, item in enumerate(items) if isinstance(item, np.ndarray) and item.nbytes > LARGE_BYTES]
        if large:
            with self._watching("sending data"):
                handles = self.client.scatter([items[i] for i in large], hash=False)
            for i, handle in zip(large, handles):
                items[i] = handle
        return items

    def share(self, value: Any) -> Any:
        """Send a value to every worker once and return its handle."""
        with self._watching("sending data"):
            self._check_workers("sending data")
            return self.client.scatter(value, broadcast=True, hash=False)


def _lost(who: str, name: str) -> str:
    return (
        f"{who} died during {name!r}: start the same command again to continue; "
        "if they ran out of memory, ask for more of it or for fewer workers (parallel.workers)"
    )


@contextmanager
def cluster(n_workers: int, scheduler: str = "") -> Iterator[DaskExecutor]:
    """Give an executor on a running scheduler, or on ``n_workers`` local processes of one thread each.

    ``scheduler`` is an address, or a scheduler file (``.json``) as ``dask-mpi --scheduler-file`` writes it.

    Local workers listen on the loopback address only, and their traffic is encrypted.

    Raises
    ------
    ParallelError : the scheduler at the given address does not answer.
    """
    if scheduler:
        try:
            where = {"scheduler_file": scheduler} if scheduler.endswith(".json") else {"address": scheduler}
            client = Client(**where, timeout="30s")
        except (OSError, TimeoutError, ValueError) as fault:
            raise ParallelError(
                f"no Dask scheduler answers at {scheduler} ({fault}); check parallel.scheduler"
            ) from None
        with client:
            yield DaskExecutor(client)
        return
    settings = {
        "distributed.worker.daemon": True,
        "distributed.comm.timeouts.connect": "60s",
        "logging.distributed": "error",
    }
    with dask.config.set(settings), _single_threaded_children():
        local = LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # no dashboard, and no fixed port for its server
            security=True,
            silence_logs=logging.ERROR,
        )
    with local, Client(local) as client:
        yield DaskExecutor(client)


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Let worker processes start with one thread a library."""
    kept = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
