"""Gauges and constraints on tiles: what one rank with the whole object finds, and no rank has the whole object."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from hpcrec.backend import fft
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box, TileLayout, tile_layout
from hpcrec.models.base import PtychographyState
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.objectives.constraints import (
    GAUGES,
    OBJECT_CONSTRAINTS,
    PROBE_CONSTRAINTS,
    Surroundings,
    constraint_class,
)
from hpcrec.parallel import transpose
from hpcrec.parallel.communicator import Communicator, SerialCommunicator, run_ranks
from hpcrec.parallel.exchange import Exchange, make_exchange
from hpcrec.run import constrain
from hpcrec.run.config import load_job
from hpcrec.run.constrain import BLOCK_COPIES, Constraints, bytes_between_sweeps, chosen_constraints, illumination_share
from hpcrec.run.job import Job

WINDOW, SAMPLING, N_SLICES = (10, 12), (0.4, 0.5), 3
# Dense in a corner, so that tiles are uneven and halos do not reach around all cores
POSITIONS = np.concatenate(
    [
        np.random.default_rng(5).uniform(0, 3, (20, 2)),
        np.random.default_rng(6).uniform(0, 14, (8, 2)),
    ]
)
GRID = object_grid(POSITIONS, WINDOW, SAMPLING)
WHOLE = Box(0, GRID.shape[0], 0, GRID.shape[1])
TOLERANCE = {"double": 1e-12, "single": 1e-5}
SIZES = [1, 2, 3, 5, 7]
EACH = {
    "centre": ["constraints.centre={}"],
    "ramp": ["constraints.ramp={}"],
    "scale": ["constraints.scale={}"],
    "mirror": ["constraints.kz_filter={beta = 0.5, lateral_damping_pixel2 = 0.3}"],
    "vacuum": ["constraints.kz_filter={ends = 'vacuum', amplitude_share = 0.4}"],
    "periodic": ["constraints.kz_filter={ends = 'periodic'}"],
}
EACH["all"] = [
    *(text for name, texts in EACH.items() if name not in ("vacuum", "periodic") for text in texts),
    "constraints.z_smoothing.sigma_angstrom=3",
    "constraints.identical_slices.strength=0.3",
    "constraints.tv={weight = 0.02, n_iterations = 5}",
    "constraints.smoothness.sigma_angstrom=0.3",
    "constraints.butterworth.cutoff_inverse_angstrom=0.8",
    "constraints.amplitude_bound.highest=1.02",
    "constraints.probe_support={radius_angstrom = 2, edge_angstrom = 0.5}",
    "constraints.probe_power={}",
]


def job_with(tiny_job: Path, *overrides: str) -> Job:
    slices = [f"ptychography.slices={N_SLICES}", "ptychography.slice_thickness_angstrom=40"]
    return load_job(tiny_job, [*slices, *overrides])[0]


def model_of(precision: str) -> PtychographyModel:
    return PtychographyModel(WINDOW, SAMPLING, 0.025, 40.0, precision=precision)


def example(precision: str, n_states: int = 2) -> tuple[Any, Any, Any]:
    """An object with ramps, two modes off the middle, and how they vary."""
    rng = np.random.default_rng(7)
    dtype = np.complex128 if precision == "double" else np.complex64
    y, x = np.indices(GRID.shape)
    phase = gaussian_filter(rng.standard_normal((n_states * N_SLICES, *GRID.shape)), (0, 2, 2), mode="wrap")
    slopes = 0.1 * np.arange(1, 1 + len(phase))[:, None, None] / len(phase)
    obj = (0.9 + 0.2 * phase) * np.exp(1j * (phase + slopes * y - slopes * x))
    v, u = np.indices(WINDOW) - np.array([6.5, 5])[:, None, None]
    waves = np.exp(-0.1 * (v**2 + u**2)) * (
        10 + rng.standard_normal((3, *WINDOW)) + 1j * rng.standard_normal((3, 1, 1))
    )
    return obj.astype(dtype), waves[:2].astype(dtype), waves[2:].astype(dtype)


def state_of(obj: Any, probe: Any, variation: Any, exchange: Exchange, n_states: int = 2) -> PtychographyState:
    return PtychographyState(
        obj=np.ascontiguousarray(obj[:, *exchange.held.slices(WHOLE)]),
        probe=probe.copy(),
        positions=POSITIONS,
        grid=GRID,
        box=exchange.held,
        n_states=n_states,
        iteration=1,
        refined={"variation": variation.copy()},
    )


def by_one(job: Job, precision: str, n_states: int = 2) -> tuple[Any, Any, Any]:
    """Return object, probe and variation after the tables' classes in their order, each on the whole object."""
    obj, probe, variation = example(precision, n_states)
    images, waves = obj.reshape(n_states, N_SLICES, *GRID.shape), np.concatenate([probe, variation])
    around = Surroundings(
        sampling=SAMPLING,
        wavelength=0.025,
        gaps=np.full(N_SLICES - 1, 40.0),
        power=100.0,
        n_modes=2,
        light=illumination_share(probe, POSITIONS, GRID),
    )
    chosen = chosen_constraints(job)
    for name in [n for table in (GAUGES, OBJECT_CONSTRAINTS, PROBE_CONSTRAINTS) for n in table if n in chosen]:
        one = constraint_class(name)(chosen[name])
        if name in GAUGES:
            images, waves = one.apply(images, waves, around)
        elif name in OBJECT_CONSTRAINTS:
            images = one.apply(images, around)
        elif one.linear:
            waves = one.apply(waves, around)
        else:
            waves = np.concatenate([one.apply(waves[:2], around), waves[2:]])
    return images.reshape(obj.shape), waves[:2], waves[2:]


def close(found: Any, wanted: Any, scale: float, precision: str) -> bool:
    return found.dtype == wanted.dtype and bool(
        (np.abs(found - wanted) <= TOLERANCE[precision] * scale).all(),
    )


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", EACH)
def test_tiles_find_what_one_rank_finds(
    tiny_job: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    """Six images of three slices and two states on up to seven ranks; pieces and blocks of a few rows."""
    monkeypatch.setattr(transpose, "PIECE_BYTES", 6000)
    monkeypatch.setattr(transpose, "BLOCK_BYTES", 20000)
    job = job_with(tiny_job, *EACH[name], f"ptychography.precision={precision}")
    wanted = by_one(job, precision)
    before = example(precision)
    assert max(np.abs(a - b).max() for a, b in zip(wanted[:2], before)) > 1e-3

    def one(comm: Communicator, kind: str) -> None:
        exchange = make_exchange(kind, comm, POSITIONS, GRID, WINDOW, 0)
        state = state_of(*before, exchange)
        Constraints(job, model_of(precision), 100.0).apply(state, exchange)
        held = wanted[0][:, *exchange.held.slices(WHOLE)]
        assert close(state.obj, held, np.abs(wanted[0]).max(), precision)
        assert close(state.probe, wanted[1], np.abs(wanted[1]).max(), precision)
        assert close(state.refined["variation"], wanted[2], np.abs(wanted[2]).max(), precision)

    for kind in ("replicated", "tiled"):
        for size in (SIZES[::2] if name == "all" else SIZES) if precision == "double" else SIZES[-1:]:
            run_ranks(size, lambda comm, kind=kind: one(comm, kind))


def test_more_ranks_than_rows(tiny_job: Path) -> None:
    """Some have neither a core nor rows nor columns, and do nothing but take part; two states."""
    few = POSITIONS[:1]
    grid = object_grid(few, WINDOW, SAMPLING, 0)
    job = job_with(tiny_job, *EACH["ramp"], *EACH["scale"], *EACH["centre"], *EACH["mirror"])
    rng = np.random.default_rng(3)
    obj = np.exp(0.3j * rng.standard_normal((2 * N_SLICES, *grid.shape)) - 0.1)
    probe = 1 + rng.standard_normal((1, *WINDOW)) + 0j

    def one(comm: Communicator) -> tuple[int, Any, Any]:
        exchange = make_exchange("tiled", comm, few, grid, WINDOW, 0)
        held = exchange.place(obj if comm.rank == 0 else None)
        state = PtychographyState(
            obj=held, probe=probe.copy(), positions=few, grid=grid, box=exchange.held, n_states=2, iteration=1
        )
        Constraints(job, model_of("double"), 100.0).apply(state, exchange)
        return held.size, exchange.whole(state.obj), state.probe

    alone = run_ranks(1, one)[0]
    assert np.abs(alone[1] - obj).max() > 1e-2
    found = run_ranks(40, one)
    assert min(size for size, _, _ in found) == 0
    assert np.abs(found[0][1] - alone[1]).max() < 1e-12 * np.abs(alone[1]).max()
    for _, _, its_probe in found:
        assert np.abs(its_probe - alone[2]).max() < 1e-12 * np.abs(alone[2]).max()


class OneOfMany(SerialCommunicator):
    """One rank of a tiled group whose others say nothing but which boxes they have: it shows what a rank needs."""

    def __init__(self, rank: int, layout: TileLayout) -> None:
        super().__init__()
        self.rank, self.size = rank, len(layout.cores)
        self._boxes = [np.array([(b.y0, b.y1, b.x0, b.x1) for b in boxes]) for boxes in (layout.held, layout.cores)]

    def sum(self, a: Any) -> Any:
        for boxes in self._boxes:
            if a.shape == boxes.shape and (a[self.rank] == boxes[self.rank]).all():
                return boxes
        return a.copy()

    def swap(self, outgoing: dict[int, Any], incoming: dict[int, Any]) -> None:
        for buffer in incoming.values():
            buffer[...] = 1


FOR_MEMORY = {
    "scale": "constraints.scale={}",
    "ramp": "constraints.ramp={}",
    "gauges": "constraints={centre = {}, ramp = {}, scale = {}}",
    "filter": "constraints.kz_filter={ends = 'mirror', amplitude_share = 0.5}",
}


@pytest.mark.parametrize(("name", "n_slices"), [(n, s) for n in FOR_MEMORY for s in (1, 6) if (n, s) != ("filter", 1)])
def test_no_rank_has_the_whole_object(
    tiny_job: Path, monkeypatch: pytest.MonkeyPatch, name: str, n_slices: int
) -> None:
    """One of 36 ranks takes what is planned, and but a few of its share of the object."""
    for module in (transpose, constrain):
        monkeypatch.setattr(module, "PIECE_BYTES", 1 << 16)
        monkeypatch.setattr(module, "BLOCK_BYTES", 1 << 16)
    # A plan of a small transform holds the array that it worked on last
    monkeypatch.setattr(fft, "_KEPT_BYTES", 0)
    rng, window = np.random.default_rng(1), (32, 32)
    positions = rng.uniform(0, 900, (400, 2))
    grid = object_grid(positions, window, (1.0, 1.0))
    layout = tile_layout(positions, grid, window, 36, 8)
    job = job_with(tiny_job, f"ptychography.slices={n_slices}", FOR_MEMORY[name])
    model = PtychographyModel(window, (1.0, 1.0), 0.025, 40.0 if n_slices > 1 else 0.0)
    exchange = make_exchange("tiled", OneOfMany(0, layout), positions, grid, window, 8)
    held = exchange.held.shape[0] * exchange.held.shape[1]

    def run() -> int:
        state = PtychographyState(
            obj=np.full((n_slices, *exchange.held.shape), 0.9 + 0.1j, np.complex64),
            probe=np.ones((1, *window), np.complex64),
            positions=positions,
            grid=grid,
            box=exchange.held,
            iteration=1,
        )
        made = Constraints(job, model, 100.0)
        tracemalloc.start()
        try:
            made.apply(state, exchange)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    run()
    taken, pixels = run(), math.prod(grid.shape)
    planned = bytes_between_sweeps(job, pixels, held, 36, n_slices, 8)
    assert 0.5 * planned < taken < planned
    assert taken < 0.2 * 8 * n_slices * pixels


def test_a_block_of_the_filter_takes_the_memory_that_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside its place in the share: a copy of it, transforms of twice the slices, and their weights."""
    monkeypatch.setattr(fft, "_KEPT_BYTES", 0)
    kind = constraint_class("kz_filter")
    constraint, block = kind(kind.Options(amplitude_share=0.5)), np.full((1, 8, 64, 256), 1 + 0.1j, np.complex64)

    def columns() -> Any:
        copied = fft.fftn(block.copy(), axes=(-2,))
        return fft.ifftn(constraint.filtered(copied, (64, 256), Box(0, 64, 0, 256)), axes=(-2,))

    def pixels() -> Any:
        return constraint.finish(block, constraint.start(block.copy()), np.ones((64, 256), np.float32))

    taken = []
    for work in (columns, pixels):
        work()
        tracemalloc.start()
        try:
            work()
            taken.append(tracemalloc.get_traced_memory()[1] / block.nbytes)
        finally:
            tracemalloc.stop()
    assert 0.7 * BLOCK_COPIES < max(taken) < BLOCK_COPIES - 1
