"""All engines on one small phantom: ``python benchmarks/engines.py [SWEEPS]``.

100 patterns of 48² pixels, 1e5 counts each, of a phase object; each engine with its defaults and its own batches:
one slice, one with dead pixels (the same few and a hundredth of each pattern), three probe modes, three slices; without
noise (projections then take all errors for real) and with Poisson noise. Three figures a case: data error
Σ(√I − √I₀)²/ΣI₀ at the end, sweeps to a common data error, relative error of the object. Then the largest difference of
the one-slice object (a share of its largest change) that three ranks with tiles make, and a stop in the middle. The
probe is known for two sweeps and then refined. One core.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dataclasses
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from hpcrec.data.batches import global_batches
from hpcrec.engines import ENGINES, engine_class
from hpcrec.engines.base import visit
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import Detector
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.objectives.losses import amplitude_error
from hpcrec.parallel.communicator import Communicator, SerialCommunicator, run_ranks
from hpcrec.parallel.exchange import make_exchange
from hpcrec.physics.probe import aberrated_probe, orthogonal_start_modes

SHAPE, SAMPLING, WAVELENGTH, SEMIANGLE, MARGIN = (48, 48), (0.3, 0.3), 0.0251, 0.022, 24
COUNTS, COMMON = 1e5, {False: 1e-3, True: 5e-3}
SIDE = 10
ALL = np.arange(SIDE**2)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One column of the table."""

    n_slices: int = 1
    n_modes: int = 1
    masked: bool = False
    noise: bool = False

    def __str__(self) -> str:
        what = "dead px" if self.masked else f"{self.n_modes} modes" if self.n_modes > 1 else ""
        what = what or f"{self.n_slices} slice{'s' * (self.n_slices > 1)}"
        return f"{what}, {'Poisson' if self.noise else 'no noise'}"


KINDS = ({}, {"masked": True}, {"n_modes": 3}, {"n_slices": 3})
CASES = [Case(**kind, noise=noise) for kind in KINDS for noise in (False, True)]


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Truth on the whole grid, and what was measured; ``good`` (position, ky, kx) or None."""

    model: PtychographyModel
    truth: PtychographyState
    patterns: np.ndarray
    good: np.ndarray | None

    def batch(self, own: np.ndarray, step: int, of_all: np.ndarray) -> Batch:
        good = None if self.good is None else self.good[own]
        return Batch(own, self.patterns[own], step=step, n_global=len(of_all), good=good, of_all=of_all)


@cache
def phantom(case: Case) -> Phantom:
    rng = np.random.default_rng(11)
    y, x = np.meshgrid(np.arange(SIDE) * 1.3, np.arange(SIDE) * 1.3, indexing="ij")
    positions = np.stack([y.ravel(), x.ravel()], axis=1) + rng.uniform(-0.3, 0.3, (SIDE**2, 2))
    grid = object_grid(positions, SHAPE, SAMPLING)
    phase = gaussian_filter(rng.standard_normal((case.n_slices, *grid.shape)), (0, 2, 2), mode="wrap")
    phase *= 0.5 / np.sqrt(case.n_slices) / phase.std()
    probe = aberrated_probe(SHAPE, SAMPLING, WAVELENGTH, SEMIANGLE, {"C10": -120.0})
    modes = orthogonal_start_modes(probe, case.n_modes, share=0.15) * np.sqrt(COUNTS)
    mask = np.ones(SHAPE, bool)
    if case.masked:
        mask[: SHAPE[0] // 20, : SHAPE[1] // 20] = False
    thickness = 40.0 if case.n_slices > 1 else 0.0
    model = PtychographyModel(SHAPE, SAMPLING, WAVELENGTH, thickness, detector=Detector(mask=mask))
    truth = PtychographyState(
        obj=np.exp(1j * phase).astype(np.complex64),
        probe=modes.astype(np.complex64),
        positions=positions,
        grid=grid,
        box=Box(0, grid.shape[0], 0, grid.shape[1]),
    )
    patterns = model.simulate(truth, ALL)
    if case.noise:
        patterns = rng.poisson(patterns).astype(np.uint16)
    good = None
    if case.masked:
        good = rng.uniform(size=patterns.shape) > 0.01
        patterns = np.where(good & mask, patterns, patterns.dtype.type(60000))
    return Phantom(model=model, truth=truth, patterns=patterns, good=good)


def copy_of(state: PtychographyState) -> PtychographyState:
    """What a checkpoint keeps."""
    kept = ("refined", "memory", "object_memory", "pattern_memory")
    copies: dict[str, Any] = {k: {n: v.copy() for n, v in getattr(state, k).items()} for k in kept}
    return dataclasses.replace(state, obj=state.obj.copy(), probe=state.probe.copy(), **copies)


def reconstruct(
    name: str, case: Case, sweeps: int, group: Communicator | None = None, stop: bool = False
) -> tuple[np.ndarray | None, list[float]]:
    """The whole object, on the first rank, and the data error after each sweep, where one rank has everything."""
    made, cls = phantom(case), engine_class(name)
    options = {"noise_share": 0.0} if cls.keeps_waves and not case.noise else {}
    group = group or SerialCommunicator()
    kind, truth = "tiled" if group.size > 1 else "replicated", made.truth
    exchange = make_exchange(kind, group, truth.positions, truth.grid, SHAPE)
    shape = (case.n_slices, *exchange.held.shape)
    state = PtychographyState(
        obj=np.ones(shape, made.truth.obj.dtype),
        probe=truth.probe.copy(),
        positions=truth.positions,
        grid=truth.grid,
        box=exchange.held,
    )
    state.own, state.core, state.visited = np.sort(exchange.share(ALL)), exchange.core, len(ALL)
    engine, errors = cls(made.model, cls.Options(**options)), []
    engine.prepare(state)
    for i in range(sweeps):
        if stop and i == sweeps // 2:
            engine, state = cls(made.model, cls.Options(**options)), copy_of(state)
            engine.prepare(state)
        batches = global_batches(SIDE**2, cls.default_batch_size or SIDE**2, seed=1, tilt=0, iteration=i)
        for step, indices in enumerate(batches):
            visit(engine, state, made.batch(exchange.share(indices), step, indices), exchange.total)
        engine.finish_iteration(state)
        if group.size == 1:
            whole = made.batch(ALL, 0, ALL)
            good = made.model.good(whole)
            found = made.model.simulate(state, ALL)
            error, counts = amplitude_error(found, made.model.clean(whole).astype(np.float32), good)
            errors.append(error / counts)
    return exchange.whole(state.obj), errors


def object_error(obj: np.ndarray, truth: np.ndarray) -> float:
    inner = (slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    found, wanted = np.prod(obj[inner], axis=0), np.prod(truth[inner], axis=0)
    found = found * np.vdot(found, wanted) / np.vdot(found, found)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted - wanted.mean()))


def difference(name: str, sweeps: int, obj: np.ndarray, n_ranks: int = 1, stop: bool = False) -> float:
    """The largest difference of the object to ``obj``, over the largest change from an empty one."""
    case = CASES[0]
    if n_ranks > 1:
        other = run_ranks(n_ranks, lambda group: reconstruct(name, case, sweeps, group)[0])[0]
    else:
        other = reconstruct(name, case, sweeps, stop=stop)[0]
    return float(abs(other - obj).max() / abs(obj - 1).max())


def row(name: str, sweeps: int) -> str:
    text, objects = f"{name:15}", []
    for case in CASES:
        if case.n_slices > 1 and engine_class(name).one_slice_only:
            text += " |" + "-".rjust(20)
            continue
        obj, errors = reconstruct(name, case, sweeps)
        objects.append(obj)
        reached = next((str(i + 1) for i, e in enumerate(errors) if e < COMMON[case.noise]), f">{sweeps}")
        text += f" | {errors[-1]:8.2e} {reached:>3} {object_error(obj, phantom(case).truth.obj):5.3f}"
    ranks, resumed = difference(name, sweeps, objects[0], n_ranks=3), difference(name, sweeps, objects[0], stop=True)
    return f"{text} | {ranks:7.1e} {resumed:7.1e}"


def main() -> None:
    sweeps = max(int(sys.argv[1]) if len(sys.argv) > 1 else 60, 4)
    print(" " * 15 + "".join(f" | {case!s:19.19}" for case in CASES) + " | difference of")
    print(f"{'engine':15}" + f" | {'error':8} {'to':>3} {'obj':5}  " * len(CASES) + " | 3 ranks, resumed")
    for name in ENGINES:
        print(row(name, sweeps), flush=True)
    print(f"error: after {sweeps} sweeps; to: sweeps to {COMMON[False]:g} without noise, {COMMON[True]:g} with it")


if __name__ == "__main__":
    main()
