"""The middle tilt of the tiny series, reconstructed on any ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpcrec.io.base import open_series
from hpcrec.parallel.communicator import Communicator, SerialCommunicator
from hpcrec.run.job import Job
from hpcrec.run.outcome import TiltOutcome
from hpcrec.run.runner import TiltRun
from hpcrec.run.start import common_grid


def silent(event: Any) -> None:
    """Hear nothing."""


def run_one(job: Job, folder: Path, group: Communicator | None = None, hear: Any = silent) -> TiltOutcome | None:
    """Reconstruct tilt 1 with checkpoints in ``folder``; on one rank unless ``group`` says otherwise."""
    folder.mkdir(exist_ok=True)
    with open_series(job.data) as series:
        return TiltRun(job, series, common_grid(job, series), 1, group or SerialCommunicator(), folder, hear).run()
