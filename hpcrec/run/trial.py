"""A short reconstruction of part of one tilt, to see how well a job explains patterns that it was not shown."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hpcrec.analysis.patterns import COLUMNS, pattern_figures
from hpcrec.backend.array import FloatArray, IntArray
from hpcrec.data.batches import global_batches
from hpcrec.data.dataset import TiltSeries
from hpcrec.engines.base import visit
from hpcrec.errors import DivergedError
from hpcrec.geometry.grid import object_grid
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import good_pixels
from hpcrec.parallel.communicator import SerialCommunicator
from hpcrec.parallel.exchange import make_exchange
from hpcrec.run.build import build_engine, build_model
from hpcrec.run.job import Job
from hpcrec.run.runner import batch_size
from hpcrec.run.start import GRID_MARGIN, common_grid, moving_margin, start_state, tilt_setup


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a short reconstruction left.

    ``data_error`` Σ(|F| − √I)² / ΣI of the patterns used, in the last sweep; ``held_errors`` (pattern,) Σ(|F| − √I)²
    of those held out, ``held_counts`` (pattern,) their ΣI, all over good pixels; ``phase`` (y, x) rad of the product of
    all slices where the scan is, in the frame of the positions.
    """

    data_error: float
    held_errors: FloatArray
    held_counts: FloatArray
    phase: FloatArray

    @property
    def held_error(self) -> float:
        """Σ(|F| − √I)² / ΣI of the patterns held out."""
        return float(self.held_errors.sum() / max(float(self.held_counts.sum()), 1e-30))


def held_out(n: int, share: float = 0.15, seed: int = 1) -> IntArray:
    """Return which of ``n`` positions a trial is not shown, sorted; at least two."""
    count = max(2, round(share * n))
    return np.sort(np.random.default_rng(seed).choice(n, count, replace=False))


def try_job(job: Job, series: TiltSeries, i_tilt: int, subset: IntArray, held: IntArray) -> Trial:
    """Reconstruct ``subset`` (n,) of a tilt's positions with the job's model and engine for the job's iterations.

    ``held`` counts in the subset and is left out. Everything is built as in a run, on one rank and in memory. Raises
    :class:`DivergedError` where errors are not finite.
    """
    setup = tilt_setup(job, series, i_tilt, common_grid(job, series))
    positions = setup.positions[subset]
    grid = object_grid(positions, setup.window, setup.sampling, GRID_MARGIN + moving_margin(job, series))
    setup = replace(setup, positions=positions, grid=grid)
    scan = series.tilt(i_tilt)
    patterns, good = scan.read(subset), scan.read_good(subset)
    model = build_model(job, setup.window, setup.sampling, setup.wavelength, setup.mask)
    engine = build_engine(job, model)
    exchange = make_exchange("replicated", SerialCommunicator(), positions, grid, setup.window)
    state = start_state(job, setup, exchange.held)
    shown = np.setdiff1d(np.arange(len(subset)), held)
    state.visited = len(shown)
    engine.prepare(state)

    def batch(indices: IntArray, step: int = 0) -> Batch:
        own = None if good is None else good[indices]
        return Batch(indices=indices, patterns=patterns[indices], good=own, step=step, n_global=len(indices))

    error = 0.0
    for iteration in range(job.ptychography.iterations):
        sums = np.zeros(2)
        size, seed = batch_size(job, len(shown)), job.ptychography.seed
        picks = global_batches(len(shown), size, seed=seed, tilt=setup.number, iteration=iteration)
        for step, pick in enumerate(picks):
            total = visit(engine, state, batch(shown[pick], step), exchange.total)
            sums += [float(total.sums[name][0]) for name in ("error", "counts")]
        engine.finish_iteration(state)
        error = float(sums[0] / sums[1])
    left = batch(held)
    counted = good_pixels(model.detector, left.patterns, left.good)
    figures = pattern_figures(model.simulate(state, held), model.clean(left), counted)
    held_errors, held_counts = (figures[:, COLUMNS.index(name)] for name in ("error", "counts"))
    if not (np.isfinite(error) and np.isfinite(held_errors).all()):
        raise DivergedError(f"tilt {setup.number}: a trial reconstruction is not finite; check the data's units")
    return Trial(
        data_error=error,
        held_errors=held_errors,
        held_counts=held_counts,
        phase=_scanned_phase(state, positions),
    )


def _scanned_phase(state: PtychographyState, positions: FloatArray) -> FloatArray:
    """Return the phase (y, x) of the product of the first state's slices in the box around the positions."""
    product = np.prod(state.obj[: state.n_slices], axis=0)
    product = product * np.exp(-1j * np.angle(product.sum()))
    low, high = (np.rint(state.grid.to_pixels(edge)).astype(int) for edge in (positions.min(0), positions.max(0)))
    return np.asarray(np.angle(product[low[0] : high[0] + 1, low[1] : high[1] + 1]), np.float64)
