"""Classes of intensities: known mixtures are parted, and a lone species is not split."""

import numpy as np
import pytest

from hpcrec.analysis.mixture import classify_intensities, fit_mixture, partition


def test_partition_is_optimal_for_clear_gaps():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [500, 30, 100])
    values = np.array([0.0, 4.0, 10.0])[truth] + rng.normal(0, 0.3, truth.size)
    assert np.mean(partition(values, 3) == truth) == 1.0


def test_mixture_parameters_are_found():
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(1, 0.1, 4000), rng.normal(2, 0.2, 2000), rng.normal(4, 0.3, 1000)])
    fit = fit_mixture(values, 3)
    np.testing.assert_allclose(fit.mean, [1, 2, 4], rtol=0.02)
    np.testing.assert_allclose(fit.sigma, [0.1, 0.2, 0.3], rtol=0.1)
    np.testing.assert_allclose(fit.weight, [4 / 7, 2 / 7, 1 / 7], rtol=0.05)


@pytest.mark.parametrize("n_false", [50, 600, 4000])
def test_species_and_non_atoms(n_false):
    rng = np.random.default_rng(2)
    heavy, light = rng.normal(0.09, 0.008, 300), rng.normal(0.03, 0.005, 400)
    false = rng.exponential(0.0015, n_false)
    truth = np.repeat([0, 1, 2], [300, 400, n_false])
    classes, confidence = classify_intensities(np.concatenate([heavy, light, false]), 2)
    # the tail of the exponential beyond 0.01 (0.1 %) and of the Gaussian below it (3e-5) may swap
    assert np.mean(classes == truth) > 0.99
    assert confidence.min() >= 0.5
    assert (
        confidence[classes != truth].mean() < confidence[classes == truth].mean() if (classes != truth).any() else True
    )


def test_no_false_maxima_means_no_atom_is_dropped():
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(0.09, 0.008, 300), rng.normal(0.03, 0.005, 400)])
    classes, _ = classify_intensities(values, 2)
    assert np.mean(classes == np.repeat([0, 1], [300, 400])) > 0.99


def test_one_species():
    rng = np.random.default_rng(4)
    values = np.concatenate([rng.normal(1.0, 0.1, 200), rng.exponential(0.02, 500)])
    classes, _ = classify_intensities(values, 1)
    assert np.mean(classes == np.repeat([0, 1], [200, 500])) > 0.99


def test_very_few_values():
    classes, confidence = classify_intensities(np.array([3.0, 1.0, 3.0]), 2)
    assert classes.tolist() == [0, 1, 0]
    assert confidence.tolist() == [1.0, 1.0, 1.0]


def test_widths_of_species_share_one_noise():
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.normal(0.48, 0.01, 600), rng.normal(0.2, 0.06, 3000)])
    free, alike = fit_mixture(values, 2), fit_mixture(values, 2, 2)
    assert free.sigma[0] == pytest.approx(0.06, rel=0.05)
    assert alike.sigma[0] * alike.mean[0] <= 1.3001 * alike.sigma[1] * alike.mean[1]
    assert alike.sigma[1] == pytest.approx(0.01, rel=0.1)
