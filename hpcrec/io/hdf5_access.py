"""Opening HDF5 files that somebody else wrote.

Such a file can make a reader open any other file of the machine: by an external link, by external raw storage or by a
virtual data set. So every path is walked link by link, and what leaves the file is refused, or, on request, followed
as far as the file's own folder (detector master files need that).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import h5py
import hdf5plugin  # noqa: F401  registers the detector vendors' compression filters
import numpy as np

from hpcrec.backend.array import Array
from hpcrec.errors import DataError

LinkedFiles = Literal["refuse", "same_folder"]

_MAX_LINKS: Final = 32
_MAX_NAMES: Final = 2000
_MAX_BYTES: Final = 4 << 30


class MissingNodeError(DataError):
    """There is nothing of that name in the file."""


@contextmanager
def damage_reported(where: str, advice: str = "copy it again") -> Iterator[None]:
    """Turn whatever h5py raises on damaged metadata (it uses many types) into a :class:`DataError` naming ``where``."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as fault:
        text = " ".join(str(fault).split())
        raise DataError(f"{where}: cannot be read, the file is damaged there ({text}); {advice}") from fault


def open_hdf5(path: Path) -> h5py.File:
    """Open a file for reading. Raises :class:`DataError` that tells missing, forbidden, truncated and foreign apart."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name the HDF5 file in it")
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path (relative paths start at the job file)")
    try:
        return h5py.File(path, "r", locking="best-effort")
    except PermissionError as fault:
        raise DataError(f"{path}: no permission to read it; ask its owner for access") from fault
    except OSError as fault:
        raise DataError(f"{path}: {_open_fault(str(fault))}") from fault


def _open_fault(text: str) -> str:
    if "truncated" in text or "end of file" in text or "EOF" in text or "eof" in text:
        return "is truncated: the file ends before its data do; copy it again or wait until it is written"
    if "signature not found" in text:
        return "is not an HDF5 file; check the path, or choose another data format"
    if "lock" in text:
        return "is locked by a program that writes it; wait until the measurement is finished"
    return f"cannot be opened as HDF5 ({text}); it may be damaged"


@dataclass
class Hdf5Access:
    """An open file and the other files that its links led to; ``linked_files`` says whether they may."""

    path: Path
    linked_files: LinkedFiles = "refuse"
    _files: dict[Path, h5py.File] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._open(self.path)

    def dataset(self, name: str) -> h5py.Dataset:
        """Return the data set ``name`` after checking every link on the way and where its bytes are stored.

        Raises :class:`DataError` if it is missing (with the nearest names), is a group, was never written, needs a
        filter that is not installed, or leaves the file in a way that is not allowed.
        """
        with damage_reported(f"{self.path}: {name!r}"):
            node = self._walk(self._open(self.path), name, name, [0])
            if not isinstance(node, h5py.Dataset):
                raise DataError(f"{self.path}: {name!r} is a group, not a data set; {self._suggest(name)}")
            self._check_storage(node, name)
            if node.dtype.kind == "V" or node.shape is None:  # asked here, because damage may show when it is asked
                raise DataError(f"{self.path}: {name!r} is of type {node.dtype}; expected an array of numbers")
            return node

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file and those that its links led to so far."""
        return tuple(self._files)

    def first_of(self, *names: str) -> str | None:
        """Return the first of these names that is in the file, or None; links that are not allowed raise."""
        for name in names:
            try:
                with damage_reported(f"{self.path}: {name!r}"):
                    self._walk(self._open(self.path), name, name, [0])
            except MissingNodeError:
                continue
            return name
        return None

    def names(self, group: str) -> list[str]:
        """Return the names in a group, sorted; raises :class:`DataError` if it is no group."""
        with damage_reported(f"{self.path}: {group!r}"):
            node = self._walk(self._open(self.path), group, group, [0])
            if not isinstance(node, h5py.Group):
                raise DataError(f"{self.path}: {group!r} is not a group")
            return sorted(node)

    def datasets(self, n_axes: int) -> list[str]:
        """Return the names of the data sets of that many axes in the file itself, links not followed, sorted."""
        found: list[str] = []

        def note(name: str, node: object) -> None:
            if isinstance(node, h5py.Dataset) and node.ndim == n_axes:
                found.append(name)

        with damage_reported(f"{self.path}"):
            self._open(self.path).visititems(note)
        return sorted(found)

    def attribute_text(self, name: str, attribute: str) -> str | None:
        """Return an attribute of a group or data set as text, None if it has none (numbers become text).

        Formats of others keep units as text of variable length; where such a file is damaged HDF5 itself may fail.
        """
        with damage_reported(f"{self.path}: {name}@{attribute}"):
            value = self._walk(self._open(self.path), name, name, [0]).attrs.get(attribute)
        return None if value is None else _as_text(value)

    def text(self, name: str) -> str:
        """Return a data set that holds one piece of text (fixed or variable length, or bytes)."""
        with damage_reported(f"{self.path}: {name!r}"):
            node = self._walk(self._open(self.path), name, name, [0])
            if not isinstance(node, h5py.Dataset) or node.size != 1 or node.dtype.kind not in "SOU":
                raise DataError(f"{self.path}: {name!r} does not hold one piece of text")
            return _as_text(node[()])

    def ragged(self, name: str) -> h5py.Dataset:
        """Return a data set whose cells are arrays of integers of different lengths; links are checked as ever."""
        with damage_reported(f"{self.path}: {name!r}"):
            node = self._walk(self._open(self.path), name, name, [0])
            kind = h5py.check_vlen_dtype(node.dtype) if isinstance(node, h5py.Dataset) else None
            if kind is None or np.dtype(kind).kind not in "ui" or node.ndim not in (1, 2):
                raise DataError(f"{self.path}: {name!r} does not hold lists of integers, one a frame")
            self._check_storage(node, name)
            return node

    def array(self, name: str | None) -> Array | None:
        """Return the whole of a small data set (at most 4 GiB), or None for no name."""
        if name is None:
            return None
        dataset = self.dataset(name)
        if dataset.dtype.kind not in "biufc":
            raise DataError(f"{self.path}: {name!r} is of type {dataset.dtype}; expected numbers")
        if dataset.nbytes > _MAX_BYTES:
            raise DataError(f"{self.path}: {name!r} claims {dataset.nbytes} bytes; expected less than {_MAX_BYTES}")
        return read_block(dataset, (), f"{self.path}: {name!r}")

    def number(self, given: float | str | None) -> float | None:
        """Return a number as given, or from ``"attribute:NAME"``, ``"attribute:OBJECT@NAME"`` or ``"dataset:NAME"``."""
        if given is None or not isinstance(given, str):
            return given
        kind, _, name = given.partition(":")
        if kind == "dataset" and name:
            value = self.array(name)
        elif kind == "attribute" and name:
            with damage_reported(f"{self.path}: {given!r}"):
                value = self._attribute(name)
        else:
            raise DataError(
                f"{given!r}: expected a number, 'attribute:NAME', 'attribute:OBJECT@NAME' or 'dataset:NAME'"
            )
        number = np.asarray(value)
        if number.size != 1 or number.dtype.kind not in "uif":
            raise DataError(f"{self.path}: {given!r} is not one number (it has shape {number.shape}, {number.dtype})")
        return float(number.reshape(()))

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()

    def _attribute(self, name: str) -> Array:
        where, _, attribute = name.rpartition("@")
        node = self._walk(self._open(self.path), where, name, [0]) if where else self._open(self.path)
        if attribute not in node.attrs:
            known = ", ".join(sorted(node.attrs)) or "none"
            raise DataError(f"{self.path}: there is no attribute {attribute!r} at {where or '/'}; it has {known}")
        if node.attrs.get_id(attribute).dtype.kind not in "uif":  # asked first: damaged text may hang HDF5
            raise DataError(f"{self.path}: attribute {attribute!r} at {where or '/'} is not a number")
        return np.asarray(node.attrs[attribute])

    def _open(self, path: Path) -> h5py.File:
        if path not in self._files:
            self._files[path] = open_hdf5(path)
        return self._files[path]

    def _walk(self, node: h5py.Group, path: str, asked: str, links: list[int]) -> h5py.Group | h5py.Dataset:
        if path.startswith("/"):
            node = node.file["/"]
        for name in (part for part in path.split("/") if part not in ("", ".")):
            link = node.get(name, getlink=True) if isinstance(node, h5py.Group) else None
            if link is None:
                raise MissingNodeError(f"{self.path}: there is no {asked!r} in the file; {self._suggest(asked)}")
            if isinstance(link, h5py.HardLink):
                node = node[name]
                continue
            links[0] += 1
            if links[0] > _MAX_LINKS:
                raise DataError(
                    f"{self.path}: {asked!r} leads through more than {_MAX_LINKS} links; the file is damaged"
                )
            if isinstance(link, h5py.ExternalLink):
                other = self._open(self._allowed(node.file, link.filename, asked))
                node = self._walk(other["/"], link.path, asked, links)
            else:
                node = self._walk(node, link.path, asked, links)
        return node

    def _allowed(self, file: h5py.File, filename: str, asked: str) -> Path:
        """Return the resolved path of a linked file, or raise if the options or the folder forbid it."""
        target = (Path(file.filename).parent / filename).resolve()
        if self.linked_files == "refuse":
            raise DataError(
                f"{self.path}: {asked!r} leads to another file ({filename}), which is refused; "
                "if you trust the file set linked_files = 'same_folder'"
            )
        if not target.is_relative_to(self.path.resolve().parent):
            raise DataError(f"{self.path}: {asked!r} leads outside its folder, to {target}; copy that file beside it")
        return target

    def _check_storage(self, dataset: h5py.Dataset, asked: str) -> None:
        if dataset.external:
            raise DataError(
                f"{self.path}: {asked!r} keeps its bytes in a foreign file ({dataset.external[0][0]}): refused"
            )
        if dataset.is_virtual:
            for source in dataset.virtual_sources():
                if source.file_name != ".":
                    target = self._allowed(dataset.file, source.file_name, asked)
                    part = self._walk(self._open(target), source.dset_name, asked, [0])
                    self._check_storage(part, asked)
            return
        if dataset.size and dataset.id.get_storage_size() == 0:
            raise DataError(f"{self.path}: {asked!r} was declared but never written; is the measurement finished?")
        plist = dataset.id.get_create_plist()
        for i in range(plist.get_nfilters()):
            code, _, _, name = plist.get_filter(i)
            if not h5py.h5z.filter_avail(code):
                label = name.decode(errors="replace") or str(code)
                raise DataError(
                    f"{self.path}: {asked!r} is compressed by {label}, which is not installed; repack the file"
                )

    def _suggest(self, asked: str) -> str:
        names: list[str] = []

        def note(name: str, node: object) -> bool | None:
            if isinstance(node, h5py.Dataset):
                names.append(name)
            return True if len(names) >= _MAX_NAMES else None

        self._files[self.path].visititems(note)
        near = difflib.get_close_matches(asked.strip("/"), names, n=3, cutoff=0.3) or names[:5]
        return f"nearest are {', '.join(near)}" if near else "it holds no data set"


def _as_text(value: object) -> str:
    flat = np.asarray(value).ravel()
    item = flat[0] if flat.size else ""
    return item.decode(errors="replace") if isinstance(item, bytes) else str(item)


def read_block(dataset: h5py.Dataset, selection: tuple[int | slice, ...], where: str) -> Array:
    """Return part of a data set in native byte order; a read error becomes a :class:`DataError` that says ``where``."""
    with damage_reported(where):
        block = np.asarray(dataset[selection])
    return block.astype(block.dtype.newbyteorder("="), copy=False)
