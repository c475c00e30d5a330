"""Tuning: the defocus of a simulated scan is found again, a study goes on, and mistakes are told in one sentence."""

from __future__ import annotations

import dataclasses
import sys
import threading
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import LAUNCHER, launch

from hpcrec.errors import ConfigError
from hpcrec.run.config import key_type, load_job, with_values
from hpcrec.run.runner import TiltRun
from hpcrec.run.tune import Parameter, Study, TuneOptions, parse_parameter

pytest.importorskip("optuna", reason="the extra 'tune' is not installed")


def options(**more: Any) -> TuneOptions:
    return TuneOptions(**{"positions": 36, "sweeps": 4, "trials": 8, **more})


def study(raw: dict[str, Any], path: Path, **more: Any) -> Study:
    return Study(raw, [Parameter(key="probe.defocus_angstrom", low=20.0, high=90.0)], options(**more), path)


def test_the_defocus_is_found_again(tiny_job: Path, tmp_path: Path) -> None:
    """Simulated at 50 Å; the job says 30. Half the depth of focus λ/α² = 28 Å is what one cell can tell."""
    raw = load_job(tiny_job, ["probe.defocus_angstrom=30"])[1]
    tuned = study(raw, tmp_path / "a.sqlite3", trials=10).run(lambda *_: None)
    assert tuned.values["probe.defocus_angstrom"] == pytest.approx(50, abs=14)
    first = next(t for t in tuned.trials if t.number == 0)
    assert first.values["probe.defocus_angstrom"] == 30, "the job as it is comes first"
    assert first.error is not None
    assert tuned.error < first.error


def test_a_study_goes_on_where_it_ended(tiny_job: Path, tmp_path: Path) -> None:
    raw, path = load_job(tiny_job)[1], tmp_path / "a.sqlite3"
    heard: list[int] = []
    study(raw, path, trials=2).run(lambda trial, n: heard.append(n))
    found = study(raw, path, trials=4).run(lambda trial, n: heard.append(n))
    assert heard == [1, 2, 3, 4]
    assert sorted(t.number for t in found.trials) == [0, 1, 2, 3]
    assert len({t.values["probe.defocus_angstrom"] for t in found.trials}) == 4, "no proposal comes twice"


def test_several_may_begin_a_study_together(tiny_job: Path, tmp_path: Path) -> None:
    raw, path = load_job(tiny_job)[1], tmp_path / "a.sqlite3"
    together = threading.Barrier(4)

    def begin(_: int) -> Study:
        together.wait()
        return study(raw, path, trials=1)

    with ThreadPoolExecutor(4) as threads:
        studies = list(threads.map(begin, range(4)))
    found = studies[0].run(lambda *_: None)
    assert [t.values["probe.defocus_angstrom"] for t in found.trials] == [50], "the job as it is, once"
    proposals = {s._study.ask().suggest_float("probe.defocus_angstrom", 20, 90) for s in studies}
    assert len(proposals) == 4, "nobody repeats another"


def test_a_folder_that_cannot_be_written_is_said_to_be_so(tiny_job: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write beside .*give another --out"):
        study(load_job(tiny_job)[1], tmp_path / "none" / "a.sqlite3")


def test_a_study_of_something_else_is_refused(tiny_job: Path, tmp_path: Path) -> None:
    raw, path = load_job(tiny_job)[1], tmp_path / "a.sqlite3"
    study(raw, path, trials=1).run(lambda *_: None)
    with pytest.raises(ConfigError, match="holds a study of another job"):
        study(raw, path, sweeps=5)
    path.write_bytes(b"not a data base, but long enough to be taken for one" * 40)
    with pytest.raises(ConfigError, match="cannot be used as a study"):
        study(raw, path)


def test_values_the_job_cannot_take_are_given_up_not_fatal(tiny_job: Path, tmp_path: Path) -> None:
    """A probe larger than its window of 6.4 Å is a fault of some values only; where all are, the first is told."""
    raw = load_job(tiny_job)[1]
    far = [Parameter(key="probe.defocus_angstrom", choices=(50.0, 900.0))]
    found = Study(raw, far, options(trials=4), tmp_path / "a.sqlite3").run(lambda *_: None)
    assert found.values == {"probe.defocus_angstrom": 50.0}
    assert any("larger than its window" in t.reason for t in found.trials)
    worse = [Parameter(key="probe.defocus_angstrom", choices=(800.0, 900.0))]
    with pytest.raises(ConfigError, match="no trial gave a result .*larger than its window"):
        Study(raw, worse, options(trials=2), tmp_path / "b.sqlite3").run(lambda *_: None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("probe.defocus_angstrom", "expected key=low:high"),
        ("probe.defocus_angstrom=9:3", "low below high"),
        ("probe.defocus_angstrom=a:b", "expected key=low:high"),
        ("probe.defocus_angstrom=1:9:linear", "low below high"),
        ("probe.defocus_angstrom=0:9:log", "must begin above 0"),
        ("probe.defokus_angstrom=1:9", "did you mean 'defocus_angstrom'"),
        ("prob.defocus_angstrom=1:9", "did you mean 'probe'"),
        ("probe.modes=0:4", "probe.modes: must be 1 or more"),
        ("probe.source=aperture,magic", "probe.source"),
        ("probe.modes=1:inf", "low below high"),
        ("probe.defocus_angstrom=nan:3", "low below high"),
        ("probe.modes=1.5:3", "takes whole numbers"),
        ("ptychography.iterations=5:50", "changes no trial.*--sweeps"),
        ("tomography.fista.sparsity=0:1", "changes no trial"),
        ("quality.hold_out=0.01:0.1", "changes no trial"),
    ],
)
def test_parameters_are_checked_before_the_work(tiny_job: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_parameter(load_job(tiny_job)[1], text)


def test_whole_numbers_stay_whole(tiny_job: Path) -> None:
    raw = load_job(tiny_job)[1]
    assert parse_parameter(raw, "probe.modes=1:4").whole
    assert not parse_parameter(raw, "probe.defocus_angstrom=50:150").whole
    assert parse_parameter(raw, "ptychography.lsqml.step_share=0.1:1:log").log
    assert parse_parameter(raw, "ptychography.slices=1").choices == (1,)
    assert parse_parameter(raw, "probe.source=aperture").choices == ("aperture",)
    assert key_type(raw, "data.scan_rotation_deg") is float
    assert key_type(raw, "ptychography.engine") is None


def test_values_are_put_into_a_copy(tiny_job: Path) -> None:
    raw = load_job(tiny_job)[1]
    changed = with_values(raw, {"refine.positions.step": 0.2, "probe.modes": 2})
    assert changed["refine"] == {"positions": {"step": 0.2}}
    assert "refine" not in raw
    with pytest.raises(ConfigError, match="name is a value"):
        with_values(raw, {"name.x": 1})


def test_too_few_positions_and_unknown_tilts(tiny_job: Path, tmp_path: Path) -> None:
    raw = load_job(tiny_job)[1]
    with pytest.raises(ConfigError, match="16 positions are too few"):
        study(raw, tmp_path / "a.sqlite3", positions=16)
    with pytest.raises(ConfigError, match=r"--tilt 7: the job has the tilts \[0, 1, 2\]"):
        study(raw, tmp_path / "a.sqlite3", tilt=7)


def test_a_key_given_twice_is_refused(tiny_job: Path, tmp_path: Path) -> None:
    twice = [Parameter(key="probe.modes", low=1, high=high, whole=True) for high in (2, 3)]
    with pytest.raises(ConfigError, match="each key may be given once"):
        Study(load_job(tiny_job)[1], twice, options(), tmp_path / "a.sqlite3")


def test_an_error_that_is_no_number_is_given_up(
    tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna counts such a trial as failed, and would be asked for another for ever."""
    real = TiltRun.run

    def run(self: TiltRun) -> Any:
        outcome = real(self)
        assert outcome is not None
        return dataclasses.replace(outcome, held_out_error=outcome.held_out_error * np.nan)

    monkeypatch.setattr(TiltRun, "run", run)
    with pytest.raises(ConfigError, match="no trial gave a result .*not finite"):
        study(load_job(tiny_job)[1], tmp_path / "a.sqlite3", trials=2).run(lambda *_: None)


@pytest.mark.mpi
@pytest.mark.skipif(not LAUNCHER.exists(), reason=f"no mpiexec beside {sys.executable}")
def test_several_ranks_are_refused(tiny_job: Path, tmp_path: Path) -> None:
    done = launch(
        "-m", "hpcrec.cli.main", "tune", tiny_job, "--out", tmp_path / "a.toml", "--parameter", "probe.modes=1:2"
    )
    assert done.returncode == ConfigError.exit_code
    assert done.stderr.count("start it without mpiexec") == 1
    assert not list(tmp_path.glob("a.*"))


def test_the_command_writes_a_job_that_can_run(
    tiny_job: Path, tmp_path: Path, hpcrec: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned.toml"
    search = ("--parameter", "probe.defocus_angstrom=40:60", "--trials", 2, "--sweeps", 2)
    assert hpcrec("tune", tiny_job, "--out", out, *search, "--set", "probe.modes=2") == 0
    said = capsys.readouterr().out
    assert "trial 2 of 2" in said
    assert "Best trials" in said
    job = load_job(out)[0]
    assert 40 <= job.probe.defocus_angstrom <= 60
    assert job.probe.modes == 2
    assert tomllib.loads(out.read_text())["ptychography"]["iterations"] == 4, "only what was searched has changed"
    assert (tmp_path / "tuned.sqlite3").exists()
    assert hpcrec("tune", tiny_job, "--out", tiny_job, *search) == 2
    assert hpcrec("tune", tiny_job, "--out", out) == 2
    assert hpcrec("tune", tiny_job, "--out", tmp_path / "no" / "where.toml", *search) == 2
