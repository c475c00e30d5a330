"""Requests to stop: by signals, by a file, agreed on by ranks; the second time at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpcrec.errors import StoppedError, TimeUpError
from hpcrec.io.atomic import atomic_path
from hpcrec.parallel.communicator import SerialCommunicator, run_ranks
from hpcrec.run import stop
from hpcrec.run.stop import Request

ALONE = SerialCommunicator()


def until(reached: Callable[[], bool]) -> None:
    """Wait, a busy machine needs some time."""
    for _ in range(3000):
        if reached():
            return
        time.sleep(0.01)
    raise AssertionError("never came")


@pytest.mark.parametrize(
    ("number", "error", "code", "text"),
    [(signal.SIGTERM, StoppedError, 10, "stop"), (signal.SIGUSR1, TimeUpError, 75, "requeue")],
)
def test_a_signal_is_a_request_which_the_file_hands_on(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type[StoppedError],
    code: int,
    text: str,
) -> None:
    monkeypatch.setattr(stop, "_SAME_S", 60.0)  # a busy machine may take seconds from one call to the next
    before = signal.getsignal(number)
    with stop.listening():
        stop.watch_file(tmp_path / "stop")
        assert stop.agreed(ALONE) is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # launchers hand on what the scheduler has sent to all
        until((tmp_path / "stop").exists)
        with pytest.raises(error) as left:
            stop.leave_if_asked(ALONE)
    assert left.value.exit_code == code
    assert (tmp_path / "stop").read_text().strip() == text
    assert capfd.readouterr().err.count("stops after this sweep") == 1
    assert signal.getsignal(number) is before
    assert stop.agreed(ALONE) is None, "a request dies with its listener"


@pytest.mark.parametrize(("text", "code"), [("", 10), ("stop\n", 10), ("requeue\n", 75)])
def test_a_file_asks_as_well(tmp_path: Path, text: str, code: int) -> None:
    with stop.listening():
        stop.watch_file(tmp_path / "stop")
        (tmp_path / "stop.new").write_text(text)
        (tmp_path / "stop.new").rename(tmp_path / "stop")
        until(lambda: stop._listener.request > 0)
        error = stop.agreed(ALONE)
    assert error is not None
    assert error.exit_code == code


def test_one_asked_rank_is_enough_and_a_stop_outweighs_a_requeue() -> None:
    """Ranks as threads share what the process was asked; so here each gives its own request."""

    class Own:
        def __init__(self, group, request):
            self.rank, self.group, self.request = group.rank, group, request

        def max(self, a):
            return self.group.max(np.maximum(a, self.request))

    def rank(group):
        found = stop.agreed(Own(group, [Request.NOTHING, Request.STOP, Request.REQUEUE][group.rank]))
        return type(found)

    with stop.listening():
        assert run_ranks(3, rank) == [StoppedError] * 3


def asked_and_asleep(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def test_a_request_interrupts_what_may_be_interrupted_but_no_file(tmp_path: Path) -> None:
    with stop.listening():
        stop.interrupt(True)
        with pytest.raises(TimeUpError):
            asked_and_asleep(signal.SIGUSR1)
        stop.interrupt(False)
    with stop.listening():
        stop.interrupt(True)
        with pytest.raises(StoppedError):  # noqa: PT012 - once the file is whole, it may come at any line
            with atomic_path(tmp_path / "file") as path:
                os.kill(os.getpid(), signal.SIGTERM)
                until(lambda: stop._listener.request > 0)
                time.sleep(0.1)
                path.write_text("whole")
            time.sleep(60)
        stop.interrupt(False)
    assert (tmp_path / "file").read_text() == "whole"


SECOND = """
import hashlib, os, signal, time
from hpcrec.run import stop
stop._SAME_S = 0.2
with stop.listening():
    os.kill(os.getpid(), signal.SIGUSR1)
    while not stop._listener.request:
        time.sleep(0.01)
    time.sleep(0.3)
    print("goes on", flush=True)
    os.kill(os.getpid(), signal.SIGUSR1)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def test_the_second_signal_ends_the_process_at_once() -> None:
    """Even though the main thread is in a call that looks at no signals."""
    done = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["goes", "on"]
    assert done.returncode == TimeUpError.exit_code, done.stderr
    assert "SIGUSR1 again: the job ends at once" in done.stderr
