"""The orientation doctor on simulated scans whose frames were flipped and turned on disk."""

import numpy as np
import pytest
from oriented import write_oriented

from hpcrec.direct.orientation import FLIPS, Orientation
from hpcrec.errors import ConfigError, DivergedError
from hpcrec.run.config import read_job_file
from hpcrec.run.evidence import FieldEvidence
from hpcrec.run.orient import examine
from hpcrec.run.trial import Trial


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


def test_a_turn_that_diverged_does_not_lead_the_search_astray(tmp_path, monkeypatch):
    """Errors grow with the distance from a turn of 4°; the first turn tried, 8°, diverges."""

    def trial(job, series, i_tilt, subset, held):
        turn = job.data.scan_rotation_deg
        if turn == pytest.approx(8):
            raise DivergedError("not finite")
        flips = 10 * sum([job.data.transpose, job.data.flip_y, job.data.flip_x])
        errors = np.linspace(1, 2, 20) * (1 + abs(turn - 4) + flips)
        return Trial(data_error=0.1, held_errors=errors, held_counts=np.ones(20), phase=np.zeros((2, 2)))

    monkeypatch.setattr("hpcrec.run.orient.try_job", trial)
    monkeypatch.setattr("hpcrec.run.orient.field_evidence", lambda *_: FieldEvidence())
    found = diagnose(write_oriented(tmp_path, Orientation()))
    assert found.block["data"]["scan_rotation_deg"] == pytest.approx(4)


def test_a_flip_that_alone_does_not_diverge_is_named(tmp_path, monkeypatch):
    def trial(job, series, i_tilt, subset, held):
        if job.data.transpose or job.data.flip_y or job.data.flip_x:
            raise DivergedError("not finite")
        return Trial(data_error=0.1, held_errors=np.ones(4), held_counts=np.ones(4), phase=np.zeros((2, 2)))

    monkeypatch.setattr("hpcrec.run.orient.try_job", trial)
    found = diagnose(write_oriented(tmp_path, Orientation()))
    assert (found.ranking[0].label, found.because) == (
        "as stored",
        "the reconstructions with all other flips diverged",
    )
