"""Dask: the workers of the tomography stage, each with a GPU of its own if asked. The only home of dask."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import dask
import numpy as np
from distributed import Client, Future, LocalCluster, get_worker
from distributed.client import FutureCancelledError, FuturesCancelledError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from hpcrec.backend.array import array_module, to_host
from hpcrec.backend.device import DeviceName, gpu_fault, use_device
from hpcrec.backend.threads import THREAD_VARIABLES
from hpcrec.errors import DeviceError, ParallelError

logger = logging.getLogger(__name__)
LARGE_BYTES = 1 << 16
WATCH_SECONDS = 3.0
LOSSES = (KilledWorker, FutureCancelledError, FuturesCancelledError, CommClosedError, TimeoutError)


class WorkersLostError(ParallelError):
    """A worker died, and what it alone held is gone; the stage can start again from its checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Which of the ``n`` workers that see the same GPUs one is."""

    place: int
    n: int


class _ThreadsSeat(threading.local):
    taken: Seat | None = None


_seat = _ThreadsSeat()


@dataclass(frozen=True, kw_only=True)
class _Seated:
    """A task whose worker's own GPU is current while it runs; ``home``: the arrays it returns come to the host.

    A device is current for a thread, and tasks run in another one than what prepares a worker: so each task looks.
    """

    function: Callable[..., Any]
    seats: dict[str, Seat]
    home: bool

    def __call__(self, *items: Any) -> Any:
        name = str(get_worker().name)
        if name not in self.seats:
            raise ParallelError(f"Dask worker {name} came after the start and has no GPU; start the command again")
        if _seat.taken != self.seats[name]:
            use_device("gpu", self.seats[name].place, self.seats[name].n)
            _seat.taken = self.seats[name]
        found = self.function(*items)
        return _on_host(found) if self.home else found


def _on_host(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_on_host, value))
    return to_host(value) if array_module(value) is not np else value


def _sight() -> tuple[str | None, str]:
    """Say why a worker can use no GPU, or None, and which GPUs its process is shown."""
    return gpu_fault(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


class DaskExecutor:
    """Runs pure functions on Dask workers; the :class:`hpcrec.tomography.reconstruct.Executor` of a cluster.

    Dask computes a lost worker's results again, but cannot bring back arrays that were sent to that worker only; it
    then waits for ever. So while results are awaited, the workers are watched, and :class:`WorkersLostError` is raised.

    ``device`` "gpu": worker i of the n that see the same GPUs makes GPU i modulo their count current, of whose free
    memory it may take an even share. What is kept stays on that GPU, and tasks go to the worker that keeps what they
    need; arrays travel as the host's alone. "auto" takes the GPUs if every worker sees one, else the processors.
    Raises DeviceError if "gpu" is asked for and a worker can use none.
    """

    device: Literal["cpu", "gpu"]

    def __init__(self, client: Client, device: DeviceName = "cpu") -> None:
        self.client = client
        self._known = self._workers()
        self._seats = {} if device == "cpu" else self._find_seats(device)
        self.device = "gpu" if self._seats else "cpu"
        self._homes: WeakKeyDictionary[Future[Any], str] = WeakKeyDictionary()

    def _find_seats(self, device: DeviceName) -> dict[str, Seat]:
        """Return each worker's seat by name, or none where "auto" finds a worker without a GPU."""
        with self._watching("looking for GPUs"):
            sights = self.client.run(_sight)
            workers = self.client.scheduler_info(n_workers=-1)["workers"]
        missing = {address: fault for address, (fault, _) in sights.items() if fault is not None}
        if missing:
            address, fault = next(iter(missing.items()))
            if device == "gpu":
                raise DeviceError(f"device 'gpu', Dask worker {address}: {fault}; or choose 'cpu'")
            logger.info("tomography on processors: Dask worker %s: %s", address, fault)
            return {}
        found: dict[str, Seat] = {}
        together: dict[tuple[str, str], list[str]] = {}
        for address, (_, shown) in sights.items():
            together.setdefault((workers[address]["host"], shown), []).append(str(workers[address]["name"]))
        for names in together.values():
            ordered = sorted(names, key=lambda name: (len(name), name))
            found |= {name: Seat(place=place, n=len(names)) for place, name in enumerate(ordered)}
        return found

    def _workers(self) -> set[str]:
        return set(self.client.scheduler_info(n_workers=-1)["workers"])

    @property
    def n_workers(self) -> int:
        """Number of workers at the start."""
        return max(len(self._known), 1)

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        """Return ``function`` of the items as values, brought here in order."""
        futures = self._submit(function, iterables, home=True)
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
        return self._submit(function, iterables, home=False)

    def _submit(self, function: Callable[..., Any], iterables: Iterable[Iterable[Any]], home: bool) -> list[Any]:
        columns = [self._sent(list(items)) for items in iterables]
        with self._watching("submitting"):
            if self.device == "cpu":
                return self.client.map(function, *columns, pure=False)  # type: ignore[no-any-return]
            task = _Seated(function=function, seats=self._seats, home=home)
            name = f"{getattr(function, '__name__', 'task').strip('_')}-{uuid.uuid4()}"
            return [self._seated(task, f"{name}-{i}", i, items) for i, items in enumerate(zip(*columns))]

    def _seated(self, task: _Seated, key: str, i: int, items: tuple[Any, ...]) -> Any:
        """Submit a task to the worker that keeps one of its items; if none does, what it keeps goes to the i-th."""
        workers = sorted(self._known)
        kept = [self._homes[item] for item in items if isinstance(item, Future) and item in self._homes]
        where = kept[0] if kept else None if task.home else workers[i % len(workers)]
        future = self.client.submit(task, *items, key=key, workers=where, pure=False)
        if where is not None and not task.home:
            self._homes[future] = where
        return future

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
def cluster(n_workers: int, scheduler: str = "", device: DeviceName = "cpu") -> Iterator[DaskExecutor]:
    """Give an executor on a running scheduler, or on ``n_workers`` local processes of one thread each.

    ``scheduler`` is an address, or a scheduler file (``.json``) as ``dask-mpi --scheduler-file`` writes it. ``device``:
    where the workers' large arrays live, see :class:`DaskExecutor`.

    Local workers listen on the loopback address only, and their traffic is encrypted.

    Raises
    ------
    ParallelError : the scheduler at the given address does not answer.
    DeviceError : GPUs are asked for, and a worker can use none.
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
            yield DaskExecutor(client, device)
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
        yield DaskExecutor(client, device)


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
