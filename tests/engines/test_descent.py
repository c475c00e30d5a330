"""Line searches and quasi-Newton directions against brute force and textbook loops."""

import numpy as np
import pytest
from phantom import Phantom, reconstruct, sweep, total_of

from hpcrec.engines.base import visit
from hpcrec.engines.cg import ConjugateGradient, polynomial_minimum
from hpcrec.engines.lbfgs import Lbfgs
from hpcrec.models.line import losses_along


def prepared(phantom, cls, **options):
    engine = cls(phantom.model, cls.Options(probe_start=0, **options))
    engine.prepare(phantom.start)
    return engine


def noisy_probe(phantom):
    state, rng = phantom.start, np.random.default_rng(0)
    state.probe = state.probe * (1 + 0.1 * rng.standard_normal(state.probe.shape))
    return state


def test_a_polynomial_is_minimised_exactly():
    p = np.polynomial.Polynomial([0, -3.0, 0.5, 1.2, -0.2, 0.4])
    steps = np.array([0.4, 0.9, 1.1, 1.6])
    best, lowest = polynomial_minimum(steps, p(steps), -3.0)
    grid = np.linspace(0, 1.6, 100001)
    assert best == pytest.approx(grid[np.argmin(p(grid))], abs=2e-5)
    assert lowest == pytest.approx(p(grid).min(), abs=1e-9)


def test_the_loss_along_a_line_is_a_polynomial():
    """Degree 8 for the Gaussian loss and one slice: seven steps, the value and the slope foretell any other step."""
    phantom = Phantom(1, 2, precision="double", loss="gaussian")
    state, rng = noisy_probe(phantom), np.random.default_rng(1)
    changes = [0.1 * rng.standard_normal(a.shape) * abs(a).max() for a in (state.obj, state.probe)]
    batch = next(phantom.batches(64, 0))
    steps = [*np.linspace(-0.4, 1, 9).tolist(), 0.77]
    found = losses_along(phantom.model, state, batch, *changes, steps)
    fit = np.polynomial.Polynomial.fit(steps[:9], found[:9], 8)
    assert fit(0.77) == pytest.approx(found[9], rel=1e-9)


@pytest.mark.parametrize(
    ("n_slices", "loss", "rest"), [(1, "gaussian", 1e-8), (1, "amplitude", 0.05), (3, "poisson", 0.05)]
)
def test_the_step_is_the_minimum_along_the_direction(n_slices, loss, rest):
    """What is left of the slope: nothing where the loss is a polynomial, a few per cent else."""
    phantom = Phantom(n_slices, precision="double", loss=loss)
    state, batch = noisy_probe(phantom), next(phantom.batches(64, 0))
    engine = prepared(phantom, ConjugateGradient, loss=loss)
    for _ in range(3):
        visit(engine, state, batch, total_of)
        after = phantom.model.gradients(state, batch, ["probe"])
        obj, probe = engine._direction
        obj = obj[(slice(None), *after.box.slices(state.box))]
        slope = 2 * (np.vdot(after.obj, obj) + np.vdot(after.probe, probe)).real
        assert abs(slope) < rest * abs(engine._slope)
        assert after.loss < engine._total.sums["loss"][0]


def test_the_two_loops_are_the_textbook_recursion():
    """Factors of vectors against the recursion on vectors (Nocedal and Wright, algorithm 7.4)."""
    phantom = Phantom(precision="double")
    engine, state = prepared(phantom, Lbfgs, history=3), noisy_probe(phantom)
    batch = next(phantom.batches(64, 0))
    for _ in range(5):
        visit(engine, state, batch, total_of)
    engine.apply("gradient", state, total_of(engine.accumulate("gradient", state, batch), ("illumination",)))
    engine.apply("products", state, total_of(engine.accumulate("products", state, batch)))

    def flat(name):
        return np.concatenate([part.ravel() for part in engine.vector(state, name)])

    metric = np.concatenate([engine._metric[0].ravel(), np.full(state.probe.size, engine._metric[1])])
    pairs = [(flat(f"step_{i}"), flat(f"change_{i}")) for i in engine._slots(state)]
    assert len(pairs) == 3
    q, shares = flat("gradient"), []
    for s, y in reversed(pairs):
        shares.append(np.vdot(s, q).real / np.vdot(s, y).real)
        q = q - shares[-1] * y
    s, y = pairs[-1]
    r = np.vdot(s, y).real / np.vdot(y, metric * y).real * metric * q
    for (s, y), share in zip(pairs, reversed(shares)):
        r = r + s * (share - np.vdot(y, r).real / np.vdot(s, y).real)
    found = np.concatenate([part.ravel() for part in engine._direction])
    np.testing.assert_allclose(found, -r, atol=1e-10 * abs(r).max())
    assert engine._slope == pytest.approx(-2 * np.vdot(flat("gradient"), r).real, rel=1e-9)


def test_a_step_that_is_too_long_is_shortened():
    engine = prepared(Phantom(), Lbfgs)
    step, more = engine.judge([1.0], [3.0], -1.0)
    assert step == 0
    assert more == [pytest.approx(0.125)]
    assert engine.judge([0.125], [-0.05], -1.0) == (0.125, [])


@pytest.mark.parametrize("cls", [ConjugateGradient, Lbfgs])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_step_beyond_the_finite_numbers_is_shortened(cls, bad):
    engine = prepared(Phantom(), cls)
    step, more = engine.judge([0.5, 1.0], [-0.1, bad] if cls is ConjugateGradient else [bad, bad], -1.0)
    assert step == 0
    assert 0 < more[-1] <= 0.5


@pytest.mark.parametrize("cls", [ConjugateGradient, Lbfgs])
def test_the_loss_never_grows(cls):
    """The gauge at the end of a sweep leaves the loss as it is."""
    phantom = Phantom(1, 2, precision="double", counts=1e4, noise=True)
    engine, losses = prepared(phantom, cls), []
    noisy_probe(phantom)
    for i in range(12):
        batch = next(phantom.batches(64, i))
        losses.append(visit(engine, phantom.start, batch, total_of).sums["loss"][0])
        engine.finish_iteration(phantom.start)
    assert (np.diff(losses) < 0).all()


@pytest.mark.parametrize("cls", [ConjugateGradient, Lbfgs])
def test_a_search_without_end_leaves_the_state(cls, monkeypatch):
    """Where every step raises the loss the search gives up after a few, and the next sweep begins anew."""
    phantom = Phantom()
    engine = prepared(phantom, cls)
    sweep(engine, phantom.start, phantom.batches(64, 0))
    before = phantom.start.obj.copy()
    monkeypatch.setattr("hpcrec.engines.descent.losses_along", lambda *a: np.full(len(a[-1]), 1e30))
    visit(engine, phantom.start, next(phantom.batches(64, 1)), total_of)
    np.testing.assert_array_equal(phantom.start.obj, before)
    monkeypatch.undo()
    sweep(engine, phantom.start, phantom.batches(64, 2))
    assert not np.array_equal(phantom.start.obj, before)


def test_vectors_follow_the_gauge():
    """With the probe out of power and modes mixed, ⟨gradient, step⟩ and the change that a step makes are the same."""
    phantom = Phantom(2, 2, precision="double")
    engine, state = prepared(phantom, ConjugateGradient), phantom.start
    sweep(engine, state, phantom.batches(64, 0))
    mixed = np.array([[0.8, 0.6], [-0.6, 0.8]])
    state.probe = np.tensordot(mixed, state.probe, axes=1) * 1.3
    for name in ("probe_direction", "probe_gradient"):
        state.memory[name] = np.tensordot(mixed, state.memory[name], axes=1)

    def product():
        on_object = np.vdot(state.object_memory["gradient"], state.object_memory["direction"]).real
        return on_object, np.vdot(state.memory["probe_gradient"], state.memory["probe_direction"]).real

    def patterns():
        direction = state.object_memory["direction"], state.memory["probe_direction"]
        return losses_along(phantom.model, state, next(phantom.batches(64, 0)), *direction, [0.3])

    before, there = product(), patterns()
    engine.finish_iteration(state)
    np.testing.assert_allclose(product(), before, rtol=1e-10)
    np.testing.assert_allclose(patterns(), there, rtol=1e-10)


def test_full_batches_beat_fixed_steps_on_three_slices():
    """Where slices share the object, curvature along the line pays."""
    errors = {name: reconstruct(Phantom(3), name, 20, batch_size=64)[1][-1] for name in ("gradient", "cg", "lbfgs")}
    assert max(errors["cg"], errors["lbfgs"]) < 0.5 * errors["gradient"]
