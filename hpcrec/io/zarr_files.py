"""Tilt series in Zarr folders (versions 2 and 3): the options say where things are, as for HDF5."""

from __future__ import annotations

import lzma
import math
import zlib
from typing import Any, Final, Literal

import numpy as np

from hpcrec.backend.array import Array, IntArray
from hpcrec.data.dataset import TiltSeries
from hpcrec.errors import DataError
from hpcrec.io.base import SeriesOptions, describe_series
from hpcrec.io.facts import PIXEL_KEYS
from hpcrec.io.layout import find_layout, read_runs, report_unwritten
from hpcrec.io.optional import optional_library
from hpcrec.options import options

_BLOCK_BYTES: Final = 64 << 20
# Of a packed chunk: its head holds its length in bytes
_BLOSC_HEAD, _BLOSC_LENGTH = 16, slice(12, 16)
# What the library raises where metadata are damaged (its own errors are ValueErrors), and its codecs where chunks are.
_METADATA_FAULTS: Final = (OSError, ValueError, KeyError, TypeError)
_CHUNK_FAULTS: Final = (*_METADATA_FAULTS, RuntimeError, EOFError, zlib.error, lzma.LZMAError)


@options
class ZarrOptions(SeriesOptions):
    """Where a Zarr folder keeps what; the shared options are those of :class:`SeriesOptions`.

    path : the folder
    format : the reader's name
    patterns : array of the patterns, ([tilt,] position, ky, kx) or ([tilt,] row, column, ky, kx)
    positions : array of the positions, ([tilt,] position, components)
    tilt_angles : array of the tilt angles
    mask : array of the detector mask (ky, kx)
    probe : array of a start probe (mode, y, x), complex, centred at n//2

    Numbers may be given as ``"attribute:NAME"``, ``"attribute:OBJECT@NAME"`` or ``"dataset:NAME"``.
    """

    format: Literal["zarr"] = "zarr"
    patterns: str
    positions: str | None = None
    tilt_angles: str | None = None
    mask: str | None = None
    probe: str | None = None


class ZarrSeries(TiltSeries):
    """A tilt series whose patterns are read chunk by chunk."""

    Options = ZarrOptions

    def __init__(self, given: ZarrOptions) -> None:
        access = _ZarrAccess(given)
        patterns = access.node(given.patterns)
        names = ("positions", "tilt_angles", "mask", "probe")
        arrays = {name: access.array(getattr(given, name)) for name in names}
        numbers = {key: access.number(getattr(given, key)) for key in (*PIXEL_KEYS, "energy_ev")}
        angles = arrays["tilt_angles"]
        n_angles = None if angles is None else int(angles.size)
        self._scan = find_layout(given.path, patterns.shape, given.layout, n_angles)
        self._patterns: Any = patterns
        self._access = access
        super().__init__(describe_series(given, self._scan, patterns.dtype.newbyteorder("="), arrays, numbers))
        _check_written(given, patterns)
        _check_blosc(given, patterns)

    def read_frames(self, tilt_number: int, indices: IntArray) -> Array:
        """Return frames (n, rows, columns) as stored; raises :class:`DataError` where a chunk is damaged."""
        if self._patterns is None:
            raise DataError(f"{self.identity.path}: was closed before it was read")
        scan, n_lead = self._scan, int(self._scan.has_tilts)
        frames = np.empty((len(indices), *scan.frame_shape), self._patterns.dtype.newbyteorder("="))
        chunk = tuple(self._patterns.chunks[n_lead:-2])
        chunk_bytes = int(np.prod(chunk)) * int(np.prod(scan.frame_shape)) * frames.dtype.itemsize
        for part, block, inside in read_runs(indices, scan.scan_shape, chunk, max(_BLOCK_BYTES // chunk_bytes, 1)):
            where = f"tilt {tilt_number}, positions {indices[part[0]]}…{indices[part[-1]]}"
            lead = (tilt_number,) if n_lead else ()
            frames[part] = self._access.read(self._patterns, (*lead, *block), where)[inside]
        return frames

    def close(self) -> None:
        """Let go of the folder."""
        self._patterns = None


def _check_written(given: ZarrOptions, patterns: Any) -> None:
    """Raise :class:`DataError` if no chunk is stored, and warn if some are not.

    Writers leave out chunks that hold nothing but the fill value.
    """
    stored = patterns.nchunks_initialized
    if not stored:
        raise DataError(
            f"{given.path}: {given.patterns!r} was declared but never written; is the measurement finished?"
        )
    grid = patterns.shards or patterns.chunks  # whole shards are stored: their chunks may reach beyond the array
    n_chunks = math.prod(-(-n // g) * (g // c) for n, g, c in zip(patterns.shape, grid, patterns.chunks, strict=True))
    report_unwritten(f"{given.path}: {given.patterns!r}", stored, n_chunks, patterns.fill_value or 0)


def _check_blosc(given: ZarrOptions, patterns: Any) -> None:
    """Raise :class:`DataError` if a chunk packed by Blosc is shorter than it says.

    Blosc's decoder believes the length in a chunk's head and reads beyond a shorter one, whatever lies there.
    """
    packers = [type(codec).__name__ for codec in getattr(patterns, "compressors", None) or ()]
    if patterns.shards or not packers or "Blosc" not in packers[-1]:
        return
    for chunk in (given.path / str(patterns.path)).rglob("*"):
        if not chunk.is_file() or chunk.name.startswith(".") or chunk.suffix == ".json":
            continue
        with chunk.open("rb") as file:
            head = file.read(_BLOSC_HEAD)
        told, stored = int.from_bytes(head[_BLOSC_LENGTH], "little"), chunk.stat().st_size
        if len(head) < _BLOSC_HEAD or told > stored:
            raise DataError(
                f"{chunk}: cannot be read, it is damaged there ({stored} bytes of {told}); copy the folder again"
            )


class _ZarrAccess:
    """An open Zarr folder; every fault of the library becomes a :class:`DataError`."""

    def __init__(self, given: ZarrOptions) -> None:
        zarr = optional_library("zarr", "reading Zarr folders")
        self._path = given.path
        if not given.path.is_dir():
            raise DataError(f"{given.path}: no such Zarr folder; check the path (relative paths start at the job file)")
        try:
            self._root = zarr.open_group(store=str(given.path), mode="r")
        except _METADATA_FAULTS as fault:
            raise DataError(f"{given.path}: is no Zarr group ({fault}); give the folder with its metadata") from fault

    def node(self, name: str) -> Any:
        """Return the array ``name``; raises :class:`DataError` if there is none."""
        node = self._object(name)
        if not hasattr(node, "chunks") or node.dtype.kind not in "biufc":
            raise DataError(f"{self._path}: {name!r} is not an array of numbers")
        return node

    def _object(self, name: str) -> Any:
        """Return the array or group ``name``."""
        try:
            return self._root[name.strip("/")]
        except _METADATA_FAULTS as fault:
            known = ", ".join(sorted(self._root.array_keys())[:5]) or "none at its top"
            raise DataError(f"{self._path}: there is no sound array {name!r} ({fault}); arrays: {known}") from fault

    def array(self, name: str | None) -> Array | None:
        """Return the whole of a small array, or None for no name."""
        return None if name is None else self.read(self.node(name), (), repr(name))

    def read(self, node: Any, selection: tuple[int | slice, ...], where: str) -> Array:
        """Return part of an array in native byte order."""
        try:
            block = np.asarray(node[selection] if selection else node[...])
        except _CHUNK_FAULTS as fault:
            text = " ".join(str(fault).split())
            raise DataError(f"{self._path}: {where}: cannot be read, it is damaged there ({text})") from fault
        return block.astype(block.dtype.newbyteorder("="), copy=False)

    def number(self, given: float | str | None) -> float | None:
        """Return a number as given, or from an attribute or array of the folder."""
        if given is None or not isinstance(given, str):
            return given
        kind, _, name = given.partition(":")
        if kind == "dataset" and name:
            value: Any = self.array(name)
        elif kind == "attribute" and name:
            where, _, attribute = name.rpartition("@")
            value = (self._object(where) if where else self._root).attrs.get(attribute)
        else:
            raise DataError(
                f"{given!r}: expected a number, 'attribute:NAME', 'attribute:OBJECT@NAME' or 'dataset:NAME'"
            )
        number = np.asarray(value)
        if number.size != 1 or number.dtype.kind not in "uif":
            raise DataError(f"{self._path}: {given!r} is not one number but {value!r}")
        return float(number.reshape(()))
