"""All engines on one small phantom: ``python benchmarks/engines.py [SWEEPS]``.

100 patterns of 48² pixels, 1e5 counts each, of a phase object of one or three slices; each engine with its defaults and
its own batches, without noise (projections then take all errors for real) and with Poisson noise. Columns: data error
Σ(√I − √I₀)²/ΣI₀ after 20 sweeps, sweeps to a common data error, relative error of the object after all, time.
The probe is known for two sweeps and then refined. One core.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from hpcrec.data.batches import global_batches
from hpcrec.engines import ENGINES, engine_class
from hpcrec.engines.base import visit
from hpcrec.geometry.grid import object_grid
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.objectives.losses import amplitude_error
from hpcrec.parallel.communicator import SerialCommunicator
from hpcrec.parallel.exchange import make_exchange
from hpcrec.physics.probe import aberrated_probe

SHAPE, SAMPLING, WAVELENGTH, MARGIN = (48, 48), (0.3, 0.3), 0.0251, 24
COUNTS, COMMON = 1e5, {False: 1e-3, True: 5e-3}
SIDE = 10


@dataclass(frozen=True, kw_only=True)
class Result:
    """Data errors after each sweep, relative error of the object, seconds of a sweep."""

    errors: list[float]
    obj: float
    seconds: float


def state_of(obj: np.ndarray, probe: np.ndarray, positions: np.ndarray) -> PtychographyState:
    grid = object_grid(positions, SHAPE, SAMPLING)
    held = make_exchange("replicated", SerialCommunicator(), positions, grid, SHAPE).held
    return PtychographyState(obj=obj, probe=probe, positions=positions, grid=grid, box=held)


def phantom(n_slices: int, noise: bool) -> tuple[PtychographyModel, PtychographyState, np.ndarray]:
    rng = np.random.default_rng(11)
    y, x = np.meshgrid(np.arange(SIDE) * 1.3, np.arange(SIDE) * 1.3, indexing="ij")
    positions = np.stack([y.ravel(), x.ravel()], axis=1) + rng.uniform(-0.3, 0.3, (SIDE**2, 2))
    grid = object_grid(positions, SHAPE, SAMPLING)
    phase = gaussian_filter(rng.standard_normal((n_slices, *grid.shape)), (0, 2, 2), mode="wrap")
    phase *= 0.5 / np.sqrt(n_slices) / phase.std()
    probe = aberrated_probe(SHAPE, SAMPLING, WAVELENGTH, 0.022, {"C10": -120.0})[None] * np.sqrt(COUNTS)
    model = PtychographyModel(SHAPE, SAMPLING, WAVELENGTH, 40.0 if n_slices > 1 else 0.0)
    truth = state_of(np.exp(1j * phase).astype(np.complex64), probe.astype(np.complex64), positions)
    patterns = model.simulate(truth, np.arange(SIDE**2))
    return model, truth, rng.poisson(patterns).astype(np.uint16) if noise else patterns


def reconstruct(name: str, n_slices: int, noise: bool, sweeps: int) -> Result:
    model, truth, patterns = phantom(n_slices, noise)
    cls = engine_class(name)
    options = {"noise_share": 0.0} if cls.keeps_waves and not noise else {}
    engine, state = (
        cls(model, cls.Options(**options)),
        state_of(np.ones_like(truth.obj), truth.probe.copy(), truth.positions),
    )
    exchange = make_exchange("replicated", SerialCommunicator(), state.positions, state.grid, SHAPE)
    engine.prepare(state)
    size = cls.default_batch_size or SIDE**2
    errors, seconds = [], []
    for i in range(sweeps):
        started = time.perf_counter()
        for step, indices in enumerate(global_batches(SIDE**2, size, seed=1, tilt=0, iteration=i)):
            visit(engine, state, Batch(indices, patterns[indices], step=step, n_global=len(indices)), exchange.total)
        engine.finish_iteration(state)
        seconds.append(time.perf_counter() - started)
        error, counts = amplitude_error(model.simulate(state, np.arange(SIDE**2)), patterns.astype(np.float32), None)
        errors.append(error / counts)
    inner = (slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    found, wanted = (np.prod(s.obj[inner], axis=0) for s in (state, truth))
    found = found * np.vdot(found, wanted) / np.vdot(found, found)
    obj = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted - wanted.mean()))
    return Result(errors=errors, obj=obj, seconds=float(np.median(seconds)))


def row(name: str, sweeps: int) -> str:
    text = f"{name:16}"
    for n_slices in (1, 3):
        for noise in (False, True):
            if n_slices > 1 and engine_class(name).one_slice_only:
                text += " |" + "-".rjust(28)
                continue
            found = reconstruct(name, n_slices, noise, sweeps)
            reached = next((str(i + 1) for i, e in enumerate(found.errors) if e < COMMON[noise]), f">{sweeps}")
            text += f" | {found.errors[19]:8.2e} {reached:>4} {found.obj:5.3f} {found.seconds:6.3f} s"
    return text


def main() -> None:
    sweeps = max(int(sys.argv[1]) if len(sys.argv) > 1 else 60, 20)
    heads = [f"{n} slice{'s' * (n > 1)}, {kind}" for n in (1, 3) for kind in ("no noise", "Poisson")]
    print(" " * 16 + "".join(f" | {head:27}" for head in heads))
    print(f"{'engine':16}" + f" | {'error 20':8} {'to':>4} {'obj':5} {'a sweep':>8}" * 4)
    for name in ENGINES:
        print(row(name, sweeps), flush=True)
    print(f"to: sweeps until the data error is below {COMMON[False]:g} without noise, {COMMON[True]:g} with it")


if __name__ == "__main__":
    main()
