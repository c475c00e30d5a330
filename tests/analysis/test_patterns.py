"""Figures of patterns against sums written out by hand, the deviance of true Poisson counts, and known moves."""

import numpy as np
import pytest

from hpcrec.analysis.patterns import (
    COLUMNS,
    mode_powers,
    pattern_figures,
    pattern_quality,
    plain_figures,
    position_drift,
    residuals,
)
from hpcrec.backend.kernels.figures import take_logarithms
from hpcrec.objectives.losses import poisson_loss


def test_figures_are_the_sums_they_claim():
    modelled = np.array([[[4.0, 9.0]], [[1.0, 16.0]]])
    measured = np.array([[[1, 16]], [[1, 4]]], np.uint16)
    good = np.array([[[True, True]], [[True, False]]])
    table = pattern_figures(modelled, measured, good)
    assert table.shape == (2, len(COLUMNS))
    np.testing.assert_allclose(table[0, :4], [2.0, 2.0, 5.0, 17.0])
    np.testing.assert_allclose(table[1], [0.0, 0.0, 1.0, 1.0, 0.0, 1.0], atol=1e-12)
    found = pattern_quality(table)
    assert found.data_error == pytest.approx(2 / 18)
    assert found.r_factor == pytest.approx(2 / 6)
    assert found.log_likelihood == pytest.approx(-poisson_loss(modelled, measured, good)[0])
    assert pattern_quality(table, np.array([1])).data_error == 0
    np.testing.assert_allclose(residuals(table), [2 / 17, 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("masks", [0, 1, 5])
def test_the_compiled_figures_are_those_in_double_precision(dtype, masks):
    """Sums of 256 terms in single precision: some 1e-7; the logarithm's error is 2e-6, of a sum of terms near 0.1."""
    rng = np.random.default_rng(3)
    modelled = rng.gamma(0.3, 10, (5, 20, 33)).astype(np.float32)
    measured = rng.poisson(modelled).astype(dtype)
    good = rng.random((masks, 20, 33)) > 0.2 if masks else None
    expected = plain_figures(modelled.astype(np.float64), measured, good)
    if good is not None and measured.dtype.kind == "f":
        measured[~np.broadcast_to(good, measured.shape)] = np.nan
    np.testing.assert_allclose(pattern_figures(modelled, measured, good), expected, rtol=3e-6)


def test_logarithms_hold_over_all_sizes_of_counts():
    values = np.exp(np.random.default_rng(4).uniform(-40, 40, 4096)).astype(np.float32)
    found = values.copy()
    take_logarithms(found, np.empty_like(found))
    np.testing.assert_allclose(found, np.log(values.astype(np.float64)), rtol=3e-7, atol=1e-8)


def test_the_true_model_has_a_deviance_of_one():
    """Of 40 000 pixels with 30 counts on average; the deviance exceeds one by 1/(6λ) = 0.006, its error is 0.007."""
    rng = np.random.default_rng(0)
    modelled = np.full((4, 100, 100), 30.0)
    table = pattern_figures(modelled, rng.poisson(modelled), None)
    assert pattern_quality(table).deviance == pytest.approx(1.0, abs=0.03)
    wrong = pattern_figures(1.2 * modelled, rng.poisson(modelled), None)
    assert pattern_quality(wrong).deviance > 1.8
    assert pattern_quality(wrong).log_likelihood < pattern_quality(table).log_likelihood


def test_errors_are_shares_however_the_patterns_are_scaled():
    """Normalised patterns, too, hold far less than one count each."""
    rng = np.random.default_rng(2)
    modelled, measured = rng.uniform(1, 9, (2, 3, 8, 8))
    one, small = (pattern_figures(s * modelled, s * measured, None) for s in (1.0, 1e-6))
    np.testing.assert_allclose(residuals(small), residuals(one))
    for name in ("data_error", "r_factor"):
        assert getattr(pattern_quality(small), name) == pytest.approx(getattr(pattern_quality(one), name))


def test_rows_of_patterns_without_counts_stay_finite():
    table = pattern_figures(np.full((1, 2, 2), 0.5), np.zeros((1, 2, 2)), None)
    assert np.isfinite(residuals(table)).all()
    assert pattern_quality(table, np.zeros(0, np.int64)).data_error == 0


def test_mode_powers_are_shares():
    probe = np.zeros((2, 4, 4), complex)
    probe[0, 0, 0], probe[1, 1, 1] = 3.0, 1.0j
    np.testing.assert_allclose(mode_powers(probe), [0.9, 0.1])


def test_drift_tells_a_wrong_scale_from_jitter():
    rng = np.random.default_rng(1)
    start = rng.uniform(-10, 10, (500, 2))
    scaled = position_drift(1.02 * start, start)
    assert scaled.rms == pytest.approx(0.02 * np.sqrt(np.mean(np.sum(start**2, axis=1))))
    assert scaled.affine_rms < 1e-12
    jitter = position_drift(start + rng.normal(0, 0.1, start.shape), start)
    assert jitter.affine_rms == pytest.approx(jitter.rms, rel=0.02)
    moved = start.copy()
    moved[7] += (3.0, 4.0)
    found = position_drift(moved, start)
    assert (found.worst, found.largest) == (7, pytest.approx(5.0))
    assert found.mean_yx == pytest.approx((3 / 500, 4 / 500))
