"""Engines on arrays of a device, by the stand-in for CuPy, against the same on NumPy's; no GPU has run them."""

from dataclasses import fields

import numpy as np
import pytest
from on_device import assert_same, pair, run
from phantom import Phantom

from hpcrec.engines import ENGINES, engine_class
from hpcrec.engines.base import visit
from hpcrec.engines.descent import DescentEngine
from hpcrec.models.placement import state_on
from hpcrec.parallel.communicator import SerialCommunicator
from hpcrec.parallel.exchange import make_exchange

# What else an engine can do than by its defaults, of the table's engines that have a choice
OPTIONS = {
    "epie": [{"object_regularity": 0.5, "probe_regularity": 0.5}, {"object_constraint": "phase_only"}],
    "mpie": [{"patterns_per_kick": 16}, {"patterns_per_kick": 16, "object_constraint": "amplitude_bound"}],
    "three_pie": [{"wave_step": 0.8, "wave_regularity": 0.7}],
    "wasp": [{"groups": 2}],
    "dm": [{"relaxation": 0.8, "noise_share": 0.0}],
    "raar": [{"loss": "poisson"}],
    "gradient": [
        {"loss": "poisson"},
        {"loss": "poisson", "object_constraint": "amplitude_bound"},
        {"method": "adam"},
        {"method": "adam", "object_constraint": "amplitude_bound"},
    ],
    "lsqml": [
        {"loss": "poisson", "momentum": 0.5, "poisson_step": "fixed_point"},
        {"loss": "poisson", "momentum": 0.5, "poisson_step": "fixed_point", "object_constraint": "amplitude_bound"},
        {"momentum": 0.5, "object_update": "sweep"},
        {"momentum": 0.5, "object_update": "sweep", "object_constraint": "amplitude_bound"},
    ],
    "cg": [{"loss": "gaussian"}],
    "lbfgs": [{"history": 2, "loss": "poisson"}],
}


def cases():
    """Every engine of the table, with one slice and where it may with two; these with all options."""
    for name in ENGINES:
        alone = engine_class(name).one_slice_only
        choices = [{}, {"object_constraint": "amplitude_bound"}, *OPTIONS.get(name, [])]
        for n_slices, more in [*([] if alone else [(1, {})]), *((1 if alone else 2, m) for m in choices)]:
            yield pytest.param(name, n_slices, more, id="-".join([name, str(n_slices), *map(str, more.values())]))


@pytest.mark.parametrize(("name", "n_slices", "more"), list(cases()))
def test_a_sweep_is_that_of_the_host(cupy, name, n_slices, more):
    """Two sweeps in double precision, two modes: transforms' and sums' round-off grows to some 1e-13."""
    phantom, host, device = pair(cupy, n_slices, more.get("loss", "amplitude"))
    (engine, wanted), (_, found) = run(phantom, host, name, **more), run(phantom, device, name, **more)
    assert found == pytest.approx(wanted, rel=1e-10)
    for one in ("obj", "probe") if engine.moves_probe else ("obj",):
        before, after = getattr(phantom.start, one), getattr(host, one)
        assert isinstance(getattr(device, one), cupy.ndarray)
        change = np.abs(after - before).max()
        assert change > 1e-3 * np.abs(before).max(), one
        assert np.abs(getattr(device, one).get() - after).max() <= 1e-9 * change, one
    assert_same(cupy, device, host, 1e-8)


@pytest.mark.parametrize("name", ENGINES)
def test_single_precision_stays_single(cupy, name):
    """Of values nothing is asked but their sum: what a sweep makes of round-off depends on the engine."""
    phantom, host, device = pair(cupy, 1, precision="single")
    (_, wanted), (_, found) = run(phantom, host, name, 1), run(phantom, device, name, 1)
    assert found == pytest.approx(wanted, rel=1e-4)
    assert_same(cupy, device, host)
    assert device.obj.dtype == device.probe.dtype == np.complex64


@pytest.mark.parametrize("name", OPTIONS)
def test_the_table_of_options_names_what_engines_have(name):
    known = {f.name for f in fields(engine_class(name).Options)}
    assert all(more.keys() <= known for more in OPTIONS[name])


@pytest.mark.parametrize("name", ENGINES)
def test_waves_follow_refined_positions(cupy, name):
    """Positions move in the second sweep; where exit waves are kept, they move along."""
    phantom, host, device = pair(cupy, 1)
    refine = {"positions": {"start_iteration": 1}}
    for start in (host, device):
        run(phantom, start, name, 2, refine)
    assert np.abs(host.positions - phantom.start.positions).max() > 1e-3
    assert isinstance(device.positions, np.ndarray)
    assert_same(cupy, device, host, 1e-8)


def test_only_arrays_of_the_host_stream(cupy):
    phantom = Phantom()
    assert phantom.model.streams_on(phantom.start)
    assert not phantom.model.streams_on(state_on(cupy, phantom.start))
    assert not Phantom(precision="double").model.streams_on(phantom.start)


@pytest.mark.parametrize("name", ["lsqml", "cg", "raar"])
def test_patterns_move_once_for_all_passes(cupy, name, monkeypatch):
    phantom, _, device = pair(cupy, 1)
    moved, asarray = [], cupy.asarray

    def counted(values, dtype=None):
        if isinstance(values, np.ndarray) and values.shape == phantom.patterns.shape:
            moved.append(values)
        return asarray(values, dtype)

    monkeypatch.setattr(cupy, "asarray", counted)
    cls = engine_class(name)
    engine = cls(phantom.model, cls.Options(probe_start=0))
    engine.prepare(device)
    exchange = make_exchange("replicated", SerialCommunicator(), device.positions, device.grid, phantom.model.shape)
    for batch in phantom.batches(64, 1):
        visit(engine, device, batch, exchange.total)
    assert len(moved) == 1


def test_products_come_from_the_device_at_once(cupy, monkeypatch):
    phantom, _, device = pair(cupy, 2)
    engine, _ = run(phantom, device, "lbfgs")
    assert isinstance(engine, DescentEngine)
    copies, get = [], cupy.ndarray.get
    monkeypatch.setattr(cupy.ndarray, "get", lambda a: copies.append(a.shape) or get(a))
    (batch,) = phantom.batches(64, 1)
    found = engine.accumulate("products", device, batch)
    assert copies == [found.sums["products"].shape]
    assert copies[0] > (1,)
