"""MPI: the communicator of real ranks, and how a job with a dead rank ends.

The only home of mpi4py, which is imported on first use: a process that no launcher started never initialises MPI.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, cast

import numpy as np

from hpcrec.backend.array import Array, array_module, to_host
from hpcrec.errors import HpcrecError, ParallelError, StoppedError, no_memory
from hpcrec.parallel.communicator import Communicator, SerialCommunicator
from hpcrec.parallel.routes import Nccl, Route, settled

logger = logging.getLogger(__name__)

_RANK_COUNTS: Final = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_RANKS: Final = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
_CUDA: Final = 0  # MPIX_GPU_SUPPORT_CUDA
_SWAP_TAG: Final = 1001  # one beyond the tags of messages, see Communicator
_POLL_S: Final = 0.01
_LOOK_S: Final = 0.0002
_ASK: Final = """
import json, sys, mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
sys.stdout.write(json.dumps([MPI.Get_library_version(), MPI.Get_version()]))
"""
_DRAIN_S: Final = 0.7  # the launcher forwards what ranks wrote only until it hears of the abort
_ABORT_S: Final = 5.0
_PATIENCE_S: Final = 1.5  # if all ranks fail alike, rank 0 alone gets to say it; longer than _DRAIN_S


def launched_ranks(environment: Mapping[str, str]) -> int | None:
    """Return how many ranks the launcher says it started, None if no launcher did, 0 if it does not say.

    Reads the first that is set of PMI_SIZE (MPICH, Intel, Cray, Slurm's pmi2), OMPI_COMM_WORLD_SIZE (Open MPI) and
    SLURM_STEP_NUM_TASKS (srun; needs SLURM_PROCID beside it); PMIX_RANK or PMI_RANK alone tell of a launcher only.
    """
    for key in _RANK_COUNTS:
        if key in environment and (not key.startswith("SLURM") or "SLURM_PROCID" in environment):
            return int(environment[key])
    return 0 if {"PMIX_RANK", "PMI_RANK"} & set(environment) else None


def starts_first(environment: Mapping[str, str]) -> bool:
    """Whether this process is rank 0 by its launcher's word, or has none: what concerns all may be told here, once."""
    return next((environment[key] for key in _RANKS if key in environment), "0") == "0"


def _load() -> Any:
    """Import mpi4py.MPI and initialise MPI with full thread support."""
    import mpi4py

    if "mpi4py.MPI" not in sys.modules:
        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    from mpi4py import MPI

    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    return MPI


def world() -> Communicator:
    """Return all ranks of this job: MPI's if a launcher started several, else one rank without MPI.

    Raises :class:`ParallelError` if the launcher's count of ranks is not MPI's: then launcher and library belong to
    different MPIs and every rank would do the whole work alone.
    """
    expected = launched_ranks(os.environ)
    if expected is None or expected == 1:
        return SerialCommunicator()
    try:
        mpi = _load()
    except (ImportError, RuntimeError) as error:
        raise ParallelError(
            f"a launcher started {expected or 'several'} ranks, but MPI cannot be loaded: {error}"
        ) from error
    size = mpi.COMM_WORLD.Get_size()
    if expected not in (0, size):
        raise ParallelError(
            f"the launcher started {expected} ranks but the MPI library sees {size}: use the mpiexec of the library "
            f"({mpi.Get_library_version().splitlines()[0].strip()}), or srun with its --mpi type (srun --mpi=list)"
        )
    return MpiCommunicator(mpi.COMM_WORLD.Dup())


class MpiCommunicator:
    """A communicator over mpi4py. Arrays travel as buffers in blocks of at most ``block_bytes``, objects as pickles.

    ``route`` : of arrays on a GPU: "host" copies them there and back, "mpi" gives them to an MPI that knows of GPUs,
        "nccl" adds them by NCCL, and copies what NCCL is not asked for; the same on all ranks
    """

    block_bytes = 2**30  # counts of older MPIs are 32-bit: stay well below 2^31 bytes a message

    def __init__(self, comm: Any, route: Route = "host", *, asleep: bool = False) -> None:
        from mpi4py.util import pkl5

        self._mpi = _load()
        self._comm = self.handle = comm
        self._objects = pkl5.Intracomm(comm)  # pickles with large buffers out of band, in blocks
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self.concurrent: bool = self._mpi.Query_thread() == self._mpi.THREAD_MULTIPLE
        self.route: Route = route
        self._asleep = asleep
        self._nccl = Nccl(self) if route == "nccl" else None

    def routed(self, route: Route) -> MpiCommunicator:
        """Return the same group with another route of arrays on GPUs; its parts take it too; collective."""
        return MpiCommunicator(self._comm.Dup(), route)

    def _blocks(self, a: Array) -> Iterator[Array]:
        """Yield views of the contiguous array ``a``, each at most ``block_bytes`` long."""
        flat = a.reshape(-1)
        step = max(self.block_bytes // a.itemsize, 1)
        for start in range(0, len(flat), step):
            yield flat[start : start + step]

    def _reduce(self, a: Array, operation: Any) -> Array:
        xp = array_module(a)
        direct = xp is not np and self.route == "mpi"
        result = xp.ascontiguousarray(a).reshape(-1).copy() if direct else np.array(to_host(a), order="C", ndmin=1)
        settled(result)
        for block in self._blocks(result):
            if self._asleep:
                self._wait([self._comm.Iallreduce(self._mpi.IN_PLACE, block, op=operation)])
            else:
                self._comm.Allreduce(self._mpi.IN_PLACE, block, op=operation)
        return cast(Array, xp.asarray(result.reshape(a.shape)))

    def sum(self, a: Array) -> Array:
        """Return the sum of numbers ``a`` over all ranks, the same on each."""
        if a.dtype.kind not in "iufc":
            raise TypeError(f"cannot add arrays of type {a.dtype} over ranks")
        if self._nccl is not None and self._nccl.takes(a):
            return self._nccl.sum(a)
        return self._reduce(a, self._mpi.SUM)

    def max(self, a: Array) -> Array:
        """Return the element-wise maximum of real ``a`` over all ranks; not-a-number wins, which MPI leaves open."""
        if a.dtype.kind not in "iuf":
            raise TypeError(f"cannot take the maximum of arrays of type {a.dtype} over ranks")
        if a.dtype.kind != "f":
            return self._reduce(a, self._mpi.MAX)
        xp = array_module(a)
        wrong = xp.isnan(a)
        both = self._reduce(xp.stack([xp.where(wrong, -xp.inf, a), wrong.astype(a.dtype)]), self._mpi.MAX)
        return cast(Array, xp.where(both[1] > 0, xp.asarray(xp.nan, a.dtype), both[0]))

    def broadcast(self, obj: Any, root: int = 0) -> Any:
        """Return the root's (picklable) object on every rank."""
        return self._objects.bcast(obj, root)

    def gather(self, obj: Any, root: int = 0) -> list[Any] | None:
        """Return the list of all ranks' objects on the root, None elsewhere."""
        gathered: list[Any] | None = self._objects.gather(obj, root)
        return gathered

    def swap(self, outgoing: dict[int, Array], incoming: dict[int, Array]) -> None:
        """Exchange arrays with neighbours by non-blocking messages."""
        sent, received = outgoing, incoming
        if self.route != "mpi":
            sent = {rank: to_host(a) for rank, a in outgoing.items()}
            received = {r: a if array_module(a) is np else np.empty(a.shape, a.dtype) for r, a in incoming.items()}
        settled(*sent.values(), *received.values())
        requests = [
            self._comm.Irecv(block, source, _SWAP_TAG)
            for source, buffer in sorted(received.items())
            for block in self._blocks(buffer)
        ]
        requests += [
            self._comm.Isend(block, dest, _SWAP_TAG)
            for dest, array in sorted(sent.items())
            for block in self._blocks(array)
        ]
        self._wait(requests)
        for rank, buffer in incoming.items():
            if received[rank] is not buffer:
                buffer.set(received[rank])  # type: ignore[attr-defined]

    def _wait(self, requests: list[Any]) -> None:
        """Wait for all requests, asleep between looks if other threads are to have the core."""
        if not self._asleep:
            self._mpi.Request.Waitall(requests)
        while self._asleep and not self._mpi.Request.Testall(requests):
            time.sleep(_LOOK_S)

    def send(self, obj: Any, dest: int, tag: int = 0) -> None:
        """Send a (picklable) object to one rank."""
        self._objects.send(obj, dest, tag)

    def receive(self, source: int | None = None, tag: int = 0) -> Any:
        """Wait for a message with this tag from ``source`` (None: from any rank) and return it."""
        message = self._objects.mprobe(self._source(source), tag)
        return message.recv()

    def poll(self, tag: int = 0, source: int | None = None) -> bool:
        """Whether a fitting message waits to be received."""
        return bool(self._comm.Iprobe(self._source(source), tag))

    def _source(self, source: int | None) -> int:
        return int(self._mpi.ANY_SOURCE) if source is None else source

    def barrier(self) -> None:
        """Wait until every rank has come here (a waiting rank burns its core)."""
        self._comm.Barrier()

    def idle_barrier(self) -> None:
        """Wait until every rank has come here, asleep but for a look every 10 ms."""
        request = self._comm.Ibarrier()
        while not request.Test():
            time.sleep(_POLL_S)

    def split(self, colour: int) -> MpiCommunicator:
        """Return the sub-group of the ranks that gave the same colour, in rank order."""
        return MpiCommunicator(self._comm.Split(colour, self.rank), self.route)

    def duplicate(self, *, asleep: bool = False) -> MpiCommunicator:
        """Return the same group with a message space of its own; collective."""
        return MpiCommunicator(self._comm.Dup(), self.route, asleep=asleep)


def in_use() -> bool:
    """Whether MPI has been initialised in this process."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi is not None and bool(mpi.Is_initialized())


def knows_gpus() -> bool:
    """Whether the MPI in use takes arrays on NVIDIA GPUs, by its own word; False before MPI is in use.

    Asks MPIX_GPU_query_support (MPICH 4 and its kin) and MPIX_Query_cuda_support (Open MPI, older MPICH).
    """
    if not in_use():
        return False
    library = ctypes.CDLL(sys.modules["mpi4py.MPI"].__file__)
    support = ctypes.c_int(0)
    if hasattr(library, "MPIX_GPU_query_support"):
        failed = library.MPIX_GPU_query_support(_CUDA, ctypes.byref(support))
        return not failed and bool(support.value)
    return hasattr(library, "MPIX_Query_cuda_support") and bool(library.MPIX_Query_cuda_support())


def abort(code: int) -> None:
    """End all ranks of the job at once with exit code ``code`` (1 … 255); without MPI end this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(code)
    os._exit(code)


def end_at_once(code: int) -> None:
    """Do what :func:`abort` does from any thread, whatever the main one is in; never returns.

    An MPI that does not let two threads in at a time gets a few seconds; then this process leaves, and its launcher
    ends the others.
    """
    last = threading.Timer(_ABORT_S, os._exit, (code,))
    last.daemon = True
    last.start()
    abort(code)


class guard:  # noqa: N801 - used like a function: ``with guard(): ...``
    """End the whole job when one rank fails, so that the others do not wait for it for ever.

    Under MPI with several ranks an exception that leaves the block is told on standard error (``rank r: message`` for
    the project's errors, else the traceback with the rank in front) and :func:`abort` ends all ranks with its exit
    code (1 for foreign exceptions, 130 for an interrupt, a non-zero ``SystemExit``'s own). On one rank it passes on,
    and so does :class:`StoppedError`, with which all ranks leave.
    """

    def __enter__(self) -> guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        mpi = sys.modules.get("mpi4py.MPI")
        if error is None or mpi is None or not mpi.Is_initialized() or mpi.COMM_WORLD.Get_size() == 1:
            return False
        if isinstance(error, StoppedError):
            return False
        error = no_memory(error) if isinstance(error, MemoryError) else error
        code = exit_code(error)
        if code:
            rank = mpi.COMM_WORLD.Get_rank()
            if rank:
                time.sleep(_PATIENCE_S)
            sys.stderr.write(describe(error, rank))
            sys.stderr.flush()
            time.sleep(_DRAIN_S)
            abort(code)
        return False


def exit_code(error: BaseException) -> int:
    """Return the exit code of a process that ends by ``error``."""
    if isinstance(error, HpcrecError):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code % 256 if isinstance(error.code, int) else int(error.code is not None)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def describe(error: BaseException, rank: int) -> str:
    """Return what is to be told of ``error``: one line for the project's errors and exits, else the traceback."""
    if isinstance(error, HpcrecError):
        return f"rank {rank}: {error}\n"
    if isinstance(error, SystemExit):
        return f"rank {rank}: left with {error.code}\n"
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "".join(f"rank {rank}: {line}\n" for line in lines)


@dataclass(frozen=True, kw_only=True, slots=True)
class LibraryInfo:
    """The MPI in use: ``binding`` (mpi4py, version), ``library``, the ``standard`` it follows, ``launched`` ranks."""

    binding: str
    library: str
    standard: str
    launched: int


def library_info() -> LibraryInfo:
    """Return which MPI would be used; raise :class:`ParallelError` if none can be loaded.

    Where MPI is not in use it is asked in a process of its own: a library that is loaded but not initialised would
    end this one as soon as some other package (ase does) looks at its ranks.
    """
    binding = f"mpi4py {importlib.metadata.version('mpi4py')}"
    loaded = sys.modules.get("mpi4py.MPI")
    if loaded is not None:
        library, version = loaded.Get_library_version(), loaded.Get_version()
    else:
        asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=60, check=False)
        if asked.returncode:
            reason = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ParallelError(f"no MPI library can be loaded: {reason}")
        library, version = json.loads(asked.stdout)
    return LibraryInfo(
        binding=binding,
        library=" ".join(library.split("\n")[0].replace("\0", "").split()),
        standard=".".join(map(str, version)),
        launched=launched_ranks(os.environ) or 1,
    )
