"""Sweeps of two tiles whose messages travel while their interiors are computed, beside sweeps that wait for them.

Messages between processes of one machine take time of its cores; those that are late, here asleep, do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.scaling.measure import N
from benchmarks.scaling.ranks import launched

SCAN: Final = (24, 40)
STEP: Final = 6.0
BATCH: Final = 240
LATE_MS: Final = (0.0, 2.0, 10.0)


def rows(folder: Path, sweeps: int = 6, scale: int = 1, rounds: int = 3) -> list[dict[str, Any]]:
    """Measure both ways in turn; return a row for each delay of a message: medians of rounds."""
    scan = tuple(max(n // scale, 4) for n in SCAN)
    base = {"task": "sweeps", "scan": scan, "step": STEP, "n": N, "batch": BATCH // scale**2, "exchange": "tiled"}
    cases = [
        {**base, "sweeps": sweeps, "in_flight": in_flight, "delay": late / 1e3}
        for late in LATE_MS
        for _ in range(rounds)
        for in_flight in (False, True)
    ]
    seconds = [max(f["seconds"] for f in figures) for figures in launched(2, cases, folder)]
    found = []
    for late, both in zip(LATE_MS, np.reshape(seconds, (len(LATE_MS), rounds, 2)), strict=True):
        ratios = both[:, 1] / both[:, 0]
        found.append(
            {
                "late ms": late,
                "waiting s": float(np.median(both[:, 0])),
                "in flight s": float(np.median(both[:, 1])),
                "ratio": float(np.median(ratios)),
                "least": float(ratios.min()),
                "most": float(ratios.max()),
            }
        )
    return found
