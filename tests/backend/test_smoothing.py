import numpy as np
import pytest

from hpcrec.backend.smoothing import smoothed, smoothed_arrays


@pytest.mark.parametrize("sigmas", [(0.0, 0.7, 0.7), (0.3, 1.9, 0.0), (3.0, 3.0, 3.0)])
def test_arrays_are_smoothed_as_by_scipy(cupy, sigmas):
    """Also where the filter is longer than the array."""
    a = np.random.default_rng(0).normal(size=(4, 21, 30)).astype(np.float32)
    wanted, there = smoothed(a, sigmas), smoothed(cupy.asarray(a), sigmas)
    assert there.dtype == wanted.dtype == np.float32
    for found in (there.get(), smoothed_arrays(a, sigmas)):
        np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(a).max())  # float32 sums of up to 25 terms
