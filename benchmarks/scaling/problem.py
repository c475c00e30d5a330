"""One tilt with a known object of any size, of which each rank makes its own part, and its sweeps on many ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from scipy.ndimage import gaussian_filter

from hpcrec.data.batches import global_batches
from hpcrec.engines import engine_class
from hpcrec.engines.base import visit
from hpcrec.geometry.grid import Grid, object_grid
from hpcrec.geometry.scan import hilbert_order
from hpcrec.geometry.tiles import Box, bounding_box, window_corners
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.parallel.communicator import Communicator
from hpcrec.parallel.exchange import Exchange, make_exchange
from hpcrec.parallel.flight import make_flight
from hpcrec.physics.probe import aberrated_probe, orthogonal_start_modes
from hpcrec.refine import refinement_class

SAMPLING, WAVELENGTH, SEMIANGLE = 0.4, 0.0251, 0.022
_PERIOD: Final = 96
_CHUNK: Final = 16


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A phase object whose structure repeats every 96 pixels, so that any box of it can be made alone.

    n : pixels along a pattern; positions (position, 2) Å; grid of the object; defocus Å; counts of a pattern;
    taper Å : where the probe ends, 0: nowhere; noise : whether patterns are counts
    """

    n: int
    positions: np.ndarray
    grid: Grid
    n_slices: int = 1
    n_modes: int = 1
    precision: str = "single"
    defocus: float = 60.0
    counts: float = 9e4
    phase: float = 0.3
    taper: float = 0.0
    noise: bool = False

    @cached_property
    def model(self) -> PtychographyModel:
        """The forward model, one thread."""
        thickness = 30.0 if self.n_slices > 1 else 0.0
        return PtychographyModel((self.n, self.n), self.grid.sampling, WAVELENGTH, thickness, precision=self.precision)

    @cached_property
    def probe(self) -> np.ndarray:
        """The true probe (mode, y, x)."""
        sampling = self.grid.sampling
        wave = aberrated_probe((self.n, self.n), sampling, WAVELENGTH, SEMIANGLE, {"C10": -self.defocus})
        if self.taper:
            y = (np.arange(self.n) - self.n // 2) * self.grid.sampling[0]
            wave = wave * np.exp(-(((y[:, None] ** 2 + y**2) / self.taper**2) ** 2))
            wave = wave / np.sqrt(np.sum(np.abs(wave) ** 2))
        modes = orthogonal_start_modes(wave, self.n_modes, share=0.15)
        return (modes * np.sqrt(self.counts)).astype(self.model.dtype)

    @cached_property
    def _texture(self) -> np.ndarray:
        noise = np.random.default_rng(11).standard_normal((self.n_slices, _PERIOD, _PERIOD))
        smooth = gaussian_filter(noise, (0, 2, 2), mode="wrap")
        return np.exp(1j * self.phase * smooth / smooth.std()).astype(self.model.dtype)

    def truth(self, box: Box) -> np.ndarray:
        """Return the true object (slice, y, x) on a box."""
        rows, columns = np.arange(box.y0, box.y1) % _PERIOD, np.arange(box.x0, box.x1) % _PERIOD
        return self._texture[:, rows][:, :, columns]

    def state(self, obj: np.ndarray, box: Box) -> PtychographyState:
        """Return a state with an object on a box."""
        return PtychographyState(
            obj=obj, probe=self.probe.copy(), positions=self.positions.copy(), grid=self.grid, box=box
        )

    def patterns(self, indices: np.ndarray) -> np.ndarray:
        """Return the patterns (n, ky, kx) of some positions, uint16, from as little of the object as they see."""
        found = np.empty((len(indices), self.n, self.n), np.uint16)
        window = (self.n, self.n)
        for start in range(0, len(indices), _CHUNK):
            part = indices[start : start + _CHUNK]
            box = bounding_box(window_corners(self.positions[part], self.grid, window), window).grow(2)
            state = self.state(self.truth(box), box)
            mean = self.model.simulate(state, part)
            for i, index in enumerate(part):
                # The counts of a pattern are its own, whichever rank makes it
                counts = np.random.default_rng((3, int(index))).poisson(mean[i]) if self.noise else np.rint(mean[i])
                found[start + i] = counts
        return found

    def illumination(self) -> np.ndarray:
        """Return Σ|P|² of all positions on the grid (y, x), windows on whole pixels."""
        found, power = np.zeros(self.grid.shape), np.sum(np.abs(self.probe) ** 2, axis=0)
        for y, x in window_corners(self.positions, self.grid, (self.n, self.n)):
            found[y : y + self.n, x : x + self.n] += power
        return found


def jittered(shape: tuple[int, int], step: float, seed: int = 2) -> np.ndarray:
    """Return a raster (position, 2) in Å whose points are off by up to a fifth of a step."""
    y, x = np.meshgrid(*(np.arange(n) * step for n in shape), indexing="ij")
    points = np.stack([y.ravel(), x.ravel()], axis=1)
    return points + np.random.default_rng(seed).uniform(-0.2, 0.2, points.shape) * step


def problem(n: int, positions: np.ndarray, **more: Any) -> Problem:
    """Return a problem on the smallest grid."""
    return Problem(n=n, positions=positions, grid=object_grid(positions, (n, n), (SAMPLING, SAMPLING)), **more)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done with a problem.

    exchange, engine : by name; batch : patterns of an update, over all ranks; refine : names of refinements, which
    begin in the fourth sweep; windowed : one rank alone keeps gradients on windows, as a job of one rank does;
    in_flight : large batches of tiles are divided, as those of a job are on several hosts
    """

    exchange: str = "replicated"
    engine: str = "gradient"
    sweeps: int = 10
    batch: int = 12
    margin: int = 3
    refine: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = (("probe_start", 1),)
    windowed: bool = False
    in_flight: bool = False


class Rank:
    """One rank's part of the work: its state, its patterns, its engine."""

    def __init__(self, given: Problem, work: Work, communicator: Communicator) -> None:
        cls, window = engine_class(work.engine), (given.n, given.n)
        chosen = [(refinement_class(name), name) for name in work.refine]
        refinements = [c(given.model, c.Options(start_iteration=3)) for c, _ in chosen]
        self.given, self.work, self.communicator = given, work, communicator
        self.engine = cls(given.model, cls.Options(**dict(work.options)), refinements)
        self.exchange: Exchange = make_exchange(
            work.exchange, communicator, given.positions, given.grid, window, work.margin
        )
        self.flight = make_flight(self.exchange, "always") if work.in_flight else None
        self.batch = len(given.positions) if cls.full_batch else work.batch
        self.order = hilbert_order(given.positions)
        shape = (given.n_slices, *self.exchange.held.shape)
        self.state = given.state(np.ones(shape, given.model.dtype), self.exchange.held)
        self.state.core = self.exchange.core
        self.state.own = np.sort(self.exchange.share(np.arange(len(given.positions))))
        self.state.windowed = work.windowed and communicator.size == 1
        # Neighbours on the sample are simulated together
        along = self.exchange.share(np.arange(len(given.positions)))
        self.patterns = np.empty((len(along), given.n, given.n), np.uint16)
        self.patterns[np.searchsorted(self.state.own, along)] = given.patterns(along)

    def prepare(self) -> None:
        """Let the engine make its arrays."""
        self.engine.prepare(self.state)

    def batches(self, iteration: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the batches of a sweep, of all ranks and of this one; the same whatever the number of ranks."""
        n = len(self.given.positions)
        for indices in global_batches(n, self.batch, seed=1, tilt=0, iteration=iteration, kind="random", order=None):
            own = self.exchange.share(indices)
            yield indices, own if self.flight is None else self.flight.order(own, self.state.positions)

    def sweep(self) -> float:
        """Visit all patterns; return the data error."""
        error = counts = 0.0
        for step, (indices, own) in enumerate(self.batches(self.state.iteration)):
            patterns = self.patterns[np.searchsorted(self.state.own, own)]
            batch = Batch(own, patterns, step=step, n_global=len(indices), of_all=indices)
            in_flight = self.flight.total if self.flight is not None and self.flight.pays(batch) else None
            total = visit(self.engine, self.state, batch, self.exchange.total, in_flight)
            error, counts = error + float(total.sums["error"][0]), counts + float(total.sums["counts"][0])
        self.engine.finish_iteration(self.state)
        self.exchange.update_positions(self.state.positions)
        return error / counts


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came out: obj (slice, y, x) on rank 0, None elsewhere; the rest on every rank."""

    obj: np.ndarray | None
    probe: np.ndarray
    positions: np.ndarray
    errors: list[float]


def reconstruct(given: Problem, work: Work, communicator: Communicator) -> Found:
    """Run all sweeps."""
    rank = Rank(given, work, communicator)
    rank.prepare()
    errors = [rank.sweep() for _ in range(work.sweeps)]
    return Found(
        obj=rank.exchange.whole(rank.state.obj),
        probe=rank.state.probe,
        positions=rank.state.positions,
        errors=errors,
    )
