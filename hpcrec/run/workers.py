"""Where the workers of the tomography stage come from: processes here, the ranks of the job, batch jobs, a scheduler.

Ranks other than 0 have nothing to do in that stage. With ``parallel.cluster = "mpi"`` each says that it is ready, then
runs a Dask worker whenever rank 0 calls, until it is dismissed. What they need to know travels by MPI alone, the key of
the scheduler's TLS among it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.security import Security
from distributed.utils import get_ip

from hpcrec.backend.device import free_unused
from hpcrec.backend.threads import THREAD_VARIABLES
from hpcrec.errors import ConfigError, ParallelError
from hpcrec.parallel.communicator import Communicator
from hpcrec.run import cluster
from hpcrec.run.cluster import RECOVERIES, DaskExecutor
from hpcrec.run.job import Job
from hpcrec.run.memory import GIB, memory_limit
from hpcrec.run.plan import available_cores, n_workers
from hpcrec.run.schedulers import NO_JOBQUEUE, quietly

logger = logging.getLogger(__name__)

BATCH_SYSTEMS: Final = {
    "htcondor": "HTCondorCluster",
    "lsf": "LSFCluster",
    "moab": "MoabCluster",
    "oar": "OARCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "slurm": "SLURMCluster",
}
"""The class of each module of dask_jobqueue."""

_TAG: Final = 900
_LOOK_S: Final = 0.05
_START_S: Final = 120.0
_END_S: Final = 10.0
_QUEUE_S: Final = 3600.0
_QUIET: Final = {
    "distributed.worker.daemon": True,
    "distributed.comm.timeouts.connect": "60s",
    "logging.distributed": "critical",
}


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """Where a rank is: its host, and the cores that it may use."""

    host: str
    cores: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Call:
    """What a rank needs to work for a scheduler.

    ``loopback`` : all ranks are on one host; ``n_host``, ``n_cores`` : ranks on this one, and those with the same cores
    """

    address: str
    security: Security
    loopback: bool
    n_host: int
    n_cores: int


@contextmanager
def stage_workers(job: Job, world: Communicator, folder: Path) -> Iterator[DaskExecutor]:
    """Give an executor on the workers that ``[parallel]`` asks for; ``folder`` : of the run, which all of them see.

    Raises
    ------
    ParallelError : no scheduler answers, or no worker comes.
    DeviceError : GPUs are asked for, and a worker can use none.
    """
    with quietly():
        chosen = job.parallel
        if chosen.cluster == "mpi":
            with _rank_workers(job, world) as executor:
                yield executor
        elif chosen.cluster == "jobqueue":
            with _batch_workers(job, folder) as executor:
                yield executor
        else:
            with cluster.cluster(
                n_workers(job, world.size), chosen.scheduler, chosen.device, chosen.unencrypted_scheduler
            ) as executor:
                yield executor


def described(job: Job, n_ranks: int) -> str:
    """Return in words where the workers come from."""
    chosen = job.parallel
    if chosen.scheduler:
        return f"Dask at {chosen.scheduler}"
    if chosen.cluster == "mpi":
        return f"a Dask worker in each of {n_ranks} rank(s)"
    if chosen.cluster == "jobqueue":
        return f"Dask workers in {chosen.batch_jobs} {chosen.batch_system} job(s)"
    return f"{n_workers(job, n_ranks)} Dask worker(s)"


def lend(job: Job, world: Communicator) -> None:
    """Work for rank 0's schedulers until it dismisses this rank; on rank 0: dismiss the others."""
    if not world.rank:
        _tell(world, None)
        return
    cores = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    while True:
        world.send(_Ready(host=platform.node(), cores=cores), 0, _TAG)
        while not world.poll(_TAG, 0):
            time.sleep(_LOOK_S)
        call = world.receive(0, _TAG)
        if call is None:
            return
        free_unused()
        try:
            with quietly(), dask.config.set(_QUIET):
                asyncio.run(_work(job, world, call))
        except (OSError, TimeoutError, RuntimeError, ValueError) as fault:
            raise ParallelError(
                f"rank {world.rank} on {platform.node()} has no Dask worker at {call.address} ({fault}): check that "
                "hosts reach one another, or set parallel.cluster = 'local'"
            ) from None


async def _work(job: Job, world: Communicator, call: _Call) -> None:
    """Run a worker, in a process of its own that is begun anew when it dies, until rank 0 sends a word."""
    nanny = Nanny(call.address, host="127.0.0.1" if call.loopback else None, **_nanny_options(job, world.rank, call))
    async with nanny:
        while not world.poll(_TAG, 0):
            await asyncio.sleep(_LOOK_S)
    world.receive(0, _TAG)


def _nanny_options(job: Job, rank: int, call: _Call) -> dict[str, Any]:
    """Return what a rank's worker may use: one task at a time, with the rank's threads and memory."""
    threads = job.parallel.threads
    if threads == "auto":
        threads = max(1, available_cores() // call.n_cores)
    return {
        "name": f"rank-{rank:04d}",
        "security": call.security,
        "protocol": "tls://",
        "nthreads": 1,
        "memory_limit": int(memory_limit(job, call.n_host) * GIB),
        "death_timeout": _START_S,
        "dashboard_address": "127.0.0.1:0",
        "env": dict.fromkeys(THREAD_VARIABLES, "1") | {"OMP_NUM_THREADS": str(threads)},
        "silence_logs": logging.CRITICAL,
    }


def _tell(world: Communicator, word: Any) -> None:
    for rank in range(1, world.size):
        if word is None:
            _ready(world, rank)
        world.send(word, rank, _TAG)


def _ready(world: Communicator, rank: int) -> _Ready:
    while not world.poll(_TAG, rank):
        time.sleep(_LOOK_S)
    found: _Ready = world.receive(rank, _TAG)
    return found


@contextmanager
def _rank_workers(job: Job, world: Communicator) -> Iterator[DaskExecutor]:
    """Run a scheduler and a worker on rank 0, and let every other rank run one."""
    cores = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    places = [_Ready(host=platform.node(), cores=cores), *(_ready(world, rank) for rank in range(1, world.size))]
    loopback = len({place.host for place in places}) == 1
    security = Security.temporary()
    options = {
        "protocol": "tls://",
        "host": "127.0.0.1" if loopback else get_ip(),
        "port": 0,
        "security": security,
        "dashboard_address": "127.0.0.1:0",
    }

    def call(rank: int, address: str) -> _Call:
        place = places[rank]
        return _Call(
            address=address,
            security=security,
            loopback=loopback,
            n_host=sum(other.host == place.host for other in places),
            n_cores=places.count(place),
        )

    with dask.config.set(_QUIET):
        running = SpecCluster(
            scheduler={"cls": Scheduler, "options": options}, security=security, silence_logs=logging.CRITICAL
        )
    with running:
        own = {"host": options["host"], **_nanny_options(job, 0, call(0, running.scheduler_address))}
        name = own.pop("name")
        running.worker_spec[name] = {"cls": Nanny, "options": own}
        running.sync(running._correct_state)
        for rank in range(1, world.size):
            world.send(call(rank, running.scheduler_address), rank, _TAG)
        try:
            with Client(running) as client:
                _wait_for(client, world.size, _START_S)
                yield DaskExecutor(client, job.parallel.device, RECOVERIES)
        finally:
            for rank in range(1, world.size):
                world.send("enough", rank, _TAG)
            end = time.monotonic() + _END_S
            while len(running.scheduler_info["workers"]) > 1 and time.monotonic() < end:
                time.sleep(_LOOK_S)


def _wait_for(client: Client, n: int, seconds: float) -> None:
    """Wait until ``n`` workers are there; go on with fewer when the time is up, but not with none."""
    try:
        client.wait_for_workers(n, timeout=seconds)
    except TimeoutError:
        found = len(client.scheduler_info(n_workers=-1)["workers"])
        if not found:
            raise ParallelError(
                f"no Dask worker came in {seconds:.0f} s; ask for fewer, or look at their logs"
            ) from None
        logger.warning("%d of %d Dask workers came in %.0f s; going on with these", found, n, seconds)


@contextmanager
def _batch_workers(job: Job, folder: Path) -> Iterator[DaskExecutor]:
    """Run a scheduler here and workers in batch jobs, which Dask's own configuration describes (``jobqueue.yaml``)."""
    name, n_jobs = job.parallel.batch_system, job.parallel.batch_jobs
    kind = _batch_class(name)
    configured = dask.config.get(f"jobqueue.{name}", {}) or {}
    scheduler = {"dashboard_address": "127.0.0.1:0", **(configured.get("scheduler-options") or {})}
    with tempfile.TemporaryDirectory(prefix=".dask-", dir=folder) as shared:
        try:
            running = kind(
                security=_security_in_files(Path(shared)),
                protocol="tls://",
                scheduler_options=scheduler,
                shared_temp_directory=shared,
                silence_logs=logging.CRITICAL,
            )
        except (ValueError, KeyError, OSError) as fault:
            reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
            raise ParallelError(
                f"Dask cannot make {name} jobs ({reason}): describe them in Dask's jobqueue.yaml (cores, memory, queue)"
            ) from None
        with running, Client(running) as client:
            running.scale(jobs=n_jobs)
            each = len(running.new_spec.get("group", [None]))
            _wait_for(client, n_jobs * each, _QUEUE_S)
            yield DaskExecutor(client, job.parallel.device, RECOVERIES)


def _security_in_files(folder: Path) -> Security:
    """Return new credentials; workers read theirs from files in ``folder``, which this user alone can read.

    Credentials in memory dask_jobqueue writes to such files too, but removes them when its own objects die: by then the
    folder is gone.
    """
    made: Security = Security.temporary()
    for name in ("tls_ca_file", "tls_worker_cert", "tls_worker_key"):
        path = folder / f"{name}.pem"
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(getattr(made, name))
        setattr(made, name, str(path))
    return made


def _batch_class(name: str) -> Any:
    try:
        module = import_module(f"dask_jobqueue.{name}")
    except ImportError:
        raise ConfigError(NO_JOBQUEUE) from None
    return getattr(module, BATCH_SYSTEMS[name])
