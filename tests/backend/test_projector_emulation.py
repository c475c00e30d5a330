"""The projector's GPU kernels, run on the CPU thread by thread in random order, against the host's."""

import numpy as np
import pytest
from emulated_projector import emulated
from kernel_chains import KERNELS

from hpcrec.backend import cuda, projector
from hpcrec.backend.kernels.volume import proximal_step
from hpcrec.errors import ConfigError
from hpcrec.geometry.pose import Pose, rotation_from_angles
from hpcrec.operators.projection import Projector, pose_jacobian

pytestmark = pytest.mark.emulation

VOXEL = 0.4
# Of the largest value, in single precision: sums of up to some hundred terms in another order
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return emulated(tmp_path_factory.mktemp("projector"))


@pytest.fixture
def kernels(library, cupy, monkeypatch):
    library.launches.clear()
    monkeypatch.setattr(projector, "launch", library.launch)
    return library


def poses(kind, n=5, seed=0):
    rng = np.random.default_rng(seed)
    tilts = np.linspace(-1.3, 1.2, n)
    shifts = [tuple(0.7 * rng.normal(size=2)) for _ in tilts]
    if kind == "any":
        turns = [rng.uniform(-3, 3, 3) for _ in tilts]
    else:
        spread = 0.03 if kind == "nearly" else 0.0
        turns = [(spread * rng.normal(), t, spread * rng.normal()) for t in tilts]
    return [Pose(rotation=rotation_from_angles(*turn), shift=shift) for turn, shift in zip(turns, shifts)]


def ball(shape):
    z, y, x = (np.arange(n) - n // 2 for n in shape)
    return (z[:, None, None] ** 2 + y[:, None] ** 2 + x**2) < 0.2 * min(shape) ** 2


def largest(found, wanted):
    return np.abs(found.get() - wanted).max() / np.abs(wanted).max()


def exact_and_found(cupy, shape, detector, chosen, seed=1, **settings):
    """Projections, moments and adjoint in double precision on the host, and on the device; the adjoint's defect."""
    rng = np.random.default_rng(seed)
    whole, device = (Projector(shape, VOXEL, detector, chosen, dtype=d, **settings) for d in (np.float64, np.float32))
    volume = rng.normal(size=whole.volume_shape).astype(np.float32)
    stack = rng.normal(size=whole.range).astype(np.float32)
    there, images = cupy.asarray(volume), cupy.asarray(stack)
    projected, back = device.forward(there), device.adjoint(images)
    assert projected.dtype == back.dtype == np.float32
    assert projected.shape == whole.range
    assert back.shape == whole.volume_shape
    errors = {
        "forward": largest(projected, whole.forward(volume.astype(float))),
        "moment": largest(device.depth_moment(there), whole.depth_moment(volume.astype(float))),
        "adjoint": largest(back, whole.adjoint(stack.astype(float))),
    }
    left, right = np.vdot(projected.get().astype(float), stack), np.vdot(volume.astype(float), back.get())
    errors["dot"] = abs(left - right) / (np.linalg.norm(projected.get()) * np.linalg.norm(stack))
    return errors


# one tile and several, lines that are no whole quads, a detector smaller and larger than the volume
SHAPES = [((9, 13, 11), (9, 12)), ((7, 150, 40), (160, 37)), ((38, 6, 8), (20, 70))]


@pytest.mark.parametrize("kind", ["straight", "nearly", "any"])
@pytest.mark.parametrize("footprint", ["linear", "quadratic"])
@pytest.mark.parametrize(("shape", "detector"), SHAPES)
def test_kernels_equal_the_host(kernels, cupy, kind, footprint, shape, detector):
    found = exact_and_found(cupy, shape, detector, poses(kind), footprint=footprint)
    assert all(value <= TOLERANCE for value in found.values()), found
    assert set(kernels.launches) <= set(projector.kernel_names())
    used = {name.partition("<")[0] for name in kernels.launches}
    ways = "rows" if kind == "straight" else "any"
    assert used == {"tomography_turn", f"tomography_project_{ways}", f"tomography_back_project_{ways}"}


@pytest.mark.parametrize("kind", ["straight", "nearly", "any"])
@pytest.mark.parametrize("n_bins", [2, 5])
def test_bins(kernels, cupy, kind, n_bins):
    found = exact_and_found(cupy, (20, 21, 19), (24, 25), poses(kind), n_bins=n_bins, bin_thickness=1.7)
    assert all(value <= TOLERANCE for value in found.values()), found


@pytest.mark.parametrize("kind", ["straight", "nearly", "any"])
@pytest.mark.parametrize("slab", [(0, 5), (5, 6), (6, 17)])
def test_slabs_of_a_support(kernels, cupy, kind, slab):
    shape = (12, 17, 14)
    support = np.ascontiguousarray(ball(shape)[:, slab[0] : slab[1]])
    for given in (support, cupy.asarray(support)):
        found = exact_and_found(cupy, shape, (20, 19), poses(kind), slab=slab, support=given)
        assert all(value <= TOLERANCE for value in found.values()), found


@pytest.mark.parametrize("pixel", [0.25, 0.7])
def test_pixels_of_another_size(kernels, cupy, pixel):
    found = exact_and_found(cupy, (10, 12, 11), (30, 28), poses("straight"), pixel_size=pixel)
    assert all(value <= TOLERANCE for value in found.values()), found
    assert not any("rows" in name for name in kernels.launches)


def test_straight_and_turned_poses_together(kernels, cupy):
    mixed = [poses("straight")[0], *poses("nearly")[1:3], *poses("straight")[3:]]
    found = exact_and_found(cupy, (14, 20, 13), (22, 18), mixed)
    assert all(value <= TOLERANCE for value in found.values()), found
    assert any("rows" in name for name in kernels.launches)
    assert any("any" in name for name in kernels.launches)


def test_far_pixels_are_as_exact_as_near_ones(kernels, cupy):
    """A volume 3000 voxels long: single precision would know its places to 2·10⁻⁴ pixels only."""
    for kind in ("straight", "nearly"):
        found = exact_and_found(cupy, (2, 5, 3000), (9, 3001), poses(kind, 2))
        assert all(value <= TOLERANCE for value in found.values()), found


def test_a_repeated_call_gives_the_same_bits(kernels, cupy):
    """The threads take other turns each time, and nothing depends on that."""
    shape = (12, 40, 13)
    for kind in ("straight", "nearly"):
        device = Projector(shape, VOXEL, (44, 18), poses(kind))
        volume = cupy.asarray(np.random.default_rng(3).random(shape, dtype=np.float32))
        one, other = device.forward(volume), device.forward(volume)
        np.testing.assert_array_equal(one.get(), other.get())
        np.testing.assert_array_equal(device.adjoint(one).get(), device.adjoint(one).get())


@pytest.mark.parametrize("positive", [False, True])
def test_the_solvers_step(kernels, cupy, positive):
    rng = np.random.default_rng(4)
    point, before, gradient = (rng.normal(size=(5, 9, 31)).astype(np.float32) for _ in range(3))
    point[2, 3, 4], gradient[0, 0, 0], point[0, 0, 0] = np.nan, 0.0, 0.2
    settings = (0.3, 0.2, 0.6, positive)
    wanted = proximal_step(point, before, gradient, *settings)
    found = proximal_step(*(cupy.asarray(a) for a in (point, before, gradient)), *settings)
    assert kernels.launches == [f"tomography_step<{str(positive).lower()}>"]
    for one, other in zip(found, wanted):
        # a multiply-add may round once or twice
        np.testing.assert_allclose(one.get(), other, atol=4e-7)
    assert np.isnan(found[0].get()[2, 3, 4])
    assert found[0].get()[0, 0, 0] == 0.0


def test_images_of_a_pose_come_from_the_device(kernels, cupy):
    shape, pose = (14, 15, 13), poses("nearly")[1]
    volume, device = ball(shape).astype(np.float32), Projector(shape, VOXEL, (18, 17), [pose])
    wanted = pose_jacobian(device.forward(volume)[0], device.depth_moment(volume)[0], pose, VOXEL)
    there = cupy.asarray(volume)
    found = pose_jacobian(device.forward(there)[0], device.depth_moment(there)[0], pose, VOXEL)
    assert largest(found, wanted) < 2e-6  # differences of neighbours, each good to 1e-6 of the largest


def test_nothing_to_do(kernels, cupy):
    empty = Projector((6, 5, 7), VOXEL, (7, 9), poses("nearly"), slab=(2, 2))
    assert not empty.forward(cupy.zeros((6, 0, 7), np.float32)).get().any()
    assert empty.adjoint(cupy.zeros((5, 7, 9), np.float32)).shape == (6, 0, 7)
    assert kernels.launches == []


def test_what_a_device_does_not_know_is_said(kernels, cupy):
    device = Projector((6, 5, 7), VOXEL, (7, 9), poses("nearly"), dtype=np.float64)
    with pytest.raises(ConfigError, match="float32, not float64"):
        device.forward(cupy.zeros((6, 5, 7)))
    with pytest.raises(ConfigError, match="volume"):
        device.forward(cupy.zeros((5, 5, 7)))
    with pytest.raises(ConfigError, match="stack"):
        device.adjoint(cupy.zeros((5, 9, 9)))


def test_structures_are_laid_out_as_the_kernels_read_them(library):
    tables = (projector.ARGUMENTS, projector.TURN, projector.STEP, projector.MAP, projector.WAY, projector.TAPS)
    assert [library.library.size_of(i) for i in range(6)] == [table.itemsize for table in tables]


def test_a_missing_barrier_shows(cupy, monkeypatch, tmp_path):
    """A proof of the stand-in: tiles that are read before they are filled come out wrong."""
    for path in KERNELS.glob("*.cuh"):
        text = path.read_text(encoding="utf-8")
        if path.name == "turns.cuh":
            assert text.count("  barrier();\n") == 2
            text = text.replace("  barrier();\n", "")
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(projector, "launch", emulated(tmp_path, tmp_path).launch)
    found = exact_and_found(cupy, (9, 13, 11), (9, 12), poses("straight"))
    assert not found["forward"] <= 1e-2


def test_the_source_holds_all_kernels():
    text = cuda.source("projector")
    assert "#include" not in text
    names = projector.kernel_names()
    assert len(set(names)) == 22
    for name in names:
        assert f"{name.partition('<')[0]}(const __grid_constant__" in text
