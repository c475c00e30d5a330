"""The object of a finished tilt, on its way from the ranks to the result.

The first rank of a group gathers it in its memory, as far as it is small. A larger one that lies in tiles is never in
one place: each rank writes its core beside the result, to a file of its own or to one of all, and the first one gets a
table of these parts.
"""

from __future__ import annotations

import math
import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, all_finite, to_host
from hpcrec.data.spool import file_array
from hpcrec.errors import DivergedError, StorageError
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.tiles import Box
from hpcrec.io import one_file
from hpcrec.io.atomic import atomic_path, storage_error
from hpcrec.io.joined import JoinedArray, part_path
from hpcrec.io.lazy import BLOCK_BYTES, LazyArray, Selection
from hpcrec.io.tilt_parts import write_object_part
from hpcrec.parallel.communicator import Communicator
from hpcrec.parallel.exchange import Exchange

# Of an array of the whole object that the first rank of a group gathers in its memory
IN_MEMORY_BYTES: Final = 1 << 30
# Of one in parts: a block, what was read for it from a file, and a copy on its way to the checksum
PIECES_BYTES: Final = 3 * BLOCK_BYTES
_TOKEN_BYTES: Final = 4


def in_memory(n_bytes: int) -> bool:
    """Whether an array of the whole object is gathered in memory."""
    return n_bytes <= IN_MEMORY_BYTES


def gathered(exchange: Exchange, values: Array, scratch: Path, tilt: int) -> ComplexArray | None:
    """Return the object (slice, y, x) on the group's first rank, a large one in a scratch file; None elsewhere.

    Collective. Raises :class:`DivergedError` on all ranks alike where it is not finite.
    """

    def room(shape: tuple[int, ...], dtype: Any) -> Array:
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        return np.empty(shape, dtype) if in_memory(n_bytes) else file_array(scratch, shape, dtype)

    obj = exchange.whole(values, room)
    if not exchange.communicator.broadcast(None if obj is None else all_finite(obj)):
        raise _diverged(tilt)
    return obj


def written_in_parts(
    exchange: Exchange, values: Array, grid: Grid, result: Path, tilt: int, large_results: str = "auto"
) -> JoinedArray | None:
    """Write the object in parts beside ``result``; return their table on the group's first rank, None elsewhere.

    ``large_results`` : see :class:`hpcrec.run.job_parallel.ParallelSection`; one file is a part that holds all.
    Collective. Raises :class:`StorageError` on all ranks alike, and :class:`DivergedError`, before anything is written.
    """
    group = exchange.communicator
    core = _Core(values[(..., *exchange.core.slices(exchange.held))])
    finite = all(all_finite(block) for _, block in core.blocks())
    if group.max(np.array([not finite], np.int64))[0]:
        raise _diverged(tilt)
    token = group.broadcast(secrets.token_hex(_TOKEN_BYTES) if group.rank == 0 else None)
    whole = (*values.shape[:-2], *grid.shape)
    together = large_results != "parts" and group.handle is not None and one_file.available()
    if together:
        _write_one(group, part_path(result, token, 0), whole, exchange.core, core)
    else:
        _write_own(group, part_path(result, token, group.rank), exchange.core, core)
    cores: list[Box] | None = group.gather(exchange.core)
    if cores is None:
        return None
    full = {rank: box for rank, box in enumerate(cores) if not box.empty}
    if together:
        full = {0: Box(0, grid.shape[0], 0, grid.shape[1])}
    return JoinedArray(result, whole, core.dtype, token, tuple(full), tuple(full.values()))


def _write_own(group: Communicator, path: Path, box: Box, core: _Core) -> None:
    """Write this rank's part."""
    told = ""
    try:
        if not box.empty:
            write_object_part(path, core)
    except StorageError as fault:
        told = str(fault)
    _raise_alike(group, told)


def _write_one(group: Communicator, path: Path, whole: tuple[int, ...], box: Box, core: _Core) -> None:
    """Write the one part, all ranks together; it gets its name when all have written."""
    told, temporary = "", None
    with ExitStack() as stack:
        if group.rank == 0:
            try:
                temporary = stack.enter_context(atomic_path(path))
                one_file.make_room(temporary, whole, core.dtype)
            except StorageError as fault:
                told = str(fault)
            except OSError as fault:
                told = str(storage_error(path, fault))
        _raise_alike(group, told)
        try:
            one_file.fill(group.broadcast(temporary), group.handle, box, core, path)
        except StorageError as fault:
            told = str(fault)
        _raise_alike(group, told)
        try:
            stack.close()
        except StorageError as fault:
            told = str(fault)
    _raise_alike(group, told)


def _raise_alike(group: Communicator, told: str) -> None:
    """Raise on all ranks what one of them has to tell."""
    texts = group.gather(told)
    text = group.broadcast(next(filter(None, texts), "") if texts is not None else None)
    if text:
        raise StorageError(text)


def _diverged(tilt: int) -> DivergedError:
    return DivergedError(f"tilt {tilt}: the object holds values that are not finite; take smaller steps")


@dataclass(frozen=True)
class _Core(LazyArray):
    """What a rank owns of an array, which may be on a GPU."""

    values: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.values.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the array."""
        return np.dtype(self.values.dtype)

    def read(self, selection: Selection) -> Array:
        """Return a part of it in host memory."""
        return np.ascontiguousarray(to_host(self.values[selection]))
