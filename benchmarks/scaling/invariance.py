"""Does the number of ranks change the answer? Every engine, both exchanges and precisions, ten iterations.

Ranks are threads of one process, their messages copies. Differences from one rank: of the largest value, at the worst
pixel ("object") and at the worst of those that get more than a thousandth of the most light ("lit"); in the root mean
square, weighted by the light of each pixel ("weighted").
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import numpy as np

from benchmarks.scaling.problem import Found, Problem, Work, jittered, problem, reconstruct
from hpcrec.engines import ENGINES, engine_class
from hpcrec.parallel.communicator import run_ranks
from hpcrec.parallel.exchange import EXCHANGES

BOUNDS: Final = {"single": 1e-4, "double": 1e-10}
RANKS: Final = (2, 3, 4, 5, 7)
LIT: Final = 1e-3
_PATIENCE_S: Final = 600.0


def uneven() -> np.ndarray:
    """Return positions that are three times denser in one corner, so that tiles differ in size."""
    dense = jittered((6, 6), 0.6)
    sparse = jittered((5, 5), 1.8, seed=3)
    return np.concatenate([dense, sparse[(sparse > 3.2).any(axis=1)]])


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One row of cases: positions, pixels of a pattern, the patterns of an update, ranks, and what is refined."""

    name: str
    positions: np.ndarray
    n: int = 16
    taper: float = 0.0
    batch: int = 12
    ranks: tuple[int, ...] = (3,)
    refine: tuple[str, ...] = ()


CASES: Final = (
    Case(name="uneven tiles", positions=uneven(), ranks=RANKS),
    Case(name="batch of 2", positions=jittered((8, 7), 0.9), batch=2, ranks=(3, 7)),
    Case(name="empty shares", positions=jittered((2, 2), 0.9), batch=4, ranks=(7,)),
    Case(name="positions refined", positions=jittered((8, 7), 0.9), refine=("positions",)),
    Case(name="dark edges", positions=jittered((8, 7), 0.9), n=32, taper=2.5),
)


@cache
def _problem(case: Case, precision: str, slices: int) -> Problem:
    return problem(case.n, case.positions, n_slices=slices, n_modes=2, precision=precision, taper=case.taper)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest difference, of the largest value."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def compare(found: Found, alone: Found, light: np.ndarray) -> dict[str, float]:
    """Return how much a result differs from that of one rank, and the light of the pixel that differs most."""
    if found.obj is None or alone.obj is None:
        raise ValueError("objects are compared on the first rank")
    share, away = light / light.max(), np.abs(found.obj - alone.obj)
    square = np.sum(share * away**2) / np.sum(share * np.abs(alone.obj) ** 2)
    worst = np.unravel_index(int(np.argmax(away.max(axis=0))), share.shape)
    return {
        "object": difference(found.obj, alone.obj),
        "lit": float(away[:, share > LIT].max() / np.abs(alone.obj).max()),
        "weighted": float(np.sqrt(square)),
        "light there": float(share[worst]),
        "probe": difference(found.probe, alone.probe),
        "positions": difference(found.positions, alone.positions),
    }


def rows(
    engines: Sequence[str] = tuple(ENGINES),
    cases: Sequence[Case] = CASES,
    precisions: Sequence[str] = tuple(BOUNDS),
    sweeps: int = 10,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each engine, precision, case and exchange: the worst over the numbers of ranks."""
    for engine in engines:
        for case in cases:
            for precision in precisions:
                yield from _compared(engine, case, precision, sweeps)


def _compared(engine: str, case: Case, precision: str, sweeps: int) -> Iterator[dict[str, Any]]:
    given = _problem(case, precision, 1 if engine_class(engine).one_slice_only else 2)
    options = () if engine == "pie" else (("probe_start", 1),)
    work = Work(engine=engine, batch=case.batch, refine=case.refine, sweeps=sweeps, options=options)
    alone, light = run_ranks(1, lambda comm: reconstruct(given, work, comm), _PATIENCE_S)[0], given.illumination()
    for kind in EXCHANGES:
        tried = replace(work, exchange=kind)
        by_ranks = {}
        for size in case.ranks:
            results = run_ranks(size, lambda comm, tried=tried: reconstruct(given, tried, comm), _PATIENCE_S)
            worst = compare(results[0], alone, light)
            for other in results[1:]:
                worst["probe"] = max(worst["probe"], difference(other.probe, alone.probe))
                worst["positions"] = max(worst["positions"], difference(other.positions, alone.positions))
            by_ranks[size] = worst
        yield _row(engine, case, precision, kind, by_ranks, alone.errors)


def _row(
    engine: str, case: Case, precision: str, kind: str, by_ranks: dict[int, dict[str, float]], errors: list[float]
) -> dict[str, Any]:
    most = max(by_ranks, key=lambda size: by_ranks[size]["object"])
    largest = {name: max(found[name] for found in by_ranks.values()) for name in by_ranks[most]}
    worst = max(largest[name] for name in ("object", "probe", "positions"))
    return {
        "engine": engine,
        "case": case.name,
        "precision": precision,
        "exchange": kind,
        **{f"{size} ranks": by_ranks.get(size, {}).get("object") for size in RANKS},
        **{name: largest[name] for name in ("lit", "weighted", "probe", "positions")},
        # Of the worst pixel, on the number of ranks that differs most
        "light there": by_ranks[most]["light there"],
        "error fell to": errors[-1] / errors[0],
        "": "" if worst <= BOUNDS[precision] else "EXCEEDS",
    }


def measured(engines: Sequence[str] = tuple(ENGINES)) -> list[dict[str, Any]]:
    """Return the whole table; says on the way how far it is."""
    started, found = time.perf_counter(), []
    for engine in engines:
        found += list(rows([engine]))
        print(f"{engine}: {time.perf_counter() - started:.0f} s", flush=True)
    return found
