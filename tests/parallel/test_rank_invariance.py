"""One rank and many give the same reconstruction, whatever the engine and the exchange."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from hpcrec.engines import ENGINES, engine_class
from hpcrec.engines.base import visit
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.scan import raster_positions
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.parallel.communicator import run_ranks
from hpcrec.parallel.exchange import EXCHANGES, make_exchange
from hpcrec.parallel.flight import make_flight
from hpcrec.physics.probe import aberrated_probe, orthogonal_start_modes
from hpcrec.refine import REFINEMENTS, refinement_class

SHAPE, SAMPLING, WAVELENGTH = (16, 16), (0.4, 0.4), 0.0251
POSITIONS = raster_positions((8, 7), (0.9, 0.9)) + np.random.default_rng(2).uniform(-0.2, 0.2, (56, 2))
GRID = object_grid(POSITIONS, SHAPE, SAMPLING)
MARGIN = 3
SWEEPS = 7
BATCH = 12
# Tiles whose messages travel while the interior of a share is computed
IN_FLIGHT = "in flight"
KINDS = (*EXCHANGES, IN_FLIGHT)
# One rank that divides its shares in the middle
HALVES = "halves"


@cache
def problem(precision, n_slices):
    """Return model, starting probe and the patterns of a phase object of one or two slices under two modes."""
    model = PtychographyModel(SHAPE, SAMPLING, WAVELENGTH, 30.0, precision=precision)
    rng = np.random.default_rng(11)
    phase = gaussian_filter(rng.standard_normal((n_slices, *GRID.shape)), (0, 2, 2), mode="wrap")
    probe = aberrated_probe(SHAPE, SAMPLING, WAVELENGTH, 0.022, {"C10": -60.0})
    probe = (orthogonal_start_modes(probe, 2, share=0.15) * 300.0).astype(model.dtype)
    truth = PtychographyState(
        obj=np.exp(0.3j * phase / phase.std()).astype(model.dtype),
        probe=probe,
        positions=POSITIONS,
        grid=GRID,
        box=Box(0, GRID.shape[0], 0, GRID.shape[1]),
    )
    patterns = np.rint(model.simulate(truth, np.arange(len(POSITIONS)))).astype(np.uint16)
    return model, probe, patterns


class Halves:
    """Divides the batches of one rank, as messages in flight divide those of many."""

    def __init__(self, exchange):
        self._exchange, self._batch, self._parts = exchange, None, ()

    def total(self, accumulate, batch, positions, peaks):
        if batch is not self._batch:
            middle = len(batch.indices) // 2
            self._batch = batch
            self._parts = [
                replace(batch, indices=batch.indices[part], patterns=batch.patterns[part], part=number)
                for number, part in enumerate((slice(0, middle), slice(middle, None)))
            ]
        first, second = map(accumulate, self._parts)
        return self._exchange.total(first + second, peaks)


def reconstruct(comm, kind, engine_name, precision, batch_size=BATCH, refine=(), weights=None, **options):
    """Run sweeps as the run loop does; return rank 0's whole object, and every rank's probe, positions, errors."""
    cls = engine_class(engine_name)
    n_slices, batch_size = 1 if cls.one_slice_only else 2, len(POSITIONS) if cls.full_batch else batch_size
    model, probe, patterns = problem(precision, n_slices)
    chosen = [refinement_class(name) for name in refine]
    refinements = [c(model, c.Options(start_iteration=3, **LIMITS.get(n, {}))) for n, c in zip(refine, chosen)]
    engine = cls(model, cls.Options(**options), refinements)
    exchange = make_exchange(
        {IN_FLIGHT: "tiled", HALVES: "replicated"}.get(kind, kind), comm, POSITIONS, GRID, SHAPE, MARGIN, None, weights
    )
    flight = make_flight(exchange, "always") if kind == IN_FLIGHT else None
    in_flight = flight.total if flight is not None else Halves(exchange).total if kind == HALVES else None
    state = PtychographyState(
        obj=np.ones((n_slices, *exchange.held.shape), model.dtype),
        probe=probe.copy(),
        positions=POSITIONS.copy(),
        grid=GRID,
        box=exchange.held,
    )
    state.core = exchange.core
    state.own = np.sort(exchange.share(np.arange(len(POSITIONS))))
    engine.prepare(state)
    errors = []
    for i in range(SWEEPS):
        order = np.random.default_rng(i).permutation(len(POSITIONS))
        error = counts = 0.0
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            own = exchange.share(indices)
            own = own if flight is None else flight.order(own, state.positions)
            batch = Batch(own, patterns[own], step=start, n_global=len(indices), of_all=indices)
            total = visit(engine, state, batch, exchange.total, in_flight)
            error, counts = error + total.sums["error"][0], counts + total.sums["counts"][0]
        engine.finish_iteration(state)
        exchange.update_positions(state.positions)
        errors.append(error / counts)
    refined = np.concatenate([state.positions.ravel(), *(v.ravel() for v in state.refined.values())])
    return exchange.whole(state.obj), state.probe, refined, errors


@cache
def alone(engine_name, precision, options):
    return run_ranks(1, lambda comm: reconstruct(comm, "replicated", engine_name, precision, **dict(options)))[0]


def difference(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


CASES = {
    "gradient": {"probe_start": 1},
    "gradient-adam": {"probe_start": 1, "method": "adam"},
    "lsqml": {"probe_start": 1},
    "lsqml-momentum": {"probe_start": 1, "momentum": 0.5},
    "lsqml-compact": {"probe_start": 1, "momentum": 0.4, "object_update": "sweep"},
    "epie": {"probe_start": 1, "object_regularity": 0.5},
    "rpie": {"probe_start": 1},
    "mpie": {"probe_start": 1},
    "pie": {},
    "three_pie": {"probe_start": 1, "wave_regularity": 0.5},
    "wasp": {"probe_start": 1, "groups": 2},
    "dm": {"probe_start": 1},
    "raar": {"probe_start": 1},
    "er": {"probe_start": 1},
    "relaxed_average": {"probe_start": 1},
    "cg": {"probe_start": 1},
    "lbfgs": {"probe_start": 1},
}


LIMITS = {"annealing": {"radius_angstrom": 0.4, "max_move_angstrom": 0.8, "stop_iteration": 6}}
REFINED = [name for name in REFINEMENTS if name not in ("affine", "annealing")]
REFINED_CASES = {
    "gradient-positions": {"probe_start": 1, "refine": ("positions",)},
    "lsqml-positions": {"probe_start": 1, "refine": ("positions", "affine")},
    "epie-annealing": {"probe_start": 1, "refine": ("annealing",)},
    "raar-positions": {"probe_start": 1, "noise_share": 0.0, "refine": ("positions", "intensity")},
    "cg-positions": {"probe_start": 1, "refine": ("positions",)},
    "wasp-tilt": {"probe_start": 1, "refine": ("tilt",)},
    "gradient-everything": {"probe_start": 1, "refine": tuple(REFINED)},
    "lsqml-everything": {"probe_start": 1, "refine": tuple(REFINED)},
}


def test_every_engine_is_compared():
    assert {case.split("-")[0] for case in CASES} == set(ENGINES)


def check(case, kind, size, precision, tolerance, weights=None):
    name, options = case.split("-")[0], (CASES | REFINED_CASES)[case]
    obj, probe, positions, errors = alone(name, precision, tuple(options.items()))
    assert errors[-1] < 0.3 * errors[0], "the reference itself must converge, or agreement says nothing"
    results = run_ranks(size, lambda comm: reconstruct(comm, kind, name, precision, weights=weights, **options))
    assert difference(results[0][0], obj) <= tolerance
    np.testing.assert_allclose(results[0][3], errors, rtol=100 * tolerance)
    for _, its_probe, its_positions, its_errors in results:
        assert difference(its_probe, probe) <= tolerance
        assert difference(its_positions, positions) <= tolerance
        np.testing.assert_array_equal(its_probe, results[0][1])  # what is the same on all ranks is so bit by bit
        np.testing.assert_array_equal(its_positions, results[0][2])
        assert its_errors == results[0][3]


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["gradient", "lsqml", "epie"])
def test_many_ranks_give_the_answer_of_one(case, kind, size):
    check(case, kind, size, "single", 1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_what_differs_is_round_off(case, kind):
    """In double precision the difference falls with the precision."""
    check(case, kind, 3, "double", 1e-10)


@pytest.mark.parametrize("case", [*CASES, "gradient-everything", "lsqml-everything"])
def test_what_is_divided_differs_by_round_off(case):
    assert engine_class(case.split("-")[0]).divided
    check(case, HALVES, 1, "double", 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", REFINED_CASES)
def test_what_is_refined_differs_by_round_off(case, kind):
    check(case, kind, 3, "double", 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [(1.0, 2.0, 1.0), (3.0, 1e-9, 1.0)])
def test_weights_of_the_shares_change_round_off_only(kind, weights):
    check("lsqml", kind, 3, "double", 1e-10, weights)


def test_batches_of_epie_end_no_worse_than_serial_epie():
    """Ranks share batches of 8 patterns; one rank alone visits pattern by pattern."""

    def last_error(comm, batch_size):
        return reconstruct(comm, "replicated", "epie", "single", batch_size, probe_start=1)[3][-1]

    serial = run_ranks(1, lambda comm: last_error(comm, 1))[0]
    shared = run_ranks(2, lambda comm: last_error(comm, 8))[0]
    assert shared < 1.02 * serial
