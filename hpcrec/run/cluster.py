"""Dask: the workers of the tomography stage, each with a GPU of its own if asked. :mod:`.workers` starts others."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
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
from hpcrec.backend.threads import worker_processes
from hpcrec.errors import DeviceError, ParallelError
from hpcrec.errors import WorkersLostError as WorkersLostError
from hpcrec.run.schedulers import about_tls, check_encrypted, hear_of_loop, lost
from hpcrec.tomography.executor import add_in_pairs

logger = logging.getLogger(__name__)
LARGE_BYTES = 1 << 16
WATCH_SECONDS = 3.0
SILENT_LOOKS = 12  # at a worker that is not heard of meanwhile, after which it counts as lost: 36 s
RETURN_SECONDS = 15.0
ALONE_SECONDS = 120.0  # the same where no worker is left
RECOVERIES = 3
LOSSES = (KilledWorker, FutureCancelledError, FuturesCancelledError, CommClosedError, TimeoutError)


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
    """Runs pure functions on Dask workers; the :class:`hpcrec.tomography.executor.Executor` of a cluster.

    Dask computes a lost worker's results again, but cannot bring back arrays that were sent to that worker only; it
    then waits for ever, and so it does for a worker that hangs. So while results are awaited, the workers are watched,
    and :class:`WorkersLostError` is raised. What concerns values alone is done again after :meth:`recover`, up to
    ``n_recoveries`` times running; handles cannot be, so there the caller recovers. ``told`` hears of it.

    What is kept stays with the worker that computed it, and tasks go to the worker that keeps the first of what they
    need. ``device`` "gpu": worker i of the n that see the same GPUs makes GPU i modulo their count current, of whose
    free memory it may take an even share. What is kept stays on that GPU; arrays travel as the host's alone. "auto"
    takes the GPUs if every worker sees one, else the processors. Raises DeviceError if "gpu" is asked for and a worker
    can use none.
    """

    device: Literal["cpu", "gpu"]

    def __init__(self, client: Client, device: DeviceName = "cpu", n_recoveries: int = 0) -> None:
        self.client, self.generation = client, 0
        loop: Any = client.loop
        loop.asyncio_loop.set_exception_handler(hear_of_loop)
        self.told: Callable[[str], None] = logger.warning
        self._n_recoveries = self._left = n_recoveries
        self._known = set(self._heard())
        self._silences: dict[str, tuple[float, int]] = {}
        self._n_start = max(len(self._known), 1)
        self._n_threads = sum(int(worker["nthreads"]) for worker in self._workers().values())
        self._seats = {} if device == "cpu" else self._find_seats(device)
        self.device = "gpu" if self._seats else "cpu"
        self._homes: WeakKeyDictionary[Future[Any], str] = WeakKeyDictionary()

    def _find_seats(self, device: DeviceName) -> dict[str, Seat]:
        """Return each worker's seat by name, or none where "auto" finds a worker without a GPU."""
        with self._watching("looking for GPUs"):
            sights, workers = self.client.run(_sight), self._workers()
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

    def _workers(self) -> dict[str, Any]:
        """Return what the scheduler tells of each worker, by address; nothing where it is gone."""
        # The client would ask for half a minute
        found: Any = self.client.scheduler_info(n_workers=-1) if self._reached() else {}
        return dict(found.get("workers", {}))

    def _heard(self) -> dict[str, float]:
        """Return when each worker was heard last, by the scheduler's clock."""
        return {address: float(worker["last_seen"]) for address, worker in self._workers().items()}

    @property
    def n_workers(self) -> int:
        """Number of workers at the start."""
        return self._n_start

    @property
    def n_slots(self) -> int:
        """Number of tasks that ran at a time at the start: one a thread of the workers, or one a GPU."""
        return self._n_start if self.device == "gpu" else max(self._n_threads, 1)

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        """Return ``function`` of the items as values, brought here in order."""
        columns = [list(items) for items in iterables]
        name = _name(function)
        found: list[Any] = self._again(columns, lambda: self._bring(self._submit(function, columns, home=True), name))
        return found

    def sum(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> Any:
        """Return the sum of ``function`` of the items; workers add in pairs, and one array comes here."""
        columns = [list(items) for items in iterables]

        def add(left: list[Any], right: list[Any]) -> list[Any]:
            return self._submit(_plus, [left, right], home=True, stay=True)

        def total() -> Any:
            parts = self._submit(function, columns, home=True, stay=True)
            return self._bring([add_in_pairs(parts, add)], _name(function))[0]

        return self._again(columns, total)

    def _again(self, columns: list[list[Any]], work: Callable[[], Any]) -> Any:
        """Return ``work()``, after losses done anew if it is made of values only."""
        while True:
            try:
                return work()
            except WorkersLostError as fault:
                if any(isinstance(item, Future) for items in columns for item in items):
                    raise
                self.recover(fault)

    def recover(self, fault: WorkersLostError) -> None:
        """Wait for what nannies start anew, and go on with the workers that are there then.

        Raises ``fault`` if there are none, or if workers were lost again and again with no result between.
        """
        if not self._left:
            raise fault
        self._left -= 1
        self._await_scheduler()
        self.told(f"{str(fault).partition(':')[0]}: what they held is brought back, and the work goes on")
        silent = [address for address, (_, count) in self._silences.items() if count >= SILENT_LOOKS]
        with self._watching("recovering"):
            if silent:
                self.client.restart_workers(silent, timeout=RETURN_SECONDS, raise_for_error=False)
            # The scheduler may hear of the loss later than this process
            self._wait_while(lambda heard: not silent and self._known <= set(heard), WATCH_SECONDS)
            self._wait_while(lambda heard: len(heard) < self._n_start, RETURN_SECONDS)
            heard = self._wait_while(lambda heard: self._reached() and not set(heard) - set(silent), ALONE_SECONDS)
        self._await_scheduler()
        if not set(heard) - set(silent):
            raise fault
        self._known, self._silences = set(heard) - set(silent), {}
        self._homes.clear()
        self.generation += 1
        if self.device == "gpu":
            self._seats = self._find_seats("gpu")

    def _reached(self) -> bool:
        return str(self.client.status) == "running"

    def _await_scheduler(self) -> None:
        self._wait_while(lambda _: not self._reached(), RETURN_SECONDS)
        if not self._reached():
            raise WorkersLostError("the Dask scheduler is gone: start one again, then the same command to continue")

    def _wait_while(self, condition: Callable[[dict[str, float]], bool], seconds: float) -> dict[str, float]:
        """Return :meth:`_heard`, at once or when the condition no longer holds, or the time is up."""
        end = time.monotonic() + seconds
        while condition(heard := self._heard()) and time.monotonic() < end:
            time.sleep(0.1)
        return heard

    def _bring(self, futures: list[Any], name: str) -> list[Any]:
        found: list[Any] = self._await(self.client.gather(futures, asynchronous=True), name)
        self._left = self._n_recoveries
        return found

    def _await(self, coming: Any, name: str) -> Any:
        """Return what the client's coroutine brings; its way may never end when a worker dies, so watch until then."""
        with self._watching(name):
            loop: Any = self.client.loop
            waited = asyncio.run_coroutine_threadsafe(coming, loop.asyncio_loop)
            try:
                while not wait([waited], WATCH_SECONDS).done:
                    self._check_workers(name)
                return waited.result()
            finally:
                waited.cancel()

    def _check_workers(self, name: str) -> None:
        """Raise WorkersLostError if a worker is gone, or was not heard of in many looks at it."""
        heard = self._heard()
        gone = self._known - set(heard)
        if gone:
            raise WorkersLostError(lost(f"{len(gone)} Dask worker(s) died", name))
        before = self._silences
        self._silences = {
            address: (heard[address], before[address][1] + 1 if before.get(address, (0.0,))[0] == heard[address] else 0)
            for address in self._known
        }
        silent = sum(count >= SILENT_LOOKS for _, count in self._silences.values())
        if silent:
            raise WorkersLostError(lost(f"{silent} Dask worker(s) hung", name))

    @contextmanager
    def _watching(self, name: str) -> Iterator[None]:
        """Turn what Dask raises when a worker is gone into :class:`WorkersLostError`."""
        try:
            yield
        except LOSSES as fault:
            raise WorkersLostError(lost(f"Dask workers ({fault}) died", name)) from None

    def keep(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        """Return handles of the results, which stay on the workers that computed them."""
        return self._submit(function, [list(items) for items in iterables], home=False, stay=True)

    def _submit(
        self, function: Callable[..., Any], columns: list[list[Any]], home: bool, stay: bool = False
    ) -> list[Any]:
        """Submit a task for each row of ``columns`` to the worker that keeps its first kept item, if any does.

        Else it goes to any worker, and what will ``stay`` to the i-th. ``home`` : results live on the host.
        """
        columns = [self._sent(items, _name(function)) for items in columns]
        task: Any = function
        if self.device == "gpu":
            task = _Seated(function=function, seats=self._seats, home=home)
        key, workers, futures = f"{_name(function)}-{uuid.uuid4()}", sorted(self._known), []
        with self._watching("submitting"):
            for i, items in enumerate(zip(*columns)):
                kept = [self._homes[item] for item in items if isinstance(item, Future) and item in self._homes]
                where = kept[0] if kept else workers[i % len(workers)] if stay else None
                future = self.client.submit(task, *items, key=f"{key}-{i}", workers=where, pure=False)
                if stay and where is not None:
                    self._homes[future] = where
                futures.append(future)
        return futures

    def _sent(self, items: list[Any], name: str) -> list[Any]:
        """Send large arrays ahead of the tasks that need them: task descriptions stay small."""
        large = [i for i, item in enumerate(items) if isinstance(item, np.ndarray) and item.nbytes > LARGE_BYTES]
        if large:
            items = items.copy()
            for i, handle in zip(large, self._send([items[i] for i in large], name)):
                items[i] = handle
        return items

    def share(self, value: Any) -> Any:
        """Send a value to one worker, from which the others take it, and return its handle.

        Dask's own broadcast tries for ever to reach a worker that dies meanwhile.
        """
        self._check_workers("sending data")
        return self._send([value], "sending data")[0]

    def _send(self, values: list[Any], name: str) -> list[Any]:
        try:
            coming = self.client.scatter(values, workers=sorted(self._known), hash=False, asynchronous=True)
            found: list[Any] = self._await(coming, name)
            return found
        except (KeyError, OSError, RuntimeError):
            # The scheduler's own words when a worker dies with what others should have had from it
            self._check_workers(name)
            raise


def _plus(left: Any, right: Any) -> Any:
    return left + right


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", "task")).strip("_")


@contextmanager
def cluster(
    n_workers: int, scheduler: str = "", device: DeviceName = "cpu", unencrypted: bool = False
) -> Iterator[DaskExecutor]:
    """Give an executor on a running scheduler, or on ``n_workers`` local processes of one thread each.

    ``scheduler`` is an address, or a scheduler file (``.json``) as ``dask-mpi --scheduler-file`` writes it. ``device``:
    where the workers' large arrays live, see :class:`DaskExecutor`. A scheduler on another host must speak TLS, with
    the credentials of Dask's configuration, unless ``unencrypted`` is allowed: a worker runs whatever it is sent.

    Local workers listen on the loopback address only, and their traffic is encrypted.

    Raises
    ------
    ConfigError : the scheduler's traffic would not be encrypted.
    ParallelError : the scheduler at the given address does not answer.
    DeviceError : GPUs are asked for, and a worker can use none.
    """
    if scheduler:
        if not unencrypted:
            check_encrypted(scheduler)
        try:
            where = {"scheduler_file": scheduler} if scheduler.endswith(".json") else {"address": scheduler}
            client = Client(**where, timeout="30s")
        except (OSError, TimeoutError, ValueError, TypeError) as fault:
            raise ParallelError(
                f"no Dask scheduler answers at {scheduler} ({fault}); check parallel.scheduler{about_tls(scheduler)}"
            ) from None
        with client:
            yield DaskExecutor(client, device, RECOVERIES)
        return
    settings = {
        "distributed.worker.daemon": True,
        "distributed.comm.timeouts.connect": "60s",
        "logging.distributed": "critical",  # a worker's tracebacks of connections that end; its faults are raised here
    }
    with dask.config.set(settings), worker_processes():
        local = LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # no dashboard, and no fixed port for its server
            security=True,
            silence_logs=logging.CRITICAL,
        )
    with local, Client(local) as client:
        yield DaskExecutor(client, device, RECOVERIES)
