"""Strong and weak scaling over real ranks of one thread each, on this machine.

Where ranks outnumber cores they share them: then only the processor's seconds of a rank, bytes and messages mean
something, and the time of day does not; that is of worth for ranks up to the number of cores.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.scaling.ranks import Figures, launched
from hpcrec.parallel.exchange import EXCHANGES

RANKS: Final = (1, 2, 4, 8)
N: Final = 128
STEP: Final = 2.0
BATCH: Final = 256
# Rows and columns of the scan: of all ranks together, and of each
STRONG: Final = (32, 32)
WEAK: Final = {1: (16, 16), 2: (16, 32), 4: (32, 32), 8: (32, 64)}


def cases(n_ranks: int, sweeps: int, scale: int = 1) -> list[dict[str, Any]]:
    """Return the cases of a number of ranks; ``scale`` makes scans smaller."""
    found = []
    for kind, scan in (("strong", STRONG), ("weak", WEAK[n_ranks])):
        for exchange in EXCHANGES:
            rows, columns = (max(n // scale, 2) for n in scan)
            # As many updates of a sweep whatever the number of ranks
            batch = BATCH // scale**2 if kind == "strong" else max(rows * columns // 4, 1)
            case = {"task": "sweeps", "kind": kind, "scan": (rows, columns), "step": STEP, "n": N, "batch": batch}
            found.append(case | {"exchange": exchange, "sweeps": sweeps})
    return found


def rows(folder: Path, ranks: Sequence[int] = RANKS, sweeps: int = 5, scale: int = 1) -> list[dict[str, Any]]:
    """Measure; return a row for each kind of scaling, exchange and number of ranks."""
    found = []
    for n_ranks in ranks:
        chosen = cases(n_ranks, sweeps, scale)
        for case, figures in zip(chosen, launched(n_ranks, chosen, folder / str(n_ranks)), strict=True):
            found.append(row(case, figures))
    found.sort(key=lambda r: (r["scaling"], r["exchange"], r["ranks"]))
    for one in found:
        first = next(r for r in found if all(r[k] == one[k] for k in ("scaling", "exchange")))
        work = one["patterns"] * first["ranks"] / (first["patterns"] * one["ranks"])
        one["efficiency"] = first["compute s"] * work / one["compute s"]
    return found


def row(case: dict[str, Any], figures: list[Figures]) -> dict[str, Any]:
    """Return the row of one case from the figures of its ranks."""
    compute = np.array([f["compute"] for f in figures])
    patterns = np.array([f["patterns"] for f in figures])
    shares = np.array([f["shares"] for f in figures])
    wall, own_core = max(f["seconds"] for f in figures), len(figures) <= len(os.sched_getaffinity(0))
    return {
        "scaling": case["kind"],
        "exchange": case["exchange"],
        "ranks": len(figures),
        "patterns": int(patterns.sum()),
        "updates": figures[0]["updates"],
        "compute s": float(compute.max()),
        "imbalance": float(compute.max() / compute.mean()),
        # In each update the others wait for the rank with most of its patterns
        "batch imbalance": float(shares.max(axis=0).sum() / shares.mean(axis=0).sum()),
        "waited s": float(np.mean([f["waited"] for f in figures])) if own_core else None,
        "wall s": float(wall) if own_core else None,
        "kB sent": float(np.mean([f["sent"] for f in figures])) / 1e3,
        "most kB": max(f["sent"] for f in figures) / 1e3,
        "kB swapped": float(np.mean([f["sent by swap"] for f in figures])) / 1e3,
        "messages": float(np.mean([f["messages"] for f in figures])),
        "scan": list(case["scan"]),
        "grid": figures[0]["grid"],
    }


def pings(folder: Path, repeats: int = 50) -> list[dict[str, Any]]:
    """Return the seconds of sums and messages of several sizes between two ranks."""
    (figures,) = launched(2, [{"task": "ping", "repeats": repeats}], folder / "ping")
    first = figures[0]
    return [{"bytes": int(size), "sum s": t["sum"], "swap s": t["swap"]} for size, t in first.items()]


def fitted_link(pinged: Sequence[dict[str, Any]], kind: str = "swap s") -> tuple[float, float]:
    """Return (latency s, bytes/s) of messages: that of the smallest, and what the largest adds."""
    small, large = pinged[0], pinged[-1]
    latency = float(small[kind])
    return latency, float((large["bytes"] - small["bytes"]) / max(large[kind] - latency, 1e-12))
