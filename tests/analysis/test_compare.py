"""Comparison with a model: what was moved, dropped, added and renamed on purpose is what is reported."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hpcrec.analysis.compare import compare_alignment, compare_atoms, match_pairs
from hpcrec.errors import DataError
from hpcrec.geometry.pose import angles_from_rotation, rotation_from_angles


def tampered(particle, *, shift, degrees, seed=0, noise=0.08, n_drop=10, n_false=7, n_rename=5):
    """The model moved as a whole, with noise, and atoms dropped, renamed and added."""
    rng = np.random.default_rng(seed)
    positions, species = particle
    axis = rng.standard_normal(3)
    turn = Rotation.from_rotvec(np.deg2rad(degrees) * axis / np.linalg.norm(axis)).as_matrix()
    moved = (positions - shift) @ turn + noise * rng.standard_normal(positions.shape)
    order = rng.permutation(len(moved))[n_drop:]
    moved, names = moved[order], species[order].copy()
    names[:n_rename] = np.where(names[:n_rename] == "Co", "O", "Co")
    far = moved.max(axis=0) + 1.5 + rng.uniform(0, 3, (n_false, 3))
    return np.concatenate([moved, far]), np.concatenate([names, ["O"] * n_false])


@pytest.mark.parametrize(
    ("shift", "degrees"),
    [((0.0, 0.0, 0.0), 0.0), ((1.4, -0.9, 0.6), 2.0), ((2.9, 0.0, 0.0), 3.0), ((-1.7, 1.7, -1.7), -3.0)],
)
def test_motion_is_found_and_counts_are_right(particle, shift, degrees):
    found, names = tampered(particle, shift=np.array(shift), degrees=degrees)
    result = compare_atoms(found, names, *particle)
    cobalt, oxygen = result.species["Co"], result.species["O"]
    assert cobalt.missing + oxygen.missing == 10
    assert cobalt.wrong_species + oxygen.wrong_species == 5
    assert (cobalt.n_false, oxygen.n_false) == (0, 7)
    assert cobalt.found + cobalt.wrong_species + cobalt.missing == cobalt.n_true
    assert np.degrees(result.registration.angle) == pytest.approx(abs(degrees), abs=0.2)
    assert result.rms == pytest.approx(0.08 * np.sqrt(3), rel=0.1)
    assert max(result.rms_axes) < 0.1
    assert result.false_share == pytest.approx(7 / len(found))


def test_half_the_particle_is_still_registered(particle):
    positions, species = particle
    keep = positions[:, 0] > 0
    result = compare_atoms(positions[keep] + [0.8, -1.1, 0.4], species[keep], positions, species)
    assert result.rms < 1e-6
    assert result.species["Co"].found + result.species["O"].found == keep.sum()


def test_pairs_are_one_to_one():
    a = np.array([[0.0, 0, 0], [0.3, 0, 0]])
    assert match_pairs(a, np.array([[0.2, 0, 0]]), 0.5).tolist() == [[1, 0]]
    assert match_pairs(a, np.zeros((0, 3)), 0.5).shape == (0, 2)


def test_nothing_found(particle):
    result = compare_atoms(np.zeros((0, 3)), np.array([], "<U2"), *particle)
    assert result.species["Co"].found_share == 0.0
    assert np.isnan(result.rms)


def series(seed=0, n=36):
    rng = np.random.default_rng(seed)
    angles = np.stack([rng.normal(0, 0.005, n), np.linspace(-1.2, 1.2, n), rng.normal(0, 0.003, n)], axis=1)
    return rng.normal(0, 1.5, (n, 2)), angles


def test_gauges_of_an_alignment_are_removed():
    shifts, angles = series()
    turn = Rotation.from_rotvec([0.01, 0.03, -0.02]).as_matrix()
    translation = np.array([1.0, -2.0, 0.7])
    rotations = np.array([rotation_from_angles(*a) for a in angles])
    other = np.array([angles_from_rotation(r @ turn) for r in rotations])
    moved = shifts + (rotations @ translation)[:, [1, 0]]
    result = compare_alignment(moved, other, shifts, angles)
    assert np.abs(result.shift_errors).max() < 1e-9
    assert np.abs(result.angle_errors).max() < 1e-6
    np.testing.assert_allclose(result.translation, translation, atol=1e-9)
    np.testing.assert_allclose(result.rotation, turn.T, atol=1e-6)


def test_errors_of_an_alignment_remain():
    shifts, angles = series()
    rng = np.random.default_rng(1)
    result = compare_alignment(
        shifts + rng.normal(0, 0.1, shifts.shape), angles + rng.normal(0, 0.002, angles.shape), shifts, angles
    )
    np.testing.assert_allclose(result.shift_rms, 0.1, rtol=0.35)  # 36 samples: ±12 % per sigma
    np.testing.assert_allclose(result.angle_rms, 0.002, rtol=0.35)


def test_bad_input(particle):
    with pytest.raises(DataError, match="one species"):
        compare_atoms(np.zeros((3, 3)), ["O"], *particle)
    with pytest.raises(DataError, match="shape"):
        compare_alignment(np.zeros((3, 2)), np.zeros((3, 3)), np.zeros((4, 2)), np.zeros((4, 3)))
