"""The orientation doctor on simulated scans whose frames were flipped and turned on disk."""

import numpy as np
import pytest
from oriented import write_oriented

from hpcrec.direct.orientation import FLIPS, Orientation
from hpcrec.errors import ConfigError
from hpcrec.run.config import read_job_file
from hpcrec.run.orient import examine


def diagnose(job, overrides=(), **kwargs):
    return examine(read_job_file(job, overrides), n_positions=81, iterations=6, **kwargs)


@pytest.mark.parametrize(("flip", "pixels"), list(zip(FLIPS, [32, 31, 31, 32, 31, 32, 32, 31])))
def test_every_flip_is_recovered_from_even_and_odd_frames(flip, pixels, tmp_path):
    found = diagnose(write_oriented(tmp_path, flip, pixels))
    assert found.block["data"] == {**flip.frame_options(), "scan_rotation_deg": pytest.approx(0, abs=2)}
    assert found.sure in ("certain", "likely")
    assert found.block["probe"]["defocus_angstrom"] == pytest.approx(60, rel=0.1)


def test_a_turned_scan_and_unknown_lens_are_measured(tmp_path):
    true = Orientation(transpose=True, flip_x=True, rotation=np.radians(25.0))
    found = diagnose(write_oriented(tmp_path, true, defocus=50.0))
    assert found.block["data"] == {**true.frame_options(), "scan_rotation_deg": pytest.approx(25, abs=2)}
    assert found.block["probe"]["defocus_angstrom"] == pytest.approx(60, rel=0.1)
    assert found.block["probe"]["astigmatism_angstrom"] == pytest.approx(15, abs=4)
    assert found.block["probe"]["astigmatism_angle_deg"] == pytest.approx(np.degrees(0.3), abs=10)


def test_positions_may_be_moved_instead(tmp_path):
    true = Orientation(transpose=True, flip_y=True)
    found = diagnose(write_oriented(tmp_path, true), side="positions")
    assert found.block["data"] == {**true.position_options(), "scan_rotation_deg": pytest.approx(0, abs=2)}
    assert "transpose" not in found.block["data"]


def test_positions_that_no_key_names_cannot_be_moved(tmp_path):
    job = write_oriented(tmp_path, Orientation())
    patterns = np.load(tmp_path / "patterns.npy")
    np.save(tmp_path / "patterns.npy", patterns.reshape(11, 12, 32, 32))
    text = job.read_text().replace('positions = "positions.npy"', 'layout = "row,column"\nscan_step_angstrom = [1, 1]')
    job.write_text(text)
    with pytest.raises(ConfigError, match="let the block move the frames"):
        diagnose(job, side="positions")
    assert diagnose(job).block["data"]["flip_y"] is False


def test_without_a_sign_of_defocus_the_half_turn_stays_open(tmp_path):
    """Object and conjugate fit alike; the doctor says so and takes bright atoms, which is right for electrons."""
    true = Orientation(flip_y=True)
    found = diagnose(write_oriented(tmp_path, true, defocus=0.0))
    assert found.sure != "certain"
    assert any("complex conjugate" in note for note in found.notes)
    assert found.block["data"]["transpose"] is False
    assert found.block["data"]["flip_y"] != found.block["data"]["flip_x"]
    assert abs(found.block["probe"]["defocus_angstrom"]) == pytest.approx(60, rel=0.1)
    assert found.block["data"]["flip_y"] is True
    assert found.block["probe"]["defocus_angstrom"] > 0
