"""The eight flips, the turn of the scan, and the two ways to write the same thing in a job file."""

import numpy as np
import pytest

from hpcrec.data.preprocess import DetectorFrame
from hpcrec.direct.orientation import (
    FLIPS,
    Contest,
    Orientation,
    certainty,
    contest,
    orientation_of,
    rotation_matrix,
    turn_from_curl,
)

TURNS = [0.0, 0.3, -0.7]


def with_turn(flip, rotation):
    return Orientation(transpose=flip.transpose, flip_y=flip.flip_y, flip_x=flip.flip_x, rotation=rotation)


@pytest.mark.parametrize("shape", [(8, 8), (9, 9)])
@pytest.mark.parametrize("flip", FLIPS, ids=Orientation.describe)
def test_the_matrix_is_what_the_reader_does_to_a_frame(flip, shape):
    n = shape[0]
    frame = DetectorFrame(
        stored=shape, centre=(n // 2, n // 2), shape=shape,
        transpose=flip.transpose, flip_y=flip.flip_y, flip_x=flip.flip_x,
    )  # fmt: skip
    k = np.array([2, -1])
    stored = np.zeros((1, *shape))
    stored[0, n // 2 + k[0], n // 2 + k[1]] = 1
    (ky, kx) = (flip.flip @ k).astype(int)
    assert frame.apply(stored)[0, ky % n, kx % n] == 1


@pytest.mark.parametrize("rotation", TURNS)
@pytest.mark.parametrize("flip", FLIPS, ids=Orientation.describe)
def test_every_turn_belongs_to_one_orientation(flip, rotation):
    true = with_turn(flip, rotation)
    found = orientation_of(true.turn)
    assert found.rotation == pytest.approx(rotation)
    assert found.describe() == true.describe()
    assert found.mirrored == (np.linalg.det(true.turn) < 0)
    assert np.allclose(true.conjugate.turn, -true.turn)


@pytest.mark.parametrize("rotation", TURNS)
@pytest.mark.parametrize("before", [((0, 1), (False, False)), ((1, 0), (True, False))])
@pytest.mark.parametrize("flip", FLIPS, ids=Orientation.describe)
def test_moving_positions_says_the_same_as_moving_frames(flip, rotation, before):
    columns, flips = before
    true = with_turn(flip, rotation)
    rng = np.random.default_rng(1)
    stored = rng.standard_normal((5, 2))

    def read(columns, flips, rotation):  # as io/base.py does
        return stored[:, list(columns)] * np.where(flips, -1, 1) @ rotation_matrix(rotation).T

    frames = true.flip
    moved_frames = read(columns, flips, rotation)
    options = true.position_options(columns, flips)
    given = (options["flip_position_y"], options["flip_position_x"])
    moved_scan = read(options["position_columns"], given, np.deg2rad(options["scan_rotation_deg"]))
    # One rigid motion D takes the second experiment into the first: frames k → D k, positions p → D p
    assert np.allclose(moved_scan @ frames.T, moved_frames, atol=1e-4)


@pytest.mark.parametrize("flip", FLIPS, ids=Orientation.describe)
def test_the_curl_gives_the_turn_up_to_its_sign(flip):
    true = with_turn(flip, 0.3)
    gradient = np.random.default_rng(2).standard_normal((20, 2))
    seen = gradient @ true.turn.T  # k = O q
    seen = seen[:, ::-1] if true.mirrored else seen
    angle = np.arctan2(
        np.sum(gradient[:, 0] * seen[:, 1] - gradient[:, 1] * seen[:, 0]), np.sum(gradient * seen)
    )  # the turn from x towards y that takes what is seen into the gradient
    assert np.allclose(turn_from_curl(angle, true.mirrored), true.turn)


def test_a_contest_is_decided_by_paired_errors():
    rng = np.random.default_rng(3)
    hard = rng.uniform(1, 10, 50)  # patterns differ far more than their explanations
    better, worse = hard * (1 + 0.01 * rng.standard_normal(50)), 1.1 * hard
    assert certainty(contest(better, worse)) == "certain"
    assert certainty(contest(worse, better)) == "cannot tell"
    assert certainty(contest(better, better * (1 + 0.01 * rng.standard_normal(50)))) == "cannot tell"
    assert certainty(Contest(ratio=1.03, sigmas=4.0)) == "likely"
    assert certainty(Contest(ratio=1.01, sigmas=9.0)) == "cannot tell"
    assert contest(better, better).sigmas == 0
    assert certainty(contest(better[:1], worse[:1])) == "cannot tell"
