"""Which device each rank works on, and how arrays on GPUs pass between ranks."""

from __future__ import annotations

import platform

from hpcrec.backend import nccl
from hpcrec.backend.device import PROCESSOR, Device, DeviceName, use_device, visible
from hpcrec.errors import DeviceError, ParallelError
from hpcrec.parallel import mpi
from hpcrec.parallel.communicator import Communicator
from hpcrec.parallel.routes import Route
from hpcrec.run.job import Job


def device_name(job: Job) -> DeviceName:
    """Return the device that a job asks for: compiled loops, where it wants them, run on processors."""
    return "cpu" if job.ptychography.kernel == "compiled" else job.parallel.device


def rank_device(name: DeviceName, world: Communicator) -> Device:
    """Make this rank's device current and return it; collective.

    Ranks that see the same GPUs of a host get these in turn; several on one share its memory. A launcher may as well
    show each rank a GPU, or a part of one, of its own.

    Raises
    ------
    DeviceError : no GPU is there, but asked for; or there is one for some of the ranks only.
    """
    if name == "cpu":
        return PROCESSOR
    here = (platform.node(), visible())
    everywhere: list[tuple[str, tuple[str, ...]]] = world.broadcast(world.gather(here))
    without = [rank for rank, (_, seen) in enumerate(everywhere) if not seen]
    if 0 < len(without) < world.size:
        hosts = ", ".join(sorted({everywhere[rank][0] for rank in without}))
        raise DeviceError(
            f"{len(without)} of {world.size} ranks, on {hosts}, see no GPU and the others do: start ranks where GPUs "
            "are (hpcrec info tells what a rank sees), or set parallel.device = 'cpu'"
        )
    return use_device(name, everywhere[: world.rank].count(here), everywhere.count(here))


def routed(job: Job, device: Device, group: Communicator) -> Communicator:
    """Return a group whose arrays on GPUs travel as the job says; collective.

    Raises
    ------
    ParallelError, DeviceError : the job asks for a way that this MPI or CuPy does not have.
    """
    if device.kind == "cpu" or not isinstance(group, mpi.MpiCommunicator) or group.size == 1:
        return group
    return group.routed(message_route(job))


def message_route(job: Job) -> Route:
    """Return how arrays on GPUs travel: as the job says, or by MPI where it takes them."""
    chosen = job.parallel.gpu_messages
    if chosen == "mpi" and not mpi.knows_gpus():
        raise ParallelError(
            "parallel.gpu_messages: this MPI does not say that it takes arrays on GPUs; use one that does (with MPICH "
            "of a Cray: MPICH_GPU_SUPPORT_ENABLED=1), or 'host'"
        )
    if chosen == "nccl" and not nccl.available():
        raise DeviceError("parallel.gpu_messages: CuPy has no NCCL here; install nvidia-nccl-cu13, or use 'host'")
    if chosen != "auto":
        return chosen
    return "mpi" if mpi.knows_gpus() else "host"
