"""The command line started by ``mpiexec``, with two ranks unless told otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LAUNCHER = Path(sys.executable).with_name("mpiexec")
LAUNCH_KEYS = ("PMI_", "PMIX_", "OMPI_", "SLURM_")


def launch(*arguments: object, n_ranks: int = 2, timeout: float = 150) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments on all ranks; of the launcher that may run the tests, nothing is handed on."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCH_KEYS)}
    command = [str(LAUNCHER), "-n", str(n_ranks), sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env={**kept, "OMP_NUM_THREADS": "1"}, check=False
    )
