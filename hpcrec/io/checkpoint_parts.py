"""Parts of a checkpoint: each rank writes what it owns to a file of its own, and any rank reads what it needs of them.

``PREFIX_NUMBER.TOKEN-0003.h5`` is part 3, a record (``io/store.py``) with ``format = "hpcrec-checkpoint-part"``:
    pixels/NAME     (…, y, x)   on the part's box of object pixels
    patterns/NAME   (n, …)      of the patterns at the part's places, in that order
The token tells the parts of one start of a run from those of another. Boxes, places, sizes and checksums of all parts
are in the checkpoint's index, which is written last (:func:`~hpcrec.io.checkpoint.save_index`): parts without an index
that names them are no checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcrec.backend.array import Array, IntArray
from hpcrec.errors import DataError
from hpcrec.geometry.tiles import EMPTY_BOX, Box
from hpcrec.io.atomic import storage_error
from hpcrec.io.joined import part_path as part_path
from hpcrec.io.store import create_hdf5, open_record, open_unread

_FORMAT: Final = "hpcrec-checkpoint-part"
_VERSION: Final = 1
_PIXELS: Final = "pixels/"
_PATTERNS: Final = "patterns/"
_NAME: Final = re.compile(r"(?P<prefix>.+)_(?P<number>\d+)\.(?P<token>[0-9a-f]+)-\d+\.h5")
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the index says of a part: its box of object pixels, its patterns (n,), size and checksum of its file."""

    box: Box
    places: IntArray
    n_bytes: int
    digest: str


def write_part(
    path: Path, box: Box, places: IntArray, pixels: Mapping[str, Array], patterns: Mapping[str, Array]
) -> Part:
    """Write a part atomically: arrays (…, y, x) on ``box``, and arrays (n, …) of the patterns at ``places``.

    Raises :class:`StorageError`.
    """
    arrays = {f"{_PIXELS}{name}": values for name, values in pixels.items()}
    arrays |= {f"{_PATTERNS}{name}": values for name, values in patterns.items()}
    try:
        with create_hdf5(path) as writer:
            digest = writer.record("/", arrays, {"format": _FORMAT, "format_version": _VERSION})
        return Part(box=box, places=places, n_bytes=path.stat().st_size, digest=digest)
    except OSError as fault:
        raise storage_error(path, fault) from fault


@dataclass(frozen=True)
class Parts:
    """The parts of one checkpoint, as its index tells of them."""

    index: Path
    token: str
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        """How many parts there are."""
        return len(self.parts)

    def check(self, i_part: int) -> None:
        """Read a part once, a block at a time; raises :class:`DataError` if it is missing, damaged or another's."""
        path, part = part_path(self.index, self.token, i_part), self.parts[i_part]
        with open_record(path, _FORMAT, _VERSION) as record:
            if record.digest != part.digest or path.stat().st_size != part.n_bytes:
                raise DataError(f"{path}: is not the part that {self.index.name} was written with")

    def pixels(self, box: Box) -> dict[str, Array]:
        """Return all arrays of object pixels on ``box``, read from the parts that it touches, image by image."""
        found: dict[str, Array] = {}
        for i, part in enumerate(self.parts):
            common = box.intersect(part.box)
            # The first one tells of types and leading axes, which a rank without pixels needs too
            if i and common.empty:
                continue
            with open_unread(part_path(self.index, self.token, i), _FORMAT, _VERSION) as arrays:
                for name in (name for name in arrays if name.startswith(_PIXELS)):
                    stored, leading = arrays[name], arrays[name].shape[:-2]
                    if name not in found:
                        found[name] = np.empty(leading + box.shape, stored.dtype)
                    for place in np.ndindex(*leading) if not common.empty else ():
                        block = stored.read((*place, *common.slices(part.box)))
                        found[name][(*place, *common.slices(box))] = block
        return {name.removeprefix(_PIXELS): values for name, values in found.items()}

    def patterns(self, places: IntArray) -> dict[str, Array]:
        """Return all arrays of single patterns (n, …) at ``places``, read from the parts that have some of these."""
        found: dict[str, Array] = {}
        for i, part in enumerate(self.parts):
            _, here, there = np.intersect1d(places, part.places, return_indices=True)
            if i and not len(here):
                continue
            order = np.argsort(there)
            with open_unread(part_path(self.index, self.token, i), _FORMAT, _VERSION) as arrays:
                for name in (name for name in arrays if name.startswith(_PATTERNS)):
                    stored = arrays[name]
                    if name not in found:
                        found[name] = np.empty((len(places), *stored.shape[1:]), stored.dtype)
                    for first, last in _runs(there[order]):
                        rows = slice(int(there[order[first]]), int(there[order[last - 1]]) + 1)
                        found[name][here[order[first:last]]] = stored.read((rows,))
        return {name.removeprefix(_PATTERNS): values for name, values in found.items()}

    @property
    def whole(self) -> Box:
        """The box of all object pixels."""
        box = EMPTY_BOX
        for part in self.parts:
            box = box.union(part.box)
        return box

    @property
    def n_places(self) -> int:
        """How many patterns all parts have."""
        return sum(len(part.places) for part in self.parts)

    def as_arrays(self) -> dict[str, Array]:
        """Return what an index keeps of the parts, beside the token."""
        boxes = [(part.box.y0, part.box.y1, part.box.x0, part.box.x1) for part in self.parts]
        digests = [np.frombuffer(bytes.fromhex(part.digest), np.uint8) for part in self.parts]
        return {
            "parts/boxes": np.array(boxes, np.int64),
            "parts/counts": np.array([len(part.places) for part in self.parts], np.int64),
            "parts/places": np.concatenate([part.places for part in self.parts]).astype(np.int64),
            "parts/bytes": np.array([part.n_bytes for part in self.parts], np.int64),
            "parts/digests": np.array(digests).reshape(-1, _DIGEST_BYTES),
        }


def parts_of(index: Path, token: str, arrays: dict[str, Array]) -> Parts:
    """Take what an index keeps of its parts out of its arrays; raises :class:`DataError` if it lacks some of it."""
    try:
        boxes, counts, places, sizes, digests = (
            arrays.pop(f"parts/{name}") for name in ("boxes", "counts", "places", "bytes", "digests")
        )
    except KeyError as fault:
        raise DataError(f"{index}: lacks {fault} of its parts; it was not written by this program") from fault
    own = np.split(places, np.cumsum(counts)[:-1])
    facts: list[tuple[Any, ...]] = list(zip(boxes.tolist(), own, sizes.tolist(), digests, strict=True))
    return Parts(
        index,
        token,
        tuple(Part(box=Box(*b), places=p, n_bytes=n, digest=d.tobytes().hex()) for b, p, n, d in facts),
    )


def part_files(folder: Path, prefix: str) -> list[tuple[int, str, Path]]:
    """Return number, token and path of all parts of a prefix that are there, with or without an index, in order."""
    found = []
    for path in folder.glob("*.h5"):
        match = _NAME.fullmatch(path.name)
        if match is not None and match["prefix"] == prefix:
            found.append((int(match["number"]), match["token"], path))
    return sorted(found)


def _runs(values: Sequence[int] | IntArray) -> list[tuple[int, int]]:
    """Return where runs of consecutive numbers begin and end in ascending ``values``."""
    edges = [0, *(np.flatnonzero(np.diff(values) != 1) + 1).tolist(), len(values)]
    return [(a, b) for a, b in zip(edges, edges[1:]) if b > a]
