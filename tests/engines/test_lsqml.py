import numpy as np
import pytest
from phantom import Phantom, reconstruct, total_of
from scipy.optimize import minimize_scalar
from scipy.stats import trim_mean

from hpcrec.engines.base import visit
from hpcrec.engines.compact import fitted_friction
from hpcrec.engines.lsqml import LsqMl, poisson_steps, step_lengths, trimmed_mean
from hpcrec.models.base import Batch
from hpcrec.objectives.losses import POISSON_FLOOR


def terms_of(a, b, chi):
    pairs = ((a, a), (a, b), (b, b), (a, chi), (b, chi))
    return np.stack([np.sum(u.conj() * v, axis=1).real for u, v in pairs], axis=1)


@pytest.fixture
def waves():
    rng = np.random.default_rng(4)
    return [rng.standard_normal((20, 50)) + 1j * rng.standard_normal((20, 50)) for _ in range(2)]


def test_exact_steps_are_found(waves):
    a, b = waves
    np.testing.assert_allclose(step_lengths(terms_of(a, b, 0.7 * a + 0.3 * b), 0.0, probe=True), [0.7, 0.3], rtol=1e-10)
    np.testing.assert_allclose(step_lengths(terms_of(a, 0 * b, 0.7 * a), 0.0, probe=False), [0.7, 0], rtol=1e-10)


def test_outliers_and_negative_steps_do_not_count(waves):
    a, b = waves
    chi = 0.7 * a + 0.3 * b
    chi[0] *= 1e3
    chi[1] *= -1e3
    np.testing.assert_allclose(step_lengths(terms_of(a, b, chi), 0.0, probe=True), [0.7, 0.3], rtol=1e-10)


@pytest.mark.parametrize("n", [1, 7, 10, 64])
def test_the_trimmed_mean_is_that_of_scipy(n):
    values = np.random.default_rng(n).standard_normal((2, n))
    np.testing.assert_allclose(trimmed_mean(values), trim_mean(values, 0.1, axis=1), rtol=1e-12)


def test_a_share_must_say_where_its_patterns_stand():
    batch = Batch(np.array([4, 9]), np.zeros((2, 1, 1)), n_global=3, of_all=np.array([9, 2, 4]))
    np.testing.assert_array_equal(batch.places, [2, 0])
    np.testing.assert_array_equal(Batch(np.array([4, 9]), np.zeros((2, 1, 1)), n_global=2).places, [0, 1])
    with pytest.raises(ValueError, match="of_all"):
        _ = Batch(np.array([4, 9]), np.zeros((2, 1, 1)), n_global=3).places


def test_damping_shortens_steps(waves):
    a, b = waves
    a[:] = a[:1]
    # All positions alike: the mean of the diagonal is the diagonal
    np.testing.assert_allclose(step_lengths(terms_of(a, 0 * b, a), 0.25, probe=False), [0.8, 0], rtol=1e-10)


def test_nothing_to_do_gives_no_step():
    np.testing.assert_array_equal(step_lengths(np.zeros((3, 5)), 0.1, probe=True), [0, 0])


def test_momentum_gains_speed():
    plain = reconstruct(Phantom(), "lsqml", 8)[1]
    pushed = reconstruct(Phantom(), "lsqml", 8, momentum=0.5)[1]
    assert pushed[-1] < 0.8 * plain[-1]


def test_the_share_of_the_step_is_taken():
    """From one state, the first update moves in proportion to the share."""
    moves = []
    for share in (0.45, 0.9):
        phantom = Phantom()
        phantom.patterns, phantom.positions = phantom.patterns[:8], phantom.positions[:8]
        state, _ = reconstruct(phantom, "lsqml", 1, step_share=share, probe_start=9)
        moves.append(state.obj - 1)
    assert np.abs(moves[0]).max() > 0
    # Single precision
    np.testing.assert_allclose(2 * moves[0], moves[1], atol=1e-5 * np.abs(moves[1]).max())


def test_the_poisson_step_is_the_best_of_each_pattern():
    rng = np.random.default_rng(3)
    modelled = rng.gamma(1.0, 20.0, (5, 8, 8))
    measured = rng.poisson(modelled * rng.gamma(4.0, 0.25, modelled.shape))
    good = np.ones((1, 8, 8), bool)
    good[:, 2, 3:] = False
    found, wanted = modelled + POISSON_FLOOR, measured + POISSON_FLOOR
    weight = (1 - wanted / found) * good

    def loss(step, j):
        there = found[j] * (1 - step * weight[j]) ** 2
        return np.sum((there - wanted[j] * np.log(there))[good[0]])

    best = [minimize_scalar(loss, bounds=(0, 0.99), args=(j,), method="bounded").x for j in range(5)]
    # Four turns of the fixed point
    np.testing.assert_allclose(poisson_steps(modelled, measured, good), best, atol=0.02)


def test_near_the_truth_the_poisson_step_is_one_half():
    modelled = np.random.default_rng(0).uniform(50, 100, (3, 8, 8))
    np.testing.assert_allclose(poisson_steps(modelled, modelled * 1.01, None), 0.5, atol=0.01)


def test_the_fixed_point_reconstructs_counts():
    phantom = Phantom(loss="poisson", counts=1e4, noise=True)
    _, errors = reconstruct(phantom, "lsqml", 8, loss="poisson", poisson_step="fixed_point")
    assert errors[-1] < 0.026


def test_compact_batches_move_the_object_once_a_sweep():
    """By the least step times N / √(W² + (δ W_max)²) of all batches."""
    phantom = Phantom(2, precision="double")
    engine = LsqMl(phantom.model, LsqMl.Options(object_update="sweep", weight_floor=0.2, step_share=0.8))
    state = phantom.start
    engine.prepare(state)
    before, steps = state.obj.copy(), []
    top, light = np.zeros_like(state.obj), np.zeros(state.obj.shape)

    class Watched:
        passes, peaks, apply = engine.passes, engine.peaks, engine.apply

        @staticmethod
        def accumulate(name, state, batch):
            np.testing.assert_array_equal(state.obj, before)
            partial = engine.accumulate(name, state, batch)
            if name == "direction":
                index = (slice(None), *partial.fields["illumination"].box.slices(state.box))
                top[index] -= partial.fields["object_gradient"].values
                light[index] += partial.fields["illumination"].values
            elif name == "step":
                terms = partial.sums["terms"]
                steps.append(0.8 * step_lengths(terms, 0.1, probe=False)[0])
            return partial

    for batch in phantom.batches(16, 0):
        visit(Watched(), state, batch, total_of)
    assert len(steps) == 4
    wanted = min(steps) * top / np.hypot(light, 0.2 * light.max())
    np.testing.assert_allclose(state.obj - before, wanted, atol=1e-12)


def test_friction_is_that_of_correlations_that_decay():
    assert fitted_friction(4.0, [2 * np.exp(-0.2), 6 * np.exp(-0.4)], [1.0, 9.0]) == pytest.approx(0.2)
    assert fitted_friction(4.0, [2.0, -1.0], [1.0, 9.0]) is None
    assert fitted_friction(4.0, [2.0, 1.0], [1.0, 0.0]) is None
    assert fitted_friction(4.0, [1e-6, 1e-6], [1.0, 9.0]) == 1.0


def test_the_published_momentum_gains_speed():
    """Measured 1.1e-3 without and 1.5e-4 with it."""
    errors = [reconstruct(Phantom(), "lsqml", 20, object_update="sweep", momentum=m)[1][-1] for m in (0.0, 0.5)]
    assert errors[1] < 0.3 * errors[0]
