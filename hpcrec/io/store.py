"""Groups of named arrays in HDF5 files of our own, with a checksum, written so that a full disk does no harm.

A *record* is a group with arrays (names may contain ``/``) and attributes (text, numbers, short lists of numbers).
Its attribute ``sha256`` is the hash of all of them, so damage is noticed even where HDF5 sees none.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import h5py
import numpy as np

from hpcrec.backend.array import Array
from hpcrec.errors import DataError
from hpcrec.io.atomic import atomic_path, storage_error
from hpcrec.io.hdf5_access import damage_reported, open_hdf5
from hpcrec.io.joined import JoinedArray, joined_array
from hpcrec.io.lazy import LazyArray, StoredArray

Attribute: TypeAlias = str | int | float | bool | tuple[float, ...] | tuple[int, ...] | Array
Attributes: TypeAlias = Mapping[str, Attribute]

# Of what is written: an older library knows no later one than itself
VERSIONS: Final = ("v110", "v114" if h5py.version.hdf5_version_tuple >= (1, 14, 0) else "latest")
_DIGEST: Final = "sha256"
_ADVICE: Final = "use an earlier copy or compute it again"


class _Sink(io.RawIOBase):
    """A file for h5py that remembers the first write error instead of raising it.

    HDF5 cannot recover from a failed write: it raises again while closing and may crash the process. So it is told
    that all went well, and :func:`create_hdf5` asks :attr:`fault` afterwards.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)
        self.fault: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        return self._file.readinto(buffer) or 0

    def write(self, data: memoryview, /) -> int:  # type: ignore[override]
        rest = memoryview(data).cast("B")
        total = len(rest)
        while len(rest) and self.fault is None:
            try:
                rest = rest[self._file.write(rest) :]
            except OSError as fault:
                self.fault = fault
        return total

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return self._file.truncate(size)
        except OSError as fault:
            self.fault = self.fault or fault
            return size or 0

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as fault:
            self.fault = self.fault or fault
        super().close()


class Hdf5Writer:
    """An HDF5 file being written; :meth:`record` adds a group and stops at the first write error."""

    def __init__(self, file: h5py.File, sink: _Sink) -> None:
        self._file, self._sink = file, sink

    def record(self, name: str, arrays: Mapping[str, Array | LazyArray], attributes: Attributes) -> str:
        """Write a record as group ``name`` (``"/"`` is the file itself); return its checksum.

        What is not in memory is written a block at a time; of joined arrays, whose parts are written, the table alone.
        """
        group = self._file.require_group(name)
        for key, value in sorted(arrays.items()):
            if isinstance(value, JoinedArray):
                self.attributes(name, value.declare(group, key))
            elif isinstance(value, LazyArray):
                self._copy(group, key, value)
            else:
                group.create_dataset(key, data=value)
            self._file.flush()
            self.check()
        digest = record_digest(arrays, attributes)
        self.attributes(name, {**attributes, _DIGEST: digest})
        return digest

    def copy(self, name: str, record: StoredRecord) -> None:
        """Write a record of another file as group ``name``, a block at a time."""
        group = self._file.require_group(name)
        for key, value in sorted(record.arrays.items()):
            self._copy(group, key, value)
            self._file.flush()
            self.check()
        self.attributes(name, {**record.attributes, _DIGEST: record.digest})

    def _copy(self, group: h5py.Group, name: str, values: LazyArray) -> None:
        made = group.create_dataset(name, values.shape, values.dtype)
        for selection, block in values.blocks():
            made[selection] = block
            self.check()

    def attributes(self, name: str, attributes: Attributes) -> None:
        """Set attributes of group ``name``; text has a fixed length, because HDF5 guards that by checksums."""
        group = self._file.require_group(name)
        for key, value in attributes.items():
            if isinstance(value, str):
                text = value.encode()
                group.attrs.create(key, text, dtype=h5py.string_dtype("utf-8", max(len(text), 1)))
            else:
                group.attrs[key] = value

    def check(self) -> None:
        """Raise the first write error, if there was one."""
        if self._sink.fault is not None:
            raise self._sink.fault


@contextmanager
def create_hdf5(target: Path) -> Iterator[Hdf5Writer]:
    """Write an HDF5 file of our own atomically. Raises :class:`StorageError`; the earlier file then stays."""
    with _atomic_hdf5(target, VERSIONS) as (file, sink):
        yield Hdf5Writer(file, sink)


@contextmanager
def create_exchange_hdf5(target: Path) -> Iterator[h5py.File]:
    """Write an HDF5 file for other programs atomically, in the oldest form that holds it. Raises as above."""
    with _atomic_hdf5(target, ("earliest", VERSIONS[1])) as (file, _):
        yield file


@contextmanager
def _atomic_hdf5(target: Path, versions: tuple[str, str]) -> Iterator[tuple[h5py.File, _Sink]]:
    with atomic_path(target) as temporary:
        sink = _Sink(temporary)
        try:
            with h5py.File(sink, "w", libver=versions) as file:
                yield file, sink
        finally:
            sink.close()
        if sink.fault is not None:
            raise storage_error(target, sink.fault) from sink.fault


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRecord:
    """A record of a file that is open, found sound; its arrays are not in memory."""

    arrays: dict[str, LazyArray]
    attributes: dict[str, Attribute]
    digest: str


def record_digest(arrays: Mapping[str, Array | LazyArray], attributes: Attributes) -> str:
    """Return the sha256 of names, types, shapes and bytes of all arrays and attributes, in the order of names."""
    digest = hashlib.sha256()
    for kind, values in (("array", arrays), ("attribute", attributes)):
        for name in sorted(values):
            value = values[name]
            if isinstance(value, str):
                text = value.encode(errors="surrogatepass")  # a damaged file may hold any bytes
                digest.update(f"{kind} {name} text {len(text)}\n".encode(errors="surrogatepass"))
                digest.update(text)
                continue
            array = value if isinstance(value, LazyArray) else np.asarray(value)
            digest.update(f"{kind} {name} {array.dtype.str} {array.shape}\n".encode(errors="surrogatepass"))
            blocks = (block for _, block in array.blocks()) if isinstance(array, LazyArray) else [array]
            for block in blocks:
                digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_record(
    group: h5py.Group, where: str, index: Path | None = None
) -> tuple[dict[str, Array], dict[str, Attribute]]:
    """Return arrays and attributes of a record; raises :class:`DataError` naming ``where`` if it is damaged.

    Arrays may lie in parts beside the file ``index``, if it is given; else these are refused.
    """
    found, attributes = _stored(group, where, index)
    arrays = {name: one.read(()) for name, one in found.items()}
    _check_digest(arrays, attributes, where, found)
    return arrays, attributes


def stored_record(group: h5py.Group, where: str, index: Path | None = None) -> StoredRecord:
    """Return a record whose arrays stay in the file, which is read once; raises :class:`DataError` as above."""
    arrays, attributes = _stored(group, where, index)
    digest = _check_digest(arrays, attributes, where, arrays)
    return StoredRecord(arrays=arrays, attributes=attributes, digest=digest)


def _stored(
    group: h5py.Group, where: str, index: Path | None = None
) -> tuple[dict[str, LazyArray], dict[str, Attribute]]:
    """Return the arrays, not yet read, and the attributes of a record."""
    with damage_reported(where, _ADVICE):
        attributes = {name: read_attribute(group, name) for name in group.attrs}
        joined = None if index is None else joined_array(attributes, index, where)
        # Opened by name: the virtual dataset of joined parts must not be
        names: list[str] = []
        group.visit(names.append)
        names = [name for name in names if joined is None or name != joined[0]]
        names = [name for name in names if isinstance(group[name], h5py.Dataset)]
        foreign = [name for name in names if group[name].external or group[name].is_virtual]
        if foreign:
            raise DataError(f"{where}: {foreign[0]!r} keeps its bytes in another file: refused")
        room = group.file.id.get_filesize()  # records are not compressed: no array is larger than its file
        oversized = [name for name in names if group[name].nbytes > room]
        if oversized:
            raise DataError(f"{where}: {oversized[0]!r} claims to be larger than the file: it is damaged; {_ADVICE}")
        found: dict[str, LazyArray] = {name: StoredArray(group[name], f"{where}: {name!r}") for name in names}
        return found if joined is None else {**found, joined[0]: joined[1]}, attributes


def _check_digest(
    arrays: Mapping[str, Array | LazyArray],
    attributes: dict[str, Attribute],
    where: str,
    stored_as: Mapping[str, LazyArray],
) -> str:
    """Take the checksum out of the attributes and return it; raises :class:`DataError` if it is another's.

    That of a part is named, where it is to blame.
    """
    stored = attributes.pop(_DIGEST, None)
    if stored is None:
        raise DataError(f"{where}: has no checksum; it was not written by this program")
    if stored != record_digest(arrays, attributes):
        for path in (path for one in stored_as.values() if isinstance(one, JoinedArray) for path in one.paths):
            with open_hdf5(path) as file:
                stored_record(file["/"], str(path))
        raise DataError(f"{where}: its content does not match its checksum; {_ADVICE}")
    return str(stored)


def read_attribute(group: h5py.Group, name: str) -> Any:
    """Return an attribute of a file of our own, text as ``str``; None if there is none.

    Raises :class:`DataError` for text of variable length, which we never write and which may hang HDF5 if damaged.
    """
    if name not in group.attrs:
        return None
    kind = h5py.check_string_dtype(group.attrs.get_id(name).dtype)
    if kind is not None and kind.length is None:
        raise DataError(f"{group.file.filename}: was not written by this program (see its attribute {name!r})")
    value = group.attrs[name]
    return value.decode() if isinstance(value, bytes) else value


def read_file(
    path: Path, file_format: str, version: int, *, parts: bool = False
) -> tuple[dict[str, Array], dict[str, Attribute]]:
    """Return the record that is the whole of a file of our own; raises :class:`DataError`.

    ``parts`` : arrays may lie in parts beside it
    """
    with open_hdf5(path) as file:
        check_format(file, path, file_format, version)
        return read_record(file["/"], str(path), path if parts else None)


@contextmanager
def open_record(path: Path, file_format: str, version: int, *, parts: bool = False) -> Iterator[StoredRecord]:
    """Give the record that is the whole of a file of our own, without reading it to memory; raises as above."""
    with open_hdf5(path) as file:
        check_format(file, path, file_format, version)
        yield stored_record(file["/"], str(path), path if parts else None)


@contextmanager
def open_unread(path: Path, file_format: str, version: int) -> Iterator[dict[str, LazyArray]]:
    """Give the arrays of such a file whose checksum was tested before; raises :class:`DataError`."""
    with open_hdf5(path) as file:
        check_format(file, path, file_format, version)
        yield _stored(file["/"], str(path))[0]


def check_format(file: h5py.File, path: Path, file_format: str, version: int) -> None:
    """Raise :class:`DataError` unless the file says that it has this format and at most this version."""
    with damage_reported(str(path), _ADVICE):
        found, number = read_attribute(file, "format"), read_attribute(file, "format_version")
    if found != file_format:
        raise DataError(f"{path}: is not a file of format {file_format} (it says {found!r})")
    if not isinstance(number, (int, np.integer)) or number > version:
        raise DataError(f"{path}: has version {number} of {file_format}, this program reads up to {version}; update it")
