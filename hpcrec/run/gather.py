"""The object of a finished tilt, on its way from the ranks to the result.

The first rank of a group gathers it in its memory, as far as it is small. A larger one that lies in tiles is never in
one place: each rank writes its core beside the result, and the first one gets a table of these parts.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, all_finite, to_host
from hpcrec.data.spool import file_array
from hpcrec.errors import DivergedError, StorageError
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.tiles import Box
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


def written_in_parts(exchange: Exchange, values: Array, grid: Grid, result: Path, tilt: int) -> JoinedArray | None:
    """Write the object in parts beside ``result``; return their table on the group's first rank, None elsewhere.

    Collective. Raises :class:`StorageError` on all ranks alike, and :class:`DivergedError`, before anything is written.
    """
    group = exchange.communicator
    core = _Core(values[(..., *exchange.core.slices(exchange.held))])
    finite = all(all_finite(block) for _, block in core.blocks())
    if group.max(np.array([not finite], np.int64))[0]:
        raise _diverged(tilt)
    token = group.broadcast(secrets.token_hex(_TOKEN_BYTES) if group.rank == 0 else None)
    told = ""
    try:
        if not exchange.core.empty:
            write_object_part(part_path(result, token, group.rank), core)
    except StorageError as fault:
        told = str(fault)
    _raise_alike(group, told)
    cores: list[Box] | None = group.gather(exchange.core)
    if cores is None:
        return None
    full = {rank: box for rank, box in enumerate(cores) if not box.empty}
    whole = (*values.shape[:-2], *grid.shape)
    return JoinedArray(result, whole, core.dtype, token, tuple(full), tuple(full.values()))


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
