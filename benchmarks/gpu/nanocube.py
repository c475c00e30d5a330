"""The simulated nanocube from patterns to atoms, on one GPU and on the processor: seconds, and whether atoms agree."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from scipy.spatial import cKDTree

from benchmarks.gpu.bench import Bench
from hpcrec.data.specimen import Specimen
from hpcrec.io.atoms import read_specimen
from hpcrec.run.directory import RunDirectory

_ROOT: Final = Path(__file__).resolve().parents[2]
JOB: Final = _ROOT / "jobs" / "nanocube.toml"
# Å, a twentieth of what tells an atom from its neighbour
SAME: Final = 0.05


def data_fault() -> str | None:
    """Say where the nanocube was looked for, or return None."""
    folder = os.environ.get("HPCREC_DATA") or str(JOB.parent / "../../shared/data")
    path = Path(folder) / "nanocube" / "nanocube-small.h5"
    return None if path.is_file() else f"the nanocube is not at {path.resolve()}: set HPCREC_DATA"


def run(device: str, out: Path, most: float) -> float:
    """Run the job on a device into a folder; return its seconds. RuntimeError with what it said where it fails."""
    command = [sys.executable, "-m", "hpcrec", "run", str(JOB), "--out", str(out)]
    start = time.monotonic()
    done = subprocess.run(
        [*command, "--set", f"parallel.device={device}"], cwd=_ROOT, capture_output=True, text=True, timeout=most
    )
    if done.returncode:
        raise RuntimeError(
            f"hpcrec run on '{device}' ends with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
        )
    return time.monotonic() - start


def agreement(found: Specimen, wanted: Specimen) -> dict[str, object]:
    """Return how many atoms of each list have one of the same element within :data:`SAME` in the other."""
    row: dict[str, object] = {"atoms": found.n_atoms, "atoms on the CPU": wanted.n_atoms}
    distances = []
    for element in np.union1d(found.numbers, wanted.numbers):
        ours, theirs = (one.positions[one.numbers == element] for one in (found, wanted))
        for some, others in ((ours, theirs), (theirs, ours)):
            distances.append(cKDTree(others).query(some)[0] if len(others) else np.full(len(some), np.inf))
    far = np.concatenate(distances)
    return row | {"without a partner": int((far > SAME).sum()), "largest distance": float(far.max(initial=0))}


def rows(bench: Bench, atoms: Path | None) -> Iterator[dict[str, object]]:
    """Yield the runs on the GPU and on the CPU; ``atoms``: of a run on the CPU, where there was one before."""
    left = bench.began + bench.seconds - time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hpcrec-nanocube-") as folder:
        gpu, cpu = RunDirectory(Path(folder) / "gpu"), RunDirectory(Path(folder) / "cpu")
        seconds = run("gpu", gpu.path, left)
        yield {"device": "gpu", "seconds": seconds}
        if atoms is None:
            yield {"device": "cpu", "seconds": run("cpu", cpu.path, left - seconds)}
            atoms = cpu.atoms
        found, wanted = (read_specimen(path, centre=False) for path in (gpu.atoms, atoms))
        yield {"device": "gpu and cpu", **agreement(found, wanted)}


def wrong(found: list[dict[str, object]]) -> list[str]:
    """Return what differs between the devices."""
    return [f"{row['without a partner']} atoms differ" for row in found if row.get("without a partner")]
