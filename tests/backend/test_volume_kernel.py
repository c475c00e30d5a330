import numpy as np
import pytest
from scipy.ndimage import correlate1d

from hpcrec.backend.kernels.volume import derivative_arrays, derivative_images, proximal_step
from hpcrec.objectives.regularizers import shrink, shrink_positive


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_step_equals_the_numpy_twin(positive, dtype):
    rng = np.random.default_rng(0)
    point, before, gradient = (rng.normal(size=(5, 7, 9)).astype(dtype) for _ in range(3))
    found = [proximal_step(point, before, gradient, 0.3, 0.2, 0.6, positive, n) for n in (1, 3)]
    np.testing.assert_array_equal(found[0], found[1])
    volume = (shrink_positive if positive else shrink)(point - dtype(0.3) * gradient, 0.2)
    np.testing.assert_allclose(found[0][0], volume, atol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(found[0][1], volume + dtype(0.6) * (volume - before), atol=8 * np.finfo(dtype).eps)
    point[2, 3, 4] = np.nan
    assert np.isnan(proximal_step(point, before, gradient, 0.3, 0.2, 0.6, positive)[0][2, 3, 4])
    with pytest.raises(ValueError, match="one shape"):
        proximal_step(point, before[:4], gradient, 0.3, 0.2, 0.6, positive)


@pytest.mark.parametrize("shape", [(4, 5), (9, 30), (40, 7)])
def test_derivative_images_equal_the_numpy_twin(shape, cupy):
    rng = np.random.default_rng(1)
    image, moment, turns = rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=(3, 3))
    stencil = np.array([-1, 9, -45, 0, 45, -9, 1]) / 60 / 0.4
    gy, gx, my, mx = (correlate1d(a, stencil, axis=i, mode="nearest") for a in (image, moment) for i in (0, 1))
    y, x = ((np.arange(n) - n // 2) * 0.4 - c for n, c in zip(shape, (0.3, -0.2)))
    swirl = y[:, None] * gx - x * gy
    expected = np.stack([-gy, -gx, *(n[2] * swirl - n[1] * mx + n[0] * my for n in turns)])
    for threads in (1, 3):
        found = derivative_images(image, moment, turns, (0.3, -0.2), 0.4, threads)
        np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())
    twin = derivative_arrays(image, moment, turns, (0.3, -0.2), 0.4)
    there = derivative_images(cupy.asarray(image), cupy.asarray(moment), turns, (0.3, -0.2), 0.4)
    for found in (twin, there.get()):
        np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())
