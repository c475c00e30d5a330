"""One array in several files: each holds a box of its pixels, and a table names them.

The table is in attributes of the group, which HDF5 guards by checksums. A virtual dataset says the same to other
programs; it is not opened here: HDF5 hangs where its table is damaged, looks for its files in other folders too, and
fills what it does not find with zeros. Only plain files of our own are opened, beside the table, of its own name.

    parts_token, parts_numbers (part,), parts_boxes (part, 4)   NAME.TOKEN-0003.h5 of each part, y0, y1, x0, x1
    parts_array, parts_shape, parts_type                        name, shape and type of the whole
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from hpcrec.backend.array import Array
from hpcrec.errors import DataError
from hpcrec.geometry.tiles import EMPTY_BOX, Box
from hpcrec.io.hdf5_access import damage_reported, open_hdf5, read_block
from hpcrec.io.lazy import LazyArray, Selection

PIECE: Final = "object"
TABLE: Final = ("parts_array", "parts_token", "parts_type", "parts_shape", "parts_numbers", "parts_boxes")
_TOKEN: Final = re.compile(r"[0-9a-f]+")
_ADVICE: Final = "copy its parts beside it again, or compute it again"


def part_path(index: Path, token: str, i_part: int) -> Path:
    """Return the path of a part of what ``index`` is the index of."""
    return index.with_name(f"{index.stem}.{token}-{i_part:04d}.h5")


@dataclass(frozen=True)
class JoinedArray(LazyArray):
    """An array (…, y, x) whose ``boxes`` lie in files beside ``index``, each as the dataset ``PIECE``."""

    index: Path
    whole: tuple[int, ...]
    kind: np.dtype[Any]
    token: str
    numbers: tuple[int, ...]
    boxes: tuple[Box, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.whole

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the array in native byte order."""
        return self.kind

    @property
    def paths(self) -> list[Path]:
        """The files of the parts."""
        return [part_path(self.index, self.token, number) for number in self.numbers]

    def read(self, selection: Selection) -> Array:
        """Return a part of the array, from the files that have some of it; raises :class:`DataError` naming one."""
        spans = [_span(one, n) for one, n in zip((*selection, *[slice(None)] * len(self.whole)), self.whole)]
        (y0, y1), (x0, x1) = spans[-2:]
        wanted = Box(y0, y1, x0, x1)
        lead = tuple(slice(*span) for span in spans[:-2])
        found = np.zeros(tuple(stop - start for start, stop in spans), self.kind)
        for path, box in zip(self.paths, self.boxes):
            common = wanted.intersect(box)
            if common.empty:
                continue
            with self._opened(path, box) as piece:
                block = read_block(piece, (*lead, *common.slices(box)), f"{path}: {PIECE!r}")
                found[(..., *common.slices(wanted))] = block
        return found[tuple(0 if isinstance(one, int) else slice(None) for one in selection)]

    @contextmanager
    def _opened(self, path: Path, box: Box) -> Iterator[h5py.Dataset]:
        """Give a part's dataset: plain, in the file itself, and of the box's shape."""
        if not path.exists():
            raise DataError(f"{self.index}: its part {path.name} is missing; {_ADVICE}")
        with open_hdf5(path) as file, damage_reported(str(path), _ADVICE):
            piece = file[PIECE] if isinstance(file.get(PIECE, getlink=True), h5py.HardLink) else None
            expected = (*self.whole[:-2], *box.shape)
            found = piece if isinstance(piece, h5py.Dataset) else None
            if (
                found is None
                or found.external
                or found.is_virtual
                or (found.shape, found.dtype) != (expected, self.kind)
            ):
                raise DataError(f"{path}: is not the part that {self.index.name} was written with; {_ADVICE}")
            yield found

    def declare(self, group: h5py.Group, name: str) -> dict[str, Array | str]:
        """Write the virtual dataset into a group of ``index``; return the table for its attributes."""
        layout = h5py.VirtualLayout(self.whole, self.kind)
        for path, box in zip(self.paths, self.boxes):
            source = h5py.VirtualSource(path.name, PIECE, (*self.whole[:-2], *box.shape), self.kind)
            layout[(..., *box.slices(EMPTY_BOX))] = source
        group.create_virtual_dataset(name, layout)
        return {
            "parts_array": name,
            "parts_token": self.token,
            "parts_type": self.kind.str,
            "parts_shape": np.array(self.whole, np.int64),
            "parts_numbers": np.array(self.numbers, np.int64),
            "parts_boxes": np.array([(box.y0, box.y1, box.x0, box.x1) for box in self.boxes], np.int64),
        }


def joined_array(attributes: dict[str, Any], index: Path, where: str) -> tuple[str, JoinedArray] | None:
    """Take the table of parts out of the attributes of a group; None if there is none.

    Returns the array's name, and the array. Raises :class:`DataError` unless the parts make one array.
    """
    if not any(name in attributes for name in TABLE):
        return None
    with damage_reported(where, _ADVICE):
        name, token, kind, shape, numbers, boxes = (attributes.pop(key) for key in TABLE)
        whole = tuple(int(n) for n in shape)
        found = JoinedArray(
            index, whole, np.dtype(kind), token, tuple(numbers.tolist()), tuple(Box(*row) for row in boxes.tolist())
        )
        area = sum(math.prod(box.shape) for box in found.boxes)
        inside = all(Box(0, whole[-2], 0, whole[-1]).contains(box) for box in found.boxes)
        distinct = len(set(found.numbers)) == len(found.numbers) == len(found.boxes)
        if not (_TOKEN.fullmatch(token) and inside and distinct and area == math.prod(whole[-2:])):
            raise DataError(f"{where}: the parts of {name!r} do not fit together; {_ADVICE}")
        for path in found.paths:
            if not path.exists():
                raise DataError(f"{where}: its part {path.name} is missing; {_ADVICE}")
        if math.prod(whole) * found.kind.itemsize > sum(path.stat().st_size for path in found.paths):
            raise DataError(f"{where}: {name!r} claims to be larger than its parts: it is damaged; {_ADVICE}")
        return name, found


def _span(one: int | slice, n: int) -> tuple[int, int]:
    """Return where an index of an axis of length ``n`` begins and ends."""
    if isinstance(one, int):
        return one, one + 1
    start, stop, _ = one.indices(n)
    return start, max(start, stop)
