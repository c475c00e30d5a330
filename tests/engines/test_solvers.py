import numpy as np
import pytest

from hpcrec.engines.solvers import SOLVERS, Scalars, solver_class
from hpcrec.errors import ConfigError
from hpcrec.geometry.pose import Pose, rotation_from_angles
from hpcrec.models.tomography import TomographyModel
from hpcrec.tomography.reconstruct import reconstruct


def small_case(ramp=False, shape=(9, 7, 9), seed=0):
    rng = np.random.default_rng(seed)
    poses = tuple(
        Pose(rotation=rotation_from_angles(0.01 * rng.normal(), t, 0.01 * rng.normal()))
        for t in np.linspace(-1.2, 1.2, 20)
    )
    model = TomographyModel(volume_shape=shape, voxel_size=0.5, detector_shape=(10, 14), poses=poses, ramp=ramp)
    volume = rng.random(shape, dtype=np.float32) * (rng.random(shape) > 0.6)
    data = model.projector((0, shape[1])).forward(volume.astype(np.float32))
    return model, volume, data, np.ones_like(data)


@pytest.mark.parametrize("name", SOLVERS)
def test_loss_falls_and_volume_is_found(name):
    model, truth, data, weights = small_case()
    cls = solver_class(name)
    losses = []
    solver = cls(cls.Options(n_iterations=150, blur_angstrom=0.0))
    result = reconstruct(model, data, weights, solver, callback=lambda i, m: losses.append(m.loss))
    assert losses[-1] < 2e-3 * losses[0]
    assert result.volume.min() >= 0
    # exact data: what is left is the missing wedge, which positivity fills only in part
    assert np.corrcoef(result.volume.ravel(), truth.ravel())[0, 1] > 0.9


def test_fista_reaches_the_least_squares_residual():
    model, _, data, weights = small_case(shape=(6, 5, 6))
    data = data + 0.05 * np.random.default_rng(1).normal(size=data.shape).astype(np.float32)
    projector = model.projector((0, 5))
    units = np.eye(180, dtype=np.float32).reshape(180, 6, 5, 6)
    dense = np.stack([projector.forward(unit).ravel() for unit in units], axis=1)
    best = np.linalg.lstsq(dense, data.ravel(), rcond=None)[0]
    lowest = 0.5 * np.sum((dense @ best - data.ravel()) ** 2)
    cls = solver_class("fista")
    losses = []
    solver = cls(cls.Options(n_iterations=400, blur_angstrom=0.0, positivity=False, sparsity=0.0))
    reconstruct(model, data, weights, solver, callback=lambda i, m: losses.append(m.loss))
    # the worst-seen directions converge last; they hold a per cent of the noise
    assert lowest <= losses[-1] * 1.0001
    assert losses[-1] < 1.02 * lowest


def test_the_ramp_filter_makes_fista_faster():
    r1 = {}
    for ramp in (False, True):
        model, _, data, weights = small_case(ramp)
        cls = solver_class("fista")
        r1[ramp] = reconstruct(
            model, data, weights, cls(cls.Options(n_iterations=12, blur_angstrom=0.0, sparsity=0.0))
        ).r1[-1]
    assert r1[True] < 0.8 * r1[False]


def test_sparsity_of_one_gives_zero():
    model, _, data, weights = small_case()
    cls = solver_class("fista")
    result = reconstruct(model, data, weights, cls(cls.Options(n_iterations=5, blur_angstrom=0.0, sparsity=1.0)))
    assert not result.volume.any()
    result = reconstruct(model, data, weights, cls(cls.Options(n_iterations=5, blur_angstrom=0.0, sparsity=0.5)))
    assert result.volume.any()


def test_fista_restarts_when_the_loss_grows():
    solver = solver_class("fista")(solver_class("fista").Options())
    before = Scalars(step=1.0, t=5.0, loss=1.0)
    assert solver.scalars(before, 0.5, 1.0, 0.0).momentum > 0.5
    assert solver.scalars(before, 2.0, 1.0, 0.0).momentum == 0.0


def test_unknown_solver():
    with pytest.raises(ConfigError, match="fista"):
        solver_class("magic")
