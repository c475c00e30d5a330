"""Arrays that need not be in memory as a whole: they are read a block at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import h5py
import numpy as np

from hpcrec.backend.array import Array
from hpcrec.io.hdf5_access import read_block

BLOCK_BYTES: Final = 16 << 20
Selection = tuple[int | slice, ...]


class LazyArray(ABC):
    """An array somewhere else, of which parts can be read."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[Any]:
        """Type of the array in native byte order."""

    @abstractmethod
    def read(self, selection: Selection) -> Array:
        """Return a part of the array, ``()`` is all of it; raises :class:`DataError` where it cannot be read."""

    def blocks(self) -> Iterator[tuple[Selection, Array]]:
        """Yield places and values of blocks, in the order of memory."""
        if not self.shape:
            yield (), self.read(())
            return
        leading, n_rows, row = self.shape[:-2], self.shape[-2:][0], self.shape[-2:][1:]
        rows = max(BLOCK_BYTES // max(math.prod(row) * self.dtype.itemsize, 1), 1)
        for place in np.ndindex(*leading):
            for first in range(0, n_rows, rows):
                selection = (*place, slice(first, min(first + rows, n_rows)))
                yield selection, self.read(selection)


@dataclass(frozen=True, slots=True)
class StoredArray(LazyArray):
    """An array of a file that is open."""

    dataset: h5py.Dataset
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.dataset.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the array in native byte order."""
        return self.dataset.dtype.newbyteorder("=")  # type: ignore[no-any-return]

    def read(self, selection: Selection) -> Array:
        """Return a part of the array; raises :class:`DataError` where it cannot be read."""
        return read_block(self.dataset, selection, self.where)
