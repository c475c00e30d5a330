"""The quality of a tilt: any number of ranks, held-out patterns that nothing has seen, limits and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_tilt import run_one

from hpcrec.analysis.patterns import COLUMNS
from hpcrec.data.dataset import TiltScan
from hpcrec.errors import ConfigError, DataError, QualityError
from hpcrec.parallel.communicator import run_ranks
from hpcrec.run.config import fingerprint, load_job
from hpcrec.run.job import QualitySection
from hpcrec.run.outcome import TiltOutcome
from hpcrec.run.record import (
    broken_limits,
    quality_arrays,
    quality_path,
    quality_record,
    read_quality_record,
    write_quality_record,
)

HELD_OUT = "quality.hold_out=0.03"


@pytest.fixture
def outcome(tiny_job: Path, tmp_path: Path) -> TiltOutcome:
    found = run_one(load_job(tiny_job, [HELD_OUT, "refine.positions.start_iteration=1"])[0], tmp_path / "one")
    assert found is not None
    return found


@pytest.mark.parametrize("exchange", ["replicated", "tiled"])
def test_three_ranks_find_the_figures_of_one(
    tiny_job: Path, tmp_path: Path, outcome: TiltOutcome, exchange: str
) -> None:
    """Single precision: objects of one and three ranks agree to 1e-5, so do the figures."""
    changes = [HELD_OUT, "refine.positions.start_iteration=1", f"parallel.exchange={exchange}"]
    job, _ = load_job(tiny_job, changes)
    many = run_ranks(3, lambda group: run_one(job, tmp_path / "many", group))[0]
    assert many is not None
    np.testing.assert_allclose(many.patterns, outcome.patterns, rtol=1e-3)
    np.testing.assert_allclose(many.held_out_error, outcome.held_out_error, rtol=1e-3)
    a, b = quality_record(many), quality_record(outcome)
    assert a["used"] == pytest.approx(b["used"], rel=1e-3)
    assert a["drift"]["rms_angstrom"] == pytest.approx(b["drift"]["rms_angstrom"], rel=1e-2)


def test_the_final_figures_are_those_of_the_final_state(outcome: TiltOutcome) -> None:
    """The error seen during the last sweep is that of changing states, so it lies near and above the final one."""
    record = quality_record(outcome)
    assert 0.5 * outcome.data_error[-1] < record["used"]["data_error"] < 1.05 * outcome.data_error[-1]
    assert record["held_out"]["n_patterns"] == 1
    assert record["held_out"]["data_error"] == pytest.approx(outcome.held_out_error[-1])
    assert record["used"]["n_patterns"] == 35
    assert record["sweeps"] == 4
    assert sum(record["mode_powers"]) == pytest.approx(1)
    assert record["drift"]["max_angstrom"] > 0
    arrays = quality_arrays(outcome)
    assert arrays["residual"].shape == (36,)
    assert arrays["held_out_error"].shape == (4,)


@pytest.mark.parametrize("engine", ["gradient", "lsqml", "dm", "wasp", "cg"])
def test_held_out_patterns_change_nothing_but_their_own_error(
    tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """The same run with other counts in the held-out pattern: the same object to the last bit."""
    job, _ = load_job(tiny_job, [HELD_OUT, f"ptychography.engine={engine}"])
    outcome = run_one(job, tmp_path / "one")
    assert outcome is not None
    (held,) = outcome.held_out
    real = TiltScan.read

    def read(self: TiltScan, indices: Any) -> Any:
        patterns = real(self, indices).copy()
        patterns[np.asarray(indices) == held] = patterns[np.asarray(indices) == held][:, ::-1]
        return patterns

    monkeypatch.setattr(TiltScan, "read", read)
    monkeypatch.setattr("hpcrec.run.start.mean_pattern", lambda scan: real(scan, np.arange(36)).mean(axis=0))
    again = run_one(job, tmp_path / "again")
    assert again is not None
    np.testing.assert_array_equal(again.data_error, outcome.data_error)
    np.testing.assert_array_equal(again.obj, outcome.obj)
    assert again.held_out_error[-1] > 1.5 * outcome.held_out_error[-1]


def test_pixels_that_are_bad_in_one_pattern_do_not_count_there(
    tiny_job: Path, tmp_path: Path, outcome: TiltOutcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_good(self: TiltScan, indices: Any) -> Any:
        good = np.ones((len(indices), *self.pattern_shape), bool)
        good[np.asarray(indices) == 5, :, 20:] = False
        return good

    monkeypatch.setattr(TiltScan, "read_good", read_good)
    found = run_one(load_job(tiny_job)[0], tmp_path / "masked")
    assert found is not None
    pixels = found.patterns[:, COLUMNS.index("pixels")]
    assert pixels[5] == 32 * 20
    assert (np.delete(pixels, 5) == 32 * 32).all()
    assert found.patterns[5, COLUMNS.index("counts")] < outcome.patterns[5, COLUMNS.index("counts")]


@pytest.mark.parametrize("engine", ["gradient", "dm"])
def test_a_resumed_tilt_has_the_whole_curve(tiny_job: Path, tmp_path: Path, engine: str) -> None:
    """Exit waves of the patterns used are kept in checkpoints, those of held-out ones do not exist."""
    job, _ = load_job(tiny_job, [HELD_OUT, f"ptychography.engine={engine}"])
    whole = run_one(job, tmp_path / "whole")

    def die(event: Any) -> None:
        if event["event"] == "sweep" and event["iteration"] == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_one(job, tmp_path / "cut", None, die)
    again = run_one(job, tmp_path / "cut")
    assert whole is not None
    assert again is not None
    np.testing.assert_array_equal(again.held_out_error, whole.held_out_error)
    np.testing.assert_array_equal(again.patterns, whole.patterns)
    shared = run_ranks(3, lambda group: run_one(job, tmp_path / "cut", group))[0]
    assert shared is not None
    np.testing.assert_allclose(shared.held_out_error, whole.held_out_error, rtol=1e-3)


def test_a_scan_without_inside_cannot_hold_out(tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrec.run.assess.held_out_positions", lambda *_: np.zeros(0, np.int64))
    with pytest.raises(DataError, match=r"tilt 1: none of its 36 positions.*hold_out = 0"):
        run_one(load_job(tiny_job, [HELD_OUT])[0], tmp_path / "out")


def test_records_are_plain_json(tmp_path: Path, outcome: TiltOutcome) -> None:
    record = quality_record(outcome)
    record["drift"]["rms_angstrom"] = float("nan")
    path = quality_path(tmp_path, 7)
    assert read_quality_record(path) is None
    write_quality_record(path, record)
    assert path.name == "tilt_0007.quality.json"
    found = read_quality_record(path)
    assert found is not None
    assert found["drift"]["rms_angstrom"] is None
    assert found["used"] == record["used"]
    path.write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        read_quality_record(path)


def test_limits_name_the_tilt_and_the_figure(outcome: TiltOutcome) -> None:
    record = quality_record(outcome)
    error = record["used"]["data_error"]
    assert broken_limits(QualitySection(max_data_error=1.01 * error), 1, record) == []
    (text,) = broken_limits(QualitySection(max_data_error=0.99 * error), 1, record)
    assert text.startswith("tilt 1: the data error of ")
    assert "quality.max_data_error" in text
    (text,) = broken_limits(QualitySection(max_resolution_angstrom=1.0, frc=True), 4, None)
    assert text.startswith("tilt 4: the resolution was not measured")


def test_limits_judge_results_and_change_none() -> None:
    raw = {"quality": {"hold_out": 0.02}}
    assert fingerprint(raw, "tomography") == fingerprint(
        {"quality": {"hold_out": 0.02, "max_r_factor": 1}}, "tomography"
    )
    assert fingerprint(raw, "tomography") != fingerprint({"quality": {"hold_out": 0.03}}, "tomography")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("quality.hold_out=0.5", "between 0 and 0.2"),
        ("quality.max_held_out_error=0.1", "no pattern is held out"),
        ("quality.max_resolution_angstrom=1", "needs quality.frc"),
        ("quality.max_r_factor=-1", "must be positive"),
        ("quality.max_rfactor=1", "did you mean 'max_r_factor'"),
    ],
)
def test_limits_that_make_no_sense_are_refused(tiny_job: Path, change: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_job(tiny_job, [change])


def test_a_broken_limit_ends_the_command_after_all_is_written(
    tiny_job: Path, hpcrec: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Limits may change afterwards: the second call computes nothing and judges anew."""
    out = tmp_path / "out"
    assert hpcrec("run", tiny_job, "--out", out, "--set", "quality.max_r_factor=1e-6") == QualityError.exit_code
    said = capsys.readouterr()
    assert said.err.count("the R factor of") == 3
    assert "Result" in said.out
    quality = json.loads((out / "quality.json").read_text())
    assert len(quality["broken_limits"]) == 3
    assert quality["tilts"][0]["r_factor"] > 1e-6
    assert "the R factor of" in (out / "report.html").read_text()
    before = (out / "checkpoints" / "tilt_0001.h5").stat().st_mtime_ns
    assert hpcrec("run", tiny_job, "--out", out) == 0
    assert (out / "checkpoints" / "tilt_0001.h5").stat().st_mtime_ns == before
    assert json.loads((out / "quality.json").read_text())["broken_limits"] == []
