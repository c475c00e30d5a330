"""Signs of life: who is slow is left alone, who is gone is named, and the report says where each rank is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcrec.errors import ParallelError, StorageError
from hpcrec.parallel import mpi
from hpcrec.parallel.communicator import SerialCommunicator
from hpcrec.parallel.queue import _Asking
from hpcrec.run import watch
from hpcrec.run.watch import Place, Watch


class Alone(SerialCommunicator):
    """A rank whose neighbour is another process, which never answers."""

    def __init__(self, other: Place) -> None:
        super().__init__()
        self.size, self._other = 2, other

    def gather(self, obj: Any, root: int = 0) -> list[Any]:
        return [obj, self._other]


class Ended(Exception):
    """The job would have ended."""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        yield process
        process.kill()


def neighbour(process: subprocess.Popen[bytes], host: str = os.uname().nodename) -> Place:
    return Place(rank=1, host=host, pid=process.pid, began=watch._began(process.pid))


def quiet_watch(folder: Path, other: Place, patience_s: float, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A watch whose thread does nothing: the test calls it."""

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(mpi, "end_at_once", end)
    monkeypatch.setattr(watch, "_SAY_S", 0.0)
    monkeypatch.setattr(Watch, "_run", lambda self: None)
    monkeypatch.setattr(Watch, "_await_peers", lambda self: None)
    return Watch(Alone(other), folder, patience_s, 0.0)


def write(folder: Path, **more: Any) -> None:
    record = {"beat": 1, "left": False, "doing": "sweep 2 of tilt 0", "patient": False, "where": "visit"}
    record |= {"waits": False, "there_s": 1.0, "idle_s": 1.0}
    (folder / "rank_00001.json").write_text(json.dumps({**record, **more}))


def later(tool: Watch, seconds: float, step: float = 0.5) -> None:
    """Let time pass for a watch, in steps in which it looks."""
    for _ in range(int(seconds / step)):
        for peer in tool._peers:
            peer.alive -= step
        tool._tick()


def test_a_suspended_process_is_found_and_a_computing_one_is_not(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """A rank whose thread gets no turn still uses its processor."""
    with quiet_watch(tmp_path / "ranks", neighbour(sleeper), 4.0, monkeypatch) as tool:
        write(tmp_path / "ranks")
        for _ in range(20):
            ticks = watch._pulse(neighbour(sleeper))[1]
            while watch._pulse(neighbour(sleeper))[1] == ticks:
                time.sleep(0.01)
            later(tool, 0.5)
        sleeper.send_signal(signal.SIGSTOP)
        while watch._pulse(neighbour(sleeper))[0] != "T":
            time.sleep(0.01)
        with pytest.raises(Ended, match="6"):
            later(tool, 8.0)
    told = capfd.readouterr().err
    assert f"rank 1 (process {sleeper.pid} on " in told
    assert "no sign of life" in told
    assert "its process is suspended; the job ends" in told
    assert (
        f"  rank 1 (process {sleeper.pid} on {os.uname().nodename}): when last heard: sweep 2 of tilt 0; is in visit"
        in told
    )
    sleeper.send_signal(signal.SIGCONT)


@pytest.fixture
def far(tmp_path: Path, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """A watch with a patience of 4 s on a rank of another machine, of which 11 s ago came a sign of life."""
    with quiet_watch(tmp_path / "ranks", neighbour(sleeper, "elsewhere"), 4.0, monkeypatch) as tool:
        write(tmp_path / "ranks")
        later(tool, 11.0)
        yield tool


def test_a_rank_far_away_gets_three_times_the_patience_and_one_that_left_is_let_go(tmp_path: Path, far: Watch) -> None:
    write(tmp_path / "ranks", beat=2)
    later(far, 11.0)
    write(tmp_path / "ranks", beat=3, left=True)
    later(far, 60.0)
    write(tmp_path / "ranks", beat=4)
    with pytest.raises(Ended):
        later(far, 14.0)


def test_a_job_that_was_suspended_as_a_whole_goes_on(far: Watch) -> None:
    """A rank that missed its own turns cannot judge others."""
    far._last -= 3600
    later(far, 11.0)


def test_the_first_to_leave_waits_for_the_others(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    leaves = threading.Event()

    def leave() -> None:
        leaves.set()
        write(tmp_path / "ranks", left=True)

    with Watch(Alone(neighbour(sleeper)), tmp_path / "ranks", 40.0, 0.0):
        write(tmp_path / "ranks")
        timer = threading.Timer(0.5, leave)
        timer.start()
    assert leaves.is_set()
    timer.join()


def test_a_rank_that_is_suspended_at_the_very_end_is_found(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MPI's own end would wait for it for ever."""
    ended = []

    def end(code: int) -> None:
        ended.append(code)
        write(tmp_path / "ranks", left=True)

    monkeypatch.setattr(mpi, "end_at_once", end)
    monkeypatch.setattr(watch, "_SAY_S", 0.0)
    sleeper.send_signal(signal.SIGSTOP)
    with Watch(Alone(neighbour(sleeper)), tmp_path / "ranks", 0.8, 0.0):
        write(tmp_path / "ranks")
    assert set(ended) == {ParallelError.exit_code}
    sleeper.send_signal(signal.SIGCONT)


def test_a_report_says_where_a_rank_waits() -> None:
    asked, answered = threading.Event(), threading.Event()

    class Line:
        rank = 1

        def send(self, *_: Any) -> None:
            asked.set()

        def poll(self, *_: Any) -> bool:
            return answered.is_set()

        def receive(self, *_: Any) -> tuple[bool, None]:
            return False, None

    thread = threading.Thread(target=_Asking(Line()).take)  # type: ignore[arg-type]
    thread.start()
    asked.wait()
    frame = sys._current_frames()[thread.ident or 0]
    while frame is not None and "hpcrec" not in frame.f_code.co_filename:
        frame = frame.f_back
    assert watch.position(frame) == ("_Asking._ask", True)
    answered.set()
    thread.join()
    assert watch.position(sys._getframe()) == ("", False)


def test_one_rank_needs_no_watch_and_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with Watch(SerialCommunicator(), tmp_path / "ranks", 40.0, 21600.0):
        assert not (tmp_path / "ranks").exists()
    (tmp_path / "file").touch()
    nobody = Place(rank=1, host="elsewhere", pid=1, began=None)
    with pytest.raises(StorageError, match="cannot make"):
        Watch(Alone(nobody), tmp_path / "file" / "ranks", 40.0, 21600.0)
