import numpy as np
import pytest

from hpcrec.errors import ConfigError
from hpcrec.geometry.pose import Pose, angles_from_rotation, rotation_from_angles
from hpcrec.operators.projection import Projector, operator_norm, pose_jacobian

VOXEL = 0.4


def poses(n=5, seed=0, spread=0.02):
    rng = np.random.default_rng(seed)
    tilts = np.linspace(-1.2, 1.2, n)
    return [
        Pose(
            rotation=rotation_from_angles(spread * rng.normal(), t, spread * rng.normal()),
            shift=tuple(0.7 * rng.normal(size=2)),
        )
        for t in tilts
    ]


def blob(shape, centre, sigma):
    """Gaussian of unit integral; ``centre`` (x, y, z) and ``sigma`` in Å."""
    z, y, x = ((np.arange(n) - n // 2) * VOXEL for n in shape)
    g = [np.exp(-((a - c) ** 2) / (2 * sigma**2)) for a, c in ((z, centre[2]), (y, centre[1]), (x, centre[0]))]
    return (np.einsum("i,j,k->ijk", *g) / (2 * np.pi * sigma**2) ** 1.5).astype(np.float32)


@pytest.mark.parametrize("shape", [(12, 13, 11), (8, 16, 9)])
@pytest.mark.parametrize("n_bins", [1, 3])
@pytest.mark.parametrize("footprint", ["linear", "quadratic"])
def test_adjoint(shape, n_bins, footprint):
    # the detector is smaller than the object: voxels cross its border
    projector = Projector(shape, VOXEL, (9, 12), poses(), n_bins=n_bins, footprint=footprint)
    rng = np.random.default_rng(1)
    volume = rng.normal(size=shape).astype(np.float32)
    stack = rng.normal(size=projector.forward(volume).shape).astype(np.float32)
    left = np.vdot(projector.forward(volume).astype(float), stack)
    right = np.vdot(volume.astype(float), projector.adjoint(stack))
    norm = np.linalg.norm(projector.forward(volume)) * np.linalg.norm(stack)
    assert abs(left - right) < 1e-6 * norm  # float32 sums over ~100 terms


@pytest.mark.parametrize("footprint", ["linear", "quadratic"])
@pytest.mark.parametrize(("angle", "plain"), [(0.0, "z"), (np.pi / 2, "x")])
def test_right_angles_are_plain_sums(footprint, angle, plain):
    volume = np.random.default_rng(2).random((11, 9, 11), dtype=np.float32)
    stack = Projector(volume.shape, VOXEL, (9, 11), [Pose.from_tilt(angle)], footprint=footprint).forward(volume)[0]
    # tilt by 90°: r_lab = (z, y, −x), so the detector's x axis is the sample's z
    expected = VOXEL * (volume.sum(axis=0) if plain == "z" else volume.sum(axis=2).T)
    if footprint == "quadratic":  # the spline's values at whole pixels are 1/8, 3/4, 1/8
        padded = np.pad(expected, 1)
        for axis in (0, 1):
            padded = 0.75 * padded + 0.125 * (np.roll(padded, 1, axis) + np.roll(padded, -1, axis))
        expected = padded[1:-1, 1:-1]
    np.testing.assert_allclose(stack, expected, rtol=1e-5)


@pytest.mark.parametrize("angles", [(0.01, 0.6, -0.02), (0.4, -0.9, 0.3), (2.0, 0.3, 1.0)])
def test_blob_lands_where_the_pose_says(angles):
    centre, sigma, shape = np.array([1.5, -2.0, 2.2]), 0.9, (31, 33, 30)
    pose = Pose(rotation=rotation_from_angles(*angles), shift=(0.35, -0.5))
    image = Projector(shape, VOXEL, (36, 37), [pose]).forward(blob(shape, centre, sigma))[0]
    lab = pose.rotation @ centre + (pose.shift[1], pose.shift[0], 0)
    y, x = ((np.arange(n) - n // 2) * VOXEL for n in image.shape)
    width = sigma**2 + VOXEL**2 / 4  # the quadratic spline's variance
    expected = np.exp(-((y[:, None] - lab[1]) ** 2 + (x - lab[0]) ** 2) / (2 * width)) / (2 * np.pi * width)
    assert np.abs(image - expected).max() < 0.01 * expected.max()  # 0.7 % measured: the spline is no Gaussian
    assert image.sum() * VOXEL**2 == pytest.approx(1.0, rel=1e-3)


def test_slabs_add_up():
    shape = (10, 17, 11)
    volume = np.random.default_rng(3).random(shape, dtype=np.float32)
    whole = Projector(shape, VOXEL, (20, 19), poses(), n_bins=2)
    parts = [Projector(shape, VOXEL, (20, 19), poses(), n_bins=2, slab=s) for s in ((0, 5), (5, 6), (6, 17))]
    stack = sum(p.forward(volume[:, p.slab[0] : p.slab[1]]) for p in parts)
    np.testing.assert_allclose(stack, whole.forward(volume), atol=1e-5)  # other order of float32 sums
    image = np.random.default_rng(4).random(stack.shape, dtype=np.float32)
    joined = np.concatenate([p.adjoint(image) for p in parts], axis=1)
    np.testing.assert_allclose(joined, whole.adjoint(image), atol=1e-5)


def test_bins_sum_to_the_plain_projection_and_order_by_depth():
    shape = (16, 9, 16)
    volume = np.random.default_rng(5).random(shape, dtype=np.float32)
    plain = Projector(shape, VOXEL, (14, 22), poses()).forward(volume)
    binned = Projector(shape, VOXEL, (14, 22), poses(), n_bins=4).forward(volume)
    np.testing.assert_allclose(binned.sum(axis=1), plain, atol=1e-5)
    deep = blob(shape, (0, 0, 2.4), 0.5)  # z > 0 is downstream: the last bins
    mass = Projector(shape, VOXEL, (14, 22), [Pose.from_tilt(0.0)], n_bins=4).forward(deep).sum(axis=(0, 2, 3))
    # bins of 1.6 Å centred at −2.4, −0.8, 0.8, 2.4; linear weights of a σ = 0.5 Å blob: mean |z| / 1.6 = 0.25 goes away
    assert mass.argmax() == 3
    assert mass[2] / mass.sum() < 0.3


def test_support_ranges_equal_a_masked_volume():
    shape = (9, 12, 10)
    rng = np.random.default_rng(6)
    z, y, x = np.ogrid[-4:5, -6:6, -5:5]
    support = (z**2 + y**2 + x**2) < 14  # convex, so that each column's range is the support itself
    volume = rng.random(shape, dtype=np.float32)
    limited = Projector(shape, VOXEL, (12, 12), poses(), support=support)
    whole = Projector(shape, VOXEL, (12, 12), poses())
    np.testing.assert_allclose(limited.forward(volume), whole.forward(volume * support), atol=1e-6)
    stack = rng.random((5, 12, 12), dtype=np.float32)
    np.testing.assert_allclose(limited.adjoint(stack), whole.adjoint(stack) * support, atol=1e-6)


@pytest.mark.parametrize("spread", [0.0, 0.02])
@pytest.mark.parametrize("n_bins", [1, 3])
def test_adjoint_to_round_off(spread, n_bins):
    # spread 0: the tilt axis is a row; one bin then takes the way of rows
    shape = (12, 70, 11)
    projector = Projector(shape, VOXEL, (66, 13), poses(spread=spread), n_bins=n_bins, dtype=np.float64)
    rng = np.random.default_rng(1)
    volume = rng.normal(size=shape)
    projected = projector.forward(volume)
    stack = rng.normal(size=projected.shape)
    difference = np.vdot(projected, stack) - np.vdot(volume, projector.adjoint(stack))
    assert abs(difference) < 1e-14 * np.linalg.norm(projected) * np.linalg.norm(stack)


def test_rows_equal_the_way_of_any_pose():
    shape = (14, 20, 13)
    volume = np.random.default_rng(7).random(shape)
    straight = poses(spread=0.0)
    nearly = [
        Pose(rotation=rotation_from_angles(1e-6, *angles_from_rotation(p.rotation)[1:]), shift=p.shift)
        for p in straight
    ]
    z, y, x = np.ogrid[-7:7, -10:10, -6:7]
    support = (z**2 + y**2 / 2 + x**2) < 40
    settings = {"support": support, "dtype": np.float64}
    one, other = (Projector(shape, VOXEL, (22, 18), p, **settings) for p in (straight, nearly))
    mixed = Projector(shape, VOXEL, (22, 18), [straight[0], *nearly[1:3], *straight[3:]], **settings)
    stack = one.forward(volume)
    # a turn by 1e-6 moves pixels by 1e-5 at most, and values by as much of the difference of neighbours
    for projector in (other, mixed):
        np.testing.assert_allclose(projector.forward(volume), stack, atol=1e-5 * stack.max())
        np.testing.assert_allclose(projector.depth_moment(volume), one.depth_moment(volume), atol=1e-5 * stack.max())
        np.testing.assert_allclose(projector.adjoint(stack), one.adjoint(stack), atol=1e-5 * stack.max())


@pytest.mark.parametrize("spread", [0.0, 0.02])
def test_threads_change_nothing(spread):
    shape = (9, 12, 10)
    volume = np.random.default_rng(7).random(shape, dtype=np.float32)
    one, two, five = (Projector(shape, VOXEL, (12, 12), poses(spread=spread), threads=n) for n in (1, 2, 5))
    for other in (two, five):
        np.testing.assert_array_equal(one.forward(volume), other.forward(volume))
        np.testing.assert_array_equal(one.adjoint(one.forward(volume)), other.adjoint(one.forward(volume)))


def analytic_image(parameters, centres, sigma, detector):
    """Projection of unit Gaussians ``centres`` (n, xyz) at (dy, dx, in_plane, tilt, out_of_plane)."""
    lab = centres @ rotation_from_angles(*parameters[2:]).T
    y, x = ((np.arange(n) - n // 2) * VOXEL for n in detector)
    width = sigma**2 + VOXEL**2 / 4  # with the quadratic spline's variance
    gy = np.exp(-((y - lab[:, 1:2] - parameters[0]) ** 2) / (2 * width))
    gx = np.exp(-((x - lab[:, :1] - parameters[1]) ** 2) / (2 * width))
    return gy.T @ gx / (2 * np.pi * width)


def test_pose_jacobian_against_finite_differences():
    shape, detector, sigma = (34, 34, 34), (44, 44), 0.8
    centres = np.array([(2.0, -1.5, 2.5), (-2.5, 2.0, 1.0), (1.0, 2.5, -3.0)])
    volume = sum(blob(shape, c, sigma) for c in centres)
    at = np.array([0.4, -0.3, 0.15, 0.5, -0.1])
    pose = Pose(rotation=rotation_from_angles(*at[2:]), shift=tuple(at[:2]))
    projector = Projector(shape, VOXEL, detector, [pose])
    found = pose_jacobian(projector.forward(volume)[0], projector.depth_moment(volume)[0], pose, VOXEL)
    for i, step in enumerate(1e-4 * np.eye(5)):
        numeric = analytic_image(at + step, centres, sigma, detector) - analytic_image(
            at - step, centres, sigma, detector
        )
        error = np.linalg.norm(found[i] - numeric / 2e-4) / np.linalg.norm(numeric / 2e-4)
        assert error < 0.01, i  # 0.6 % measured: (f/(1−f))² of what the spline lets through at f ~ 0.08/pixel


def test_operator_norm_equals_the_dense_one():
    shape = (6, 5, 7)
    projector = Projector(shape, VOXEL, (7, 9), poses())
    dense = np.stack([projector.forward(e.reshape(shape)).ravel() for e in np.eye(210, dtype=np.float32)])
    start = np.random.default_rng(8).random(shape, dtype=np.float32)
    found = operator_norm(lambda v: projector.adjoint(projector.forward(v)), start, 40)
    assert found == pytest.approx(np.linalg.norm(dense, 2) ** 2, rel=1e-3)


def test_wrong_shapes_are_refused():
    projector = Projector((6, 5, 7), VOXEL, (7, 9), poses())
    with pytest.raises(ConfigError, match="volume"):
        projector.forward(np.zeros((5, 5, 7), np.float32))
    with pytest.raises(ConfigError, match="stack"):
        projector.adjoint(np.zeros((5, 9, 9), np.float32))
    with pytest.raises(ConfigError, match="slab"):
        Projector((6, 5, 7), VOXEL, (7, 9), poses(), slab=(3, 6))
