import numpy as np
import pytest

from hpcrec.backend.kernels import updates


@pytest.fixture(params=[np.complex64, np.complex128])
def arrays(request):
    rng = np.random.default_rng(6)
    obj, velocity = (rng.standard_normal((2, 20, 23)) + 1j * rng.standard_normal((2, 20, 23)) for _ in range(2))
    change = rng.standard_normal((2, 9, 11)) + 1j * rng.standard_normal((2, 9, 11))
    weight = rng.random((2, 9, 11)) * (rng.random((2, 9, 11)) > 0.3)
    real = np.zeros(0, request.param).real.dtype
    return [a.astype(request.param) for a in (obj, velocity, change)] + [weight.astype(real)]


@pytest.mark.parametrize("quadratic", [False, True])
@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_preconditioners_agree(arrays, quadratic, floor):
    _, _, gradient, weight = arrays
    found = updates.precondition(gradient, weight, 0.7, floor, -0.5, quadratic=quadratic)
    wanted = updates.plain_precondition(gradient, weight, 0.7, floor, -0.5, quadratic=quadratic)
    assert found.dtype == wanted.dtype == gradient.dtype
    assert not found[weight == 0].any()
    # A few roundings each
    np.testing.assert_allclose(found, wanted, rtol=20 * np.finfo(gradient.dtype).eps)
    root, clipped = np.sqrt((0.7 * weight) ** 2 + floor**2), 0.7 * weight + np.maximum(0.3 * weight, floor)
    size = root if quadratic else clipped
    lit = weight > 0
    np.testing.assert_allclose(found[lit], -0.5 * gradient[lit] / size[lit], rtol=1e-5)


def test_momentum_steps_agree_and_leave_dark_pixels(arrays):
    obj, velocity, change, weight = arrays
    results = []
    for step in (updates.step_with_momentum, updates.plain_step_with_momentum):
        o, v = obj.copy(), velocity.copy()
        step(o, v, change, weight, (3, 5), 0.8)
        results.append((o, v))
    for found, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(found, wanted, atol=20 * np.finfo(obj.dtype).eps)
    o, v = results[0]
    box = (slice(None), slice(3, 12), slice(5, 16))
    dark = weight == 0
    np.testing.assert_array_equal(o[box][dark], obj[box][dark])
    np.testing.assert_array_equal(v[box][dark], velocity[box][dark])
    # Relative to terms of size 1, which may cancel
    np.testing.assert_allclose(v[box][~dark], (0.8 * velocity[box] + change)[~dark], rtol=0, atol=1e-5)
    np.testing.assert_allclose(o[box][~dark], (obj[box] + change + 0.8 * v[box])[~dark], rtol=0, atol=1e-5)
    o[box] = obj[box]
    np.testing.assert_array_equal(o, obj)
