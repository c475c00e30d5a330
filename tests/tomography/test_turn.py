import numpy as np
import pytest

from hpcrec.data.experiment import NuisanceOptions, SimulationOptions, TiltOptions, tilt_truth
from hpcrec.data.specimen import posed, specimen_from_atoms
from hpcrec.errors import DataError
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.pose import Pose, rotation_about
from hpcrec.physics.scattering import projected_potential
from hpcrec.tomography.turn import turn_image, turn_rotation, turn_vectors, turn_weight

SPOTS = np.array([[5.3, -11.2], [-20.7, 3.1], [0.0, 0.0], [12.4, 17.9], [-3.3, -25.0]])
ATOMS = specimen_from_atoms([79, 47, 29, 79], np.array([[0, 1, 5], [4, -6, 2], [-3, 5, -4], [2, 3, 3.0]]), b_factor=4.0)


def gaussians(shape, centre, spots, sigma):
    y, x = np.indices(shape)
    return sum(np.exp(-((y - centre[0] - dy) ** 2 + (x - centre[1] - dx) ** 2) / (2 * sigma**2)) for dy, dx in spots)


@pytest.mark.parametrize("degrees", [30, -77, 90, 140, 180, 270])
def test_gaussians_land_where_they_should(degrees):
    # σ = 1.5 pixels: the phantom's own spectrum at Nyquist is exp(−π²σ²/2) = 1.5e-5 of its peak, the floor of any
    # band-limited method; the splines add as much. The image has unequal, even and odd sides and an off-centre centre.
    image = gaussians((90, 101), (41, 48), SPOTS, 1.5)
    turned, centre = turn_image(image, np.deg2rad(degrees), (41, 48))
    assert centre == (turned.shape[0] // 2, turned.shape[1] // 2)
    wanted = gaussians(turned.shape, centre, turn_vectors(SPOTS, np.deg2rad(degrees)), 1.5)
    np.testing.assert_allclose(turned, wanted, atol=3e-5)
    assert turned.sum() == pytest.approx(image.sum(), rel=1e-6)


def test_error_of_sharper_spots_is_their_own_aliasing():
    # σ = 1 pixel: exp(−π²/2) = 0.7 % at Nyquist. Found 0.3 %; cubic or quintic splines alone err by 2 % and 0.8 %.
    image = gaussians((81, 81), (40, 40), SPOTS, 1.0)
    turned, centre = turn_image(image, 0.4, (40, 40))
    assert np.abs(turned - gaussians(turned.shape, centre, turn_vectors(SPOTS, 0.4), 1.0)).max() < 5e-3


def test_right_angles_move_pixels_only():
    image = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)
    assert turn_image(image, 0.0, (2, 5)) == (image, (2, 5))
    quarter, centre = turn_image(image, np.deg2rad(90), (3, 4))
    # +x goes to +y, +y goes to −x
    for dy, dx in ((0, 4), (3, 0), (-2, 3)):
        assert quarter[centre[0] + dx, centre[1] - dy] == image[3 + dy, 4 + dx]
    assert np.sort(quarter.ravel()).tolist() == np.sort(image.ravel()).tolist()
    back, _ = turn_image(quarter, np.deg2rad(-90), centre)
    np.testing.assert_array_equal(back, image)
    full, _ = turn_image(image, 2 * np.pi, (3, 4))
    np.testing.assert_array_equal(full, image)


def test_even_field_keeps_its_centre():
    image = np.zeros((6, 8), np.float32)
    image[3, 4] = 1
    for angle in np.deg2rad([90, 180, -90]):
        turned, centre = turn_image(image, angle, (3, 4))
        assert turned[centre] == 1


def test_weight_stays_a_weight():
    y, x = np.indices((60, 80))
    weight = np.clip(20 - np.hypot(y - 30, x - 35), 0, 4).astype(np.float32) / 4
    turned, centre = turn_weight(weight, 0.6, (30, 40))
    assert turned.min() == 0
    assert turned.max() <= 1
    # The disc goes to Rz(0.6) (0, −5) and stays a disc; linear interpolation reaches √2 pixels from its rims 20 and 16
    dy, dx = turn_vectors(np.array([0.0, -5.0]), 0.6)
    y, x = np.indices(turned.shape)
    distance = np.hypot(y - centre[0] - dy, x - centre[1] - dx)
    assert not turned[distance > 21.5].any()
    np.testing.assert_allclose(turned[distance < 14.5], 1, atol=1e-6)
    quarter, _ = turn_weight(weight, np.pi / 2, (30, 40))
    np.testing.assert_array_equal(quarter, turn_image(weight, np.pi / 2, (30, 40))[0])


def test_vectors_and_rotations_turn_alike():
    rng = np.random.default_rng(1)
    xyz = rng.normal(size=(5, 3))
    turned = xyz @ rotation_about("z", 0.7).T
    np.testing.assert_allclose(turn_vectors(xyz[:, ::-1], 0.7), turned[:, ::-1], atol=1e-12)
    np.testing.assert_allclose(turn_vectors(xyz[:, 1::-1], 0.7), turned[:, 1::-1], atol=1e-12)
    rotation = rotation_about("x", 0.3)
    np.testing.assert_allclose(turn_rotation(rotation, 0.7) @ turned[0], rotation_about("z", 0.7) @ rotation @ xyz[0])


@pytest.mark.parametrize("axis_deg", [30.0, 90.0, -50.0])
def test_sign_brings_the_simulated_axis_along_y(axis_deg):
    chosen = SimulationOptions(
        tilt=TiltOptions(first_deg=-50, last_deg=50, n_tilts=3, axis_deg=axis_deg),
        nuisance=NuisanceOptions(drift_angstrom=0.7, in_plane_error_deg=2.0),
    )
    grid = Grid(shape=(121, 121), sampling=(0.25, 0.25), origin=(-15.0, -15.0))
    axis = np.deg2rad(axis_deg)
    for i_tilt in range(3):
        truth = tilt_truth(chosen, i_tilt)
        image = _projected(ATOMS, truth.pose, grid)
        dy, dx = turn_vectors(np.array(truth.drift), -axis)
        about_y = Pose(rotation=rotation_about("z", truth.in_plane) @ rotation_about("y", truth.tilt), shift=(dy, dx))
        atoms = specimen_from_atoms(ATOMS.numbers, turn_vectors(ATOMS.positions, -axis), b_factor=4.0)
        wanted = _projected(atoms, about_y, grid)
        # B = 4 Å² leaves 0.5 % of the spectrum at the 2 1/Å of Nyquist
        assert _difference(image, -axis, wanted) < 0.01
        assert _difference(image, axis, wanted) > 0.3


def _projected(atoms, pose, grid):
    standing = posed(atoms, pose)
    return projected_potential(standing.numbers, standing.positions[:, 1:], grid, standing.b_factors)


def _difference(image, angle, wanted):
    turned, (cy, cx) = turn_image(image, angle, (60, 60))
    return np.abs(turned[cy - 60 : cy + 61, cx - 60 : cx + 61] - wanted).max() / wanted.max()


def test_centre_outside_is_refused():
    with pytest.raises(DataError, match="turned about one of its pixels"):
        turn_image(np.zeros((4, 4), np.float32), 0.3, (4, 0))
