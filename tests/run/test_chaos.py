"""The chaos run: its draw is repeatable, its judgement sees what it must, and one fault is struck from start to end."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import LAUNCHER

from benchmarks.chaos import verdict
from benchmarks.chaos.__main__ import main, parse
from benchmarks.chaos.attempt import Attempt, Follower, wait_for_end
from benchmarks.chaos.faults import KINDS, Fault, Moment, draw_faults
from benchmarks.chaos.series import CHECKPOINT_EVERY, ITERATIONS, N_TILTS
from benchmarks.chaos.strikes import damage
from hpcrec.io.results import VolumeResult, write_volume


def told(tilt: int, first: int, last: int) -> list[dict[str, Any]]:
    """Return the events of sweeps of a tilt that was taken up after its sweep ``first``."""
    sweeps = [{"event": "sweep", "tilt": tilt, "iteration": i + 1} for i in range(first, last)]
    return [{"event": "tilt_started", "tilt": tilt, "resumed_at": first}, *sweeps]


def test_the_draw_follows_from_the_seed_and_has_each_kind_as_often() -> None:
    draw = draw_faults(1, 3 * len(KINDS))
    assert draw == draw_faults(1, 3 * len(KINDS))
    assert draw[:7] == draw_faults(1, 7), "a longer draw begins like a shorter one"
    assert draw != draw_faults(2, 3 * len(KINDS))
    assert {kind: sum(f.kind == kind for f in draw) for kind in KINDS} == dict.fromkeys(KINDS, 3)
    assert {f.kind for f in draw_faults(1, 9, ["kill-rank", "hung-rank"])} == {"kill-rank", "hung-rank"}
    assert all(f.moment.stage in KINDS[f.kind].stages for f in draw)
    assert {f.ranks for f in draw} == {"apart", "together", "tiles"}


def test_moments_lie_within_the_job() -> None:
    for fault in draw_faults(3, 200):
        moment = fault.moment
        if moment.stage == "sweep":
            assert 0 <= moment.tilt < N_TILTS
            assert 1 <= moment.number <= ITERATIONS
        if fault.kind == "cut-checkpoint" and moment.stage == "sweep":
            assert CHECKPOINT_EVERY < moment.number < ITERATIONS, "there is a checkpoint, and no result yet"


def test_the_command_line_knows_its_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--only", "kill-rank", "full-disk"]).only == ["kill-rank", "full-disk"]
    for wrong in (["--only", "kill-cat"], ["--faults", "0"]):
        with pytest.raises(SystemExit) as end:
            parse(wrong)
        assert end.value.code == 2
    assert "kill-cat" in capsys.readouterr().err


def test_sweeps_beyond_the_last_checkpoint_count_as_lost() -> None:
    events = told(0, 0, 16) + told(1, 0, 10) + told(1, 8, 16)
    assert verdict.lost_sweeps(events) == {1: 2}
    assert verdict.loss_faults("", events) == []
    events = told(1, 0, 10) + told(1, 4, 16)
    assert verdict.loss_faults("", events) == ["tilt 1: 6 sweeps lost"]
    assert verdict.loss_faults("sweeps_0001_000008.h5 cut", events) == [], "the one before was sound"
    again = told(1, 0, 16) + told(1, 0, 16)
    assert verdict.loss_faults("tilt_0001.h5 cut", again) == []
    assert verdict.loss_faults("tilt_0000.h5 cut", again) == ["tilt 1: 16 sweeps lost"]


def test_an_alignment_that_was_saved_must_not_come_again() -> None:
    texts = ["aligning at 2", "volume, R1 1", "aligning at 2", "volume, R1 1"]
    events = [{"event": "stage_progress", "text": text} for text in texts]
    assert verdict.loss_faults("", events) == ["aligned again"]
    assert verdict.loss_faults("", [events[0], events[0], events[1], events[1]]) == []


def test_the_end_is_judged_by_code_sentence_and_traceback() -> None:
    full = "rank 0: cannot write x: No space left on device; free some space, then start again\n"
    assert verdict.end_faults("full-disk", 4, full, missed=False) == []
    assert verdict.end_faults("full-disk", 4, "", missed=False) == ["no sentence"]
    assert verdict.end_faults("full-disk", 1, full, missed=False) == ["exit code 1, expected 0 or 4"]
    assert verdict.end_faults("kill-rank", 9, "= BAD TERMINATION OF", missed=False) == []
    assert verdict.end_faults("kill-rank", 0, "", missed=False) == ["exit code 0 of a killed job"]
    warned = "warning: 1 Dask worker(s) died (done here: attempt 2 of 3)\n"
    assert verdict.end_faults("kill-worker", 6, warned, missed=False) == ["no sentence"]
    silent = "rank 0 (process 17 on node) has given no sign of life for 40 s: its process is suspended; the job ends"
    assert verdict.end_faults("hung-rank", 6, silent, missed=False) == []
    assert verdict.sentence(warned) == warned.strip()
    assert verdict.sentence(warned + full) == full.strip()
    trace = "rank 0: Traceback (most recent call last):\n"
    assert verdict.end_faults("kill-rank", 9, trace, missed=False) == ["traceback"]


def test_a_differing_volume_and_what_is_left_over_are_seen(tmp_path: Path) -> None:
    volume = np.linspace(1, 2, 27, dtype=np.float32).reshape(3, 3, 3)
    for name, factor in (("a", 1), ("b", 1 + 1e-4)):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        content = VolumeResult(volume=(volume * factor).astype(np.float32), voxel_size=1.0)
        write_volume(tmp_path / name / "volume.h5", content)
    a, b = tmp_path / "a", tmp_path / "b"
    difference = verdict.volume_difference(a, b)
    assert difference == pytest.approx(1e-4, rel=0.01)
    (a / "checkpoints" / ".tilt_0001.h5.tmp").touch()
    assert verdict.result_faults(a, b, difference) == [
        "volume differs by 1.0e-04",
        "left over: checkpoints/.tilt_0001.h5.tmp",
    ]
    assert verdict.result_faults(b, b, verdict.volume_difference(b, b)) == []


def test_each_file_of_a_checkpoint_in_parts_is_damaged_some_time(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    names = ["sweeps_0001_000004.h5", *(f"sweeps_0001_000008.{part}h5" for part in ("", "ab-0000.", "ab-0001."))]
    hit = set()
    for luck in (0.1, 0.4, 0.9):
        for i, name in enumerate(names):
            (folder / name).write_bytes(bytes(100))
            os.utime(folder / name, (i, i))
        fault = Fault(index=0, kind="cut-checkpoint", moment=Moment(stage="sweep"), rank=0, ranks="tiles", luck=luck)
        assert damage(fault, tmp_path)
        hit |= {name for name in names if (folder / name).stat().st_size < 100}
    assert hit == set(names[1:])


@pytest.mark.parametrize("kind", ["cut-projections", "flip-projections"])
def test_damage_is_what_it_says(kind: str, tmp_path: Path) -> None:
    fault = Fault(index=0, kind=kind, moment=Moment(stage="volume"), rank=0, ranks="apart", luck=0.5)
    assert damage(fault, tmp_path) == ""
    path = tmp_path / "projections.h5"
    path.write_bytes(bytes(1000))
    assert damage(fault, tmp_path).startswith("projections.h5")
    content = path.read_bytes()
    assert (len(content), any(content)) == ((500, False) if kind == "cut-projections" else (1000, True))


def test_all_processes_of_an_attempt_are_found_and_ended(tmp_path: Path) -> None:
    """Also one that left its session, and one that is stopped."""
    begin = "import subprocess, sys, time; f = sys.argv[1:]; "
    begin += "f and subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True); "
    with Attempt([sys.executable, "-c", begin + "time.sleep(60)", "x"], dict(os.environ), tmp_path, "try") as attempt:
        deadline = time.monotonic() + 60
        while len(attempt.members()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(attempt.process.pid, signal.SIGSTOP)
        assert not wait_for_end(attempt, Follower(tmp_path / "none"), silence=0.2)
        assert not attempt.gone(0.1)
    assert attempt.members() == []
    assert attempt.code == -signal.SIGKILL


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not LAUNCHER.exists(), reason=f"no mpiexec beside {sys.executable}")
def test_a_job_with_a_killed_rank_ends_with_the_volume_of_an_undisturbed_one(tmp_path: Path) -> None:
    asked = [
        "--seed",
        "0",
        "--faults",
        "1",
        "--only",
        "kill-rank",
        "--folder",
        str(tmp_path / "chaos"),
        "--hang",
        "240",
    ]
    assert main([*asked, "--json", str(tmp_path / "table.json")]) == 0
    (row,) = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert row["verdict"] == "ok"
    assert row["where"].startswith("tilt 2 sweep 15")
    assert row["restarts"] == 1
    assert 0 <= row["lost"] <= CHECKPOINT_EVERY
    assert row["difference"] <= 1e-5
