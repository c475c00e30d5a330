"""Parts of a tilt's object, one file each, beside the result that names them (``io/results.py``)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hpcrec.errors import DataError
from hpcrec.io.atomic import storage_error
from hpcrec.io.checkpoint_parts import part_files
from hpcrec.io.hdf5_access import damage_reported, open_hdf5
from hpcrec.io.joined import PIECE, part_path
from hpcrec.io.lazy import LazyArray
from hpcrec.io.store import Attributes, create_hdf5, read_attribute

PART_ATTRIBUTES: Final[Attributes] = {"format": "hpcrec-tilt-part", "format_version": 1}


def write_object_part(path: Path, values: LazyArray) -> None:
    """Write a part (slice, y, x) of a tilt's object atomically, a block at a time; raises :class:`StorageError`."""
    with create_hdf5(path) as writer:
        writer.record("/", {PIECE: values}, PART_ATTRIBUTES)


def remove_stray_parts(folder: Path, tilt_index: int | None = None) -> None:
    """Remove the parts that no result names, of one tilt, or of all, and then what was left half written too.

    Nobody may be writing the results of these tilts. Raises :class:`StorageError`.
    """
    strays = sorted(folder.glob(".tilt_*.*-*.h5.*.tmp")) if tilt_index is None else []
    named: dict[Path, set[Path]] = {}
    for number, _, path in part_files(folder, "tilt"):
        if tilt_index is None or number == tilt_index:
            result = path.with_name(f"{path.name.partition('.')[0]}.h5")
            if result not in named:
                named[result] = _named_by(result)
            strays += [path] if path not in named[result] else []
    for path in strays:
        try:
            path.unlink(missing_ok=True)
        except OSError as fault:
            raise storage_error(path, fault) from fault


def _named_by(result: Path) -> set[Path]:
    """Return the parts that a result names; none if it has none, or cannot be read, which makes them useless."""
    try:
        with open_hdf5(result) as file, damage_reported(str(result)):
            token = read_attribute(file, "parts_token")
            numbers = file.attrs["parts_numbers"].tolist() if token else []
        return {part_path(result, token, number) for number in numbers}
    except DataError:
        return set()
