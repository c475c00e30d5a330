"""Solvers, alignment and denoisers on the pretended device, their kernels run on the CPU, against the host."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "backend"))

from emulated_projector import emulated

from hpcrec.backend import projector
from hpcrec.backend.device import library
from hpcrec.engines.solvers import SOLVERS, back_project_slab, project_slab, solver_class, start_slab
from hpcrec.geometry.pose import Pose, rotation_from_angles
from hpcrec.models.tomography import TomographyModel
from hpcrec.tomography.align import AlignmentOptions, align
from hpcrec.tomography.executor import InlineExecutor
from hpcrec.tomography.pose_step import StepLimits, pose_step
from hpcrec.tomography.reconstruct import model_norm, reconstruct

pytestmark = pytest.mark.emulation

SHAPE = (12, 13, 12)


@pytest.fixture(scope="module")
def compiled_kernels(tmp_path_factory):
    return emulated(tmp_path_factory.mktemp("projector"))


@pytest.fixture
def kernels(compiled_kernels, cupy, monkeypatch):
    compiled_kernels.launches.clear()
    monkeypatch.setattr(projector, "launch", compiled_kernels.launch)
    return compiled_kernels


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    poses = tuple(
        Pose(rotation=rotation_from_angles(0.02 * rng.normal(), t, 0.02 * rng.normal()), shift=(0.3, -0.2))
        for t in np.linspace(-1.2, 1.2, 9)
    )
    model = TomographyModel(volume_shape=SHAPE, voxel_size=0.4, detector_shape=(17, 19), poses=poses, blur=0.2)
    truth = np.zeros(SHAPE, np.float32)
    truth[tuple(rng.integers(3, 9, (3, 12)))] = 1.0
    data = model.smooth(model.projector((0, 13)).forward(truth))
    weights = np.ones_like(data)
    weights[:, :2] = 0.0
    return model, truth, data, weights


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_find_the_host_s_volume(kernels, case, name):
    model, _, data, weights = case
    cls = solver_class(name)
    chosen = {"n_iterations": 6, "blur_angstrom": 0.2} | ({"sparsity": 0.02} if name == "fista" else {})
    support = np.ones(SHAPE, bool)
    support[:2], support[:, :, 9:] = False, False
    wanted = reconstruct(model, data, weights, cls(cls.Options(**chosen)), support=support)
    assert kernels.launches == []
    found = reconstruct(
        model, data, weights, cls(cls.Options(**chosen)), support=support, n_slabs=2,
        executor=InlineExecutor(2, device="gpu"),
    )  # fmt: skip
    assert {"tomography_step<true>", "tomography_project_any<2, false, false>"} < set(kernels.launches)
    for part in ("volume", "coefficients"):
        assert isinstance(getattr(found, part), np.ndarray)
        expected = getattr(wanted, part)
        # single precision through six steps, whose sums are in another order
        assert np.abs(getattr(found, part) - expected).max() < 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(found.r1, wanted.r1, rtol=1e-5)
    np.testing.assert_allclose(found.per_projection, wanted.per_projection, rtol=1e-5)
    assert not found.coefficients[:2].any()


def test_slabs_stay_on_the_device(kernels, cupy, case):
    model, truth, data, _ = case
    state = start_slab(model, (2, 9), np.ones((12, 7, 12), bool), truth[:, 2:9].copy(), "gpu")
    assert all(isinstance(a, cupy.ndarray) for a in (state.volume, state.point, state.support))
    assert isinstance(project_slab(model, state), cupy.ndarray)
    assert isinstance(back_project_slab(model, state, data), cupy.ndarray)


def test_the_model_s_parts_equal_the_host_s(kernels, cupy, case):
    model, truth, data, weights = case
    there = [cupy.asarray(a) for a in (0.9 * data, data, weights)]
    wanted, found = model.misfit(0.9 * data, data, weights), model.misfit(*there)
    np.testing.assert_allclose(found.residual.get(), wanted.residual, atol=1e-6 * np.abs(wanted.residual).max())
    for name in ("loss", "r1", "rms", "per_projection"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-5)
    assert model_norm(model, InlineExecutor(device="gpu")) == pytest.approx(model.norm(), rel=1e-5)
    np.testing.assert_allclose(model.density(cupy.asarray(truth)).get(), model.density(truth), atol=1e-6)
    assert library("gpu") is cupy


def test_a_step_of_a_pose_is_the_host_s(kernels, cupy, case):
    model, truth, data, weights = case
    device = model.projector((0, 13))
    image, moment = device.forward(truth)[3], device.depth_moment(truth)[3]
    parameters = np.array([0.3, -0.2, 0.0, -0.3, 0.0, 0.0, 0.0, 0.0])
    limits = StepLimits(expected=np.ones(8), cap=1.0, radius=2.0, noise=0.02)
    rest = data[3], weights[3], parameters, parameters, 1e-3, limits
    wanted = pose_step(model, image, moment, *rest)
    found = pose_step(model, cupy.asarray(image), moment, *rest, "gpu")
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    assert np.abs(wanted).max() > 1e-3


def test_alignment_finds_the_host_s_poses(kernels, case):
    model, _, data, weights = case
    tilts = np.linspace(-1.2, 1.2, 9)
    options = AlignmentOptions(bins=(1,), rounds=(2,), volume_iterations=2)
    arguments = data, weights, 0.4, tilts, options
    wanted = align(*arguments)
    found = align(*arguments, executor=InlineExecutor(device="gpu"), n_slabs=2)
    assert kernels.launches
    np.testing.assert_array_equal(found.support, wanted.support)
    np.testing.assert_allclose(found.parameters, wanted.parameters, atol=2e-4)
    np.testing.assert_allclose(found.residuals, wanted.residuals, rtol=1e-3)
