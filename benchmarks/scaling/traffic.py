"""Bytes of an update and memory of a rank, tiled against replicated, for small and large objects with few patterns.

Bytes are counted in the exchanges themselves, which get sums of the boxes that a gradient has (around the windows of a
rank's share) and nothing in them; ranks are threads. So that a small machine can do it, tiles exchange one byte for
each pixel of gradient and illumination, and what is swapped counts six times (12 bytes are true: complex64, float32);
sums of whole objects are counted and not made. ``checked`` sets the bytes of a real engine on real ranks beside that.
Memory is that of real ranks.

Two ways to grow an object: with the ranks, each keeping a tile of the same size (then a tiled rank sends the same
bytes whatever the object), and on the same ranks, whose tiles and so borders grow (then bytes grow like the object's
side, replicated ones like its area).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike

from benchmarks.scaling.counting import CountingCommunicator, Ledger
from benchmarks.scaling.problem import SAMPLING, Problem
from benchmarks.scaling.ranks import launched, scan_problem
from hpcrec.backend.array import Array
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.tiles import EMPTY_BOX, Box, bounding_box, window_corners
from hpcrec.models.partial import Field, Partial
from hpcrec.parallel.communicator import Communicator, ThreadedCommunicator, run_ranks
from hpcrec.parallel.exchange import EXCHANGES, make_exchange

WINDOW: Final = 64
MARGIN: Final = 8
# Of the scan whose memory is measured, pixels
STEP: Final = 48
# Half a window from position to position, so that windows reach over all borders
PER_TILE: Final = 8
# Sides of an object, and of a rank's tile of it, in pixels. From 4 × 4 tiles on some have neighbours on all sides
PAIRS: Final = ((1024, 256), (4096, 256), (4096, 1024), (16384, 1024))
SIDES: Final = (1024, 4096, 16384)
SAME_RANKS: Final = 16
_LARGE_BYTES: Final = 1 << 20
# Of gradient and illumination, over those that are exchanged here
_TRUE_BYTES: Final = 12 / 2


class Unmoved:
    """Leaves out the sums of large arrays and gives back what it was given; all else is as in ``inner``."""

    def __init__(self, inner: ThreadedCommunicator) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def sum(self, a: Array) -> Array:
        """Return the sum, or ``a`` itself where it is large."""
        return a if a.nbytes > _LARGE_BYTES else self._inner.sum(a)


def spread_scan(side: int, per_side: int, window: int) -> tuple[np.ndarray, Grid]:
    """Return positions (position, 2) Å from border to border of a square object of ``side`` pixels, and its grid."""
    line = np.linspace(window / 2 + 4, side - window / 2 - 5, per_side)
    points = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    points = points + np.random.default_rng(0).uniform(-0.4, 0.4, points.shape)
    return points * SAMPLING, Grid(shape=(side, side), sampling=(SAMPLING, SAMPLING))


def update(kind: str, positions: np.ndarray, grid: Grid, n: int, comm: Communicator) -> Ledger:
    """Exchange the sums of one update of all patterns of n² pixels; return what was counted."""
    counted, window = CountingCommunicator(comm), (n, n)
    exchange = make_exchange(kind, counted, positions, grid, window, MARGIN)
    sums: dict[str, Array] = {name: np.zeros(1) for name in ("loss", "error", "counts")}
    sums |= {"probe_gradient": np.zeros((1, *window), np.complex64), "object_weight": np.zeros(window, np.float32)}
    counted.ledger.clear()
    if kind == "replicated":
        # Sums are dense on the box around those of all ranks: each may say at once that this is its own
        box = bounding_box(window_corners(positions, grid, window), window)
        exchange.total(
            Partial({"object_gradient": _nothing(box, np.complex64), "illumination": _nothing(box, np.float32)}, sums)
        )
        return counted.ledger
    own = exchange.share(np.arange(len(positions)))
    box = bounding_box(window_corners(positions[own], grid, window), window) if len(own) else EMPTY_BOX
    fields = {name: Field(box, np.zeros((1, *box.shape), np.uint8)) for name in ("object_gradient", "illumination")}
    exchange.total(Partial(fields, sums), ("illumination",))
    swapped = counted.ledger.counts["swap"]
    swapped.sent, swapped.received = swapped.sent * _TRUE_BYTES, swapped.received * _TRUE_BYTES
    return counted.ledger


def _nothing(box: Box, dtype: DTypeLike) -> Field:
    """Return zeros that take no memory."""
    return Field(box, np.broadcast_to(np.zeros((), dtype), (1, *box.shape)))


def counted_row(growth: str, kind: str, side: int, n_ranks: int, window: int = WINDOW) -> dict[str, Any]:
    """Return what the ranks sent in one update; positions are half a window apart."""
    positions, grid = spread_scan(side, side * 2 // window, window)
    began = time.perf_counter()
    ledgers = run_ranks(n_ranks, lambda c: update(kind, positions, grid, window, Unmoved(c)), 600.0)
    fields = [ledger.total("sent", "sum" if kind == "replicated" else "swap") for ledger in ledgers]
    all_sent = [ledger.total("sent") for ledger in ledgers]
    return {
        "growth": growth,
        "exchange": kind,
        "side": side,
        "ranks": n_ranks,
        "window": window,
        "patterns a rank": len(positions) / n_ranks,
        "most MB sent": max(all_sent) / 1e6,
        "mean MB sent": float(np.mean(all_sent)) / 1e6,
        "fields alone, most MB": max(fields) / 1e6,
        "the rest MB": (max(all_sent) - max(fields)) / 1e6,
        "messages": max(ledger.total("messages") for ledger in ledgers),
        "counted in s": time.perf_counter() - began,
    }


def counts(
    pairs: Sequence[tuple[int, int]] = PAIRS, sides: Sequence[int] = SIDES, same: int = SAME_RANKS
) -> list[dict[str, Any]]:
    """Return the bytes of both kinds of growth."""
    found = []
    for kind in EXCHANGES:
        for side, tile in pairs:
            window = 2 * tile // PER_TILE
            found.append(counted_row(f"{tile}² a rank", kind, side, (side // tile) ** 2, window))
        found += [counted_row(f"{same} ranks", kind, side, same) for side in sides]
    return found


def _small_sums(kind: str, given: Problem, comm: ThreadedCommunicator) -> Ledger:
    return update(kind, given.positions, given.grid, given.n, Unmoved(comm))


def checked(folder: Path, n_ranks: int = 4, per_side: int = 32, step: float = 12.0) -> list[dict[str, Any]]:
    """Set the bytes that a real engine on real ranks sends in a sweep of one update beside those counted here."""
    found = []
    for kind in EXCHANGES:
        case = {
            "task": "sweeps", "scan": (per_side, per_side), "step": step, "n": WINDOW, "exchange": kind,
            "batch": per_side**2, "sweeps": 1, "margin": MARGIN,
        }  # fmt: skip
        (figures,) = launched(n_ranks, [case], folder / kind)
        given = scan_problem(case)
        told = run_ranks(n_ranks, partial(_small_sums, kind, given))
        engine = max(f["sent"] for f in figures)
        here = max(ledger.total("sent") for ledger in told)
        row = {"exchange": kind, "ranks": n_ranks, "grid": given.grid.shape, "engine MB": engine / 1e6}
        found.append(row | {"counted MB": here / 1e6, "engine / counted": engine / here})
    return found


def memories(folder: Path, ranks: Sequence[int] = (1, 2, 4, 8), side: int = 4096) -> list[dict[str, Any]]:
    """Return the largest resident memory of real ranks beyond what the process had before, for one object.

    Windows overlap by a quarter: pages that no pattern sees would never become resident. One rank keeps gradients on
    the object, as many do; "alone" is a job of one rank, which spares that.
    """
    per_side = (side - WINDOW) // STEP
    found = []
    for n_ranks in ranks:
        cases = [
            {
                "task": "memory", "scan": (per_side, per_side), "step": STEP * SAMPLING, "n": WINDOW,
                "exchange": kind, "batch": per_side**2, "margin": MARGIN,
            }
            for kind in EXCHANGES
        ]  # fmt: skip
        if n_ranks == 1:
            cases.append(cases[0] | {"windowed": True})
        for case, figures in zip(cases, launched(n_ranks, cases, folder / str(n_ranks)), strict=True):
            pixels = np.array([f["held"][0] * f["held"][1] for f in figures])
            peaks = np.array([f["peak"] for f in figures])
            found.append(
                {
                    "exchange": "alone" if case.get("windowed") else case["exchange"],
                    "ranks": n_ranks,
                    "grid": figures[0]["grid"],
                    "patterns MB": max(f["patterns"] for f in figures) / 1e6,
                    "base MB": max(f["base"] for f in figures) / 1e6,
                    "most MB": float(peaks.max()) / 1e6,
                    "mean MB": float(peaks.mean()) / 1e6,
                    "held of the object": float(pixels.max() / np.prod(figures[0]["grid"])),
                    "bytes a held pixel": float((peaks / pixels).max()),
                }
            )
    return with_ratios(found)


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add memory × ranks over that of one rank, and of two: 1 where memory falls as 1/ranks."""
    rows = sorted(rows, key=lambda r: (r["exchange"], r["ranks"]))
    for row in rows:
        for first in (1, 2):
            of = [r for r in rows if r["exchange"] == row["exchange"] and r["ranks"] == first]
            whole = of[0]["most MB"] * first if of and row["ranks"] >= first else None
            row[f"× ranks, of {first}"] = row["most MB"] * row["ranks"] / whole if whole else None
    return rows
