import numpy as np
import pytest

from hpcrec.models.tomography import TomographyModel
from hpcrec.tomography.pose_step import StepLimits, background, pose_of, pose_step

VOXEL = 0.5
SHAPE = (26, 26, 26)
DETECTOR = (32, 34)


def volume():
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*((np.arange(n) - n // 2) * VOXEL for n in SHAPE), indexing="ij")
    result = np.zeros(SHAPE)
    for centre in rng.uniform(-3, 3, (12, 3)):
        result += np.exp(-((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2) / (2 * 0.8**2))
    return result.astype(np.float32)


def images(parameters):
    model = TomographyModel(
        volume_shape=SHAPE, voxel_size=VOXEL, detector_shape=DETECTOR, poses=(pose_of(parameters),), blur=0.3
    )
    projector = model.projector((0, SHAPE[1]))
    return model, *(model.smooth(f(volume()))[0] for f in (projector.forward, projector.depth_moment))


@pytest.mark.parametrize("tilt", [-1.1, 0.0, 0.6])
def test_one_step_finds_small_errors(tilt):
    truth = np.array([0.3, -0.2, 0.012, tilt, -0.01, 0.05, 0.004, -0.003])
    model, image, _ = images(truth)
    data = image + background(truth, DETECTOR, VOXEL)
    guess = truth + [0.06, -0.05, 0.008, 0.008, 0.006, -0.05, -0.004, 0.003]
    model, image, moment = images(guess)
    limits = StepLimits(expected=np.full(8, 10.0), cap=10.0, radius=4.0, noise=0.01)
    step = pose_step(model, image, moment, data, np.ones(DETECTOR, np.float32), guess, guess, 0.0, limits)
    # second-order terms, (0.06/0.8)² of the first, and spline ripple (largest at 0.6: 0.13 measured)
    left, before = np.abs(guess + step - truth), np.abs(guess - truth)
    assert np.all(left < 0.2 * before)


def test_priors_caps_and_fixed_parameters():
    truth = np.array([0.3, -0.2, 0.01, 0.5, 0.0, 0.0, 0.0, 0.0])
    model, image, _ = images(truth)
    guess = truth + [0.3, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    model, start, moment = images(guess)
    ones = np.ones(DETECTOR, np.float32)
    free = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    limits = StepLimits(expected=free, cap=0.1, radius=4.0, noise=0.01)
    step = pose_step(model, start, moment, image, ones, guess, guess, 0.0, limits)
    assert np.hypot(*step[:2]) == pytest.approx(0.1)
    assert not step[2:].any()
    strong = StepLimits(expected=1e-9 * free, cap=1.0, radius=4.0, noise=0.01)
    held = pose_step(model, start, moment, image, ones, guess, truth, 0.0, strong)
    np.testing.assert_allclose((guess + held)[:2], truth[:2], atol=1e-6)  # an overwhelming prior decides
