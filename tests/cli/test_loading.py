"""What the command line loads before it knows its command: the rest of hpcrec, and its libraries, wait until then."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


def test_too_little_address_space_is_told_before_libraries_fail() -> None:
    call = f'ulimit -v 500000; exec "{sys.executable}" -m hpcrec.cli.main info'
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "0.48 GiB of address space (ulimit -v), and hpcrec needs 0.75 GiB" in done.stderr
    assert "Traceback" not in done.stderr
