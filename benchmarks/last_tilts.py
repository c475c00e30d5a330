"""What do ranks do when the last tilts remain? ``python -m benchmarks.last_tilts simulate|measure|answers [...]``.

``simulate`` : the end of a run by four ways of scheduling, over the time that no rank without work would make possible;
    costs of tilts vary by up to 30 %, what is foreseen of them is wrong by up to 10 %, k cores are k^0.75 times as fast
``measure`` : tilts of a job on ranks of one thread, groups kept as they are and cores lent, in turn: seconds, and cores
    without work (those that are lent count as at work) from the first tilt's start to the last one's end
``answers`` : how long rank 1 waits for the next item while rank 0 computes

Ranks are ``python -m benchmarks.last_tilts rank JOB FOLDER ENGINE WAY TILTS``, or ``ask JOB FOLDER ENGINE``.
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.limits import machine
from benchmarks.table import report
from hpcrec.io.base import open_series
from hpcrec.parallel import mpi
from hpcrec.parallel.communicator import Communicator, SerialCommunicator
from hpcrec.parallel.queue import Master
from hpcrec.run.config import load_job
from hpcrec.run.runner import TiltRun
from hpcrec.run.start import common_grid
from hpcrec.run.tilts import reconstruct_tilts

SPEED, SPREAD, ERROR, SWEEPS, DRAWS = 0.75, 0.3, 0.1, 30, 200
CASES = ((3, 2), (12, 2), (5, 4), (36, 16), (36, 24), (36, 64))
Way = Callable[[Sequence[float], Sequence[float], int], float]


def rate(cores: int) -> float:
    return float(cores**SPEED)


def apart(foreseen: Sequence[float], costs: Sequence[float], n_ranks: int) -> float:
    """Ranks keep their cores to the end."""
    ends = [0.0] * n_ranks
    for cost in costs:
        heapq.heappush(ends, heapq.heappop(ends) + cost)
    return max(ends)


def at_once(foreseen: Sequence[float], costs: Sequence[float], n_ranks: int) -> float:
    """The last tilts are shared by groups of all ranks; how many, is decided at the start by what is foreseen."""

    def ends_at(of: Sequence[float], n_last: int, sizes: Sequence[int]) -> float:
        first, last = of[: len(of) - n_last], of[len(of) - n_last :]
        return apart(first, first, n_ranks) + max((c / rate(s) for c, s in zip(last, sizes)), default=0.0)

    def sizes_of(n_last: int) -> list[int]:
        sizes, last = [1] * n_last, foreseen[len(foreseen) - n_last :]
        for _ in range(n_ranks - n_last if n_last else 0):
            sizes[max(range(n_last), key=lambda i: last[i] / rate(sizes[i]))] += 1
        return sizes

    plans = [(n, sizes_of(n)) for n in range(min(n_ranks, len(costs)) + 1)]
    return ends_at(costs, *min(plans, key=lambda plan: ends_at(foreseen, *plan)))


def when_ready(foreseen: Sequence[float], costs: Sequence[float], n_ranks: int) -> float:
    """Of the last tilts each waits for its share of ranks, and begins when so many have run out of work."""
    busy, waiting, ready, end = [(0.0, 1)] * n_ranks, list(costs), 0, 0.0
    while busy:
        now, cores = heapq.heappop(busy)
        ready += cores
        while waiting and ready:
            share = 1 if len(waiting) >= n_ranks else n_ranks // len(waiting)
            if ready < share and busy:
                break
            cores = min(share, ready) if len(waiting) > 1 else ready
            ready -= cores
            heapq.heappush(busy, (now + waiting.pop(0) / rate(cores), cores))
        end = now
    return end


def lent(foreseen: Sequence[float], costs: Sequence[float], n_ranks: int) -> float:
    """Ranks without work lend their cores to the tilt that would end last, from its next sweep on."""
    waiting, work, free, now = list(costs), [], n_ranks, 0.0
    while True:
        while waiting and free:
            cost = waiting.pop(0)
            work.append([cost, 1, cost / SWEEPS])
            free -= 1
        if not work:
            return now
        while free:
            one = max(work, key=lambda w: w[0] / rate(int(w[1])))
            # It goes on alone for half a sweep
            one[0] += one[2] / 2 * (rate(int(one[1]) + 1) / rate(int(one[1])) - 1)
            one[1] += 1
            free -= 1
        step = min(left / rate(int(cores)) for left, cores, _ in work)
        now += step
        for one in work:
            one[0] -= step * rate(int(one[1]))
        free += int(sum(cores for left, cores, _ in work if left <= 1e-9))
        work = [one for one in work if one[0] > 1e-9]


WAYS: dict[str, Way] = {"apart": apart, "groups at once": at_once, "groups of ready": when_ready, "cores lent": lent}


def simulated(n_tilts: int, n_ranks: int) -> dict[str, object]:
    """Return the mean time of each way over that of the same work on cores that never wait."""
    rng, found = np.random.default_rng(n_tilts * 1000 + n_ranks), []
    for _ in range(DRAWS):
        foreseen = np.sort(1 + SPREAD * rng.random(n_tilts))[::-1]
        costs = foreseen * (1 + ERROR * rng.uniform(-1, 1, n_tilts))
        least = costs.sum() / n_ranks
        found.append([way(foreseen.tolist(), costs.tolist(), n_ranks) / least for way in WAYS.values()])
    return {"tilts": n_tilts, "ranks": n_ranks, **dict(zip(WAYS, np.mean(found, axis=0).tolist()))}


def idle_core_seconds(events: Sequence[tuple[float, dict[str, Any]]], n_ranks: int) -> float:
    """Return Σ (cores − those at work) · seconds, from the first start of a tilt to the last end."""
    cores: dict[int, int] = {}
    idle, before = 0.0, None
    for now, event in events:
        if before is not None and event["event"] in ("tilt_started", "cores_lent", "tilt_done"):
            idle += (n_ranks - sum(cores.values())) * (now - before)
        match event["event"]:
            case "tilt_started":
                # A rank that was helped has nobody's cores but its own: it lends all when it has no tilt
                cores[event["tilt"]] = 1
            case "cores_lent":
                cores[event["tilt"]] = event["threads"]
            case "tilt_done":
                del cores[event["tilt"]]
            case _:
                continue
        before = now
    return idle


def _foremost() -> Communicator:
    """Return all ranks, each before other programs: the launcher gives it a session, and so a group, of its own."""
    machine(priority=True)
    return mpi.world()


def run_rank(path: str, folder: str, engine: str, way: str, tilts: str) -> None:
    """Be one rank of a measurement; rank 0 prints seconds and idle core-seconds."""
    with mpi.guard():
        world = _foremost()
        words = [f"data.tilts={tilts}", f"ptychography.engine={engine}", "parallel.threads=1"]
        job, _ = load_job(Path(path), [*words, *(["parallel.group_size=1"] if way == "apart" else [])])
        heard: list[tuple[float, dict[str, Any]]] = []
        with open_series(job.data) as series:
            # Compiled and loaded before the clock runs
            with tempfile.TemporaryDirectory() as warm:
                TiltRun(
                    job, series, common_grid(job, series), 0, SerialCommunicator(), Path(warm), lambda event: None
                ).sweep()
            world.barrier()
            started = time.perf_counter()
            reconstruct_tilts(
                job, series, world, Path(folder), lambda event: heard.append((time.perf_counter(), dict(event)))
            )
        if world.rank == 0:
            seconds = time.perf_counter() - started
            print(json.dumps({"seconds": seconds, "idle": idle_core_seconds(heard, world.size)}))


def ask_rank(path: str, folder: str, engine: str) -> None:
    """Rank 0 sweeps while rank 1 asks for items; rank 1's waits are printed."""
    with mpi.guard():
        world = _foremost()
        job, _ = load_job(Path(path), [f"ptychography.engine={engine}", "parallel.threads=1"])
        with open_series(job.data) as series:
            run = TiltRun(
                job, series, common_grid(job, series), 0, SerialCommunicator(), Path(folder), lambda event: None
            )
            run.sweep()
            world.barrier()
            waits: list[float] = []
            with Master(world, range(100_000)) as master:
                until = time.perf_counter() + 8
                while time.perf_counter() < until:
                    if world.rank == 0:
                        run.sweep()
                        continue
                    before = time.perf_counter()
                    master.next()
                    waits.append(time.perf_counter() - before)
                    time.sleep(0.01)
        found = world.gather(waits)
        if found is not None:
            print(json.dumps(found[1]))


def started(n_ranks: int, *words: object) -> Any:
    """Run ranks of this module and return what rank 0 printed."""
    command = [Path(sys.executable).parent / "mpiexec", "-n", n_ranks, sys.executable, "-m", __spec__.name, *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ranks ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(job: str, engine: str, n_tilts: int, n_ranks: int, rounds: int) -> dict[str, object]:
    """Return the medians of both ways."""
    found: dict[str, list[dict[str, float]]] = {"apart": [], "lent": []}
    for _ in range(rounds):
        for way, results in found.items():
            with tempfile.TemporaryDirectory() as folder:
                results.append(started(n_ranks, "rank", job, folder, engine, way, json.dumps(list(range(n_tilts)))))
    median = {
        f"{way}: {key}": statistics.median(result[name] for result in results)
        for way, results in found.items()
        for name, key in (("seconds", "s"), ("idle", "idle core-s"))
    }
    return {"engine": engine, "tilts": n_tilts, "ranks": n_ranks, "rounds": rounds, **median}


def answers(job: str, engine: str) -> dict[str, object]:
    """Return milliseconds from asking to being answered."""
    with tempfile.TemporaryDirectory() as folder:
        waits = 1e3 * np.array(started(2, "ask", job, folder, engine))
    middle, most = np.percentile(waits, [50, 99]).tolist()
    return {"engine": engine, "asked": len(waits), "median, ms": middle, "99 %, ms": most, "longest, ms": waits.max()}


def main() -> None:
    if sys.argv[1:2] in (["rank"], ["ask"]):
        (run_rank if sys.argv[1] == "rank" else ask_rank)(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["simulate", "measure", "answers"])
    parser.add_argument("--job", default="jobs/nanocube.toml")
    parser.add_argument("--engines", nargs="+", default=["lsqml", "gradient"])
    parser.add_argument("--cases", nargs="+", default=["3/2", "5/4"], help="tilts/ranks")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    here = machine(priority=asked.what == "measure")
    if asked.what == "simulate":
        report("last_tilts-simulated", here, [simulated(*case) for case in CASES])
    elif asked.what == "answers":
        report("last_tilts-answers", here, [answers(asked.job, engine) for engine in asked.engines])
    else:
        cases = [[int(number) for number in case.split("/")] for case in asked.cases]
        rows = [measured(asked.job, e, n, ranks, asked.rounds) for e in asked.engines for n, ranks in cases]
        report("last_tilts", here, rows)


if __name__ == "__main__":
    main()
