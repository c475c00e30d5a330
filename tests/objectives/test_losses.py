import numpy as np
import pytest

from hpcrec.objectives.losses import LOSSES, amplitude_error


@pytest.fixture
def intensities():
    rng = np.random.default_rng(5)
    return rng.uniform(0.1, 20, (3, 6, 7)), rng.poisson(8, (3, 6, 7)).astype(float), rng.random((6, 7)) > 0.2


@pytest.mark.parametrize("name", LOSSES)
def test_weight_is_the_derivative(name, intensities):
    modelled, measured, mask = intensities
    evaluate = LOSSES[name].evaluate
    weight = evaluate(modelled, measured, mask)[1]
    step = 1e-5 * np.random.default_rng(6).standard_normal(modelled.shape)
    difference = evaluate(modelled + step, measured, mask)[0] - evaluate(modelled - step, measured, mask)[0]
    # Central differences: third-order rest of 1e-10 of steps of 1e-5
    assert difference / 2 == pytest.approx(np.sum(weight * step), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_zero_at_the_data_and_curved_as_told(name, intensities):
    _, measured, _ = intensities
    measured = measured + 100.0
    evaluate = LOSSES[name].evaluate
    assert evaluate(measured, measured, None)[0] == pytest.approx(0, abs=1e-9)
    # L ≈ curvature · Σ(√I − √I₀)²; ε ≤ 1 of at least 100 counts and steps of 1 % allow two per cent
    near = measured * 1.01
    amplitude = np.sum((np.sqrt(near) - np.sqrt(measured)) ** 2)
    assert evaluate(near, measured, None)[0] == pytest.approx(LOSSES[name].curvature * amplitude, rel=0.02)


@pytest.mark.parametrize("name", LOSSES)
def test_bad_pixels_count_for_nothing(name, intensities):
    modelled, measured, mask = intensities
    spoiled = np.where(mask, measured, 1e6)
    loss, weight = LOSSES[name].evaluate(modelled, spoiled, mask)
    assert loss == pytest.approx(LOSSES[name].evaluate(modelled, measured, mask)[0], rel=1e-12)
    assert not weight[:, ~mask].any()
    assert amplitude_error(modelled, spoiled, mask)[1] == pytest.approx(measured[:, mask].sum())


@pytest.mark.parametrize("name", LOSSES)
def test_dark_pixels_stay_finite_in_single_precision(name):
    dark, counts = np.zeros((2, 2), np.float32), np.array([[0, 1], [2, 0]], np.float32)
    loss, weight = LOSSES[name].evaluate(dark, counts, None)
    assert np.isfinite(loss)
    assert np.isfinite(weight).all()
    assert weight.dtype == np.float32
