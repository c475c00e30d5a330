"""Logging set-up; called by the command line only."""

from __future__ import annotations

import logging


class RankFilter(logging.Filter):
    """Let details through on rank 0 only; warnings and errors come from every rank, with its number."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record if this rank may say it."""
        record.rank = self.rank
        return self.rank == 0 or record.levelno >= logging.WARNING


def configure_logging(rank: int = 0, verbose: bool = False) -> None:
    """Send the package's warnings (``verbose``: everything) to standard error, a line each, with the rank in front."""
    handler = logging.StreamHandler()
    handler.addFilter(RankFilter(rank))
    handler.setFormatter(logging.Formatter("[rank %(rank)d] %(levelname)s %(message)s"))
    root = logging.getLogger("hpcrec")
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.WARNING)
    root.propagate = False
    logging.getLogger("distributed").setLevel(logging.WARNING)
