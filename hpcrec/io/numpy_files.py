"""Tilt series in NumPy files: ``.npz``, ``.npz.bz2``, and ``.npy`` (memory-mapped) with companions beside it."""

from __future__ import annotations

import bz2
import io
import tokenize
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from hpcrec.backend.array import Array, IntArray
from hpcrec.data.dataset import TiltSeries, joint_identity
from hpcrec.errors import ConfigError, DataError
from hpcrec.io.base import SeriesOptions, describe_series
from hpcrec.io.layout import find_layout
from hpcrec.options import options

_PIECE: Final = 16 << 20
# What damaged files raise: the header of an array is parsed as Python, an archive may ask for what zipfile cannot do.
_NPY_FAULTS: Final = (OSError, ValueError, EOFError, tokenize.TokenError)
_NPZ_FAULTS: Final = (*_NPY_FAULTS, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
_REST: Final = ("positions", "tilt_angles", "mask", "probe")


@options
class NumpyOptions(SeriesOptions):
    """What is called how in NumPy files; the shared options are those of :class:`SeriesOptions`.

    format : the reader's name
    patterns : name of the patterns in a ``.npz`` (a ``.npy`` file holds nothing else)
    positions : name of the positions in a ``.npz``, or a ``.npy`` file in the same folder
    tilt_angles : name or file of the tilt angles
    mask : name or file of the detector mask
    probe : name or file of a start probe (…, mode, y, x), complex, centred at n//2
    memory_limit_gib : refuse ``.npz`` files that unpack to more
    """

    format: Literal["numpy"] = "numpy"
    patterns: str = "data"
    positions: str | None = None
    tilt_angles: str | None = None
    mask: str | None = None
    probe: str | None = None
    memory_limit_gib: float = 8.0


class NumpySeries(TiltSeries):
    """A tilt series held in memory (``.npz``) or memory-mapped (``.npy``); pickled objects are never loaded."""

    Options = NumpyOptions

    def __init__(self, given: NumpyOptions) -> None:
        keys = ("detector_pixel_inverse_angstrom", "detector_pixel_mrad", "pixel_size_angstrom", "energy_ev")
        numbers: dict[str, float | None] = {}
        for key in keys:
            value = getattr(given, key)
            if isinstance(value, str):
                raise ConfigError(f"{key} = {value!r}: NumPy files have no attributes; give a number")
            numbers[key] = value
        patterns, arrays = _load(given)
        angles = arrays["tilt_angles"]
        self._scan = find_layout(given.path, patterns.shape, given.layout, None if angles is None else int(angles.size))
        self._frames: Array | None = patterns.reshape(self._scan.n_tilts, -1, *self._scan.frame_shape)
        dtype = patterns.dtype.newbyteorder("=")
        described = describe_series(given, self._scan, dtype, arrays, numbers)
        super().__init__(
            replace(described, identity=joint_identity(given.path, [given.path, *_companions(given).values()]))
        )

    def read_frames(self, tilt_number: int, indices: IntArray) -> Array:
        """Return a copy of the frames (n, rows, columns) as stored."""
        if self._frames is None:
            raise DataError(f"{self.identity.path}: was closed before it was read")
        frames = self._frames[tilt_number][indices]
        return np.asarray(frames.astype(frames.dtype.newbyteorder("="), copy=False))

    def close(self) -> None:
        """Give the memory back."""
        self._frames = None


def _load(given: NumpyOptions) -> tuple[Array, dict[str, Array | None]]:
    names = {name: getattr(given, name) for name in _REST}
    if given.path.suffix == ".npy":
        return read_npy(given.path), dict.fromkeys(names) | {
            name: read_npy(file) for name, file in _companions(given).items()
        }
    limit = int(given.memory_limit_gib * (1 << 30))
    stored = _npz(given.path, [given.patterns, *(name for name in names.values() if name is not None)], limit)
    return stored[given.patterns], {name: None if key is None else stored[key] for name, key in names.items()}


def _companions(given: NumpyOptions) -> dict[str, Path]:
    """Return the files beside a ``.npy`` that hold the rest; none of a ``.npz``."""
    if given.path.suffix != ".npy":
        return {}
    named = {name: getattr(given, name) for name in _REST}
    return {name: given.path.parent / file for name, file in named.items() if file is not None}


def read_npy(path: Path) -> Array:
    """Map a ``.npy`` file into memory, read-only; raises :class:`DataError` if it is missing or damaged."""
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _NPY_FAULTS as fault:
        raise _load_fault(path, fault) from fault
    return array


def _npz(path: Path, names: list[str], limit: int) -> dict[str, Array]:
    """Return the named arrays of an archive that unpacks to at most ``limit`` bytes."""
    try:
        source = io.BytesIO(_unpacked(path, limit)) if path.suffix == ".bz2" else path
        with zipfile.ZipFile(source) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
        if total > limit:
            raise _too_large(path, limit)
        if isinstance(source, io.BytesIO):
            source.seek(0)
        with np.load(source, allow_pickle=False) as stored:
            missing = [name for name in names if name not in stored]
            if missing:
                raise DataError(f"{path}: there is no array {missing[0]!r}; it holds {', '.join(sorted(stored))}")
            return {name: stored[name] for name in names}
    except _NPZ_FAULTS as fault:
        raise _load_fault(path, fault) from fault


def _unpacked(path: Path, limit: int) -> bytes:
    out = bytearray()
    with bz2.open(path) as stream:
        while piece := stream.read(_PIECE):
            out += piece
            if len(out) > limit:
                raise _too_large(path, limit)
    return bytes(out)


def _too_large(path: Path, limit: int) -> DataError:
    return DataError(f"{path}: unpacks to more than {limit >> 20} MiB; raise memory_limit_gib or convert it to HDF5")


def _load_fault(path: Path, fault: Exception) -> DataError:
    if isinstance(fault, FileNotFoundError):
        return DataError(f"{path}: no such file; check the path (relative paths start at the job file)")
    if isinstance(fault, PermissionError):
        return DataError(f"{path}: no permission to read it; ask its owner for access")
    return DataError(f"{path}: is not a sound NumPy file ({fault}); check the path or copy it again")
