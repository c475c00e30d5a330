"""Speed of the projector pair: ``python benchmarks/projector.py [--size 256] [--tilts 36] [--threads N] [--json F]``.

A cube of ``--size`` voxels a side at tilts from −70° to 70°. One update is one voxel in one projection, so a pair
does 2 · tilts · size³ of them. "along rows": the tilt axis is the volume's y axis; "any pose": each tilt is also turned
by about 0.3° in the plane and out of it. Every entry is measured once a round, and rounds repeat: medians, so that
neighbours on the machine disturb all alike. The processor's time per update counts work, not waiting for a core.

Bandwidth: the triad a = b + s c of three arrays of 128 MB in its fastest round. A projection must move each voxel and
each pixel once (the floor, float32); along rows the program moves the volume once more to turn it (read, write) and
reads the turned one once a thread, or writes and reads it once on the way back. "share" is those bytes a second over
the triad's: tiles stay in the cache, so that additions decide more than memory.

scikit-image: ``radon`` and ``iradon`` (no filter, linear) of some slices across the axis, scaled to all; one thread
each. It computes in double precision, interpolates linearly, and its pair is not exactly adjoint.

ASTRA's 2-D processor pair was compared by hand, in another environment, since its licence (GPL) keeps it from being a
dependency: float32 slices of the same size, ``create_projector`` 'linear' and 'line' on 'parallel' geometry,
``algorithm.run`` of FP and BP for each slice, alone in one thread, in turn with this program at one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
from skimage.transform import iradon, radon

from hpcrec.backend.threads import available_threads, run_parts
from hpcrec.geometry.pose import Pose, rotation_from_angles
from hpcrec.operators.projection import Projector

SLICES = 2
TRIAD = 1 << 25


@numba.njit(nogil=True, fastmath=True)
def _triad(a, b, c, first, last):
    for i in range(first, last):
        a[i] = b[i] + np.float32(0.5) * c[i]


def machine() -> dict[str, object]:
    """Return what the figures depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {"cpu": model, "cores": os.cpu_count(), "commit": commit.stdout.strip()}


def rounds(cases: dict[str, Callable[[], object]], n_rounds: int) -> dict[str, tuple[float, float, float]]:
    """Return the median seconds of the wall and of the processor, and the least of the wall, of each case in turn."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(n_rounds):
        for name, case in cases.items():
            wall, busy = time.perf_counter(), time.process_time()
            case()
            found[name].append((time.perf_counter() - wall, time.process_time() - busy))
    return {name: (*np.median(times, axis=0).tolist(), min(times)[0]) for name, times in found.items()}


def measure(size: int, n_tilts: int, threads: int, n_rounds: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    volume, tilts = rng.random((size,) * 3, dtype=np.float32), np.deg2rad(np.linspace(-70, 70, n_tilts))
    poses = {
        "along rows": [Pose(rotation=rotation_from_angles(0, t, 0), shift=(0.3, 0.2)) for t in tilts],
        "any pose": [
            Pose(rotation=rotation_from_angles(0.005 * rng.normal(), t, 0.005 * rng.normal()), shift=(0.3, 0.2))
            for t in tilts
        ],
    }
    cases: dict[str, Callable[[], object]] = {}
    for name, chosen in poses.items():
        projector = Projector((size,) * 3, 1.0, (size, size), chosen, threads=threads)
        stack = projector.forward(volume)
        cases[f"{name}, forward"] = lambda p=projector: p.forward(volume)
        cases[f"{name}, adjoint"] = lambda p=projector, s=stack: p.adjoint(s)
    inside = np.hypot(*(np.indices((size, size)) - size // 2)) < size // 2 - 1  # what radon asks for
    slices, angles = volume[:, :SLICES] * inside[:, None], np.rad2deg(tilts)
    sinograms = [radon(slices[:, i], angles, circle=True) for i in range(SLICES)]
    cases["scikit-image, forward"] = lambda: [radon(slices[:, i], angles, circle=True) for i in range(SLICES)]
    cases["scikit-image, adjoint"] = lambda: [iradon(s, angles, filter_name=None, circle=True) for s in sinograms]
    a, b, c = (np.ones(TRIAD, np.float32) for _ in range(3))
    cases["triad"] = lambda: run_parts(lambda first, last: _triad(a, b, c, first, last), TRIAD, threads)
    times = rounds(cases, n_rounds)
    bandwidth = 12 * TRIAD / times.pop("triad")[2]
    rows = []
    for name, (wall, busy, _) in times.items():
        scale = size / SLICES if name.startswith("scikit") else 1.0
        way = name.rpartition(" ")[2]
        peer = times[f"scikit-image, {way}"][0] * size / SLICES
        updates = size**3 * n_tilts
        floor = 4 * (size**3 + n_tilts * size**2)
        copies = 8 * size**3 + 4 * size**3 * (threads if way == "forward" else 2)
        rows.append(
            {
                "case": name,
                "seconds": wall * scale,
                "gupdates_per_second": updates / (wall * scale) / 1e9,
                "ns_of_processor_per_update": 1e9 * busy * scale / updates,
                "bytes_floor": floor,
                "share_of_triad": None if scale != 1 else (floor + copies) / wall / bandwidth,
                "ratio_to_scikit_image": peer / (wall * scale),
            }
        )
    rows.append({"case": "triad", "gigabytes_per_second": bandwidth / 1e9})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--tilts", type=int, default=36)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = measure(chosen.size, chosen.tilts, chosen.threads, chosen.rounds)
    about = machine() | {"size": chosen.size, "tilts": chosen.tilts, "threads": chosen.threads}
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    heads = ("Gupdates/s", "ns/update", "share of triad", "/ scikit-image")
    print(f"{'':24s} {'seconds':>9s} " + " ".join(f"{h:>{max(len(h), 9)}s}" for h in heads))
    for row in rows[:-1]:
        share = row["share_of_triad"]
        print(
            f"{row['case']:24s} {row['seconds']:9.3f} {row['gupdates_per_second']:10.3f} "
            f"{row['ns_of_processor_per_update']:9.3f} {'' if share is None else f'{share:.3f}':>14s} "
            f"{row['ratio_to_scikit_image']:14.1f}"
        )
    print(f"triad {rows[-1]['gigabytes_per_second']:.1f} GB/s")
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": about, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
