import numpy as np
import pytest

from hpcrec.geometry.pose import Pose
from hpcrec.models.tomography import TomographyModel


def model(**changes):
    tilts = np.linspace(-1.2, 1.2, 7)
    values = {
        "volume_shape": (20, 14, 20),
        "voxel_size": 0.5,
        "detector_shape": (18, 26),
        "poses": tuple(Pose.from_tilt(t) for t in tilts),
        "blur": 0.4,
    }
    return TomographyModel(**{**values, **changes})


def test_projection_of_the_density_is_the_blurred_projection_of_the_coefficients():
    m = model(volume_shape=(36, 30, 36), detector_shape=(34, 44), blur=0.7)
    coefficients = np.zeros(m.volume_shape, np.float32)
    coefficients[16:21, 13:18, 15:20] = np.random.default_rng(0).random((5, 5, 5))
    blurred_after = m.smooth(m.projector((0, 30)).forward(coefficients))
    blurred_before = m.projector((0, 30)).forward(m.density(coefficients))
    # points alias through the projector's spline before the blur, by up to 2 % here
    assert np.abs(blurred_after - blurred_before).max() < 0.03 * blurred_after.max()


@pytest.mark.parametrize("ramp", [False, True])
def test_residual_is_the_gradient_of_the_loss(ramp):
    m, rng = model(ramp=ramp), np.random.default_rng(1)
    shape = (7, *m.detector_shape)
    data, weights, projected, direction = (rng.random(shape, dtype=np.float32) for _ in range(4))
    found = m.misfit(projected, data, weights)
    change = 0.05 * direction  # the loss is quadratic: the central difference is exact up to float32
    numeric = m.misfit(projected + change, data, weights).loss - m.misfit(projected - change, data, weights).loss
    assert numeric == pytest.approx(2 * float(np.vdot(found.residual, change)), rel=1e-3)


def test_filter_is_symmetric_positive_and_bounded():
    m, rng = model(), np.random.default_rng(2)
    a, b = rng.normal(size=(2, 3, 18, 26)).astype(np.float32)
    assert np.vdot(a, m.filtered(b)) == pytest.approx(np.vdot(m.filtered(a), b), rel=1e-4)
    assert 0 < np.vdot(a, m.filtered(a)) < np.vdot(a, a)
    slow = np.ones((1, 18, 26), np.float32)
    assert np.vdot(slow, m.filtered(slow)) < 0.1 * np.vdot(slow, slow)


@pytest.mark.parametrize("ramp", [False, True])
def test_norm_bounds_the_operator(ramp):
    m = model(ramp=ramp)
    projector = m.projector((0, 14))
    vector = np.random.default_rng(3).normal(size=m.volume_shape).astype(np.float32)
    for _ in range(60):
        vector /= np.linalg.norm(vector)
        vector = projector.adjoint(m.smooth(m.filtered(m.smooth(projector.forward(vector)))))
    true = np.linalg.norm(vector)
    assert true < m.norm() < 1.3 * true


def test_misfit_figures():
    m = model(ramp=False)
    data = np.ones((7, *m.detector_shape), np.float32)
    weights = np.zeros_like(data)
    weights[:, 3:9, 4:9] = 0.5
    found = m.misfit(1.2 * data, data, weights)
    assert found.r1 == pytest.approx(0.2, rel=1e-5)
    np.testing.assert_allclose(found.per_projection, 0.2, rtol=1e-5)
    assert found.rms == pytest.approx(0.2, rel=1e-5)
    assert found.loss == pytest.approx(0.5 * 7 * 30 * 0.5 * 0.04, rel=1e-4)
