"""Ranks that are asked to stop leave together, with checkpoints; ranks that are gone end the job with their name."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from ranks import LAUNCHER, launch

from hpcrec.errors import DeviceError, ParallelError, StoppedError, TimeUpError
from hpcrec.io.checkpoint import latest_good
from hpcrec.io.results import read_tilt_result, tilt_path
from hpcrec.run.observers import read_events

ASKED = Path(__file__).with_name("asked_rank.py")

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not LAUNCHER.exists(), reason=f"no mpiexec beside {sys.executable}"),
]


@pytest.fixture(scope="module", autouse=True)
def known(whole_job: Path, hpcrec: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process finds without interruption; kernels are compiled then, which no rank takes for a stall."""
    out = tmp_path_factory.mktemp("known") / "out"
    assert hpcrec(*run(whole_job, out)) == 0
    return out


def run(job: Path, out: Path, *settings: str, until: str = "ptychography") -> tuple[object, ...]:
    changes = [part for setting in settings for part in ("--set", setting)]
    return "run", job, "--out", out, "--until", until, *changes


def continued(job: Path, out: Path, *settings: str, n_ranks: int) -> CompletedProcess[str]:
    return launch("-m", "hpcrec.cli.main", *run(job, out, *settings), n_ranks=n_ranks)


def check_tilts(out: Path, known: Path) -> None:
    """Single precision sums differ by round-off only, as on other ranks."""
    for number in range(3):
        found, expected = (read_tilt_result(tilt_path(f / "checkpoints", number)).obj for f in (out, known))
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def begun_at(out: Path) -> list[int]:
    return [e["resumed_at"] for e in read_events(out / "events.jsonl") if e["event"] == "tilt_started"]


def test_one_asked_rank_stops_all_and_a_damaged_checkpoint_gives_way(
    whole_job: Path, known: Path, tmp_path: Path
) -> None:
    """Two ranks share each tilt: the second tilt stops after its third sweep; three tiled ranks go on, from before."""
    out = tmp_path / "out"
    done = launch(ASKED, "TERM", 7, *run(whole_job, out, "parallel.group_size=2"))
    assert done.returncode == StoppedError.exit_code, done.stderr
    assert done.stderr.count("stopped on request after a checkpoint") == 1, "one rank speaks for all"
    assert "Traceback" not in done.stderr
    newest, before = out / "checkpoints/sweeps_0002_000003.h5", out / "checkpoints/sweeps_0002_000002.h5"
    assert newest.exists()
    assert before.exists()
    assert len(list(out.glob("checkpoints/tilt_*.h5"))) == 1
    assert (out / "stop").read_text() == "stop\n"
    assert read_events(out / "events.jsonl")[-1]["event"] == "stopped"
    newest.write_bytes(newest.read_bytes()[:-1000])
    done = continued(whole_job, out, "parallel.group_size=3", "parallel.exchange=tiled", n_ranks=3)
    assert done.returncode == 0, done.stderr
    assert re.search(r"WARNING checkpoint skipped: .*sweeps_0002_000003.h5", done.stderr)
    assert begun_at(out) == [0, 0, 0, 2], "the one with most to do comes first"
    assert not (out / "stop").exists()
    assert not (out / ".ranks").exists()
    check_tilts(out, known)


def test_groups_with_tilts_of_their_own_stop_too(whole_job: Path, tmp_path: Path) -> None:
    """Rank 0 gets no signal; it hears of it by the file, a second later at most. One rank alone goes on."""
    out = tmp_path / "out"
    done = launch(ASKED, "USR1", 2, *run(whole_job, out, "parallel.group_size=1", "ptychography.iterations=40"))
    assert done.returncode == TimeUpError.exit_code, done.stderr
    assert "to be started again" in done.stderr
    assert sorted(begun_at(out)) == [0, 0]
    begun = {name: latest_good(out / "checkpoints", f"sweeps_{name}") for name in ("0000", "0002")}
    sweeps = sorted(int(found.attributes["iteration"]) for found in begun.values() if found)
    assert 2 in sweeps
    assert len(sweeps) == 2, "neither tilt was finished"
    done = continued(whole_job, out, "ptychography.iterations=40", n_ranks=1)
    assert done.returncode == 0, done.stderr
    assert sorted(begun_at(out)) == [0, 0, 0, *sweeps]


def test_the_launcher_hands_its_signal_on(whole_job: Path, tmp_path: Path) -> None:
    done = launch(ASKED, "launcher", 3, *run(whole_job, tmp_path, "parallel.group_size=2"))
    assert done.returncode == TimeUpError.exit_code, done.stderr


def test_a_request_ends_later_stages_at_once(whole_job: Path, tmp_path: Path) -> None:
    """Rank 1 is asked while rank 0 sleeps for a minute in the tomography; the alignment stays."""
    done = launch(ASKED, "later", 0, *run(whole_job, tmp_path / "out", until="report"))
    assert done.returncode == StoppedError.exit_code, done.stderr
    assert "Traceback" not in done.stderr
    times = {e["event"]: datetime.fromisoformat(e["time"]) for e in read_events(tmp_path / "out/events.jsonl")}
    assert (times["stopped"] - times["stage_progress"]).total_seconds() < 30
    assert len(list((tmp_path / "out").glob("checkpoints/tilt_*.h5"))) == 3
    assert not (tmp_path / "out/volume.h5").exists()


@pytest.mark.parametrize(
    ("how", "settings", "fault", "place"),
    [
        ("STOP", ["parallel.patience_s=4"], r"no sign of life for \d+ s: its process is suspended", "waits in Mpi"),
        ("loop", ["parallel.stall_s=4"], r"has got no further for \d+ s", "waits in Mpi"),
        ("wait", ["parallel.stall_s=4"], r"and all others wait for one another", r"waits in MpiCommunicator.receive"),
    ],
)
def test_a_rank_that_is_gone_ends_the_job_with_its_name(
    whole_job: Path, tmp_path: Path, how: str, settings: list[str], fault: str, place: str
) -> None:
    done = launch(ASKED, how, 3, *run(whole_job, tmp_path / "out", "parallel.group_size=2", *settings))
    assert done.returncode == ParallelError.exit_code, done.stderr
    rank = "[01]" if how == "wait" else "1"
    assert re.search(rf"^rank {rank} \(process \d+ on \S+\) .*{fault}", done.stderr, re.MULTILINE), done.stderr
    assert re.search(rf"^  rank . .*: sweep \d of tilt \d; {place}", done.stderr, re.MULTILINE), done.stderr
    assert done.stderr.count("the job ends") == 1, "told once"


def test_a_rank_without_memory_says_so(whole_job: Path, tmp_path: Path) -> None:
    done = launch(ASKED, "memory", 3, *run(whole_job, tmp_path / "out", "parallel.group_size=2"))
    assert done.returncode == DeviceError.exit_code, done.stderr
    assert re.search(r"^rank 1: no memory left \(Unable to allocate 2.00 EiB", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
