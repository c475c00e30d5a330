"""Lent threads: when a rank asks, what it says is left, and that threads in the course of a tilt change no answer."""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from all_tilts import reconstruct_all
from ranks import LAUNCHER, launch

from hpcrec.io.base import open_series
from hpcrec.io.results import read_tilt_result, tilt_path
from hpcrec.parallel.communicator import SerialCommunicator, run_ranks
from hpcrec.parallel.crew import Crew, Spare, alone
from hpcrec.parallel.loans import Loans, Need
from hpcrec.run import hands
from hpcrec.run.config import load_job
from hpcrec.run.hands import Hands
from hpcrec.run.memory import rank_memory
from hpcrec.run.observers import read_events
from hpcrec.run.runner import TiltRun
from hpcrec.run.start import common_grid


class Bank:
    """A master that gives what it is told to."""

    def __init__(self, *given: Spare) -> None:
        self.given, self.asked, self.lent = given, [], []  # type: ignore[var-annotated]

    def borrow(self, need: Need) -> tuple[Spare, ...]:
        self.asked.append(need)
        given, self.given = self.given, ()
        return given

    def lend(self, spares: tuple[Spare, ...]) -> None:
        self.lent += spares


def one(**more: Any) -> Crew:
    return alone(SerialCommunicator(), more.get("threads", 1))


def swept(iteration: int, seconds: float = 2.0, **more: Any) -> dict[str, Any]:
    return {"event": "sweep", "tilt": 7, "iteration": iteration, "seconds": seconds, **more}


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps of milliseconds ask too."""
    monkeypatch.setattr(hands, "_ASK_EVERY_S", 0.0)


@pytest.mark.usefixtures("often")
def test_a_rank_says_what_is_left_and_takes_what_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands, "join", lambda lent: True)
    helper = Spare(host="a", cores=frozenset({5}), threads=3)
    bank, heard = Bank(helper), []
    own = Hands(bank, one(threads=2), True, host="a")
    hear = own.listening(heard.append, 3.5, 64)
    hear({"event": "tilt_started"})
    hear({**swept(1, 0.5), "event": "part_sweep", "part": "half1"})
    hear(swept(1))
    hear(swept(2))
    hear(swept(3))
    asked = [(need.host, need.left, need.threads, need.most) for need in bank.asked]
    assert asked == [("a", 3.0, 2, 16), ("a", 4.0, 5, 16), ("a", 2.0, 5, 16)]
    assert [event["event"] for event in heard] == ["tilt_started", "part_sweep", "cores_lent", *["sweep"] * 3]
    assert heard[2]["threads"] == own.threads.n_threads == 5
    own.lend()
    assert [spare.threads for spare in bank.lent] == [2, 3]
    assert bank.lent[1] is helper


def test_a_rank_does_not_ask_all_the_time_nor_at_the_end() -> None:
    now = [0.0]
    bank = Bank()
    hear = Hands(bank, one(), True, clock=lambda: now[0]).listening(lambda event: None, 100, 64)
    for i in range(50):
        now[0] += 0.03
        hear(swept(i + 1, 0.03))
    assert len(bank.asked) == pytest.approx(50 * 0.03 / 0.1, abs=4)
    hear = Hands(Bank(), one(), True).listening(lambda event: None, 2, 64)
    hear(swept(1, 0.05))
    assert not bank.given


@pytest.mark.usefixtures("often")
def test_cores_that_the_system_refuses_go_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands, "join", lambda lent: False)
    helpers = [Spare(host="a", cores=frozenset({i}), threads=1) for i in (5, 6)]
    bank, heard = Bank(*helpers), []
    own = Hands(bank, one(), True)
    hear = own.listening(heard.append, 9, 64)
    for i in range(3):
        hear(swept(i + 1))
    assert len(bank.asked) == 1, "asked once, refused, and no more"
    assert bank.lent == helpers
    assert own.threads.n_threads == 1
    assert "cores_lent" not in [event["event"] for event in heard]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("why", ["job", "group", "address space"])
def test_who_does_not_borrow(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """A group size that was asked for; ranks of a group by messages wait for one another; a limit of one process."""
    bank, crew = Bank(), one()
    if why == "group":
        crew = Crew(group=run_ranks(2, lambda comm: comm)[0], threads=1, size=1)
    if why == "address space":
        monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 33, 1 << 33))
    own = Hands(bank, crew, why != "job")
    hear = own.listening(lambda event: None, 9, 64)
    hear(swept(1))
    own.lend()
    assert bank.asked == []
    assert len(bank.lent) == (why != "job")


def objects(job: Any, folder: Path, n_ranks: int, heard: list[Any]) -> list[np.ndarray]:
    reconstruct_all(job, folder, n_ranks, heard.append)
    return [read_tilt_result(tilt_path(folder, i)).obj for i in range(3)]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("n_ranks", [2, 4, 5])
def test_ranks_without_a_tilt_help_and_do_not_change_the_answer(
    tiny_job: Path, tmp_path: Path, n_ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three tilts. All ranks are threads of this process; single precision sums differ by round-off only, 1e-5.

    The last tilt to be handed out waits in its second sweep until somebody has run out of tilts.
    """
    job, _ = load_job(tiny_job, ["ptychography.engine=lsqml", "parallel.threads=1"])
    alone_heard: list[Any] = []
    expected = objects(job, tmp_path / "one", 1, alone_heard)
    assert "cores_lent" not in [event["event"] for event in alone_heard]
    dry, lend, sweep, heard = threading.Event(), Loans.lend, TiltRun.sweep, []

    def told(self: Loans, rank: int, spares: tuple[Spare, ...]) -> None:
        lend(self, rank, spares)
        dry.set()

    def waiting(self: TiltRun) -> None:
        if self.setup.number == 2 and self.state.iteration == 1:
            assert dry.wait(60)
        sweep(self)

    monkeypatch.setattr(Loans, "lend", told)
    monkeypatch.setattr(TiltRun, "sweep", waiting)
    found = objects(job, tmp_path / "many", n_ranks, heard)
    lent = [event for event in heard if event["event"] == "cores_lent"]
    assert lent
    assert all(2 <= event["threads"] <= n_ranks for event in lent)
    for a, b in zip(expected, found):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)


@pytest.mark.usefixtures("often")
def test_groups_that_were_asked_for_stay_as_they_are(tiny_job: Path, tmp_path: Path) -> None:
    job, _ = load_job(tiny_job, ["ptychography.engine=lsqml", "parallel.threads=1", "parallel.group_size=1"])
    heard: list[Any] = []
    objects(job, tmp_path / "many", 4, heard)
    assert "cores_lent" not in [event["event"] for event in heard]


@pytest.mark.parametrize("engine", ["epie", "lsqml", "gradient", "cg", "dm"])
@pytest.mark.parametrize("slices", [1, 3])
def test_a_rank_with_helpers_needs_no_more_than_they_have(tiny_job: Path, engine: str, slices: int) -> None:
    """k ranks lend what each may use beside its process: each thread has sums of its own, but there is one object."""
    if engine == "dm" and slices > 1:
        pytest.skip("one slice only")
    chosen = [f"ptychography.engine={engine}", f"ptychography.slices={slices}"]
    job, _ = load_job(tiny_job, [*chosen, "ptychography.slice_thickness_angstrom=4"])
    with open_series(job.data) as series:
        grid = common_grid(job, series)
        alone_needs = rank_memory(job, series, grid, 1, 2)
        for k in (2, 3, 16):
            assert rank_memory(job, series, grid, 1, 2 * k) <= k * alone_needs


@pytest.mark.mpi
@pytest.mark.timeout(200)
@pytest.mark.skipif(not LAUNCHER.exists(), reason=f"no mpiexec beside {sys.executable}")
def test_processes_lend_cores_to_one_another(tiny_job: Path, tmp_path: Path) -> None:
    """Two ranks, three tilts, the last of slow sweeps: who has none after the first two helps with it."""
    job, _ = load_job(tiny_job, ["ptychography.engine=lsqml"])
    expected = objects(job, tmp_path / "one", 1, [])
    words = ("--set", "ptychography.engine=lsqml", "--set", "parallel.threads=1")
    script = Path(__file__).with_name("faulty_rank.py")
    done = launch(script, "slow", "run", tiny_job, "--out", tmp_path / "two", "--until", "ptychography", *words)
    assert done.returncode == 0, done.stderr
    events = read_events(tmp_path / "two" / "events.jsonl")
    assert [event["seconds"] < 90 for event in events if event["event"] == "stage_done"] == [True]
    lent = [event for event in events if event["event"] == "cores_lent"]
    assert [event["threads"] for event in lent] == [2]
    for i, a in enumerate(expected):
        b = read_tilt_result(tilt_path(tmp_path / "two" / "checkpoints", i)).obj
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)
