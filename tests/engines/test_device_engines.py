"""Engines on arrays of a device, by the stand-in for CuPy, against the same on NumPy's; no GPU has run them."""

import copy

import numpy as np
import pytest
from phantom import Phantom

from hpcrec.engines import engine_class
from hpcrec.engines.base import visit
from hpcrec.models.partial import Total
from hpcrec.models.placement import state_on


def total_of(partial, peaks=()):
    """The total of one rank, whose maxima CuPy can take."""
    found = {name: float(partial.fields[name].values.max()) for name in peaks}
    return Total(partial.fields, partial.sums, found)


@pytest.mark.parametrize("constraint", ["none", "amplitude_bound"])
@pytest.mark.parametrize(
    ("name", "loss", "more"),
    [
        ("epie", "amplitude", {"object_regularity": 0.5}),
        ("gradient", "poisson", {}),
        ("gradient", "amplitude", {"method": "adam"}),
        ("lsqml", "amplitude", {}),
        ("lsqml", "poisson", {"momentum": 0.5, "poisson_step": "fixed_point"}),
        ("lsqml", "amplitude", {"momentum": 0.5, "object_update": "sweep"}),
    ],
)
def test_a_sweep_is_that_of_the_host(cupy, name, loss, more, constraint):
    """Two sweeps in double precision, of two slices and two modes: round-off grows to some 1e-13."""
    phantom, cls = Phantom(2, 2, precision="double", loss=loss), engine_class(name)
    options = cls.Options(loss=loss, probe_start=0, object_constraint=constraint, **more)
    # Few scattered patterns move an object that waits for the sweep's end so badly that 1e-13 grows to 1e-7
    n_patterns = 32 if "object_update" in more else 16
    ends = []
    for start in (copy.deepcopy(phantom.start), state_on(cupy, phantom.start)):
        engine = cls(phantom.model, options)
        engine.prepare(start)
        told = 0.0
        for seed in range(2):
            for batch in phantom.batches(n_patterns, seed):
                told += float(visit(engine, start, batch, total_of).sums["error"][0])
            engine.finish_iteration(start)
        ends.append((start, told))
    (host, wanted), (device, found) = ends
    assert found == pytest.approx(wanted, rel=1e-10)
    for one in ("obj", "probe"):
        before, after = getattr(phantom.start, one), getattr(host, one)
        assert isinstance(getattr(device, one), cupy.ndarray)
        change = np.abs(after - before).max()
        assert change > 1e-3 * np.abs(before).max(), one
        assert np.abs(getattr(device, one).get() - after).max() <= 1e-9 * change, one
