"""Tilt series in any HDF5 file (NeXus, CXI, Data Exchange, our own): the options say where things are."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from hpcrec.backend.array import Array, BoolArray, IntArray
from hpcrec.data.dataset import TiltSeries, joint_identity
from hpcrec.errors import DataError
from hpcrec.io.base import SeriesOptions, describe_series
from hpcrec.io.hdf5_access import Hdf5Access, LinkedFiles
from hpcrec.io.hdf5_frames import check_chunks, read_patterns
from hpcrec.io.layout import find_layout
from hpcrec.options import options


@options
class Hdf5Options(SeriesOptions):
    """Where an HDF5 file keeps what; the shared options are those of :class:`SeriesOptions`.

    format : the reader's name
    patterns : data set of the patterns, ([tilt,] position, ky, kx) or ([tilt,] row, column, ky, kx)
    positions : data set of the positions, ([tilt,] position, components)
    tilt_angles : data set of the tilt angles
    mask : data set of the detector mask (ky, kx), or of one for each pattern, shaped as these
    probe : data set of a start probe (mode, y, x), complex, centred at n//2
    linked_files : refuse data in other files, or follow links inside the file's own folder

    Numbers may be given as ``"attribute:NAME"``, ``"attribute:OBJECT@NAME"`` or ``"dataset:NAME"``.
    """

    format: Literal["hdf5"] = "hdf5"
    patterns: str
    positions: str | None = None
    tilt_angles: str | None = None
    mask: str | None = None
    probe: str | None = None
    linked_files: LinkedFiles = "refuse"


class Hdf5Series(TiltSeries):
    """A tilt series whose patterns are read block by block, each chunk once per call."""

    Options = Hdf5Options

    def __init__(self, given: Hdf5Options) -> None:
        access = Hdf5Access(given.path, given.linked_files)
        self._mask_good = given.mask_good
        try:
            self._patterns = access.dataset(given.patterns)
            check_chunks(self._patterns, given.path)
            names = ("positions", "tilt_angles", "mask", "probe")
            masks = access.dataset(given.mask) if given.mask is not None else None
            self._masks = masks if masks is not None and masks.ndim > 2 else None
            if self._masks is not None and self._masks.shape != self._patterns.shape:
                raise DataError(
                    f"{given.path}: {given.mask} has shape {self._masks.shape}; expected one mask for all, "
                    f"{self._patterns.shape[-2:]}, or one for each pattern, {self._patterns.shape}"
                )
            wanted = [n for n in names if n != "mask" or self._masks is None]
            arrays: dict[str, Array | None] = dict.fromkeys(names)
            arrays |= {name: access.array(getattr(given, name)) for name in wanted}
            keys = ("detector_pixel_inverse_angstrom", "detector_pixel_mrad", "pixel_size_angstrom", "energy_ev")
            numbers = {key: access.number(getattr(given, key)) for key in keys}
            angles = arrays["tilt_angles"]
            n_angles = None if angles is None else int(angles.size)
            self._scan = find_layout(given.path, self._patterns.shape, given.layout, n_angles)
            dtype = self._patterns.dtype.newbyteorder("=")
            described = describe_series(given, self._scan, dtype, arrays, numbers)
            super().__init__(replace(described, identity=joint_identity(given.path, access.paths)))
        except BaseException:
            access.close()
            raise
        self._access = access

    def read_frames(self, tilt_number: int, indices: IntArray) -> Array:
        """Return frames (n, rows, columns) as stored; raises :class:`DataError` where the file is damaged."""
        lead = (tilt_number,) if self._scan.has_tilts else ()
        where = f"{self.identity.path}: tilt {tilt_number}"
        return read_patterns(self._patterns, lead, self._scan.scan_shape, indices, where)

    def read_frame_masks(self, tilt_number: int, indices: IntArray) -> BoolArray | None:
        """Return the masks (n, rows, columns) of the frames, where the file has one for each."""
        if self._masks is None:
            return None
        lead = (tilt_number,) if self._scan.has_tilts else ()
        where = f"{self.identity.path}: masks of tilt {tilt_number}"
        stored: BoolArray = read_patterns(self._masks, lead, self._scan.scan_shape, indices, where) != 0
        return stored if self._mask_good == "nonzero" else ~stored

    def close(self) -> None:
        """Close the file and the files linked to it."""
        self._access.close()
