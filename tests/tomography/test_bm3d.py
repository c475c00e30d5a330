"""BM3D's own promises: odd sizes, constant images, linear scaling."""

import numpy as np
import pytest

from hpcrec.errors import DataError
from hpcrec.tomography.bm3d import bm3d


def test_constant_image_stays_constant():
    np.testing.assert_allclose(bm3d(np.full((30, 41), 0.7), 0.1), 0.7, atol=5e-5)  # float32 transforms


@pytest.mark.parametrize("shape", [(8, 8), (9, 23), (31, 8)])
def test_any_size_from_one_block(shape):
    noise = np.random.default_rng(0).standard_normal(shape)
    result = bm3d(noise, 1.0)
    assert result.shape == shape
    assert np.isfinite(result).all()
    assert result.std() < 0.6


def test_scaling_image_and_sigma_scales_the_result():
    rng = np.random.default_rng(1)
    image = np.sin(np.arange(40) / 3)[:, None] * np.ones(40) + 0.2 * rng.standard_normal((40, 40))
    # powers of two scale float32 exactly, so matching and thresholds fall alike
    np.testing.assert_allclose(bm3d(4 * image, 0.8), 4 * bm3d(image, 0.2), rtol=1e-5, atol=1e-5)


def test_white_noise_is_removed():
    noise = np.random.default_rng(2).standard_normal((64, 64))
    assert bm3d(noise, 1.0).std() < 0.25


def test_too_small():
    with pytest.raises(DataError, match="8×8"):
        bm3d(np.zeros((7, 30)), 1.0)
