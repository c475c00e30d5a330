"""All tilts of a job, reconstructed on any ranks, which are threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcrec.io.base import open_series
from hpcrec.parallel.communicator import Communicator, SerialCommunicator, run_ranks
from hpcrec.run.job import Job
from hpcrec.run.tilts import reconstruct_tilts


def reconstruct_all(job: Job, folder: Path, n_ranks: int = 1, hear: Callable[[Any], None] = lambda event: None) -> None:
    """Reconstruct all tilts without a result in ``folder``; ``hear`` gets the events."""
    folder.mkdir(parents=True, exist_ok=True)

    def rank(world: Communicator) -> None:
        with open_series(job.data) as series:
            reconstruct_tilts(job, series, world, folder, hear)

    if n_ranks == 1:
        rank(SerialCommunicator())
    else:
        run_ranks(n_ranks, rank)


def into(notes: list[str]) -> Callable[[Any], None]:
    """Return an observer that keeps the texts of notes."""
    return lambda event: notes.append(event["text"]) if event["event"] == "note" else None
