"""Speed of the tomography's loops beside the machine's limits: ``python -m benchmarks.projector [--python P ...]``.

A cube of ``--size`` voxels a side at tilts from −70° to 70°. One update is one voxel in one projection. "along rows":
the tilt axis is the volume's y axis; "any pose": each tilt is also turned by about 0.3° in the plane and out of it.
Then one step of FISTA on that volume, and on images of 2048² (BM3D: 256²) the proximal map of the total variation,
the derivatives of a projection by its pose, and the denoiser. Every entry is measured once a round, with the
limits beside it, and rounds repeat: medians, also of the shares. ``ns`` is the processor's time, of all threads.

Limits, on as many threads: memory, the triad a = b + s c; cache, y += w x in the first cache; flops, multiply-adds in
registers. ``share`` is the largest share of the three, and ``limit`` which. Work is counted, not measured:

* along rows: three multiply-adds an update, whose row of voxels (or pixels) and weights come from the caches, 12 bytes;
  memory: the volume is read, written turned, and read once a thread (back: written, read turned, written); the stack is
  read and written in both forms. ``tables`` are bytes of lists of weights, made anew for each tile: they stay in cache.
* any pose: two sets of three spline weights (10 operations each), and of nine multiply-adds and three products; the
  volume turned (read, written) and read once a projection (back: written); the stack read and written twice.
* FISTA step: 20 bytes and 8 operations a voxel. TV: 52 bytes and 26 operations a pixel and iteration. Derivatives:
  28 bytes and 50 operations a pixel. BM3D: 27 operations a pixel, displacement and row of reference blocks, and the
  transforms of the groups, whose sizes are counted.

Peers, in turn with the rest on one thread: scikit-image (``radon``, and ``iradon`` without filter) and ASTRA's 2-D
processor pair (FP, BP, 'linear'), where this interpreter or one given with ``--python`` has them; two slices, scaled.
ASTRA's licence (GPL) keeps it from being a dependency.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.limits import machine
from benchmarks.roofs import Roofs, Work
from benchmarks.table import add_json_option, report
from hpcrec.backend.kernels.bm3d import BLOCK, match_blocks
from hpcrec.backend.kernels.variation import flatten_plane
from hpcrec.backend.kernels.volume import derivative_images, proximal_step
from hpcrec.backend.threads import available_threads
from hpcrec.geometry.pose import Pose, rotation_from_angles
from hpcrec.operators.projection import Projector
from hpcrec.tomography.bm3d import bm3d

SLICES, PLANE, NOISY, ITERATIONS = 2, 2048, 256, 5
Case = tuple[Callable[[], object], float, Work, float]  # call, units, work, bytes of tables


class Peer:
    """Projectors of another interpreter, which runs beside this one and works when asked."""

    def __init__(self, python: str, size: int, n_tilts: int) -> None:
        words = [python, str(Path(__file__).with_name("projector_peer.py")), str(size), str(SLICES), str(n_tilts)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        self.names = [name for name in self._line().split(",") if name]
        if not self.names:
            print(f"{python}: neither scikit-image nor ASTRA can be imported there, no peer is measured with it")

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def seconds(self, name: str, way: str) -> float:
        """Return the seconds of one call for :data:`SLICES` slices."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name} {way}\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def projector_cases(size: int, n_tilts: int, threads: int) -> dict[str, Case]:
    """Return projection and adjoint, both ways, with the work of each."""
    rng = np.random.default_rng(0)
    volume, tilts = rng.random((size,) * 3, dtype=np.float32), np.deg2rad(np.linspace(-70, 70, n_tilts))
    turns = 0.005 * rng.normal(size=(n_tilts, 2))
    poses = {
        "along rows": [Pose(rotation=rotation_from_angles(0, t, 0), shift=(0.3, 0.2)) for t in tilts],
        "any pose": [Pose(rotation=rotation_from_angles(a, t, b), shift=(0.3, 0.2)) for t, (a, b) in zip(tilts, turns)],
    }
    updates, voxels, pixels = size**3 * n_tilts, 4 * size**3, 4 * n_tilts * size**2
    cases: dict[str, Case] = {}
    for name, chosen in poses.items():
        projector = Projector((size,) * 3, 1.0, (size, size), chosen, threads=threads)
        stack, along_rows = projector.forward(volume), name == "along rows"
        for way, call in (
            ("forward", lambda p=projector: p.forward(volume)),
            ("adjoint", lambda p=projector, s=stack: p.adjoint(s)),
        ):
            if along_rows:
                reads = 2 + threads if way == "forward" else 3
                work = Work(memory=reads * voxels + 3 * pixels, cache=12 * updates, flops=6 * updates)
            else:
                reads = 2 + n_tilts if way == "forward" else 3
                flops = 41 if way == "forward" else 44
                work = Work(memory=reads * voxels + 4 * pixels, cache=0, flops=flops * updates)
            # A start (8 bytes) and a weight (4) of three pixels for each column of voxels in each projection
            tables = 3 * 12 * size**2 * n_tilts if along_rows else 0
            cases[f"{name}, {way}"] = (call, updates, work, tables)
    return cases


def pass_cases(size: int, threads: int) -> dict[str, Case]:
    """Return the passes over volumes and images, with the work of each."""
    rng = np.random.default_rng(1)
    point, before, gradient = (rng.random((size,) * 3, dtype=np.float32) for _ in range(3))
    plane, other = (rng.random((PLANE, PLANE), dtype=np.float32) for _ in range(2))
    y, x = np.indices((NOISY, NOISY), dtype=np.float32)
    noisy = (np.sin(y / 9) * np.sin(x / 7) + 0.2 * rng.normal(size=(NOISY, NOISY))).astype(np.float32)
    n = size**3, PLANE**2, NOISY**2
    return {
        "FISTA step": (
            lambda: proximal_step(point, before, gradient, 0.1, 0.01, 0.5, True, threads),
            n[0],
            Work(memory=20 * n[0], cache=0, flops=8 * n[0]),
            0,
        ),
        "TV, an iteration": (
            lambda: flatten_plane(plane, 0.1, True, ITERATIONS, threads),
            ITERATIONS * n[1],
            # The last primal pass: 16 bytes, 6 operations
            Work(memory=(52 * ITERATIONS + 16) * n[1], cache=0, flops=(26 * ITERATIONS + 6) * n[1]),
            0,
        ),
        "derivative images": (
            lambda: derivative_images(plane, other, np.eye(3), (0.0, 0.0), 1.0, threads),
            n[1],
            Work(memory=28 * n[1], cache=0, flops=50 * n[1]),
            0,
        ),
        "BM3D": (
            lambda: bm3d(noisy, 0.2, threads),
            n[2],
            Work(memory=16 * n[2], cache=0, flops=denoiser_flops(noisy, 0.2)),
            0,
        ),
    }


def denoiser_flops(noisy: np.ndarray, sigma: float) -> float:
    """Return the operations of both stages of BM3D: the search, and the transforms of the groups found."""
    starts = np.unique(np.append(np.arange(0, len(noisy) - BLOCK + 1, 3), len(noisy) - BLOCK))
    smooth = bm3d(noisy, sigma)
    total = 0.0
    for pilot, n_max, limit, loads in ((noisy, 16, 6.0, 1), (smooth, 32, 1.5, 2)):
        found = np.empty((len(starts), n_max), np.int64), np.empty((len(starts), n_max), np.int64)
        scores, counts = np.empty((len(starts), n_max), np.float32), np.empty(len(starts), np.int64)
        for y in starts:
            match_blocks(pilot, y, starts, 16, limit * sigma**2 * BLOCK**2, *found, scores, counts)
            groups = 2 ** np.floor(np.log2(counts))
            # 16 multiply-adds a coefficient and way, two steps of Haar at most, the factor, weights and sums
            total += float((groups * BLOCK**2 * ((loads + 1) * (32 + 4) + 8)).sum())
        displacements = np.minimum(starts + 16, len(noisy) - BLOCK) - np.maximum(starts - 16, 0) + 1
        total += 27.0 * float(displacements.sum()) * 33 * (len(noisy) - BLOCK / 2)
    return total


def measure(size: int, n_tilts: int, threads: int, n_rounds: int, peers: list[Peer]) -> list[dict[str, object]]:
    """Return a row for each case and peer on ``threads`` threads."""
    roofs, cases = Roofs(threads), projector_cases(size, n_tilts, threads) | pass_cases(size, threads)
    for case in cases.values():
        case[0]()
    found: dict[str, list[tuple[float, float, dict[str, float]]]] = {name: [] for name in cases}
    first = {name: peer for peer in reversed(peers) for name in peer.names}  # that has a program
    asked = [(peer, name, way) for name, peer in first.items() for way in ("forward", "adjoint")]
    beside: dict[str, list[float]] = {f"{name}, {way}": [] for _, name, way in asked}
    limits = []
    for _ in range(n_rounds):
        for name, (call, _, work, _) in cases.items():
            limits.append(roofs.measure())
            wall, busy = time.perf_counter(), time.process_time()
            call()
            wall, busy = time.perf_counter() - wall, time.process_time() - busy
            found[name].append((wall, busy, limits[-1].shares(work, wall)))
        for peer, name, way in asked:
            beside[f"{name}, {way}"].append(peer.seconds(name, way) * size / SLICES)
    medians = {name: float(np.median(seconds)) for name, seconds in beside.items()}
    rows = [row(name, cases[name], times, medians) | {"threads": threads} for name, times in found.items()]
    updates = size**3 * n_tilts
    for name, seconds in medians.items():
        rows.append({"case": name, "seconds": seconds, "G/s": updates / seconds / 1e9, "threads": 1})
    for name in ("memory", "cache", "flops"):
        rate = float(np.median([getattr(roof, name) for roof in limits]))
        rows.append({"case": f"limit: {name}", "G/s": rate / 1e9, "threads": threads})
    return rows


def row(
    name: str, case: Case, times: list[tuple[float, float, dict[str, float]]], peers: dict[str, float]
) -> dict[str, object]:
    """Return the row of one case."""
    _, units, work, tables = case
    wall, busy = (float(np.median([t[i] for t in times])) for i in (0, 1))
    shares = {k: float(np.median([t[2][k] for t in times])) for k in times[0][2]}
    limit = max(shares, key=lambda k: shares[k])
    made: dict[str, object] = {
        "case": name,
        "seconds": wall,
        "G/s": units / wall / 1e9,
        "ns": 1e9 * busy / units,
        "GB": work.memory / 1e9,
        "tables GB": tables / 1e9,
        "share of triad": shares["memory"],
        "limit": limit,
        "share": shares[limit],
        "most": max(max(t[2].values()) for t in times),
    }
    way = name.rpartition(" ")[2]
    for peer, seconds in peers.items():
        if peer.endswith(way) and way in ("forward", "adjoint"):
            made[f"/ {peer.partition(',')[0]}"] = seconds / wall
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--tilts", type=int, default=36)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, available_threads()}))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", nargs="*", default=[], help="interpreters that have scikit-image or ASTRA")
    add_json_option(parser)
    chosen = parser.parse_args()
    here = machine(priority=True) | {"size": chosen.size, "tilts": chosen.tilts}
    peers = [Peer(python, chosen.size, chosen.tilts) for python in (sys.executable, *chosen.python)]
    rows: list[dict[str, object]] = []
    for threads in chosen.threads:
        rows += measure(chosen.size, chosen.tilts, threads, chosen.rounds, peers if threads == 1 else [])
    for peer in peers:
        peer.close()
    report("projector", here, rows, chosen.json)


if __name__ == "__main__":
    main()
