"""DECTRIS detectors (ARINA, EIGER, …): NeXus NXmx master files with their data in files beside them.

Literature: NeXus application definition NXmx (Bernstein et al., IUCrJ 7, 784 (2020)). A pixel is good where no bit of
``pixel_mask`` is set. Zero for a distance or for both coordinates of the beam centre means that nobody set it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np

from hpcrec.backend.array import BoolArray
from hpcrec.errors import DataError
from hpcrec.io.facts import FileFacts, pixel_hit
from hpcrec.io.frames import FrameOptions, FrameSeries
from hpcrec.io.hdf5_access import Hdf5Access, LinkedFiles
from hpcrec.io.hdf5_frames import Hdf5Frames
from hpcrec.io.units import ENERGIES, LENGTHS, unit_of
from hpcrec.options import options
from hpcrec.physics.beam import electron_energy, photon_energy

_DETECTOR = "entry/instrument/detector"
_STEM = "STEM Metadata"


@options
class NxmxOptions(FrameOptions):
    """How NXmx files are read; the shared options are those of :class:`FrameOptions`.

    path : the master file (``…_master.h5``); a file of the same name without ``_master`` tells the scan of an ARINA
    format : the reader's name
    linked_files : follow links to data files inside the master's own folder, or refuse them
    """

    format: Literal["nxmx"] = "nxmx"
    linked_files: LinkedFiles = "same_folder"


class NxmxSeries(FrameSeries):
    """A scan (or one master file a tilt) of a DECTRIS detector."""

    Options = NxmxOptions

    def __init__(self, given: NxmxOptions) -> None:
        super().__init__(given, open_nxmx)


def open_nxmx(path: Path, given: NxmxOptions) -> Hdf5Frames:
    """Open one master file and its data files. Raises :class:`DataError` if frames are missing."""
    access = Hdf5Access(path, given.linked_files)
    try:
        names = [name for name in access.names("entry/data") if re.fullmatch(r"data(_\d+)?", name)]
        if not names:
            raise DataError(f"{path}: entry/data holds no data; give the master file of the measurement")
        frames = Hdf5Frames(access, [access.dataset(f"entry/data/{name}") for name in names], _facts(access, given))
        _check_count(access, frames.shape[0])
    except BaseException:
        access.close()
        raise
    return frames


def _check_count(access: Hdf5Access, n_frames: int) -> None:
    keys = [f"{_DETECTOR}/detectorSpecific/{name}" for name in ("nimages", "ntrigger")]
    if all(access.first_of(key) for key in keys):
        images, triggers = (access.number(f"dataset:{key}") or 0 for key in keys)
        if images * triggers > n_frames:
            raise DataError(
                f"{access.path}: announces {images * triggers:.0f} frames, its data files hold {n_frames}; "
                "is the measurement complete, are all data files here?"
            )


def _facts(access: Hdf5Access, given: NxmxOptions) -> FileFacts:
    energy = _energy(access, given.radiation)
    beside = access.path.with_name(access.path.name.replace("_master", ""))
    tension, scan_shape = _stem_facts(beside) if beside != access.path and beside.exists() else (None, None)
    believed = "energy" not in (given.ignore_in_file or [])
    if tension and energy and believed and abs(tension - energy) > 0.01 * energy:
        raise DataError(
            f"{access.path}: the photon energy is {energy:g} eV, but {beside.name} says {tension:g} V; give "
            "data.energy_ev and data.ignore_in_file = ['energy']"
        )
    pixel = _quantity(access, "x_pixel_size", LENGTHS, "m")
    distance = _quantity(access, "detector_distance", LENGTHS, "m") or _quantity(access, "distance", LENGTHS, "m")
    centre = [_value(access, f"{_DETECTOR}/beam_center_{axis}") for axis in "yx"]
    return FileFacts(
        energy_ev=energy or tension,
        detector_pixel_mrad=1e3 * pixel / distance if pixel and distance else None,
        centre_pixel=pixel_hit(centre[0] or 0.0, centre[1] or 0.0) if any(centre) else None,
        scan_shape=scan_shape,
        mask=_mask(access),
    )


def _stem_facts(path: Path) -> tuple[float | None, tuple[int, int] | None]:
    """Return high tension and scan (rows, columns) of an ARINA's file; None where a file of that name is another's."""
    stem = Hdf5Access(path)
    try:
        if stem.first_of(_STEM) is None:
            return None, None
        rows, columns, tension = (
            stem.number(f"attribute:{_STEM}@{name}") or 0.0 for name in ("NumPixelsY", "NumPixelsX", "High Tension")
        )
    finally:
        stem.close()
    shape = (int(rows), int(columns)) if 1 <= rows < np.inf and 1 <= columns < np.inf else None
    return tension if 0 < tension < np.inf else None, shape


def _value(access: Hdf5Access, name: str) -> float | None:
    return access.number(f"dataset:{name}") if access.first_of(name) else None


def _quantity(access: Hdf5Access, name: str, table: dict[str, float], default: str) -> float | None:
    """Return a number of the detector in the table's first unit, None where it is missing or was never set."""
    where = f"{_DETECTOR}/{name}"
    value = _value(access, where)
    if value is None or not value > 0:
        return None
    return value * unit_of(access.attribute_text(where, "units") or default, table, f"{access.path}: {where}")


def _energy(access: Hdf5Access, radiation: str) -> float | None:
    """Return the beam's energy: an ARINA keeps that of the electrons as photon_energy."""
    energy = _quantity(access, "detectorSpecific/photon_energy", ENERGIES, "eV")
    name = "entry/instrument/beam/incident_wavelength"
    wavelength = _value(access, name)
    if energy is not None or wavelength is None or not wavelength > 0:
        return energy
    wavelength *= unit_of(access.attribute_text(name, "units") or "angstrom", LENGTHS, f"{access.path}: {name}")
    return electron_energy(wavelength) if radiation == "electron" else photon_energy(wavelength)


def _mask(access: Hdf5Access) -> BoolArray | None:
    stored = access.array(access.first_of(f"{_DETECTOR}/pixel_mask", f"{_DETECTOR}/detectorSpecific/pixel_mask"))
    if stored is None:
        return None
    good: BoolArray = stored == 0
    return good
