"""BM3D's array code against the compiled loops, and denoisers on the pretended device."""

import numpy as np
import pytest

from hpcrec.backend.kernels.bm3d import match_blocks
from hpcrec.errors import DataError
from hpcrec.tomography import blocks
from hpcrec.tomography.bm3d import bm3d
from hpcrec.tomography.denoise import DENOISERS, DenoiseOptions, denoise, estimate_sigma

SIGMA = 0.2


@pytest.fixture(scope="module")
def noisy():
    y, x = np.indices((41, 54))
    clean = np.sin(y / 3) * np.cos(x / 4) * (y > 12)
    return (clean + SIGMA * np.random.default_rng(0).normal(size=clean.shape)).astype(np.float32)


def test_matching_finds_the_same_blocks(noisy, cupy):
    starts_y, starts_x = np.array([0, 3, 9, 20, 33]), np.array([0, 5, 27, 46])
    n_max, reach, limit = 8, 9, 64 * 2.2 * SIGMA**2
    places, counts = blocks.match_arrays(cupy.asarray(noisy), starts_y, starts_x, n_max, reach, limit)
    for i, y in enumerate(starts_y):
        rows, columns = (np.zeros((4, n_max), np.int64) for _ in range(2))
        scores, wanted = np.zeros((4, n_max), np.float32), np.zeros(4, np.int64)
        match_blocks(noisy, y, starts_x, reach, limit, rows, columns, scores, wanted)
        for j in range(4):
            found = places.get()[:, 4 * i + j]
            assert counts.get()[4 * i + j] == wanted[j]
            np.testing.assert_array_equal(found[: wanted[j]], (rows * 54 + columns)[j, : wanted[j]])
    assert counts.get().min() < n_max == counts.get().max()


@pytest.mark.parametrize("batch", [1 << 22, 1 << 12])
def test_images_on_a_device_are_denoised_as_on_the_host(noisy, cupy, monkeypatch, batch):
    monkeypatch.setattr(blocks, "_BATCH", batch)
    wanted, found = bm3d(noisy, SIGMA), bm3d(cupy.asarray(noisy), SIGMA)
    assert isinstance(found, cupy.ndarray)
    assert found.dtype == np.float32
    # float32 transforms of values up to 1.6; no block and no coefficient stands on an edge here
    np.testing.assert_allclose(found.get(), wanted, atol=2e-5)
    assert np.abs(wanted - noisy).max() > 0.3


def test_flat_zeros_and_any_size(cupy):
    """Where the pilot is flat the Wiener factors are zero, and the weights as large as they may be."""
    framed = np.zeros((30, 23), np.float32)
    framed[9:22, 8:] = np.random.default_rng(1).normal(size=(13, 15))
    for image in (framed, framed[9:18, 8:16].copy(), np.zeros((9, 9), np.float32)):
        np.testing.assert_allclose(bm3d(cupy.asarray(image), 1.0).get(), bm3d(image, 1.0), atol=2e-5)
    with pytest.raises(DataError, match="8×8"):
        bm3d(cupy.asarray(framed[:7]), 1.0)


@pytest.mark.parametrize("method", DENOISERS)
@pytest.mark.parametrize("sigma", [None, 0.0, SIGMA])
def test_every_denoiser_takes_a_device_s_image(noisy, cupy, method, sigma):
    options = DenoiseOptions(method=method, sigma=sigma)
    wanted, found = denoise(noisy, options), denoise(cupy.asarray(noisy), options)
    assert isinstance(found, cupy.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.get(), wanted, atol=2e-5)


def test_noise_is_estimated_there(noisy, cupy):
    assert estimate_sigma(cupy.asarray(noisy)) == pytest.approx(estimate_sigma(noisy), rel=1e-12)
    with pytest.raises(DataError, match="not finite"):
        denoise(cupy.asarray(noisy * np.nan), DenoiseOptions())
