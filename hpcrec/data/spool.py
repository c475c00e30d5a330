"""A rank's patterns in a scratch file, where memory does not hold them: sorted out once, then read in any order."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hpcrec.backend.array import Array, IntArray
from hpcrec.errors import StorageError


def file_array(folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array in a scratch file without a name, for what would take too much memory.

    Its pages are the system's to write out and to fetch; the file goes with the array. The disk's space is taken at
    once, so that a full one is told here.

    Raises
    ------
    StorageError : the folder takes no file of this size.
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        with tempfile.TemporaryFile(dir=folder, prefix="hpcrec-array-") as file:
            if n_bytes:
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            return np.memmap(file, dtype, "r+", shape=shape) if n_bytes else np.empty(shape, dtype)
    except OSError as fault:
        raise StorageError(
            f"cannot keep {n_bytes / 2**30:.3g} GiB that exceed the memory in {folder}: {fault.strerror}; free space "
            "there, or set parallel.scratch to another folder"
        ) from None


class Spool:
    """Patterns (n, ky, kx) as they are used, in their own type, one after the other in a file without a name.

    Files of detectors keep patterns compressed and many in a piece, so that one pattern costs as much as its piece;
    here it costs its own bytes. The file goes with the process, however that ends.

    Raises
    ------
    StorageError : the folder takes no file of this size.
    """

    def __init__(self, folder: Path, pattern_shape: tuple[int, int], dtype: np.dtype[np.generic]) -> None:
        self._folder, self._shape, self._dtype = folder, pattern_shape, dtype
        self._stride = math.prod(pattern_shape) * dtype.itemsize
        try:
            self._file = tempfile.TemporaryFile(dir=folder, prefix="hpcrec-patterns-")  # noqa: SIM115
        except OSError as fault:
            raise self._fault(fault) from None

    def append(self, patterns: Array) -> None:
        """Write more patterns behind those that are there."""
        try:
            self._file.write(np.ascontiguousarray(patterns, self._dtype).data)
            self._file.flush()
        except OSError as fault:
            raise self._fault(fault) from None

    def read(self, rows: IntArray) -> Array:
        """Return the patterns (n, ky, kx) at the places ``rows``; several threads may read."""
        found = np.empty((len(rows), *self._shape), self._dtype)
        edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        runs = [(found[a:b], int(rows[a]) * self._stride) for a, b in zip(edges, edges[1:]) if b > a]
        if len(runs) > 1:
            # A disc fetches many places sooner when it knows of all
            for patterns, start in runs:
                os.posix_fadvise(self._file.fileno(), start, patterns.nbytes, os.POSIX_FADV_WILLNEED)
        for patterns, start in runs:
            self._fill(patterns.reshape(-1).view(np.uint8).data, start)
        return found

    def _fill(self, buffer: memoryview, start: int) -> None:
        while len(buffer):
            n = os.preadv(self._file.fileno(), [buffer], start)
            if n == 0:
                raise StorageError(f"the scratch file in {self._folder} lost patterns: start the command again")
            buffer, start = buffer[n:], start + n

    def close(self) -> None:
        """Give the space back."""
        self._file.close()

    def _fault(self, fault: OSError) -> StorageError:
        return StorageError(
            f"cannot keep the patterns that exceed the memory in {self._folder}: {fault.strerror}; free space there, "
            "set parallel.scratch to another folder, or allow more memory"
        )
