"""PtyPy's prepared data (``.ptyd``): HDF5 with ``chunks/N/data, positions, weights`` and ``meta``.

Literature: Enders and Thibault, Proc. R. Soc. A 472, 20160640 (2016). Energies are in keV, distance, detector pixel
(``psize``) and positions (y, x) in metres; a weight of zero marks a bad pixel. Chunks follow one another by number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from hpcrec.backend.array import Array, BoolArray, FloatArray
from hpcrec.errors import DataError
from hpcrec.io.facts import FileFacts, pixel_hit
from hpcrec.io.frames import FrameOptions, FrameSeries
from hpcrec.io.hdf5_access import Hdf5Access, LinkedFiles, read_block
from hpcrec.io.hdf5_frames import Hdf5Frames
from hpcrec.options import options

_METRE = 1e10


@options
class PtydOptions(FrameOptions):
    """How .ptyd files are read; the shared options are those of :class:`FrameOptions`.

    format : the reader's name
    radiation : what the beam consists of
    linked_files : refuse chunks in other files, or follow links inside the file's own folder

    The distance is taken for that to a far-field detector. For near-field data give ``pixel_size_angstrom`` and
    ``ignore_in_file = ["detector_pixel"]``.
    """

    format: Literal["ptyd"] = "ptyd"
    radiation: Literal["electron", "photon"] = "photon"
    linked_files: LinkedFiles = "same_folder"


class PtydSeries(FrameSeries):
    """A scan (or one file a tilt) in .ptyd files."""

    Options = PtydOptions

    def __init__(self, given: PtydOptions) -> None:
        super().__init__(given, open_ptyd)


def open_ptyd(path: Path, given: PtydOptions) -> Hdf5Frames:
    """Open one .ptyd file. Raises :class:`DataError` if it holds no chunk or frames are missing."""
    access = Hdf5Access(path, given.linked_files)
    try:
        if access.first_of("chunks") is None:
            raise DataError(f"{path}: has no group 'chunks'; it is no .ptyd file")
        numbers = sorted((name for name in access.names("chunks") if name.isdigit()), key=int)
        if not numbers:
            raise DataError(f"{path}: holds no chunk of frames; was the preparation finished?")
        chunks = [f"chunks/{number}" for number in numbers]
        frames = Hdf5Frames(access, [access.dataset(f"{chunk}/data") for chunk in chunks], _facts(access, chunks))
        announced = _number(access, "meta/num_frames")
        if announced is not None and announced > frames.shape[0]:
            raise DataError(
                f"{path}: announces {announced:.0f} frames and holds {frames.shape[0]}; was the preparation finished?"
            )
    except BaseException:
        access.close()
        raise
    return frames


def _facts(access: Hdf5Access, chunks: list[str]) -> FileFacts:
    energy, distance = _number(access, "meta/energy"), _number(access, "meta/distance")
    pixel = _pixel(access)
    return FileFacts(
        energy_ev=energy * 1e3 if energy else None,
        detector_pixel_mrad=1e3 * pixel / distance if pixel and distance and distance > 0 else None,
        centre_pixel=_centre(access),
        positions=_positions(access, chunks),
        mask=_mask(access, chunks),
    )


def _meta(access: Hdf5Access, name: str) -> Array | None:
    """Return a numeric entry; None where it is missing, text, or PtyPy's way to write None."""
    if access.first_of(name) is None or access.attribute_text(name, "type") in ("None", "string", "unicode"):
        return None
    return access.array(name)


def _number(access: Hdf5Access, name: str) -> float | None:
    value = _meta(access, name)
    return float(value.ravel()[0]) if value is not None and value.size == 1 and np.isfinite(value).all() else None


def _pixel(access: Hdf5Access) -> float | None:
    sides = _meta(access, "meta/psize")
    if sides is None or sides.size == 0:
        return None
    low, high = float(sides.min()), float(sides.max())
    if not low > 0 or high > 1.01 * low:
        raise DataError(f"{access.path}: meta/psize is {sides.tolist()}; expected square pixels in metres")
    return float(sides.ravel()[0])


def _centre(access: Hdf5Access) -> tuple[int, int] | None:
    stored = _meta(access, "meta/center")
    if stored is None or stored.size != 2:
        return None
    y, x = np.asarray(stored, np.float64).ravel() + 0.5  # PtyPy counts from the middle of the first pixel
    return pixel_hit(float(y), float(x))


def _positions(access: Hdf5Access, chunks: list[str]) -> FloatArray | None:
    names = [f"{chunk}/positions" for chunk in chunks]
    if not all(access.first_of(name) for name in names):
        return None
    parts = [np.asarray(access.array(name), np.float64) for name in names]
    if any(part.ndim != 2 or part.shape[1] != 2 for part in parts):
        raise DataError(f"{access.path}: positions have shapes {[part.shape for part in parts]}, expected (n, 2)")
    return np.concatenate(parts) * _METRE


def _mask(access: Hdf5Access, chunks: list[str]) -> BoolArray | None:
    """Return where weights are not zero; the first and last frame of each chunk must agree on that."""
    common = _meta(access, "info/weight2d")
    if common is not None and common.ndim == 2:
        shared: BoolArray = common > 0
        return shared
    good: BoolArray | None = None
    for name in (f"{chunk}/weights" for chunk in chunks):
        if access.first_of(name) is None:
            continue
        weights = access.dataset(name)
        if weights.ndim not in (2, 3) or weights.size == 0:
            continue
        frames = (0, len(weights) - 1) if weights.ndim == 3 else ((),)
        for i_frame in frames:
            selection = (i_frame,) if isinstance(i_frame, int) else i_frame
            found = read_block(weights, selection, f"{access.path}: {name}") > 0
            if good is not None and not np.array_equal(found, good):
                raise DataError(
                    f"{access.path}: {name} masks other pixels from frame to frame, which is not supported; set "
                    "data.ignore_in_file = ['mask'] and give one mask for all in data.mask"
                )
            good = found
    return good
