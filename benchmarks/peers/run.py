"""hpcrec beside its peers, same cores and data: ``python -m benchmarks.peers.run --python ptylab=ENV/bin/python``.

Each program runs in a process (and, the peers, in an environment) of its own, in interleaved rounds, on two cores. A
peer without a ``--python`` is skipped. Columns: patterns/s of the median sweep after the first, median of the rounds;
ratio to the fastest peer of the set; seconds of the first sweep, which still plans and compiles though a first, untimed
run has filled the caches on disk; error of the phase (rms / standard deviation of the true one, ``agreement.py``) after
the set's seconds; seconds to an error of 0.25. These two count the first sweep as long as the others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.limits import machine
from benchmarks.peers.agreement import phase_error
from benchmarks.peers.programs import PROGRAMS, Program
from benchmarks.peers.sets import SAMPLING, SETS, write
from benchmarks.peers.task import MARGIN
from benchmarks.table import print_table, save_results

HERE = Path(__file__).resolve().parent
THREADS, TARGET, MIN_SWEEPS, TIMEOUT = 2, 0.25, 3, 400


@dataclass(frozen=True)
class Outcome:
    """One run: patterns per second, seconds of the first sweep, error in the end, seconds to the target or None."""

    rate: float
    first: float
    error: float
    seconds: float | None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH", help="a peer's interpreter")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--only", nargs="+", default=[], help="peers, or single programs, by their names")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the seconds of each set")
    parser.add_argument("--ranks", type=int, default=1, help="hpcrec on this many ranks, with 2 / ranks threads each")
    return parser.parse_args()


def interpreters(given: list[str]) -> dict[str, str]:
    """Return the Python of each program."""
    found = {"hpcrec": sys.executable}
    for entry in given:
        peer, _, path = entry.partition("=")
        if Path(path).is_file():
            found[peer] = path
    return found


def command(
    program: Program, python: str, data: Path, out: Path, seconds: float, ranks: int, sweeps: int = MIN_SWEEPS
) -> list[str]:
    words = [python, str(HERE / f"adapter_{program.peer}.py"), "--data", str(data), "--out", str(out)]
    words += ["--seconds", str(seconds), "--sweeps", str(sweeps), "--threads", str(THREADS)]
    words += ["--algorithm", program.algorithm, "--batch", str(program.batch), "--step", str(program.step)]
    if program.peer == "hpcrec" and ranks > 1:
        words = [str(Path(python).parent / "mpiexec"), "-n", str(ranks), *words]
    return words


def launch(words: list[str], out: Path, caches: Path) -> tuple[np.ndarray, np.ndarray] | str:
    """Run an adapter; return times (sweep,) and objects (sweep, y, x), or why there are none."""
    env = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(THREADS))}
    # Threads that spin at barriers lose up to fifteen times where a neighbour has one of the cores
    env |= {"OMP_WAIT_POLICY": "PASSIVE", "JAX_COMPILATION_CACHE_DIR": str(caches / "jax")}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    out.unlink(missing_ok=True)
    try:
        run = subprocess.run(words, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"did not end within {TIMEOUT} s"
    if run.returncode or not out.exists():
        return (run.stderr.strip().splitlines() or ["no word"])[-1][:160]
    with np.load(out) as file:
        return file["times"], file["objects"]


def judge(times: np.ndarray, objects: np.ndarray, data: Path, seconds: float) -> Outcome:
    """Return the speed of a run and how near it came to the truth."""
    with np.load(data) as truth:
        low = (truth["positions"] / SAMPLING).min(axis=0) + truth["true_origin"]
        corner = np.rint(low).astype(int) - MARGIN
        phase, n_positions = truth["true_phase"], len(truth["positions"])
    sweep, first = float(np.median(np.diff(times))), float(times[0])
    times = times - first + sweep
    within = max(int(np.searchsorted(times, seconds, side="right")) - 1, 0)
    error = phase_error(objects[within], phase, corner)
    reached = next((float(t) for t, o in zip(times, objects) if phase_error(o, phase, corner) <= TARGET), None)
    return Outcome(n_positions / sweep, first, error, reached)


def row(name: str, program: Program, runs: list[Outcome], best: float, scale: float) -> dict[str, object]:
    rates = [run.rate for run in runs]
    reached = [run.seconds for run in runs]
    return {
        "set": name,
        "program": str(program),
        "patterns/s": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "ratio": statistics.median(rates) / best if best else None,
        "first sweep s": statistics.median(run.first for run in runs),
        f"error at {SETS[name].seconds * scale:g} s": statistics.median(run.error for run in runs),
        f"s to {TARGET}": None if None in reached else statistics.median(reached),
    }


def compare(name: str, programs: list[Program], asked: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Return the rows of one data set."""
    pythons, data, out = interpreters(asked.python), folder / f"{name}.npz", folder / "out.npz"
    seconds = SETS[name].seconds * asked.scale
    write(name, data)
    runs: dict[Program, list[Outcome]] = {}
    for i_round in range(asked.rounds + 1):
        for program in [p for p in programs if name in p.sets and (i_round == 0 or p in runs)]:
            # Round 0 compiles and fills caches
            asks = (seconds, asked.ranks, MIN_SWEEPS) if i_round else (0.0, asked.ranks, 1)
            words = command(program, pythons[program.peer], data, out, *asks)
            made = launch(words, out, folder)
            if isinstance(made, str):
                print(f"{name}: {program}: failed: {made}", flush=True)
                runs.pop(program, None)
            elif i_round == 0:
                runs[program] = []
            else:
                runs[program].append(judge(*made, data, seconds))
                print(f"{name}: round {i_round}: {program}: {runs[program][-1]}", flush=True)
    rates = [statistics.median(r.rate for r in made) for p, made in runs.items() if p.peer != "hpcrec"]
    rows = [row(name, program, made, max(rates, default=0.0), asked.scale) for program, made in runs.items()]
    return sorted(rows, key=lambda r: -float(str(r["patterns/s"])))


def main() -> None:
    asked = arguments()
    pythons = interpreters(asked.python)
    here = machine(priority=True, cores=THREADS)
    unknown = set(asked.only) - {name for p in PROGRAMS for name in (p.peer, str(p))}
    if unknown:
        raise SystemExit(f"no program {', '.join(sorted(unknown))}; there are {', '.join(map(str, PROGRAMS))}")
    programs = [p for p in PROGRAMS if not asked.only or {p.peer, str(p)} & set(asked.only)]
    for peer in sorted({p.peer for p in programs} - set(pythons)):
        print(f"{peer}: skipped: no interpreter that has it (--python {peer}=PATH)")
    programs = [p for p in programs if p.peer in pythons]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.sets:
            of_set = compare(name, programs, asked, Path(folder))
            print_table(of_set)
            rows += of_set
    print(f"results: {save_results('peers', here, rows)}")


if __name__ == "__main__":
    main()
