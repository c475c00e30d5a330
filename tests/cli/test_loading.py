"""What the command line loads before it knows its command: the rest of hpcrec, and its libraries, wait until then."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hpcrec.backend.threads import THREAD_VARIABLES

SLOW = {
    "scipy", "numba", "llvmlite", "pyfftw", "h5py", "skimage", "matplotlib", "dask", "distributed", "mrcfile",
    "tifffile", "psutil", "mpi4py.MPI", "hpcrec.run.config",
}  # fmt: skip
ASK = """
import sys
from hpcrec.cli.main import main
sys.argv = ["hpcrec", *sys.argv[1:]]
try:
    main()
finally:
    print("LOADED", *sys.modules)
"""


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["run", "--help"], ["calibrate", "data", "--help"]])
def test_help_loads_no_slow_library(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", ASK, *command], capture_output=True, text=True, check=True)
    told, _, loaded = done.stdout.rpartition("LOADED ")
    assert "Usage" in told or "hpcrec 0" in told
    assert "hpcrec.cli.main" in loaded.split()
    assert SLOW & set(loaded.split()) == set()


@pytest.mark.parametrize("kilobytes", [100_000, 500_000])
def test_too_little_address_space_is_told_before_libraries_fail(kilobytes: int) -> None:
    call = f'ulimit -v {kilobytes}; exec "{sys.executable}" -m hpcrec.cli.main info'
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    told = f"{kilobytes / 2**20:.2f} GiB of address space (ulimit -v), and hpcrec needs 0.75 GiB"
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_is_no_number_of_threads_is_told_before_libraries_complain() -> None:
    given = {
        **os.environ,
        "OMP_NUM_THREADS": "abc",
        "NUMBA_NUM_THREADS": "0",
        "MKL_NUM_THREADS": "",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "hpcrec.cli.main", "info"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=given)
    assert done.stderr.splitlines() == [
        f"warning: {name} is '{value}', not a number of threads from 1 to 9999; 1 is used instead"
        for name, value in (("OMP_NUM_THREADS", "abc"), ("NUMBA_NUM_THREADS", "0"))
    ]
    assert {word.strip(",") for word in done.stdout.split()} >= {f"{name}=1" for name in THREAD_VARIABLES}
