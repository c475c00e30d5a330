"""``make bench``: kernels, one sweep of every engine, projector and the demo job beside the machine's limits.

FFT limit: what the same work would reach if it were the transforms of its gradients alone, on the same cores, from
cache. Memory limit: what it would reach if reading each pattern's counts (uint16) once were all. No figure is a test.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import chain
from benchmarks.limits import copied_bytes_per_second, machine, transforms_per_second
from benchmarks.peers.programs import Program
from benchmarks.peers.run import THREADS, command, launch
from benchmarks.peers.sets import SETS, write
from benchmarks.table import report
from hpcrec.engines import ENGINES

ROOT = Path(__file__).resolve().parent.parent
SET, SWEEP_SECONDS, DEMO_CORES = "ss128", 2.0, 2
# jobs/demo.toml: tilts, patterns of a tilt, sweeps, pixels, slices
DEMO = (19, 225, 30, 48, 2)


def limits(n: int, transforms: int, cores: int) -> tuple[float, float]:
    """Return the patterns (n, n) per second that FFTs alone, and reading counts alone, would reach."""
    return transforms_per_second(n, cores) / transforms, copied_bytes_per_second(cores) / (2 * n**2)


def entry(
    what: str, cores: int, unit: str, measured: float, fft: float, memory: float, share: float
) -> dict[str, object]:
    names = ("what", "cores", "unit", "measured", "FFT limit", "memory limit", "share of FFT limit")
    return dict(zip(names, (what, cores, unit, measured, fft, memory, share)))


def kernels() -> list[dict[str, object]]:
    """Return rows of the gradients of one batch; their floor was measured in turns with them."""
    found = []
    for case, row in zip(chain.CASES, chain.rows()):
        memory = limits(case[0], chain.n_transforms(*case[1:]), 1)[1]
        rate, floor, share = (float(str(row[k])) for k in ("patterns/s", "FFT floor", "share of floor"))
        found.append(entry(str(row["case"]), 1, "patterns/s", rate, floor, memory, share))
    return found


def sweeps(folder: Path, ranks: int) -> list[dict[str, object]]:
    """Return rows of the sweeps of every engine on 1024 patterns of 128², one slice."""
    data, out = folder / "data.npz", folder / "out.npz"
    write(SET, data)
    rates, beside = {}, []
    for name in ENGINES:
        # Measured again beside each engine: neighbours come and go, and a limit is the best of all
        beside.append(limits(SETS[SET].n, chain.n_transforms(1, 1), THREADS))
        words = command(Program(peer="hpcrec", algorithm=name), sys.executable, data, out, SWEEP_SECONDS, ranks)
        made = launch(words, out, folder)
        if isinstance(made, str):
            print(f"{name}: failed: {made}")
            continue
        rates[name] = SETS[SET].side ** 2 / float(np.median(np.diff(made[0])))
    fft, memory = (max(values) for values in zip(*beside))
    return [
        entry(f"sweep {name}, 128² px", THREADS, "patterns/s", rate, fft, memory, rate / fft)
        for name, rate in rates.items()
    ]


def demo(folder: Path) -> list[dict[str, object]]:
    """Return rows of the seconds of the demo job's stages, simulated data to report."""
    tilts, positions, iterations, n, slices = DEMO
    hpcrec, data, out = [sys.executable, "-m", "hpcrec"], folder / "demo.h5", folder / "demo"
    start = time.perf_counter()
    subprocess.run(
        [*hpcrec, "simulate", ROOT / "jobs/demo-sample.toml", "--out", data], check=True, stdout=subprocess.DEVNULL
    )
    simulated = time.perf_counter() - start
    mpiexec = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(DEMO_CORES)]
    keys = ["--set", f"data.path={data}", "--set", f"analysis.reference={data}"]
    start = time.perf_counter()
    subprocess.run(
        [*mpiexec, *hpcrec, "run", ROOT / "jobs/demo.toml", "--out", out, *keys], check=True, stdout=subprocess.DEVNULL
    )
    seconds = {"simulation (1 core)": simulated, "whole run": time.perf_counter() - start}
    for line in (out / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "stage_done":
            seconds[event["stage"]] = event["seconds"]
    patterns = tilts * positions * iterations
    fft, memory = (patterns / rate for rate in limits(n, chain.n_transforms(slices, 1), DEMO_CORES))
    rows = [{"what": f"demo: {k}", "cores": DEMO_CORES, "unit": "s", "measured": v} for k, v in seconds.items()]
    for row in rows:
        if row["what"] == "demo: ptychography":
            row |= {"FFT limit": fft, "memory limit": memory, "share of FFT limit": fft / float(str(row["measured"]))}
    return rows


def projector() -> None:
    """Run the projector's own benchmark, where there is one."""
    if (ROOT / "benchmarks" / "projector.py").exists():
        subprocess.run([sys.executable, "-m", "benchmarks.projector"], check=True, cwd=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=1, help="ranks of the sweeps, with 2 / ranks threads each")
    asked = parser.parse_args()
    here = machine(priority=True, cores=THREADS)
    with tempfile.TemporaryDirectory() as name:
        rows = [*kernels(), *sweeps(Path(name), asked.ranks), *demo(Path(name))]
    for cores in (1, THREADS):
        rates = ", ".join(f"{transforms_per_second(n, cores):.0f} of {n}²" for n in (64, 128, 256))
        print(
            f"{cores} cores: FFTs/s: {rates}; copies {copied_bytes_per_second(cores) / 1e9:.1f} GB/s read and written"
        )
    report("bench", here, rows)
    projector()


if __name__ == "__main__":
    main()
