import numpy as np
import pytest

from hpcrec.objectives.regularizers import _flattened, flatten_variation, shrink, shrink_positive, total_variation


@pytest.mark.parametrize(("prox", "penalty", "low"), [(shrink_positive, np.abs, 0.0), (shrink, np.abs, -3.0)])
def test_proximal_maps_against_search(prox, penalty, low):
    candidates = np.linspace(low, 3, 6001) if low == 0 else np.linspace(low, 3, 12001)
    for value in np.linspace(-2, 2, 17):
        best = candidates[np.argmin(0.5 * (candidates - value) ** 2 + 0.6 * penalty(candidates))]
        # half a step of the search grid
        assert prox(np.array([value]), 0.6)[0] == pytest.approx(best, abs=6e-4)


@pytest.mark.parametrize("axes", [(0,), (0, 1), (0, 1, 2)])
def test_volumes_on_a_device_give_what_those_of_the_host_do(cupy, axes):
    values = np.random.default_rng(3).normal(size=(7, 9, 8))
    there = cupy.asarray(values)
    for prox in (shrink, shrink_positive):
        np.testing.assert_allclose(prox(there, 0.3).get(), prox(values, 0.3), atol=1e-15)
    found = flatten_variation(there, 0.4, axes, 12)
    np.testing.assert_allclose(found.get(), flatten_variation(values, 0.4, axes, 12), atol=1e-12)
    assert total_variation(found, axes) == pytest.approx(total_variation(found.get(), axes), rel=1e-12)


def test_type_is_kept():
    assert shrink_positive(np.ones(3, np.float32), 0.1).dtype == np.float32
    assert shrink(np.ones(3, np.float32), 0.1).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
@pytest.mark.parametrize(
    ("shape", "axes"), [((1, 8), (-2, -1)), ((30, 21), (-2, -1)), ((6, 5, 7), (-3,)), ((9, 4), (0,))]
)
def test_compiled_variation_equals_the_plain_one(dtype, shape, axes):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=shape) + (1j * rng.normal(size=shape) if dtype == np.complex64 else 0)).astype(dtype)
    plain = _flattened(values, 0.4, tuple(a % len(shape) for a in axes), 15)
    one, three = (flatten_variation(values, 0.4, axes, 15, threads=n) for n in (1, 3))
    np.testing.assert_array_equal(one, three)
    assert one.dtype == dtype
    np.testing.assert_allclose(one, plain, atol=20 * np.finfo(dtype).eps)  # rounding of fifteen steps
