"""CXI files and NeXus files of the definition NXcxi_ptycho.

Literature: F. R. N. C. Maia, Nat. Methods 9, 854 (2012) and the CXI file format, version 1.60 (entry_1/data_1,
instrument_1/detector_1, source_1, sample_1/geometry_1; SI units); NeXus contributed definition NXcxi_ptycho.

The laboratory frame has z along the beam and y up. ``basis_vectors`` hold the steps from pixel to pixel along rows and
along columns; where they are missing rows step along −y and columns along −x. ``translation`` is that of the sample, so
the beam moves the other way over it: a position is −translation · (unit vector of the row, of the column).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import numpy as np

from hpcrec.backend.array import Array, BoolArray, FloatArray
from hpcrec.errors import DataError
from hpcrec.io.facts import FileFacts, pixel_hit
from hpcrec.io.frames import FrameOptions, FrameSeries
from hpcrec.io.hdf5_access import Hdf5Access, LinkedFiles
from hpcrec.io.hdf5_frames import Hdf5Frames
from hpcrec.io.units import ENERGIES, LENGTHS, unit_of
from hpcrec.options import options
from hpcrec.physics.beam import electron_beam, electron_energy, photon_beam, photon_energy

_BASIS: Final = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
_TOLERANCE: Final = 0.01


@options
class CxiOptions(FrameOptions):
    """What is read of a CXI file; the shared options are those of :class:`FrameOptions`.

    format : the reader's name
    radiation : what the beam consists of
    entry : number of the entry
    detector : number of the detector
    mask_good : what marks a good pixel in the job's own mask; in the file's, zero is good, any set bit is bad
    probe : data set of a start probe (mode, y, x), complex, centred at n//2
    linked_files : refuse data in other files, or follow links inside the file's own folder

    The distance is taken for that to a far-field detector. For near-field data give ``pixel_size_angstrom`` (that of
    the pattern, magnification included) and ``ignore_in_file = ["detector_pixel"]``.
    """

    format: Literal["cxi"] = "cxi"
    radiation: Literal["electron", "photon"] = "photon"
    entry: int = 1
    detector: int = 1
    mask_good: Literal["nonzero", "zero"] = "zero"
    probe: str | None = None
    linked_files: LinkedFiles = "refuse"


class CxiSeries(FrameSeries):
    """A scan (or one file a tilt) in CXI or NXcxi_ptycho files."""

    Options = CxiOptions

    def __init__(self, given: CxiOptions) -> None:
        super().__init__(given, open_cxi)


def open_cxi(path: Path, given: CxiOptions) -> Hdf5Frames:
    """Open one CXI file. Raises :class:`DataError` if it lacks patterns, or contradicts itself."""
    access = Hdf5Access(path, given.linked_files)
    try:
        entry = f"entry_{given.entry}"
        detector = f"{entry}/instrument_1/detector_{given.detector}"
        name = access.first_of(f"{detector}/data", f"{entry}/data_{given.detector}/data", f"{entry}/data_1/data")
        if name is None:
            raise DataError(
                f"{path}: has neither {detector}/data nor {entry}/data_1/data; choose data.entry and data.detector, "
                "or read it as format = 'hdf5'"
            )
        patterns = access.dataset(name)
        return Hdf5Frames(access, [patterns], _facts(access, given, entry, detector, patterns.shape))
    except BaseException:
        access.close()
        raise


def _facts(access: Hdf5Access, given: CxiOptions, entry: str, detector: str, shape: tuple[int, ...]) -> FileFacts:
    distance, pixel = _length(access, f"{detector}/distance"), _pixel(access, detector)
    known = distance is not None and distance > 0 and pixel is not None
    basis = _basis(access, detector)
    return FileFacts(
        energy_ev=None if "energy" in (given.ignore_in_file or []) else _energy(access, entry, given.radiation),
        detector_pixel_mrad=1e3 * pixel / distance if known and pixel and distance else None,
        centre_pixel=_centre(access, detector, pixel, basis),
        scan_shape=(shape[0], shape[1]) if len(shape) == 4 else None,
        positions=_positions(access, entry, detector, basis),
        mask=_mask(access, detector),
        probe=access.array(given.probe),
    )


def _quantity(access: Hdf5Access, name: str, table: dict[str, float], default: str) -> float | None:
    """Return one number in the table's first unit; ``default`` is its unit where the file names none."""
    if access.first_of(name) is None:
        return None
    value = access.number(f"dataset:{name}")
    unit = access.attribute_text(name, "units") or default
    return None if value is None or not np.isfinite(value) else value * unit_of(unit, table, f"{access.path}: {name}")


def _length(access: Hdf5Access, name: str) -> float | None:
    return _quantity(access, name, LENGTHS, "m")


def _energy(access: Hdf5Access, entry: str, radiation: str) -> float | None:
    """Return the beam's energy in eV; the file's wavelength must agree with it.

    NXcxi_ptycho keeps it in beam_1 (its source_1/energy is that of the storage ring), CXI in source_1.
    """
    instrument = f"{entry}/instrument_1"
    energies = [f"{instrument}/beam_1/{n}" for n in ("energy", "incident_beam_energy", "incident_energy")]
    name = access.first_of(*energies, f"{instrument}/source_1/energy")
    energy = None if name is None else _quantity(access, name, ENERGIES, "J")
    waves = (f"{instrument}/beam_1/incident_wavelength", f"{instrument}/source_1/wavelength")
    wave_name = access.first_of(*waves)
    wavelength = None if wave_name is None else _length(access, wave_name)
    if wavelength is None or wavelength <= 0:
        return energy
    if energy is None or energy <= 0:
        return photon_energy(wavelength) if radiation == "photon" else electron_energy(wavelength)
    implied = (photon_beam if radiation == "photon" else electron_beam)(energy).wavelength
    if abs(implied - wavelength) > _TOLERANCE * wavelength:
        raise DataError(
            f"{access.path}: contradicts itself: {name} is {energy:.6g} eV, that is {implied:.6g} Å for a {radiation}, "
            f"but {wave_name} is {wavelength:.6g} Å; check data.radiation, or give data.energy_ev and "
            "data.ignore_in_file = ['energy']"
        )
    return energy


def _pixel(access: Hdf5Access, detector: str) -> float | None:
    """Return the side of a detector pixel in Å; raises :class:`DataError` if pixels are not square."""
    y, x = (_length(access, f"{detector}/{axis}_pixel_size") for axis in "yx")
    if y is not None and x is not None and abs(y - x) > _TOLERANCE * x:
        raise DataError(
            f"{access.path}: pixels of {y:.6g}×{x:.6g} Å are not square, which is not supported; interpolate them"
        )
    return x if y is None else y


def _basis(access: Hdf5Access, detector: str) -> FloatArray:
    """Return the steps (2, 3) from row to row and from column to column in the laboratory frame, in file units."""
    name = access.first_of(f"{detector}/basis_vectors")
    stored = access.array(name)
    if stored is None:
        return _BASIS
    basis = np.asarray(stored, np.float64)
    if basis.ndim == 3 and len(basis) and np.allclose(basis, basis[:1]):
        basis = basis[0]
    if basis.shape == (3, 2):
        basis = basis.T
    norms = np.linalg.norm(basis, axis=-1) if basis.shape == (2, 3) else np.zeros(2)
    if not (norms > 0).all() or np.abs(basis[:, 2]).max() > 0.1 * norms.min():
        raise DataError(
            f"{access.path}: {name} has shape {stored.shape} or is not across the beam; expected two vectors "
            "(3, 2), the same for all frames"
        )
    return basis


def _centre(access: Hdf5Access, detector: str, pixel: float | None, basis: FloatArray) -> tuple[int, int] | None:
    """Return the pixel (row, column) that the direct beam hits, from beam_center_* or from corner_position."""
    keys = [f"{detector}/beam_center_{axis}" for axis in "yx"]
    if all(access.first_of(key) for key in keys):
        values = [_in_pixels(access, key, pixel) for key in keys]
        return pixel_hit(values[0], values[1]) if any(values) else None
    corner = access.array(access.first_of(f"{detector}/corner_position"))
    if corner is None or corner.shape != (3,) or basis is _BASIS:
        return None
    place = np.linalg.solve(basis[:, :2].T, -np.asarray(corner[:2], np.float64))
    return pixel_hit(float(place[0]), float(place[1]))


def _in_pixels(access: Hdf5Access, name: str, pixel: float | None) -> float:
    unit = access.attribute_text(name, "units") or "m"
    value = access.number(f"dataset:{name}") or 0.0
    if unit.lower() not in ("pixel", "pixels", "px", ""):
        value *= unit_of(unit, LENGTHS, f"{access.path}: {name}") / (pixel or np.inf)
    return value


def _positions(access: Hdf5Access, entry: str, detector: str, basis: FloatArray) -> FloatArray | None:
    """Return where the beam was on the sample, (position, 2) Å along rows and columns of the detector."""
    places = (f"{entry}/sample_1/geometry_1/translation", f"{entry}/data_1/translation", f"{detector}/translation")
    name = access.first_of(*places)
    if name is None:
        return None
    stored = access.array(name)
    if stored is None or stored.ndim < 2 or stored.shape[-1] not in (2, 3) or stored.dtype.kind not in "uif":
        raise DataError(f"{access.path}: {name} has shape {None if stored is None else stored.shape}, expected (n, 3)")
    unit = unit_of(access.attribute_text(name, "units") or "m", LENGTHS, f"{access.path}: {name}")
    moved = np.asarray(stored, np.float64).reshape(-1, stored.shape[-1])
    directions = basis / np.linalg.norm(basis, axis=1, keepdims=True)
    positions: FloatArray = -unit * moved @ directions[:, : moved.shape[1]].T
    return positions + 0.0  # no negative zeros


def _mask(access: Hdf5Access, detector: str) -> BoolArray | None:
    stored: Array | None = access.array(access.first_of(f"{detector}/mask"))
    if stored is None:
        return None
    if stored.ndim != 2 and stored.size != np.prod(stored.shape[-2:]):
        raise DataError(
            f"{access.path}: {detector}/mask has shape {stored.shape}; a mask for each frame is not supported: set "
            "data.ignore_in_file = ['mask'] and give one for all in data.mask"
        )
    good: BoolArray = stored.reshape(stored.shape[-2:]) == 0
    return good
