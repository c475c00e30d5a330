"""Does an object show where tiles meet? A known object under noise, on one rank and tiled on 4 (two by two) and 7.

The root-mean-square error of the object within a probe width (the diameter that holds nine tenths of its light) of the
tiles' borders, over that of the rest; only pixels that lie a probe width inside the scan. Regions that happen to be
harder than others show in the one-rank result too, so its ratio of the same regions stands beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from benchmarks.scaling.problem import Found, Problem, Work, jittered, problem, reconstruct
from hpcrec.geometry.tiles import Box
from hpcrec.parallel.communicator import Communicator, run_ranks
from hpcrec.parallel.exchange import make_exchange

BOUND: Final = 1.05
RANKS: Final = (4, 7)
ENGINES: Final = ("gradient", "lsqml", "epie")
MARGIN: Final = 3


def standard(side: int = 24) -> Problem:
    """Return a scan of side² noisy patterns of 32² pixels."""
    return problem(32, jittered((side, side), 2.0), noise=True)


def probe_width(given: Problem, share: float = 0.9) -> int:
    """Return the diameter in pixels, rounded up, of the circle around its centre that holds a share of the probe."""
    y = np.arange(given.n) - given.n // 2
    radius, power = np.hypot(y[:, None], y).ravel(), np.sum(np.abs(given.probe) ** 2, axis=0).ravel()
    order = np.argsort(radius)
    inside = np.cumsum(power[order]) >= share * power.sum()
    return int(np.ceil(2 * radius[order][np.argmax(inside)]))


def regions(given: Problem, cores: Sequence[Box]) -> tuple[np.ndarray, np.ndarray]:
    """Return which pixels (y, x) lie within a probe width of borders between cores, and the others that are judged."""
    width, shape = probe_width(given), given.grid.shape
    owner = np.zeros(shape, int)
    for rank, core in enumerate(cores):
        owner[core.y0 : core.y1, core.x0 : core.x1] = rank
    near = np.zeros(shape, bool)
    edges = [(axis, np.argwhere(np.diff(owner, axis=axis))) for axis in (0, 1)]
    for axis, found in edges:
        for pixel in found:
            part = [slice(i, i + 1) for i in pixel]
            # Pixels k and k + 1 lie on either side
            part[axis] = slice(max(pixel[axis] + 1 - width, 0), pixel[axis] + 1 + width)
            near[tuple(part)] = True
    pixels = given.grid.to_pixels(given.positions)
    low, high = np.ceil(pixels.min(axis=0)).astype(int) + width, np.floor(pixels.max(axis=0)).astype(int) - width
    judged = np.zeros(shape, bool)
    judged[low[0] : high[0], low[1] : high[1]] = True
    return near & judged, ~near & judged


def error_ratio(given: Problem, obj: np.ndarray, near: np.ndarray, rest: np.ndarray) -> tuple[float, float]:
    """Return the rms error near borders over that of the rest, and that of the rest; a free factor is taken out."""
    truth = given.truth(Box(0, given.grid.shape[0], 0, given.grid.shape[1]))
    judged = near | rest
    factor = np.vdot(obj[:, judged], truth[:, judged]) / np.vdot(obj[:, judged], obj[:, judged])
    square = np.sum(np.abs(factor * obj - truth) ** 2, axis=0)
    interior = float(np.sqrt(square[rest].mean()))
    return float(np.sqrt(square[near].mean())) / interior, interior


def rows(
    given: Problem, engines: Sequence[str] = ENGINES, ranks: Sequence[int] = RANKS, sweeps: int = 30
) -> list[dict[str, Any]]:
    """Return a row for each engine and number of ranks."""
    found = []
    for engine in engines:
        work = Work(engine=engine, sweeps=sweeps, batch=32, margin=MARGIN)
        alone = _first(run_ranks(1, lambda comm, work=work: reconstruct(given, work, comm)))
        for size in ranks:
            tiled = Work(exchange="tiled", engine=engine, sweeps=sweeps, batch=32, margin=MARGIN)
            many = _first(run_ranks(size, lambda comm, work=tiled: reconstruct(given, work, comm)))
            cores = run_ranks(size, lambda comm: _core(given, comm))
            near, rest = regions(given, cores)
            ratio, interior = error_ratio(given, many, near, rest)
            of_one, _ = error_ratio(given, alone, near, rest)
            found.append(
                {
                    "engine": engine,
                    "ranks": size,
                    "probe width": probe_width(given),
                    "near": int(near.sum()),
                    "interior": int(rest.sum()),
                    "interior error": interior,
                    "near / interior": ratio,
                    "of one rank": of_one,
                    "tiled / one rank": ratio / of_one,
                    "object differs by": float(np.abs(many - alone).max() / np.abs(alone).max()),
                    "": "" if ratio <= BOUND else ("EXCEEDS" if ratio > BOUND * of_one else "exceeds on one rank too"),
                }
            )
    return found


def _first(results: Sequence[Found]) -> np.ndarray:
    obj = results[0].obj
    if obj is None:
        raise ValueError("the first rank has the whole object")
    return obj


def _core(given: Problem, comm: Communicator) -> Box:
    return make_exchange("tiled", comm, given.positions, given.grid, (given.n, given.n), MARGIN).core
