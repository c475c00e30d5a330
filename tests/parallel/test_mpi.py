"""Real ranks: the same checks as on threads, and jobs that end when a rank dies."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcrec.errors import ConfigError, DataError, ParallelError
from hpcrec.parallel import mpi
from hpcrec.parallel.communicator import SerialCommunicator

SCRIPT = Path(__file__).with_name("rank_script.py")
LAUNCHER = Path(sys.executable).with_name("mpiexec")
LAUNCH_KEYS = ("PMI_", "PMIX_", "OMPI_", "SLURM_")

launched = pytest.mark.skipif(not LAUNCHER.exists(), reason=f"no mpiexec beside {sys.executable}")


def environment(**more):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCH_KEYS)}
    return {**kept, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", **more}


def start(n_ranks, *arguments):
    """Run the script on ``n_ranks``; return what it left behind and the seconds it took."""
    command = [LAUNCHER, "-n", str(n_ranks), sys.executable, SCRIPT, *arguments]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
    return done, time.monotonic() - began


@launched
@pytest.mark.mpi
@pytest.mark.parametrize("n_ranks", [2, 3, 5])
def test_ranks_pass_the_checks_of_threads(n_ranks):
    done, _ = start(n_ranks, "checks")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["checked", str(n_ranks)]


@launched
@pytest.mark.mpi
def test_idle_ranks_burn_no_core():
    done, _ = start(3, "idle")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[1]) < 0.2  # a rank in MPI_Barrier would burn 1 s


@launched
@pytest.mark.mpi
@pytest.mark.parametrize(
    ("how", "code", "lines"),
    [
        ("user", DataError.exit_code, ["rank 2: scan.h5 is not there"]),
        ("bug", 1, ["rank 2: Traceback (most recent call last):", "rank 2: ZeroDivisionError: a bug"]),
        ("exit", 9, ["rank 2: left with 9"]),
        ("kill", 9, []),
        ("all", DataError.exit_code, ["rank 0: all see the same fault"]),
    ],
)
def test_dead_rank_ends_the_job(how, code, lines):
    done, seconds = start(3, "fail", how)
    assert done.returncode == code
    told = [line for line in done.stderr.splitlines() if line.startswith("rank ")]
    assert set(lines) <= set(told)
    assert how == "bug" or len(told) == len(lines), "one line a fault"
    assert seconds < 30


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"PMI_RANK": "0", "SLURM_PROCID": "3"}, True),
        ({"PMI_RANK": "2", "SLURM_PROCID": "0"}, False),
        ({"OMPI_COMM_WORLD_RANK": "1"}, False),
        ({"SLURM_PROCID": "0"}, True),
    ],
)
def test_one_rank_speaks_for_all(variables, first):
    assert mpi.starts_first(variables) is first


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({}, None),
        ({"PMI_SIZE": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 3),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, 2),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # the batch script itself: no srun, no ranks
        ({"PMIX_RANK": "0"}, 0),
    ],
)
def test_launcher_is_known_by_its_environment(variables, count):
    assert mpi.launched_ranks(variables) == count


def run_python(code, **more):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment(**more)
    )


def test_world_without_launcher_never_touches_mpi():
    code = (
        "import sys; from hpcrec.parallel.mpi import guard, world\n"
        "with guard(): print(type(world()).__name__, 'mpi4py' in sys.modules)"
    )
    assert run_python(code).stdout.split() == [SerialCommunicator.__name__, "False"]


def test_launcher_of_another_mpi_is_refused():
    done = run_python("from hpcrec.parallel.mpi import world; world()", PMI_SIZE="1", OMPI_COMM_WORLD_SIZE="4")
    assert done.returncode == 0, "PMI_SIZE goes first, and one rank needs no MPI"
    done = run_python("from hpcrec.parallel.mpi import world; world()", OMPI_COMM_WORLD_SIZE="4")
    assert done.stderr.splitlines()[-1].startswith(
        "hpcrec.errors.ParallelError: the launcher started 4 ranks but the MPI library sees 1"
    )


def test_library_info_leaves_a_process_without_mpi():
    """A library that is loaded but not initialised ends the process when other packages look at its ranks."""
    code = (
        "import sys; from hpcrec.parallel.mpi import library_info; info = library_info()\n"
        "print(info.binding, '|', info.launched, '|', 'mpi4py.MPI' in sys.modules, '|', info.library)"
    )
    binding, ranks, loaded, library = run_python(code).stdout.strip().split(" | ")
    assert binding.startswith("mpi4py ")
    assert (ranks, loaded) == ("1", "False")
    assert "MPI" in library


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (ValueError("x"), 1),
        (SystemExit(), 0),
        (SystemExit(5), 5),
        (SystemExit("text"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error, code):
    assert mpi.exit_code(error) == code


def test_guard_lets_errors_of_one_rank_pass():
    with pytest.raises(ParallelError, match="alone"), mpi.guard():
        raise ParallelError("alone")
