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
from hpcrec.backend.device import describe
from hpcrec.backend.threads import THREAD_VARIABLES
from hpcrec.errors import ParallelError
from hpcrec.parallel import mpi
from hpcrec.run.plan import available_cores

LIBRARIES = ("numpy", "scipy", "pyfftw", "numba", "h5py", "mpi4py", "dask", "distributed", "cupy-cuda13x")


def print_info() -> None:
    """Print what hpcrec sees of this machine; under a launcher rank 0 prints for all."""
    world = mpi.world()
    hosts = world.gather(platform.node())
    if hosts is None:
        return
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
        ("threads a library", ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in THREAD_VARIABLES)),
        ("Slurm job", os.environ.get("SLURM_JOB_ID", "none")),
    ]
    for name, value in rows + [(name, _version(name)) for name in LIBRARIES]:
        table.add_row(name, escape(value))
    Console().print(table)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
