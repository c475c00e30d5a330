"""An object that no rank holds: ``python -m benchmarks.large_object [--side 16384] [--slices 4] [--ranks 4]``.

Few patterns (64² of 64² pixels, a raster with gaps between the windows) over an object of side² pixels, two sweeps of
ePIE in compact batches, on ranks that hold tiles. Beside what ``hpcrec check`` plans for a rank stands what all ranks
together had at most, as the system counts it while they run: memory of their own, and all that is resident, which
includes pages of scratch files that the system may take back. The same job with whole objects must be refused.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import psutil

from benchmarks.limits import machine
from benchmarks.table import add_json_option, report
from hpcrec.geometry.grid import object_grid
from hpcrec.io.base import open_series
from hpcrec.physics.beam import electron_beam
from hpcrec.physics.probe import aberrated_probe
from hpcrec.run.config import load_job
from hpcrec.run.memory import GIB
from hpcrec.run.start import common_grid

N, ACROSS, SAMPLING, SEMIANGLE = 64, 64, 0.2, 0.022
JOB = """
version = 1
name = "large"
[data]
format = "hdf5"
path = "PATH"
patterns = "patterns"
positions = "positions"
pixel_size_angstrom = 0.2
[beam]
energy_ev = 200e3
[probe]
semiangle_mrad = 22
defocus_angstrom = 40.0
[ptychography]
engine = "epie"
iterations = 2
checkpoint_every = 2
batch_size = 64
batch_kind = "compact"
slices = SLICES
slice_thickness_angstrom = 10.0
[parallel]
threads = 1
group_size = RANKS
"""


def write(folder: Path, side: int, slices: int, ranks: int) -> Path:
    """Write Poisson counts of the probe alone, with positions for an object of ``side``, and the job."""
    data, job = folder / "data.h5", folder / "job.toml"
    wave = aberrated_probe((N, N), (SAMPLING, SAMPLING), electron_beam(200e3).wavelength, SEMIANGLE, {"C10": -40.0})
    mean = 2000 * np.abs(np.fft.fftshift(np.fft.fft2(wave, norm="ortho"))) ** 2
    rng, spare = np.random.default_rng(1), object_grid(np.zeros((1, 2)), (N, N), (SAMPLING, SAMPLING)).shape[0]
    along = np.linspace(0, (side - spare) * SAMPLING, ACROSS)
    positions = np.stack(np.meshgrid(along, along, indexing="ij"), axis=-1).reshape(-1, 2)
    with h5py.File(data, "w") as file:
        file["positions"] = positions
        file["patterns"] = rng.poisson(np.broadcast_to(mean, (ACROSS**2, N, N))).astype(np.uint16)
    job.write_text(JOB.replace("PATH", str(data)).replace("SLICES", str(slices)).replace("RANKS", str(ranks)))
    return job


def command(ranks: int, *words: object) -> list[str]:
    """Return hpcrec's command line on some ranks."""
    launch = [Path(sys.executable).parent / "mpiexec", "-n", ranks] if ranks > 1 else []
    return [str(word) for word in (*launch, sys.executable, "-m", "hpcrec", *words)]


def memory_of(process: psutil.Process) -> tuple[float, float]:
    """Return the GiB that a process and its children have of their own, and all that is resident."""
    own = resident = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            told = Path(f"/proc/{one.pid}/smaps_rollup").read_text(encoding="ascii")
        except (OSError, psutil.Error):
            continue
        kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", told, re.MULTILINE)}
        own, resident = own + kib.get("Anonymous", 0), resident + kib.get("Pss", 0)
    return own / 2**20, resident / 2**20


def watched(words: list[str]) -> tuple[float, float, float, str]:
    """Run to the end; return the most memory of its own, the most resident (GiB), seconds, and what was said."""
    started, own, resident = time.perf_counter(), 0.0, 0.0
    with tempfile.TemporaryFile("w+") as told:
        running = subprocess.Popen(words, stdout=told, stderr=subprocess.STDOUT)
        process = psutil.Process(running.pid)
        while running.poll() is None:
            now = memory_of(process)
            own, resident = max(own, now[0]), max(resident, now[1])
            time.sleep(0.2)
        told.seek(0)
        text = told.read()
    if running.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {running.returncode}: {text[-3000:]}")
    return own, resident, time.perf_counter() - started, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=16384)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--gib", type=float, default=24.0, help="memory of all ranks together")
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's folder for such files")
    add_json_option(parser)
    chosen = parser.parse_args()
    here = machine()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        job = write(folder, chosen.side, chosen.slices, chosen.ranks)
        with open_series(load_job(job, [])[0].data) as series:
            shape = common_grid(load_job(job, [])[0], series).shape
        limit = f"parallel.memory_gib_per_rank={chosen.gib / chosen.ranks}"
        refused = command(1, "check", job, "--ranks", chosen.ranks, "--set", limit)
        refused = subprocess.run([*refused, "--set", "parallel.exchange=replicated"], capture_output=True, text=True)
        said = " ".join(refused.stderr.split())
        print(f"whole objects: exit code {refused.returncode}: {said}")
        out = folder / "out"
        words = command(chosen.ranks, "run", job, "--out", out, "--until", "ptychography", "--set", limit)
        own, resident, seconds, text = watched(words)
        reason = re.search(r"tiled: [^\n]*(?:\n[^\n]*)?", text)
        print(f"the run said: {' '.join(reason[0].split()) if reason else text[-500:]}")
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        row = {
            "object": f"{shape[0]} × {shape[1]} × {chosen.slices}",
            "object GiB": math.prod(shape) * chosen.slices * 8 / GIB,
            "ranks": chosen.ranks,
            "whole objects": "refused" if refused.returncode == 5 else f"exit code {refused.returncode}",
            "own GiB, all ranks": own,
            "resident GiB, all ranks": resident,
            "largest rank GiB": max(e["peak_memory_gib"] for e in events if "peak_memory_gib" in e),
            "sweep s": [round(e["seconds"], 1) for e in events if e["event"] == "sweep"][-1],
            "seconds": seconds,
        }
    report("large_object", here, [row], chosen.json)


if __name__ == "__main__":
    main()
