"""Planned against measured memory, and data larger than memory: ``python -m benchmarks.memory [--side 128]``.

One tilt of side² patterns of 128² pixels (uint16), one slice, two threads in all. Each case is a run of its own, from
the job file to the tilt's result, as ``hpcrec run`` does it; its rank plans first, and the largest resident memory that
any rank reached is set beside that plan (1: exact; below 1 the plan promised too little). Cases that say "quarter" take
an address space (``ulimit -v``) that leaves a quarter of the patterns' bytes for patterns, so that they come from the
scratch file; "whole" and "quarter" must find the same object. Patterns a second: the median of the sweeps after the
first; rounds of all cases repeat, and medians of them are printed.

``--process``: instead, 448² patterns at a third of the step (6 GiB), in memory and by a process that the shell gives
a quarter of that for all it does (``ulimit -v``), its libraries among it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")

import h5py
import numpy as np
import psutil

from benchmarks.limits import machine
from benchmarks.peers.sets import COUNTS, SAMPLING, SEMIANGLE, TRUE_SHARE, DataSet, phases, probe, scan
from benchmarks.table import add_json_option, report
from hpcrec.cli.run import run_job
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.io.base import open_series
from hpcrec.io.results import read_tilt_result, tilt_path
from hpcrec.models.base import PtychographyState
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.parallel import mpi
from hpcrec.physics.beam import electron_beam
from hpcrec.run.config import load_job
from hpcrec.run.memory import GIB, base_memory, rank_memory
from hpcrec.run.plan import make_plan
from hpcrec.run.start import common_grid

N, STEP, SWEEPS, SHARE = 128, 3.0, 4, 0.25
LARGE_SIDE, LARGE_STEP = 448, 1.0
JOB = f"""
version = 1
name = "memory"
[data]
format = "hdf5"
path = "PATH"
patterns = "patterns"
positions = "positions"
pixel_size_angstrom = {SAMPLING}
[beam]
energy_ev = 200e3
[probe]
semiangle_mrad = {1e3 * SEMIANGLE}
defocus_angstrom = 200.0
[ptychography]
iterations = {SWEEPS}
"""
EPIE: Final = ("ptychography.engine=epie",)
COMPACT: Final = (
    "ptychography.engine=lsqml", "ptychography.batch_kind=compact", "ptychography.lsqml.object_update=sweep",
)  # fmt: skip
TILED: Final = ("parallel.exchange=tiled", "parallel.group_size=2")
# Ranks, share of the patterns that memory holds, keys
Cases = dict[str, tuple[int, float, tuple[str, ...]]]
CASES: Final[Cases] = {
    "ePIE, whole": (1, 1.0, EPIE),
    "ePIE, quarter": (1, SHARE, EPIE),
    "compact LSQ-ML, whole": (1, 1.0, COMPACT),
    "compact LSQ-ML, quarter": (1, SHARE, COMPACT),
    "LSQ-ML, two ranks, tiled": (2, 1.0, ("ptychography.engine=lsqml", *TILED)),
}
LARGE_CASES: Final[Cases] = {case: CASES[case] for case in ("ePIE, whole", "ePIE, quarter")}
THREADS = 2
ROOT = Path(__file__).resolve().parent.parent


def write(path: Path, side: int, step: float) -> None:
    """Simulate side² patterns, a block at a time."""
    chosen, rng, beam = DataSet(side=side, step=step), np.random.default_rng(7), electron_beam(200e3)
    positions = scan(chosen, rng)
    grid = object_grid(positions, (N, N), (SAMPLING, SAMPLING))
    state = PtychographyState(
        obj=np.exp(1j * phases(chosen, grid, rng)).astype(np.complex64),
        probe=probe(chosen, chosen.defocus, TRUE_SHARE),
        positions=positions,
        grid=grid,
        box=Box(0, grid.shape[0], 0, grid.shape[1]),
    )
    model = PtychographyModel((N, N), grid.sampling, beam.wavelength, chosen.thickness, threads=THREADS)
    with h5py.File(path, "w") as file:
        file["positions"] = positions
        kept = file.create_dataset("patterns", (side**2, N, N), np.uint16, chunks=(16, N, N))
        for part in np.array_split(np.arange(side**2), max(side**2 // 256, 1)):
            mean = np.clip(model.simulate(state, part), 0, COUNTS)
            kept[part[0] : part[-1] + 1] = np.fft.fftshift(rng.poisson(mean), axes=(1, 2))


class _Room(logging.Handler):
    """Remembers what the reader was given for patterns."""

    found: float | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if "of memory and are" in str(record.msg) and isinstance(record.args, tuple):
            self.found = float(str(record.args[1]))


def child(path: Path, out: Path, share: float, keys: list[str]) -> None:
    """Plan and run one job; rank 0 writes what was found. ``share`` < 1 bounds the address space of the process."""
    world, (job, _), room = mpi.world(), load_job(path, keys), _Room()
    logging.getLogger("hpcrec.data.batches").addHandler(room)
    with open_series(job.data) as series:
        planned = make_plan(job, series, world.size)
        if share < 1:
            whole = planned.n_positions * N * N * np.dtype(series.facts.dtype).itemsize
            work = rank_memory(job, series, common_grid(job, series), 1, planned.threads) * GIB - whole
            used = psutil.Process().memory_info()
            # Of what a process may have, nine tenths are planned with
            allowed = (base_memory() * GIB + work + share * whole) / 0.9 - used.rss + used.vms
            resource.setrlimit(resource.RLIMIT_AS, (int(allowed), int(allowed)))
            planned = make_plan(job, series, world.size)
    logging.getLogger("hpcrec.data.batches").setLevel(logging.INFO)
    run_job(path, out / "run", keys, "ptychography", False)
    if world.rank == 0:
        events = [json.loads(line) for line in (out / "run" / "events.jsonl").read_text().splitlines()]
        rates = [e["patterns_per_s"] for e in events if e["event"] == "sweep"]
        found = {
            "planned": planned.memory_gib_per_rank,
            "measured": max(e["peak_memory_gib"] for e in events if "peak_memory_gib" in e),
            "rate": statistics.median(rates[1:]),
            "room": room.found,
        }
        (out / "found.json").write_text(json.dumps(found))


def measure(
    chosen: tuple[int, float, tuple[str, ...]], job: Path, out: Path, allowed: int | None
) -> tuple[dict[str, Any], np.ndarray]:
    """Return the figures of one case in a process of its own (or two), and the object; allowed: bytes for all of it."""
    ranks, share, keys = chosen
    out.mkdir(parents=True)
    # A process that is bounded from its start needs no further bound
    words = [sys.executable, "-m", "benchmarks.memory", "--child", job, out, str(1.0 if allowed else share), *keys]
    words.append(f"parallel.threads={max(THREADS // ranks, 1)}")
    if ranks > 1:
        words = [Path(sys.executable).parent / "mpiexec", "-n", str(ranks), *words]
    if allowed:
        words = ["bash", "-c", f'ulimit -v {allowed // 1024} && exec "$@"', "bounded", *words]
    started = time.perf_counter()
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, cwd=ROOT, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"{words} failed: {done.stdout[-500:]} {done.stderr[-1500:]}")
    figures = {**json.loads((out / "found.json").read_text()), "seconds": time.perf_counter() - started}
    return figures, read_tilt_result(tilt_path(out / "run" / "checkpoints", 0)).obj


def rows(folder: Path, side: int, step: float, n_rounds: int, cases: Cases, process: bool) -> list[dict[str, object]]:
    """Return a row for each case; process: whether a share is of the patterns' bytes for the whole process."""
    data, job = folder / "data.h5", folder / "job.toml"
    write(data, side, step)
    job.write_text(JOB.replace("PATH", str(data)))
    whole, made = side**2 * N * N * 2, []
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    objects: dict[str, np.ndarray] = {}
    for i in range(n_rounds):
        for n, (case, chosen) in enumerate(cases.items()):
            allowed = int(chosen[1] * whole) if process and chosen[1] < 1 else None
            figures, objects[case] = measure(chosen, job, folder / f"{i}-{n}", allowed)
            found[case].append(figures)
    for case, all_figures in found.items():
        middle = {k: statistics.median(f[k] for f in all_figures) for k in ("planned", "measured", "rate", "seconds")}
        row: dict[str, object] = {"case": case, "patterns GiB": whole / GIB / cases[case][0]}
        if process:
            row["process GiB"] = cases[case][1] * whole / GIB if cases[case][1] < 1 else None
        room = all_figures[0]["room"]
        row["room GiB"] = None if room is None else room / GIB
        row |= {"planned GiB": middle["planned"], "measured GiB": middle["measured"]}
        row["planned / measured"] = middle["planned"] / middle["measured"]
        row |= {"patterns/s": middle["rate"], "seconds in all": middle["seconds"]}
        if cases[case][1] < 1:
            other = case.replace("quarter", "whole")
            row["rate / whole"] = statistics.median(a["rate"] / b["rate"] for a, b in zip(all_figures, found[other]))
            difference = np.linalg.norm(objects[case] - objects[other]) / np.linalg.norm(objects[other])
            row["object differs by"] = float(difference)
        made.append(row)
    return made


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]), sys.argv[5:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=128, help="patterns along a side of the scan, 128 or more")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--process", action="store_true", help="bound all that a process has, with 6 GiB of patterns")
    add_json_option(parser)
    chosen = parser.parse_args()
    here = machine(priority=True, cores=THREADS)
    with tempfile.TemporaryDirectory() as name:
        if chosen.process:
            found = rows(Path(name), LARGE_SIDE, LARGE_STEP, chosen.rounds, LARGE_CASES, True)
        else:
            found = rows(Path(name), chosen.side, STEP, chosen.rounds, CASES, False)
    report("memory", here, found, chosen.json)


if __name__ == "__main__":
    main()
