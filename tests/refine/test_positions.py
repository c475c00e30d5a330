import numpy as np

from hpcrec.refine.positions import limit_moves, position_change, without_drift


def test_a_quadratic_is_solved_up_to_the_damping():
    true = np.array([[0.02, -0.03], [0.01, 0.04], [0.0, 0.0]])
    weight = np.array([[50.0, 80.0], [50.0, 80.0], [0.0, 0.0]])
    # L = Σ w (R − R0)² has the gradient −2 w R0 at R = 0
    change = position_change(-2 * weight * true, weight, (0.5, 0.5), step=1.0, max_step_pixels=10)
    np.testing.assert_allclose(change, true / 1.1, rtol=1e-12)


def test_steps_are_bounded_in_pixels_and_untouched_positions_stay():
    gradient, weight = np.array([[1e6, -1e6], [5.0, 5.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    change = position_change(gradient, weight, (0.5, 0.2), step=1.0, max_step_pixels=0.1)
    np.testing.assert_allclose(change, [[-0.05, 0.02], [0, 0]])
    assert not position_change(0 * gradient, 0 * weight, (0.5, 0.2), step=1.0, max_step_pixels=0.1).any()


def test_bounds_and_drift():
    start = np.zeros((3, 2))
    moved = np.array([[0.5, -2.0], [0.1, 0.2], [0.0, 0.0]])
    assert np.abs(limit_moves(moved, start, 0.3)).max() == 0.3
    assert limit_moves(moved, start, None) is moved
    np.testing.assert_allclose(without_drift(moved, start).mean(axis=0), 0, atol=1e-15)
