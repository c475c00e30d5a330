"""What test_survival.py starts under mpiexec: ``python asked_rank.py HOW N ARGUMENTS OF hpcrec``.

In its N-th sweep rank 1 gets a signal (``TERM``, ``USR1``; ``launcher``: mpiexec gets USR1), is suspended (``STOP``),
computes for ever (``loop``), waits for a message that nobody sends (``wait``), or wants more memory than there is
(``memory``). With ``later`` rank 1 gets SIGTERM while rank 0 is busy with the tomography. Sweeps take a fifth of a
second at least; with a tilt of its own rank 0 does two sweeps more than rank 1 before that is asked.
"""

import os
import signal
import sys
import time

import numpy as np
import psutil

from hpcrec.cli.main import main
from hpcrec.run import stop, watch
from hpcrec.run.observers import EventLog
from hpcrec.run.runner import TiltRun

SWEEP_S = 0.2


def signalled(pid, number):
    """Send a signal and wait until this rank has heard of it."""
    os.kill(pid, number)
    for _ in range(1000):
        if stop._listener.request:
            return
        time.sleep(0.01)
    raise AssertionError("no signal came")


def wait_for(file):
    """Wait for a file of the run directory."""
    for _ in range(6000):
        if file.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"no {file}")


def happen(run, how):
    if how == "launcher":
        signalled(next(p.pid for p in psutil.Process().parents() if "mpiexec" in p.name()), signal.SIGUSR1)
    elif how == "loop":
        while True:
            pass
    elif how == "wait":
        run.group.receive(0, 999)
    elif how == "memory":
        np.empty(2**58)
    elif how == "STOP":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        signalled(os.getpid(), signal.Signals[f"SIG{how}"])


def in_sweep(how, number):
    sweep, done = TiltRun.sweep, []

    def slow(self):
        done.append(1)
        time.sleep(SWEEP_S)
        if self.group.size == 1 and os.environ["PMI_RANK"] == "0" and len(done) == number + 2:
            wait_for(self.checkpoints.parent / "stop")
        sweep(self)
        if len(done) == number and os.environ["PMI_RANK"] == "1":
            happen(self, how)

    TiltRun.sweep = slow


def in_tomography():
    write = EventLog.__call__

    def hear(self, event):
        write(self, event)
        if event["event"] == "stage_progress":
            os.kill(watch.read_record(self.path.parent / ".ranks", 1)["pid"], signal.SIGTERM)
            time.sleep(60)

    EventLog.__call__ = hear


if __name__ == "__main__":
    how, number = sys.argv.pop(1), int(sys.argv.pop(1))
    if how == "later":
        in_tomography()
    else:
        in_sweep(how, number)
    main()
