"""Real ranks, started under mpiexec: ``python -m benchmarks.scaling.ranks FOLDER`` does the cases of a file there.

:func:`launched` starts them; what every rank measured of every case comes back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks.scaling.counting import CountingCommunicator
from benchmarks.scaling.problem import Problem, Rank, Work, jittered, problem
from hpcrec.parallel import mpi
from hpcrec.parallel.communicator import Communicator

Case = dict[str, Any]
Figures = dict[str, Any]
ROOT: Final = Path(__file__).resolve().parents[2]
LAUNCHER: Final = Path(sys.executable).with_name("mpiexec")
_LAUNCH_KEYS: Final = ("PMI_", "PMIX_", "OMPI_", "SLURM_")
_PING_SIZES: Final = (8, 1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 22)


def launched(n_ranks: int, cases: Sequence[Case], folder: Path, timeout: float = 300.0) -> list[list[Figures]]:
    """Run cases one after the other on ``n_ranks`` ranks of one thread; return for each the figures of all ranks."""
    if not LAUNCHER.exists():
        raise SystemExit(f"no mpiexec beside {sys.executable}: install an MPI (the mpich wheel) there")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(list(cases)))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_LAUNCH_KEYS)}
    environment |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    words = [LAUNCHER, "-n", n_ranks, sys.executable, "-m", "benchmarks.scaling.ranks", folder]
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, cwd=ROOT, timeout=timeout, env=environment
    )
    if done.returncode:
        raise SystemExit(f"{n_ranks} ranks ended with {done.returncode}: {done.stderr[-2000:]}")
    found: list[list[Figures]] = json.loads((folder / "found.json").read_text())
    return found


def scan_problem(case: Case) -> Problem:
    """Return the problem of a case: "scan" (rows, columns), "step" Å, patterns of "n" pixels."""
    return problem(case["n"], jittered(tuple(case["scan"]), case["step"]))


def _work(case: Case) -> Work:
    return Work(
        exchange=case["exchange"],
        engine=case.get("engine", "gradient"),
        batch=case["batch"],
        margin=case.get("margin", 8),
        windowed=case.get("windowed", False),
        in_flight=case.get("in_flight", False),
    )


def sweeps(case: Case, world: Communicator) -> Figures:
    """Time and count the sweeps of a case after the first, which compiles: the least of "sweeps" of them."""
    counted = CountingCommunicator(world, delay=case.get("delay", 0.0))
    given = scan_problem(case)
    rank = Rank(given, _work(case), counted)
    rank.prepare()
    rank.sweep()
    found: dict[str, list[float]] = {name: [] for name in ("seconds", "compute", "waited")}
    for _ in range(case["sweeps"]):
        world.barrier()
        counted.ledger.clear()
        began, cpu = time.perf_counter(), time.process_time()
        rank.sweep()
        found["seconds"].append(time.perf_counter() - began)
        found["compute"].append(time.process_time() - cpu - counted.ledger.total("cpu"))
        found["waited"].append(counted.ledger.total("seconds"))
    ledger, held, core = counted.ledger, rank.exchange.held, rank.exchange.core
    own = rank.state.own_positions
    return {
        # What neighbours on the machine take is noise on top
        **{name: float(np.min(values)) for name, values in found.items()},
        "patterns": len(own),
        # Of each update of a sweep
        "shares": [len(share) for _, share in rank.batches(rank.state.iteration)],
        "updates": -(-len(given.positions) // case["batch"]),
        "sent": ledger.total("sent"),
        "received": ledger.total("received"),
        "messages": ledger.total("messages"),
        "calls": ledger.total("calls"),
        **{f"sent by {kind}": ledger.counts[kind].sent for kind in ("sum", "max", "swap")},
        "core": list(core.shape),
        "held": list(held.shape),
        "grid": list(given.grid.shape),
    }


def memory(case: Case, world: Communicator) -> Figures:
    """Return the bytes that two sweeps took at most, beyond what the process had after a small job of the same kind."""
    small = problem(case["n"], jittered((4, 4), 4.0))
    warm = Rank(small, _work(case), world)
    warm.prepare()
    warm.sweep()
    del warm
    # Of the whole life of the process otherwise
    Path("/proc/self/clear_refs").write_text("5")
    base = psutil.Process().memory_info().rss
    given = scan_problem(case)
    rank = Rank(given, _work(case), world)
    rank.prepare()
    for _ in range(2):
        rank.sweep()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return {
        "peak": peak - base,
        "base": base,
        "held": list(rank.exchange.held.shape),
        "grid": list(given.grid.shape),
        "patterns": rank.patterns.nbytes,
    }


def ping(case: Case, world: Communicator) -> Figures:
    """Time sums and neighbours' messages of several sizes."""
    found: Figures = {}
    for n_bytes in _PING_SIZES:
        a = np.ones(n_bytes // 8)
        buffer, times = np.empty_like(a), {"sum": [], "swap": []}
        for _ in range(case["repeats"]):
            world.barrier()
            began = time.perf_counter()
            world.sum(a)
            times["sum"].append(time.perf_counter() - began)
            world.barrier()
            began = time.perf_counter()
            other = world.rank ^ 1
            world.swap({other: a}, {other: buffer})
            times["swap"].append(time.perf_counter() - began)
        found[str(n_bytes)] = {kind: float(np.min(values)) for kind, values in times.items()}
    return found


TASKS: Final = {"sweeps": sweeps, "memory": memory, "ping": ping}


def main() -> None:
    folder, world = Path(sys.argv[1]), mpi.world()
    with mpi.guard():
        found = []
        for case in json.loads((folder / "cases.json").read_text()):
            found.append(world.gather(TASKS[case["task"]](case, world)))
        if world.rank == 0:
            (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
