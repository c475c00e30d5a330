"""Denoisers on a phantom of atom columns: each must beat the best Gaussian filter, and leave clean data alone."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from hpcrec.errors import ConfigError, DataError
from hpcrec.tomography.denoise import DENOISERS, DenoiseOptions, denoise, estimate_sigma

SIGMA = 0.12


@pytest.fixture(scope="module")
def columns():
    rng = np.random.default_rng(0)
    image = np.zeros((112, 120))
    y, x = np.meshgrid(np.arange(24, 92, 9), np.arange(20, 100, 11), indexing="ij")
    image[y, x] = rng.uniform(0.6, 1.0, y.shape)
    image = gaussian_filter(image, 1.8)
    return (image / image.max()).astype(np.float32)


@pytest.fixture(scope="module")
def noisy(columns):
    return (columns + SIGMA * np.random.default_rng(1).standard_normal(columns.shape)).astype(np.float32)


def psnr(image, truth):
    return 10 * np.log10(1.0 / np.mean((image - truth) ** 2))


def test_block_matching_beats_the_best_gaussian_clearly(columns, noisy):
    best = max(psnr(gaussian_filter(noisy, s), columns) for s in np.arange(0.4, 2.5, 0.1))
    result = denoise(noisy, DenoiseOptions(method="bm3d", sigma=SIGMA))
    assert psnr(result, columns) > best + 3.0  # measured: 8 dB better on 256²; columns repeat, as in a crystal
    assert result.dtype == np.float32


@pytest.mark.parametrize("method", [m for m in DENOISERS if m != "none"])
def test_every_denoiser_gains(columns, noisy, method):
    result = denoise(noisy, DenoiseOptions(method=method))
    assert psnr(result, columns) > psnr(noisy, columns) + 5.0
    # the mean phase is a mass: denoisers must not shift it (noise of the mean: 0.12/√13440 = 0.001);
    # non-local means average bright pixels with darker neighbours and lose a tenth of it
    bound = 0.012 if method == "nlm" else 0.004
    assert abs(float(result.mean()) - float(columns.mean())) < bound


@pytest.mark.parametrize("method", list(DENOISERS))
def test_no_noise_no_change(columns, method):
    np.testing.assert_array_equal(denoise(columns, DenoiseOptions(method=method, sigma=0.0)), columns)
    np.testing.assert_array_equal(denoise(columns, DenoiseOptions(method=method, strength=0.0)), columns)


def test_none_copies(noisy):
    result = denoise(noisy, DenoiseOptions())
    np.testing.assert_array_equal(result, noisy)
    assert not np.shares_memory(result, noisy)


def test_sigma_is_estimated(columns, noisy):
    assert estimate_sigma(noisy) == pytest.approx(SIGMA, rel=0.06)  # 3360 samples: ±2 % and the columns' own detail
    framed = np.zeros((300, 300))
    framed[50:162, 60:180] = noisy
    assert estimate_sigma(framed) == pytest.approx(estimate_sigma(noisy), rel=0.03)
    assert estimate_sigma(np.zeros((20, 20))) == 0.0


def test_bad_input(noisy):
    with pytest.raises(DataError, match="not finite"):
        denoise(noisy * np.nan, DenoiseOptions())
    with pytest.raises(ConfigError, match="negative"):
        denoise(noisy, DenoiseOptions(sigma=-1.0))
