"""Single steps on the windows of a batch, compiled, against the same engine's step on the box around them."""

import copy

import numpy as np
import pytest
from phantom import SHAPE, Phantom

from hpcrec.backend.kernels import runs, updates
from hpcrec.backend.threads import Threads
from hpcrec.engines import engine_class, epie, gradient, lsqml
from hpcrec.geometry.tiles import Box
from hpcrec.models.partial import Field, Total
from hpcrec.models.windows import WindowSums, kick, plain_kick
from hpcrec.objectives.constraints import CONSTRAINTS

# A dozen roundings of single precision, 6e-8 each, in other orders
TOLERANCE = 1e-5
# What storing values of size 1 a few times costs
STORED = 2e-6
# Two windows side by side without a gap, one that overlaps with the first, one in the corner far off
CORNERS = np.array([[3, 2], [4, 2 + SHAPE[1]], [9, 5], [40, 44]])
GRID = (80, 82)
CASES = pytest.mark.parametrize(
    ("name", "more"),
    [
        ("epie", {}),
        ("rpie", {}),
        ("rpie", {"object_regularity": 0.0, "probe_regularity": 0.0}),
        ("epie", {"object_regularity": 0.0, "probe_regularity": 0.5}),
        ("gradient", {}),
        ("gradient", {"momentum": 0.0}),
        ("gradient", {"weight_floor": 0.0}),
        ("gradient", {"method": "adam", "object_step": 0.5}),
        ("gradient", {"method": "adam", "object_step": 0.5, "momentum": 0.0}),
        ("mpie", {"patterns_per_kick": 99}),
        ("mpie", {"patterns_per_kick": 4}),
        ("pie", {}),
        ("pie", {"object_regularity": 0.0}),
        ("wasp", {}),
        ("three_pie", {}),
        ("lsqml", {}),
        ("lsqml", {"momentum": 0.5}),
    ],
)


def draw(rng, *shape):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def lit():
    """Which pixels lie under the windows."""
    found = np.zeros(GRID, bool)
    for y, x in CORNERS:
        found[y : y + SHAPE[0], x : x + SHAPE[1]] = True
    return found


def started(name, constraint, n_threads, more):
    """An engine and its state in the midst of a run: momenta, sums and second moments hold something."""
    rng, phantom = np.random.default_rng(3), Phantom(2, 2, threads=n_threads)
    cls, state = engine_class(name), phantom.start
    engine = cls(phantom.model, cls.Options(probe_start=0, object_constraint=constraint, **more))
    state.box = Box(0, GRID[0], 0, GRID[1])
    state.obj = (draw(rng, 4, *GRID) + 1).astype(np.complex64)
    state.n_states = 2
    state.probe = draw(rng, *state.probe.shape)
    state.obj[1, 10, 10] = 0
    engine.prepare(state)
    for memory in (state.object_memory, state.memory):
        for key, values in memory.items():
            if key.endswith(("velocity", "waves")):
                memory[key] = 0.1 * draw(rng, *values.shape)
            elif key.endswith(("square", "weight")):
                memory[key] = rng.random(values.shape, np.float32)
            elif key.endswith(("before", "start")):
                memory[key] = values + np.complex64(0.1) * draw(rng, *values.shape)
            elif key == "updates":
                memory[key] = np.array([3.0, 5.0])
    return engine, state


def sums_of(rng, state):
    """Return gradient, weight (slice, y, x), and what else a batch tells; some pixels dark, or lit by round-off."""
    shape = state.obj.shape
    # Below and above the probe's peak of some 20
    g, w = 3 * draw(rng, *shape), rng.uniform(0.01, 60, shape).astype(np.float32)
    where = rng.random(shape)
    w[where < 0.1], w[(where > 0.1) & (where < 0.2)] = 0, 1e-14
    # Light of round-off comes with a gradient of round-off
    g[w == 0], g[w == np.float32(1e-14)] = 0, 1e-8
    g[1, 10, 10] = 0
    w[:, ~lit()] = 0
    g[:, ~lit()] = 0
    terms = rng.uniform(1, 2, (7, 5)) * (1, 0.1, 1, 1, 1)
    told = {
        "probe_gradient": 50 * draw(rng, *state.probe.shape),
        "object_weight": rng.uniform(0, 4, SHAPE).astype(np.float32),
        "patterns": np.array([4.0]),
    }
    return g, w, told, terms


def apart(rng, values, n_threads):
    """Return arrays (thread, …) whose sum is ``values``."""
    shares = rng.random((n_threads, *values.shape)).astype(np.float32)
    return (shares / shares.sum(axis=0) * values).astype(values.dtype)


def take_step(engine, state, total, terms):
    for key in engine.passes[:2]:
        engine.apply(key, state, total if key == engine.passes[0] else Total({}, {"terms": terms}))


@CASES
@pytest.mark.parametrize("constraint", ["none", "amplitude_bound", "phase_only"])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_step_on_windows_is_that_on_the_box(monkeypatch, name, more, constraint, n_threads):
    """Same gradient, same weight, one step; the way over the box in plain NumPy."""
    for module in (gradient, lsqml, epie):
        monkeypatch.setattr(module, "precondition", updates.plain_precondition)
    monkeypatch.setattr(gradient, "step_with_momentum", updates.plain_step_with_momentum)
    engine, state = started(name, constraint, n_threads, more)
    other, dense = started(name, constraint, 1, more)
    before = copy.deepcopy(dense)
    rng = np.random.default_rng(4)
    assert 5 < np.sum(np.abs(state.probe) ** 2, axis=0).max() < 30
    g, w, told, terms = sums_of(rng, state)
    threads = Threads(n_threads)
    sums = apart(rng, g, n_threads), apart(rng, w, n_threads)
    order = np.argsort(CORNERS[:, 1])
    windows = WindowSums(CORNERS[order], SHAPE, *sums, threads)
    peak = {"illumination": float(w.max())}
    assert windows.peak() == pytest.approx(w.max(), rel=1e-6)
    take_step(engine, state, Total({}, told, peak, windows), terms)
    box = Box(3, 40 + SHAPE[0], 2, 44 + SHAPE[1])
    index = (slice(None), slice(box.y0, box.y1), slice(box.x0, box.x1))
    fields = {"object_gradient": Field(box, g[index]), "illumination": Field(box, w[index].copy())}
    take_step(other, dense, Total(fields, told, peak), terms)
    assert not windows.obj.any()
    assert not windows.illumination.any()
    assert not (state.obj - before.obj)[:, ~lit()].any() or name == "mpie"
    for found, wanted, old in (
        (state.object_memory | {"obj": state.obj}, dense.object_memory | {"obj": dense.obj}, before.object_memory),
        (state.memory | {"probe": state.probe}, dense.memory | {"probe": dense.probe}, before.memory),
    ):
        assert found.keys() == wanted.keys()
        for key, values in wanted.items():
            start = old.get(key, getattr(before, key, None))
            change = values - start
            assert found[key].dtype == values.dtype, key
            # Of each pixel's own change: a few that are large, as those without a floor may be, hide no other
            close = np.minimum(
                TOLERANCE * np.abs(change) + STORED * np.maximum(1, np.abs(start)), TOLERANCE * np.abs(change).max()
            )
            assert np.all(np.abs(found[key] - values) <= close), key
    assert np.abs(state.obj - before.obj)[:, lit()].max() > 1e-3


@pytest.mark.parametrize("n_threads", [1, 3])
def test_runs_are_the_rows_under_the_windows(n_threads):
    """No pixel twice, none left out; windows that touch make one run."""
    corners = CORNERS[np.argsort(CORNERS[:, 1])]
    found = runs.find_runs(corners, SHAPE, GRID[0])
    seen = np.zeros(GRID, int)
    for row, first, last in found:
        assert last > first
        seen[row, first:last] += 1
    np.testing.assert_array_equal(seen, lit())
    assert [2, 2 + 2 * SHAPE[1]] in found[found[:, 0] == 4, 1:].tolist()
    assert len(runs.find_runs(corners[:0], SHAPE, GRID[0])) == 0
    rng = np.random.default_rng(7)
    values = [rng.random((n_threads, 2, GRID[0], n * GRID[1]), np.float32) for n in (2, 1)]
    wanted = [np.where(np.repeat(lit(), n, axis=1), v.sum(axis=0), v[0]) for n, v in zip((2, 1), values, strict=True)]
    runs.add_threads(*values, found)
    for n, value, total in zip((2, 1), values, wanted, strict=True):
        np.testing.assert_allclose(value[0], total, rtol=1e-6)
        assert not value[1:, :, np.repeat(lit(), n, axis=1)].any()


def kicked(obj, velocity, before, momentum, share, bound):
    """Object and velocity after a kick, by its formula."""
    velocity = momentum * velocity + obj - before
    obj = obj + share * velocity
    return np.where(velocity != 0, CONSTRAINTS[bound](obj), obj), velocity


@pytest.mark.parametrize("bound", ["none", "amplitude_bound", "phase_only"])
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("n_threads", [1, 3, None])
def test_a_kick_and_its_plain_twin(bound, dtype, n_threads):
    """Relative to the largest value, 1; a part of the pixels never moved, and one is zero after the kick."""
    rng = np.random.default_rng(8)
    obj, velocity, before = (draw(rng, 3, 17, 19).astype(dtype) for _ in range(3))
    still = rng.random(obj.shape) < 0.3
    velocity[still], before[still] = 0, obj[still]
    obj[2, 3, 4] = before[2, 3, 4] = velocity[2, 3, 4] = 0
    wanted, moving = kicked(obj, velocity, before, 0.6, 0.7, bound)
    if n_threads is None:
        plain_kick(obj, velocity, before, momentum=0.6, share=0.7, bound=bound)
    else:
        kick(obj, velocity, before, momentum=0.6, share=0.7, bound=bound, threads=Threads(n_threads))
    tolerance = TOLERANCE if dtype == np.complex64 else 1e-13
    np.testing.assert_allclose(obj, wanted, rtol=0, atol=tolerance)
    np.testing.assert_allclose(velocity, moving, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(before, obj)


def test_a_kick_that_would_reach_copies_is_refused():
    obj, velocity, before = (np.zeros((3, 17, 19), np.complex64) for _ in range(3))
    for arrays in ((np.asfortranarray(obj), velocity, before), (obj[..., ::2], velocity[..., ::2], before[..., ::2])):
        with pytest.raises(ValueError, match="contiguous"):
            kick(*arrays, momentum=0.6, share=0.7, bound="none", threads=Threads(2))
