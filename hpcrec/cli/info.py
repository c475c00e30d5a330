"""``hpcrec info``."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import hpcrec
from hpcrec.backend import nccl
from hpcrec.backend.device import describe, visible
from hpcrec.backend.threads import THREAD_VARIABLES
from hpcrec.errors import ParallelError
from hpcrec.io import one_file
from hpcrec.parallel import mpi
from hpcrec.run.plan import available_cores

LIBRARIES = ("numpy", "scipy", "pyfftw", "numba", "h5py", "mpi4py", "dask", "distributed")
MISSING = "not installed"
CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")


def print_info() -> None:
    """Print what hpcrec sees of this machine; under a launcher rank 0 prints for all."""
    world = mpi.world()
    seen = world.gather((platform.node(), visible()))
    if seen is None:
        return
    hosts = [host for host, _ in seen]
    try:
        library = mpi.library_info()
        mpi_text = f"{library.library} (MPI {library.standard}, {library.binding})"
    except ParallelError as fault:
        mpi_text = str(fault)
    table = Table(title=f"hpcrec {hpcrec.__version__}", show_header=False, title_justify="left")
    rows = [
        ("python", platform.python_version()),
        ("cores", f"{available_cores()} of {psutil.cpu_count()}"),
        ("memory", f"{psutil.virtual_memory().total / 2**30:.1f} GiB"),
        ("GPU", describe()),
        ("MPI", mpi_text),
        ("ranks", f"{world.size} on {len(set(hosts))} host(s)"),
        ("ranks on GPUs", _on_gpus(seen)),
        ("sums of GPUs", _sums_of_gpus()),
        ("HDF5 with MPI", "yes" if one_file.available() else "no: large results are written in parts"),
        ("threads a library", ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in THREAD_VARIABLES)),
        ("Slurm job", os.environ.get("SLURM_JOB_ID", "none")),
    ]
    rows += [(name, _version(name)) for name in LIBRARIES]
    rows.append(("cupy", next((f"{_version(n)} ({n})" for n in CUPY if _version(n) != MISSING), MISSING)))
    for name, value in rows:
        table.add_row(name, escape(value))
    Console().print(table)


def _on_gpus(seen: list[tuple[str, tuple[str, ...]]]) -> str:
    """Say which GPU each rank would take, by the host's numbers; ``seen`` host and GPUs of each rank."""
    if not any(gpus for _, gpus in seen):
        return "none"
    words = []
    for rank, here in enumerate(seen):
        gpus = here[1][1:]
        words.append(f"{rank}: {gpus[seen[:rank].count(here) % len(gpus)]}" if gpus else f"{rank}: none")
    return ", ".join(words)


def _sums_of_gpus() -> str:
    ways = ["host memory"]
    if mpi.knows_gpus():
        ways.append("MPI")
    if nccl.available():
        ways.append("NCCL")
    return f"by {', '.join(ways)}" + ("" if mpi.in_use() else " (start it under mpiexec to ask MPI)")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return MISSING
