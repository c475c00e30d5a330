"""Patterns in data sets of an HDF5 file, read block by block, each chunk once per call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import h5py
import numpy as np

from hpcrec.backend.array import Array, IntArray
from hpcrec.errors import DataError
from hpcrec.io.facts import FileFacts
from hpcrec.io.hdf5_access import Hdf5Access, damage_reported, read_block
from hpcrec.io.layout import read_runs, report_unwritten

_GAP_BYTES: Final = 128 << 10  # reading this much too much costs about as much as one more h5py call
_BLOCK_BYTES: Final = 64 << 20


def read_patterns(
    patterns: h5py.Dataset, lead: tuple[int, ...], scan_shape: tuple[int, ...], indices: IntArray, where: str
) -> Array:
    """Return patterns (n, rows, columns) as stored, in the order of ``indices`` into the flattened scan.

    ``lead`` indexes the axes before those of ``scan_shape``; ``where`` begins the message of a :class:`DataError`.
    """
    frame_shape = patterns.shape[-2:]
    frames = np.empty((len(indices), *frame_shape), patterns.dtype.newbyteorder("="))
    chunk, chunk_bytes = _chunk(patterns, len(lead))
    for part, block, inside in read_runs(indices, scan_shape, chunk, max(_BLOCK_BYTES // chunk_bytes, 1)):
        text = f"{where}, positions {indices[part[0]]}…{indices[part[-1]]}"
        frames[part] = read_block(patterns, (*lead, *block), text)[inside]
    return frames


def _chunk(patterns: h5py.Dataset, n_lead: int) -> tuple[tuple[int, ...], int]:
    """Patterns per chunk along each scan axis, and the bytes of that many patterns."""
    frame_bytes = int(np.prod(patterns.shape[-2:])) * patterns.dtype.itemsize
    if patterns.chunks is None:
        n_axes = patterns.ndim - n_lead - 2
        chunk: tuple[int, ...] = (1,) * (n_axes - 1) + (max(_GAP_BYTES // frame_bytes, 1),)
    else:
        chunk = tuple(patterns.chunks[n_lead:-2])
    return chunk, int(np.prod(chunk)) * frame_bytes


def check_chunks(patterns: h5py.Dataset, path: Path) -> None:
    """Warn where some chunks of patterns were never written; HDF5 reads them as the fill value without a word."""
    if patterns.chunks is None or patterns.is_virtual:
        return
    where = f"{path}: {patterns.name!r}"
    with damage_reported(where):
        stored, fill = patterns.id.get_num_chunks(), patterns.fillvalue
    n_chunks = math.prod(-(-n // c) for n, c in zip(patterns.shape, patterns.chunks, strict=True))
    report_unwritten(where, stored, n_chunks, fill)


class Hdf5Frames:
    """The frames of one or several data sets, one after the other: a :class:`~hpcrec.io.frames.FrameFile`.

    Each data set is (position, rows, columns) or (row, column, rows, columns). Raises :class:`DataError` if they are
    not alike.
    """

    def __init__(self, access: Hdf5Access, datasets: Sequence[h5py.Dataset], facts: FileFacts) -> None:
        first = datasets[0]
        for dataset in datasets:
            check_chunks(dataset, access.path)
            if dataset.ndim not in (3, 4) or min(dataset.shape) < 1:
                raise DataError(
                    f"{access.path}: {dataset.name!r} has shape {dataset.shape}; expected (position, ky, kx) or "
                    "(row, column, ky, kx)"
                )
            if dataset.shape[-2:] != first.shape[-2:] or dataset.dtype != first.dtype:
                raise DataError(f"{access.path}: {dataset.name!r} and {first.name!r} hold frames of different kinds")
        self._access, self._datasets, self.facts = access, tuple(datasets), facts
        counts = [int(np.prod(dataset.shape[:-2])) for dataset in datasets]
        self._starts = np.concatenate(([0], np.cumsum(counts)))
        self.shape: tuple[int, int, int] = (int(self._starts[-1]), int(first.shape[-2]), int(first.shape[-1]))
        self.dtype: np.dtype[np.generic] = first.dtype.newbyteorder("=")
        self.paths = access.paths

    def number(self, given: float | str | None) -> float | None:
        """Return a number as given, or from an attribute or data set of the file."""
        return self._access.number(given)

    def read(self, indices: IntArray, where: str) -> Array:
        """Return a copy of frames (n, rows, columns) in the order of ``indices``."""
        frames = np.empty((len(indices), *self.shape[1:]), self.dtype)
        which = np.searchsorted(self._starts, indices, side="right") - 1
        for i_dataset in np.unique(which):
            part, dataset = np.flatnonzero(which == i_dataset), self._datasets[i_dataset]
            inside = indices[part] - self._starts[i_dataset]
            frames[part] = read_patterns(dataset, (), dataset.shape[:-2], inside, f"{self.paths[0]}: {dataset.name}")
        return frames

    def close(self) -> None:
        """Close the file and the files linked to it."""
        self._access.close()
