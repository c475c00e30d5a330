"""The same sweeps on arrays of the host and on those of a device, by the stand-in for CuPy."""

import copy

import numpy as np
from phantom import Phantom, refinements, size_for

from hpcrec.engines import engine_class
from hpcrec.engines.base import visit
from hpcrec.models.placement import state_on
from hpcrec.parallel.communicator import SerialCommunicator
from hpcrec.parallel.exchange import make_exchange


def pair(cupy, n_slices=2, loss="amplitude", precision="double"):
    """A phantom of two modes, its start on the host and on the device."""
    phantom = Phantom(n_slices, 2, precision=precision, loss=loss)
    phantom.start.windowed = True
    return phantom, copy.deepcopy(phantom.start), state_on(cupy, phantom.start)


def run(phantom, start, name, n_sweeps=2, refine=None, **options):
    """Sweep from a start; return the engine and Σ(√I − √I₀)² of each sweep."""
    cls = engine_class(name)
    engine = cls(phantom.model, cls.Options(**{"probe_start": 0} | options), refinements(phantom.model, refine or {}))
    engine.prepare(start)
    # Few scattered patterns move an object that waits for the sweep's end so badly that round-off grows to 1e-7
    size, told = size_for(name, 32 if "object_update" in options else 16), []
    exchange = make_exchange("replicated", SerialCommunicator(), start.positions, start.grid, phantom.model.shape)
    for seed in range(n_sweeps):
        batches = phantom.batches(size, seed)
        told.append(sum(float(visit(engine, start, b, exchange.total).sums["error"][0]) for b in batches))
        engine.finish_iteration(start)
    return engine, told


def arrays(state):
    """All arrays of a state by name."""
    found = {"obj": state.obj, "probe": state.probe, "positions": state.positions}
    for group in ("refined", "object_memory", "memory", "pattern_memory"):
        found |= {f"{group}: {name}": values for name, values in getattr(state, group).items()}
    return found


def assert_same(cupy, device, host, tolerance=None):
    """Of the same types, where a state's arrays are moved to, and of the same values, relative to the largest one."""
    back = arrays(state_on(cupy, state_on(np, device)))
    wanted = arrays(host)
    assert arrays(device).keys() == wanted.keys()
    for name, values in arrays(device).items():
        assert type(values) is type(back[name]), f"{name} is not where a state is moved to"
        assert values.dtype == wanted[name].dtype, name
        if tolerance is None:
            continue
        found = values.get() if isinstance(values, cupy.ndarray) else values
        # Infinite where nothing was found yet
        differ, size = found != wanted[name], np.abs(wanted[name]).max(initial=0)
        off = np.abs(found[differ] - wanted[name][differ]).max(initial=0)
        assert off <= tolerance * size, (name, off, size)
