"""Poses: rotations are proper, right-handed and invert to their angles."""

import numpy as np
import pytest

from hpcrec.geometry.pose import Pose, angles_from_rotation, rotation_about, rotation_from_angles, tilt_rotation

ROUND_OFF = 1e-14


@pytest.mark.parametrize(("axis", "start", "end"), [("x", 1, 2), ("y", 2, 0), ("z", 0, 1)])
def test_quarter_turns_are_right_handed(axis, start, end):
    unit = np.eye(3)
    np.testing.assert_allclose(rotation_about(axis, np.pi / 2) @ unit[start], unit[end], atol=ROUND_OFF)


def test_rotations_are_proper():
    rotation = rotation_from_angles(0.3, -1.1, 0.7)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=ROUND_OFF)
    assert np.linalg.det(rotation) == pytest.approx(1.0, abs=ROUND_OFF)


def test_tilt_leaves_its_axis_in_place():
    angle = 0.4
    axis = rotation_about("z", angle) @ np.array([0.0, 1.0, 0.0])
    np.testing.assert_allclose(tilt_rotation(1.2, angle) @ axis, axis, atol=ROUND_OFF)


def test_positive_tilt_about_y_moves_a_downstream_point_to_plus_x():
    assert Pose.from_tilt(0.2).rotation @ np.array([0.0, 0.0, 1.0]) == pytest.approx([np.sin(0.2), 0.0, np.cos(0.2)])


@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (0.3, -1.2, 0.1), (-2.0, 0.9, 1.4)])
def test_angles_invert_the_rotation(angles):
    np.testing.assert_allclose(angles_from_rotation(rotation_from_angles(*angles)), angles, atol=1e-13)
