"""Checkpoints: named arrays and attributes from which a stage goes on; the last two are kept.

Files are called ``PREFIX_NUMBER.h5``. Each is one record (``io/store.py``) with the attributes
``format = "hpcrec-checkpoint"``, ``format_version = 1`` and whatever the stage adds.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from hpcrec.backend.array import Array
from hpcrec.errors import DataError
from hpcrec.io.atomic import storage_error
from hpcrec.io.store import Attribute, Attributes, create_hdf5, read_file

logger = logging.getLogger(__name__)

_FORMAT: Final = "hpcrec-checkpoint"
_VERSION: Final = 1
_KEEP: Final = 2
_NAME: Final = re.compile(r"(?P<prefix>.+)_(?P<number>\d+)\.h5")


class Checkpoint(NamedTuple):
    """A checkpoint that was read and found sound."""

    path: Path
    arrays: dict[str, Array]
    attributes: dict[str, Attribute]


def save_checkpoint(path: Path, arrays: Mapping[str, Array], attributes: Attributes) -> None:
    """Write ``PREFIX_NUMBER.h5`` atomically, then remove all of that prefix but it and the one before.

    Checkpoints of higher numbers go too: they belong to a course of events that was given up. Raises
    :class:`StorageError` if it cannot be written, and :class:`ValueError` for another kind of name; earlier
    checkpoints then stay.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"expected a checkpoint named PREFIX_NUMBER.h5, got {path.name}")
    with create_hdf5(path) as writer:
        writer.record("/", arrays, {**attributes, "format": _FORMAT, "format_version": _VERSION})
    number = int(match["number"])
    found = _numbered(path.parent, match["prefix"])
    kept = [old for n, old in found if n <= number][-_KEEP:]
    _remove([old for _, old in found if old not in kept])


class CheckpointWriter:
    """Writes checkpoints in a thread of its own, one at a time, so that computing goes on.

    What a write raises is raised by the next call; the checkpoint before it then stays.
    """

    def __init__(self) -> None:
        self._under_way: Future[None] | None = None

    def save(self, path: Path, arrays: Mapping[str, Array], attributes: Attributes) -> None:
        """Begin :func:`save_checkpoint` once the write before is done; the arrays must not be changed any more."""
        self.wait()
        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way = pool.submit(save_checkpoint, path, arrays, attributes)
        pool.shutdown(wait=False)

    def check(self) -> None:
        """Raise what the last write has raised by now."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the last write, and raise what it raised."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()


def load_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint; raises :class:`DataError` naming it if it is missing or damaged."""
    arrays, attributes = read_file(path, _FORMAT, _VERSION)
    return Checkpoint(path, arrays, {k: v for k, v in attributes.items() if k not in ("format", "format_version")})


def latest_good(folder: Path, prefix: str) -> Checkpoint | None:
    """Return the newest sound checkpoint of a prefix, or None; damaged ones are named in the log."""
    for _, path in reversed(_numbered(folder, prefix)):
        try:
            return load_checkpoint(path)
        except DataError as fault:
            logger.warning("checkpoint skipped: %s", fault)
    return None


def highest_number(folder: Path, prefix: str) -> int:
    """Return the highest number of a prefix's checkpoints by their names, sound or not; 0 where there are none."""
    return max((number for number, _ in _numbered(folder, prefix)), default=0)


def remove_checkpoints(folder: Path, prefix: str) -> None:
    """Remove all checkpoints of a prefix, after its stage is finished. Raises :class:`StorageError`."""
    _remove([path for _, path in _numbered(folder, prefix)])


def _remove(paths: list[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as fault:
            raise storage_error(path, fault) from fault


def _numbered(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    found = []
    for path in folder.glob("*.h5"):
        match = _NAME.fullmatch(path.name)
        if match is not None and match["prefix"] == prefix:
            found.append((int(match["number"]), path))
    return sorted(found)
