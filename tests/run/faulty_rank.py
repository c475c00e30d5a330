"""What tests start under mpiexec: ``python faulty_rank.py raise|kill|list|slow ARGUMENTS OF hpcrec``.

With ``list`` no rank fails; as it ends, each tells what it loaded: ``rank 1 loaded: numpy, ...``. With ``slow`` sweeps
of tilt 2 take half a second, and its second waits until a rank has lent its cores. Else rank 1 fails in its seventh
sweep: the third of the second tilt, one sweep beyond a checkpoint.
"""

import os
import signal
import sys
import time
from pathlib import Path

from hpcrec.cli.main import main
from hpcrec.errors import DataError
from hpcrec.run.hands import Hands
from hpcrec.run.runner import TiltRun


def fail_in_sweep(how, number):
    sweep, done = TiltRun.sweep, []

    def faulty(self):
        done.append(1)
        if len(done) == number and os.environ["PMI_RANK"] == "1":
            if how == "kill":
                time.sleep(1.0)  # what the first rank writes meanwhile is on the disk
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError("scan.h5: position 7 cannot be read")
        sweep(self)

    TiltRun.sweep = faulty


def sweep_slowly(tilt, seconds, lent):
    sweep, lend = TiltRun.sweep, Hands.lend

    def slow(self):
        if self.setup.number == tilt:
            time.sleep(seconds)
            while self.state.iteration == 1 and not lent.exists():
                time.sleep(0.01)
        sweep(self)

    def told(self):
        lend(self)
        lent.touch()

    TiltRun.sweep, Hands.lend = slow, told


if __name__ == "__main__":
    how = sys.argv.pop(1)
    if how == "slow":
        sweep_slowly(2, 0.5, Path(sys.argv[sys.argv.index("--out") + 1]) / "lent")
    elif how != "list":
        fail_in_sweep(how, 7)
    try:
        main()
    finally:
        if how == "list":
            loaded = sorted(name for name in sys.modules if name.count(".") < 2)
            sys.stderr.write(f"rank {os.environ['PMI_RANK']} loaded: {', '.join(loaded)}\n")
