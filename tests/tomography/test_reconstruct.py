import numpy as np
import pytest

from hpcrec.engines.solvers import solver_class
from hpcrec.errors import DataError, DivergedError
from hpcrec.geometry.pose import Pose, rotation_from_angles
from hpcrec.models.tomography import TomographyModel
from hpcrec.tomography.executor import InlineExecutor
from hpcrec.tomography.reconstruct import reconstruct
from hpcrec.tomography.slabs import split_rows

SHAPE = (12, 13, 12)


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    poses = tuple(
        Pose(rotation=rotation_from_angles(0.02 * rng.normal(), t, 0.02 * rng.normal()), shift=(0.3, -0.2))
        for t in np.linspace(-1.2, 1.2, 12)
    )
    model = TomographyModel(volume_shape=SHAPE, voxel_size=0.4, detector_shape=(17, 19), poses=poses, blur=0.2)
    truth = np.zeros(SHAPE, np.float32)
    truth[tuple(rng.integers(3, 9, (3, 12)))] = 1.0
    data = model.smooth(model.projector((0, 13)).forward(truth))
    weights = np.ones_like(data)
    weights[:, :2] = 0.0
    return model, truth, data, weights


def fista(n=8, **options):
    cls = solver_class("fista")
    return cls(cls.Options(**{"n_iterations": n, "sparsity": 0.0, **options}))


@pytest.mark.parametrize("sparsity", [0.0, 0.05])
def test_slabs_and_threads_give_the_same_volume(case, sparsity):
    model, truth, data, weights = case
    support = np.ones(SHAPE, bool)
    support[:2] = False
    whole = reconstruct(model, data, weights, fista(sparsity=sparsity), support=support)
    parts = reconstruct(
        model, data, weights, fista(sparsity=sparsity), support=support, n_slabs=3, executor=InlineExecutor(2)
    )
    # the slabs' images are added in another order: float32 round-off
    np.testing.assert_allclose(parts.volume, whole.volume, atol=2e-5 * whole.volume.max())
    np.testing.assert_allclose(parts.r1, whole.r1, rtol=1e-4)
    assert not whole.coefficients[:2].any()


def test_continued_from_its_coefficients(case):
    model, _, data, weights = case
    first = reconstruct(model, data, weights, fista(6))
    second = reconstruct(model, data, weights, fista(6), start=first.coefficients)
    assert second.r1[0] < first.r1[-1]
    assert second.r1[-1] < 0.9 * first.r1[-1]


def test_stops_at_the_noise(case):
    model, _, data, weights = case
    noisy = data + 0.02 * np.random.default_rng(1).normal(size=data.shape).astype(np.float32)
    found = reconstruct(model, noisy, weights, fista(60), noise=0.026)
    assert 2 < len(found.r1) < 60
    rms = np.sqrt(np.mean(found.per_projection**2))  # all projections have the same weights
    assert rms == pytest.approx(0.026, abs=0.002)  # the last step overshoots a little


def test_callback_sees_every_iteration(case):
    model, _, data, weights = case
    seen = []
    found = reconstruct(model, data, weights, fista(5), callback=lambda i, m: seen.append((i, m.r1)))
    assert [i for i, _ in seen] == list(range(5))
    np.testing.assert_allclose([r for _, r in seen], found.r1)


def test_too_long_steps_are_an_error(case):
    model, _, data, weights = case
    cls = solver_class("resire")
    with pytest.raises(DivergedError), np.errstate(all="ignore"):
        reconstruct(model, data * 1e30, weights, cls(cls.Options(n_iterations=200, relaxation=9.0)))


def test_faulty_stacks_are_refused(case):
    model, _, data, weights = case
    with pytest.raises(DataError, match="shape"):
        reconstruct(model, data[:5], weights, fista())
    with pytest.raises(DataError, match="within"):
        reconstruct(model, data, 2 * weights, fista())
    bad = data.copy()
    bad[0, 5, 5] = np.nan
    with pytest.raises(DataError, match="finite"):
        reconstruct(model, bad, weights, fista())


def test_split_rows_covers_all_rows_with_equal_work():
    assert split_rows(5, 9) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert split_rows(7, 1) == [(0, 7)]
    support = np.zeros((10, 40, 10), bool)
    support[:, 20:30] = True
    slabs = split_rows(40, 2, support)
    assert slabs[0][0] == 0
    assert slabs[0][1] == slabs[1][0] == 25
    assert slabs[1][1] == 40
