"""What tests start under mpiexec: ``python faulty_rank.py raise|kill|list|slow ARGUMENTS OF hpcrec``.

With ``list`` no rank fails; as it ends, each tells what it loaded: ``rank 1 loaded: numpy, ...``. With ``slow`` sweeps
of tilt 2 take a second and a half. Else rank 1 fails in its seventh sweep: the third of the second tilt, one sweep
beyond a checkpoint.
"""

import os
import signal
import sys
import time

from hpcrec.cli.main import main
from hpcrec.errors import DataError
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


def sweep_slowly(tilt, seconds):
    sweep = TiltRun.sweep

    def slow(self):
        if self.setup.number == tilt:
            time.sleep(seconds)
        sweep(self)

    TiltRun.sweep = slow


if __name__ == "__main__":
    how = sys.argv.pop(1)
    if how == "slow":
        sweep_slowly(2, 1.5)
    elif how != "list":
        fail_in_sweep(how, 7)
    try:
        main()
    finally:
        if how == "list":
            loaded = sorted(name for name in sys.modules if name.count(".") < 2)
            sys.stderr.write(f"rank {os.environ['PMI_RANK']} loaded: {', '.join(loaded)}\n")
