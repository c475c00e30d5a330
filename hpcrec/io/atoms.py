"""Atoms in files: xyz by our own hand, CIF and other formats through ase (extra ``atoms``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpcrec.backend.array import FloatArray
from hpcrec.data.specimen import Specimen, specimen_from_atoms
from hpcrec.errors import ConfigError, DataError, StorageError
from hpcrec.physics.scattering import atomic_number


def read_specimen(path: str | Path, b_factor: float = 0.0, *, centre: bool = True) -> Specimen:
    """Return the atoms of a file, (z, y, x) in Å, with one Debye-Waller ``b_factor`` in Å².

    ``.xyz`` is read here; every other suffix by ``ase.io.read`` if ase is installed. ``centre`` puts the middle of the
    bounding box on the tilt axis. :class:`DataError` for a missing or damaged file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: expected a file of atoms, found none; check the path")
    numbers, xyz = _read_xyz(path) if path.suffix.lower() == ".xyz" else _read_with_ase(path)
    if centre and len(numbers):
        xyz = xyz - (xyz.min(axis=0) + xyz.max(axis=0)) / 2
    try:
        return specimen_from_atoms(numbers, xyz[:, ::-1], b_factor)
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from error


def write_xyz(path: str | Path, specimen: Specimen, comment: str = "") -> None:
    """Write atoms as plain xyz: symbol and x y z in Å. :class:`StorageError` if the file cannot be written."""
    lines = [str(specimen.n_atoms), " ".join(comment.split())]
    lines += [f"{s} {x:.6f} {y:.6f} {z:.6f}" for s, (z, y, x) in zip(specimen.symbols, specimen.positions)]
    try:
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot write the atoms ({error.strerror}); check space and permission") from error


def _read_xyz(path: Path) -> tuple[list[int], FloatArray]:
    """Return atomic numbers and positions (atom, 3) in (x, y, z); further columns (extended xyz) are ignored."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        count = int(lines[0])
    except (IndexError, ValueError) as error:
        raise DataError(f"{path}, line 1: expected the number of atoms of an xyz file, got something else") from error
    if count < 0:
        raise DataError(f"{path}, line 1: expected the number of atoms of an xyz file, got {count}")
    rows = [line.split() for line in lines[2 : 2 + count]]
    if len(rows) < count:
        raise DataError(f"{path}: the header promises {count} atoms, the file holds {len(rows)}; it is cut short")
    numbers, xyz = [], np.empty((count, 3))
    for i_atom, row in enumerate(rows):
        try:
            numbers.append(int(row[0]) if row[0].isdigit() else atomic_number(row[0]))
            xyz[i_atom] = float(row[1]), float(row[2]), float(row[3])  # a shorter row must not be spread over x y z
        except (ConfigError, IndexError, ValueError) as error:
            raise DataError(f"{path}, line {i_atom + 3}: expected a symbol and x y z, got {' '.join(row)!r}") from error
    return numbers, xyz


def _read_with_ase(path: Path) -> tuple[list[int], FloatArray]:
    """Return atomic numbers and positions (atom, 3) in (x, y, z) of any format that ase knows."""
    try:
        from ase.io import read
        from ase.io.formats import UnknownFileTypeError
    except ImportError as error:
        raise DataError(
            f"{path}: reading {path.suffix!r} needs ase; install hpcrec[atoms] or convert to .xyz"
        ) from error
    try:
        atoms = read(path, index=-1)
    except (UnknownFileTypeError, ValueError, KeyError, IndexError, RuntimeError, AssertionError, OSError) as error:
        raise DataError(f"{path}: ase cannot read this file ({error})") from error
    if isinstance(atoms, list):
        raise DataError(f"{path}: expected one structure, found {len(atoms)}; keep one")
    return [int(z) for z in atoms.numbers], np.asarray(atoms.positions, np.float64)
