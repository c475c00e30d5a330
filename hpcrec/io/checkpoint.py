"""Checkpoints: named arrays and attributes from which a stage goes on; the last two are kept.

Files are called ``PREFIX_NUMBER.h5``. Each is one record (``io/store.py``) with the attributes
``format = "hpcrec-checkpoint"``, ``format_version = 1`` and whatever the stage adds. Where ranks write parts of it
(``io/checkpoint_parts.py``) the file is their index: ``format = "hpcrec-checkpoint-index"``, ``parts_token`` in the
names of the parts, and ``parts/`` boxes (part, 4), places (pattern,) with counts (part,), bytes (part,) and digests
(part, 32).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from hpcrec.backend.array import Array
from hpcrec.errors import DataError
from hpcrec.io.atomic import storage_error
from hpcrec.io.checkpoint_parts import Parts, part_files, parts_of
from hpcrec.io.hdf5_access import damage_reported, open_hdf5
from hpcrec.io.store import Attribute, Attributes, create_hdf5, read_attribute, read_file

logger = logging.getLogger(__name__)

_FORMAT: Final = "hpcrec-checkpoint"
_VERSION: Final = 1
_INDEX: Final = "hpcrec-checkpoint-index"
_TOKEN: Final = "parts_token"
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
    prefix, number = _parsed(path)
    with create_hdf5(path) as writer:
        writer.record("/", arrays, {**attributes, "format": _FORMAT, "format_version": _VERSION})
    _prune(path.parent, prefix, number)


def save_index(arrays: Mapping[str, Array], attributes: Attributes, parts: Parts) -> None:
    """Write the index of parts that are on the disk, which makes them a checkpoint; then do as above.

    Parts of higher numbers with the same token stay: their ranks may be writing them by now. Raises as above.
    """
    path = parts.index
    prefix, number = _parsed(path)
    fixed: Attributes = {"format": _INDEX, "format_version": _VERSION, _TOKEN: parts.token}
    with create_hdf5(path) as writer:
        writer.record("/", {**arrays, **parts.as_arrays()}, {**attributes, **fixed})
    _prune(path.parent, prefix, number, parts.token)


class CheckpointWriter:
    """Writes checkpoints in a thread of its own, one at a time, so that computing goes on.

    What a write raises is raised by the next call; the checkpoint before it then stays.
    """

    def __init__(self) -> None:
        self._under_way: Future[Any] | None = None

    @property
    def done(self) -> bool:
        """Whether no write is under way, so that :meth:`wait` would return at once."""
        return self._under_way is None or self._under_way.done()

    def save(self, path: Path, arrays: Mapping[str, Array], attributes: Attributes) -> None:
        """Begin :func:`save_checkpoint` once the write before is done; the arrays must not be changed any more."""
        self.begin(partial(save_checkpoint, path, arrays, attributes))

    def begin(self, write: Callable[[], object]) -> None:
        """Begin to write something, once the write before is done."""
        self.wait()
        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way = pool.submit(write)
        pool.shutdown(wait=False)

    def check(self) -> None:
        """Raise what the last write has raised by now."""
        if self.done:
            self.wait()

    def wait(self) -> Any:
        """Wait for the last write, and return what it returned or raise what it raised; None if that was done."""
        under_way, self._under_way = self._under_way, None
        return None if under_way is None else under_way.result()


class OpenedCheckpoint(NamedTuple):
    """A checkpoint that was found sound, but for its parts: these are still to be checked, and to be read."""

    path: Path
    arrays: dict[str, Array]
    attributes: dict[str, Attribute]
    parts: Parts | None


def open_checkpoint(path: Path) -> OpenedCheckpoint:
    """Return a checkpoint whose parts, if it has some, stay on the disk; raises :class:`DataError` as below."""
    indexed = bool(_token_of(path))
    arrays, attributes = read_file(path, _INDEX if indexed else _FORMAT, _VERSION)
    parts = parts_of(path, str(attributes[_TOKEN]), arrays) if indexed else None
    fixed = ("format", "format_version", _TOKEN)
    return OpenedCheckpoint(path, arrays, {k: v for k, v in attributes.items() if k not in fixed}, parts)


def load_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint, whole; raises :class:`DataError` naming it, or its part, if it is missing or damaged."""
    found = open_checkpoint(path)
    if found.parts is not None:
        for i in range(len(found.parts)):
            found.parts.check(i)
        found.arrays.update(found.parts.pixels(found.parts.whole))
        waves = found.parts.patterns(np.arange(found.parts.n_places))
        found.arrays.update({f"patterns:{name}": values for name, values in waves.items()})
    return Checkpoint(path, found.arrays, found.attributes)


def latest_good(folder: Path, prefix: str) -> Checkpoint | None:
    """Return the newest sound checkpoint of a prefix, or None; damaged ones are named in the log."""
    for path in newest_first(folder, prefix):
        try:
            return load_checkpoint(path)
        except DataError as fault:
            logger.warning("checkpoint skipped: %s", fault)
    return None


def newest_first(folder: Path, prefix: str) -> list[Path]:
    """Return the paths of all checkpoints of a prefix, sound or not, in descending order of their numbers."""
    return [path for _, path in reversed(_numbered(folder, prefix))]


def highest_number(folder: Path, prefix: str) -> int:
    """Return the highest number of a prefix's checkpoints by their names, sound or not; 0 where there are none."""
    return max((number for number, _ in _numbered(folder, prefix)), default=0)


def remove_checkpoints(folder: Path, prefix: str) -> None:
    """Remove all checkpoints of a prefix, after its stage is finished. Raises :class:`StorageError`."""
    _remove([path for _, path in _numbered(folder, prefix)])
    remove_strays(folder, prefix)


def remove_strays(folder: Path, prefix: str) -> None:
    """Remove parts that no index names, and temporary files, which processes that were killed left on any host.

    Nobody may be writing checkpoints of that prefix. Raises :class:`StorageError`.
    """
    _remove(sorted(folder.glob(f".{prefix}_*.tmp")))
    _remove([path for _, _, path in _strays(folder, prefix, _numbered(folder, prefix))])


def _prune(folder: Path, prefix: str, number: int, token: str = "") -> None:
    """Keep the last checkpoints up to ``number``, and those parts with ``token`` that go beyond."""
    found = _numbered(folder, prefix)
    kept = [(n, path) for n, path in found if n <= number][-_KEEP:]
    _remove([path for n, path in found if (n, path) not in kept])
    _remove([path for n, its_token, path in _strays(folder, prefix, kept) if its_token != token or n <= number])


def _strays(folder: Path, prefix: str, kept: list[tuple[int, Path]]) -> list[tuple[int, str, Path]]:
    """Return number, token and path of the parts of a prefix that none of the checkpoints ``kept`` names."""
    files = part_files(folder, prefix)
    named = {(number, _token_of(path)) for number, path in kept} if files else set()
    return [(number, token, path) for number, token, path in files if (number, token) not in named]


def _token_of(path: Path) -> str:
    """Return the token of an index's parts; none if it has no parts, or is damaged, which makes them useless."""
    try:
        with open_hdf5(path) as file, damage_reported(str(path)):
            return str(read_attribute(file, _TOKEN) or "")
    except DataError:
        return ""


def _remove(paths: list[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as fault:
            raise storage_error(path, fault) from fault


def _parsed(path: Path) -> tuple[str, int]:
    """Return prefix and number of a checkpoint's path."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"expected a checkpoint named PREFIX_NUMBER.h5, got {path.name}")
    return match["prefix"], int(match["number"])


def _numbered(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    found = []
    for path in folder.glob("*.h5"):
        match = _NAME.fullmatch(path.name)
        if match is not None and match["prefix"] == prefix:
            found.append((int(match["number"]), path))
    return sorted(found)
