"""A part of a tilt's object that all ranks of a group write at the same time, by an HDF5 that was built with MPI."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py

from hpcrec.geometry.tiles import Box
from hpcrec.io.atomic import storage_error
from hpcrec.io.joined import PIECE
from hpcrec.io.lazy import LazyArray
from hpcrec.io.store import VERSIONS
from hpcrec.io.tilt_parts import PART_ATTRIBUTES


def available() -> bool:
    """Whether the h5py of this process was built with MPI."""
    return bool(h5py.get_config().mpi)


def make_room(path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    """Write a part of whatever values, at its full length: a full disk is noticed here. Raises OSError."""
    with h5py.File(path, "w", libver=VERSIONS) as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        file.create_dataset(PIECE, shape, dtype, dcpl=plan)
        file.attrs.update(PART_ATTRIBUTES)
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def open_together(path: Path, handle: Any) -> h5py.File:
    """Open a file for writing on all ranks of the communicator ``handle``; collective, and so is closing it."""
    return h5py.File(path, "r+", driver="mpio", comm=handle)


def fill(path: Path, handle: Any, core: Box, values: LazyArray, target: Path) -> None:
    """Write ``values`` (…, y, x) of this rank at its ``core`` of the part; collective over the communicator ``handle``.

    Raises :class:`StorageError` naming ``target`` on the rank that could not write; all close the file.
    """
    try:
        with open_together(path, handle) as file:
            piece = file[PIECE]
            for (*lead, rows), block in values.blocks() if not core.empty else ():
                assert isinstance(rows, slice)
                piece[(*lead, slice(core.y0 + rows.start, core.y0 + rows.stop), slice(core.x0, core.x1))] = block
    except OSError as fault:
        raise storage_error(target, fault) from fault
