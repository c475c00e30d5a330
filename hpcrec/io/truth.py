"""What a simulated series knows of itself: true atoms and, where present, true poses. For comparisons only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from hpcrec.backend.array import FloatArray, IntArray
from hpcrec.data.specimen import Specimen, specimen_from_atoms
from hpcrec.errors import ConfigError, DataError
from hpcrec.io.atoms import read_specimen
from hpcrec.io.hdf5_access import open_hdf5

_SUFFIXES = (".h5", ".hdf5", ".hdf", ".nxs")


@dataclass(frozen=True, kw_only=True)
class Truth:
    """True atoms, and of a series the true ``angles`` (tilt, 3) = (in_plane, tilt, out_of_plane) rad and
    ``shifts`` (tilt, 2) = (dy, dx) Å of every tilt in the file; None for a plain file of atoms. ``axis`` rad is the
    in-plane angle of the tilt axis from y: R = Rz(axis) Rz(in_plane) Ry(tilt) Rx(out_of_plane) Rz(−axis).
    """

    specimen: Specimen
    angles: FloatArray | None = None
    shifts: FloatArray | None = None
    axis: float = 0.0


def read_truth(path: Path) -> Truth:
    """Read the true atoms of a simulated series (group ``truth``), or of an xyz, CIF or other file of atoms.

    Raises :class:`DataError` for a missing or damaged file, or a series without truth.
    """
    if path.suffix.lower() not in _SUFFIXES:
        return Truth(specimen=read_specimen(path, centre=False))
    with open_hdf5(path) as file:
        try:
            group = file["truth"]
            numbers: IntArray = np.asarray(group["atomic_numbers"][()])
            xyz = np.asarray(group["atom_positions_A"][()], np.float64)
            return Truth(
                specimen=specimen_from_atoms(numbers, xyz[:, ::-1]),
                angles=_angles(group),
                shifts=_shifts(group),
                axis=float(np.deg2rad(group.attrs.get("axis_deg", 0.0))),
            )
        except (KeyError, OSError, RuntimeError, ValueError, IndexError, ConfigError) as fault:
            raise DataError(f"{path}: holds no group 'truth' with atoms ({fault}); give another reference") from fault


def _angles(group: h5py.Group) -> FloatArray | None:
    if "tilt_angles_deg" not in group:
        return None
    tilt = np.asarray(group["tilt_angles_deg"][()], np.float64)
    in_plane = np.asarray(group["inplane_deg"][()], np.float64) if "inplane_deg" in group else np.zeros_like(tilt)
    return np.deg2rad(np.stack([in_plane, tilt, np.zeros_like(tilt)], axis=1))


def _shifts(group: h5py.Group) -> FloatArray | None:
    """Return the drift as (dy, dx); the file has (x, y)."""
    return np.asarray(group["drift_A"][()], np.float64)[:, ::-1] if "drift_A" in group else None
