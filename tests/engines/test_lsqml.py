import numpy as np
import pytest
from phantom import Phantom, reconstruct

from hpcrec.engines.lsqml import step_lengths


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
