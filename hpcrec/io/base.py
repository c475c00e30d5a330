"""Readers of tilt series: the table, the options they share, and how these become facts about the data.

A reader's options carry units in their names and say how the file was written; everything behind
:func:`open_series` is in the units and orders of ``hpcrec/conventions.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray, IntArray
from hpcrec.data.dataset import SeriesFacts, TiltSeries, file_identity
from hpcrec.data.preprocess import DetectorFrame, binned_shape
from hpcrec.errors import ConfigError, DataError
from hpcrec.io.layout import Layout, ScanLayout, scan_positions
from hpcrec.options import options
from hpcrec.physics.beam import electron_beam, photon_beam

READERS: Final[dict[str, str]] = {
    "hdf5": "hpcrec.io.hdf5:Hdf5Series",
    "cxi": "hpcrec.io.cxi:CxiSeries",
    "empad": "hpcrec.io.empad:EmpadSeries",
    "mib": "hpcrec.io.mib:MibSeries",
    "nxmx": "hpcrec.io.nxmx:NxmxSeries",
    "mrc": "hpcrec.io.mrc:MrcSeries",
    "emd": "hpcrec.io.emd:EmdSeries",
    "ptyd": "hpcrec.io.ptyd:PtydSeries",
    "events": "hpcrec.io.events:EventSeries",
    "zarr": "hpcrec.io.zarr_files:ZarrSeries",
    "dm4": "hpcrec.io.dm:DmSeries",
    "numpy": "hpcrec.io.numpy_files:NumpySeries",
}

Number = float | str | None
_DEGREE: Final = np.pi / 180
_ANGLE_UNITS: Final = {"degree": _DEGREE, "radian": 1.0, "milliradian": 1e-3}
_LENGTH_UNITS: Final = {"angstrom": 1.0, "nanometer": 10.0, "micrometer": 1e4, "millimeter": 1e7, "meter": 1e10}


@options
class SeriesOptions:
    """What every reader needs to know of a file.

    path : the file
    layout : meaning of the leading axes of the patterns; "auto" decides by the number of axes and of tilt angles
    tilts : indices of the tilts to use; all if not given
    drop_tilts : indices of tilts to leave out
    tilt_unit : unit of the tilt angles
    position_unit : unit of the positions; "pixel" is the real-space pixel of the probe's window
    position_reference : what a position points at: the window's centre pixel n//2, or its first pixel
    position_columns : which columns of the positions hold y and x
    flip_position_y : reverse the sign of y
    flip_position_x : reverse the sign of x
    scan_rotation_deg : rotate the positions by this angle, from x towards y, after the flips
    scan_step_angstrom : step (y, x) of a raster, where the file has no positions
    zero_frequency : where stored frames have their zero frequency: at index n//2, or at [0, 0]
    centre_pixel : row and column of the zero frequency in stored frames, if it is not at n//2
    transpose : exchange rows and columns of the frames (first of the three)
    flip_y : reverse ky about the zero frequency
    flip_x : reverse kx about the zero frequency
    bin_detector : add this many by this many detector pixels
    window : side in pixels (or [rows, columns]) of the patterns to compute with: cut, or extended by unmeasured
        pixels, around the zero frequency, after binning
    clip_negative : set negative counts (background-subtracted data) to zero instead of refusing them
    mask_good : what marks a good pixel in the file's mask: values that are not zero, or zeros
    detector_pixel_inverse_angstrom : stored detector pixel in 1/Å
    detector_pixel_mrad : stored detector pixel in mrad (needs energy_ev)
    pixel_size_angstrom : real-space pixel of the probe's window, instead of a detector pixel
    energy_ev : energy of the beam
    radiation : what the beam consists of; turns energy into wavelength
    """

    path: Path
    layout: Layout = "auto"
    tilts: list[int] | None = None
    drop_tilts: list[int] | None = None
    tilt_unit: Literal["degree", "radian", "milliradian"] = "degree"
    position_unit: Literal["angstrom", "nanometer", "micrometer", "millimeter", "meter", "pixel"] = "angstrom"
    position_reference: Literal["center", "corner"] = "center"
    position_columns: tuple[int, int] = (0, 1)
    flip_position_y: bool = False
    flip_position_x: bool = False
    scan_rotation_deg: float = 0.0
    scan_step_angstrom: tuple[float, float] | None = None
    zero_frequency: Literal["center", "corner"] = "center"
    centre_pixel: tuple[int, int] | None = None
    transpose: bool = False
    flip_y: bool = False
    flip_x: bool = False
    bin_detector: int = 1
    window: int | tuple[int, int] | None = None
    clip_negative: bool = False
    mask_good: Literal["nonzero", "zero"] = "nonzero"
    detector_pixel_inverse_angstrom: float | str | None = None
    detector_pixel_mrad: float | str | None = None
    pixel_size_angstrom: float | str | None = None
    energy_ev: float | str | None = None
    radiation: Literal["electron", "photon"] = "electron"


def reader_class(name: str) -> Any:
    """Return the reader of a format; its attribute ``Options`` is its options class."""
    if name not in READERS:
        raise ConfigError(f"unknown data format {name!r}; known are {', '.join(sorted(READERS))}")
    module, _, attribute = READERS[name].partition(":")
    return getattr(import_module(module), attribute)


def open_series(series_options: Any) -> TiltSeries:
    """Open a tilt series; the field ``format`` of the options chooses the reader.

    Only constant-time checks are made here; counts are checked when patterns are read. Raises :class:`DataError` for
    a file that is missing, damaged or not of the promised layout, :class:`ConfigError` for options that contradict.
    """
    series: TiltSeries = reader_class(series_options.format)(series_options)
    return series


def describe_series(
    given: SeriesOptions,
    scan: ScanLayout,
    dtype: np.dtype[np.generic],
    arrays: Mapping[str, Array | None],
    numbers: Mapping[str, float | None],
) -> SeriesFacts:
    """Turn what a reader found into the facts of the series.

    ``arrays`` holds ``positions``, ``tilt_angles``, ``mask`` and ``probe`` as stored, or None; ``numbers`` the values
    of the options that may name an attribute of the file. Raises :class:`DataError` or :class:`ConfigError`.
    """
    where = str(given.path)
    if dtype.kind not in "uif":
        raise DataError(f"{where}: patterns are of type {dtype}; expected integers or real numbers")
    frame = _detector_frame(given, scan.frame_shape)
    wavelength = _wavelength(given, numbers)
    sampling = _sampling(given, numbers, frame, wavelength)
    kept = _kept_tilts(given, scan.n_tilts)
    raw_mask = _mask(given, arrays["mask"], scan.frame_shape)
    return SeriesFacts(
        tilt_angles=_tilt_angles(given, arrays["tilt_angles"], scan.n_tilts)[kept],
        tilt_numbers=kept,
        positions=_positions(given, arrays["positions"], scan, kept, sampling, frame.shape),
        frame=frame,
        dtype=frame.result_dtype(dtype),
        sampling=sampling,
        mask=frame.apply_mask(raw_mask),
        raw_mask=raw_mask,
        probe=_probe(where, arrays["probe"], frame.shape),
        energy_ev=numbers["energy_ev"],
        wavelength=wavelength,
        identity=file_identity(given.path),
    )


def _detector_frame(given: SeriesOptions, stored: tuple[int, int]) -> DetectorFrame:
    corner = given.zero_frequency == "corner"
    if corner and given.centre_pixel is not None:
        raise ConfigError("centre_pixel is meant for frames with zero_frequency = 'center'; remove one of the two")
    centre = given.centre_pixel or (stored[0] // 2, stored[1] // 2)
    if not all(0 <= c < n for c, n in zip(centre, stored)):
        raise ConfigError(f"centre_pixel {list(centre)} lies outside the frames of {stored[0]}×{stored[1]} pixels")
    if not 1 <= given.bin_detector <= min(stored):
        raise ConfigError(f"bin_detector must be between 1 and {min(stored)}, got {given.bin_detector}")
    window = given.window or binned_shape(stored, given.transpose, given.bin_detector)
    shape = (window, window) if isinstance(window, int) else (window[0], window[1])
    if min(shape) < 2:
        raise ConfigError(f"window must be at least 2 pixels, got {list(shape)}")
    return DetectorFrame(
        stored=stored,
        centre=centre,
        shape=shape,
        corner=corner,
        transpose=given.transpose,
        flip_y=given.flip_y,
        flip_x=given.flip_x,
        binning=given.bin_detector,
        clip_negative=given.clip_negative,
    )


def _wavelength(given: SeriesOptions, numbers: Mapping[str, float | None]) -> float | None:
    energy = numbers["energy_ev"]
    if energy is None:
        return None
    if not (np.isfinite(energy) and energy > 0):
        raise DataError(f"{given.path}: the beam energy must be positive and finite, got {energy} eV")
    beam = electron_beam(energy) if given.radiation == "electron" else photon_beam(energy)
    return float(beam.wavelength)


def _sampling(
    given: SeriesOptions, numbers: Mapping[str, float | None], frame: DetectorFrame, wavelength: float | None
) -> tuple[float, float]:
    keys = ("detector_pixel_inverse_angstrom", "detector_pixel_mrad", "pixel_size_angstrom")
    present = [key for key in keys if numbers[key] is not None]
    if len(present) != 1:
        raise ConfigError(f"give exactly one of {', '.join(keys)}; {len(present)} are given ({', '.join(present)})")
    value = numbers[present[0]]
    if value is None or not (np.isfinite(value) and value > 0):
        raise DataError(f"{given.path}: {present[0]} must be positive and finite, got {value}")
    if present[0] == "pixel_size_angstrom":
        return value, value
    if present[0] == "detector_pixel_mrad":
        if wavelength is None:
            raise ConfigError("detector_pixel_mrad needs energy_ev, to turn angles into frequencies")
        value *= 1e-3 / wavelength
    pixel = value * given.bin_detector
    return 1 / (frame.shape[0] * pixel), 1 / (frame.shape[1] * pixel)


def _tilt_angles(given: SeriesOptions, stored: Array | None, n_tilts: int) -> FloatArray:
    if stored is None:
        if n_tilts > 1:
            raise ConfigError(f"{given.path} holds {n_tilts} tilts; name the dataset of their angles in tilt_angles")
        return np.zeros(1)
    angles = _real(given.path, "tilt angles", stored).ravel() * _ANGLE_UNITS[given.tilt_unit]
    if len(angles) != n_tilts:
        raise DataError(f"{given.path}: {len(angles)} tilt angles for {n_tilts} tilts of patterns")
    if np.abs(angles).max() > 2 * np.pi:
        raise DataError(f"{given.path}: a tilt angle exceeds 360 degrees; check tilt_unit ({given.tilt_unit!r})")
    return angles


def _kept_tilts(given: SeriesOptions, n_tilts: int) -> IntArray:
    asked = list(range(n_tilts)) if given.tilts is None else list(given.tilts)
    dropped = given.drop_tilts or []
    unknown = sorted({i for i in [*asked, *dropped] if not 0 <= i < n_tilts})
    if unknown:
        raise ConfigError(f"tilts {unknown} do not exist; {given.path} has tilts 0…{n_tilts - 1}")
    if len(set(asked)) != len(asked):
        raise ConfigError("tilts names a tilt twice")
    kept = [i for i in asked if i not in set(dropped)]
    if not kept:
        raise ConfigError("no tilt is left after tilts and drop_tilts")
    return np.array(kept, np.int64)


def _positions(
    given: SeriesOptions,
    stored: Array | None,
    scan: ScanLayout,
    kept: IntArray,
    sampling: tuple[float, float],
    window: tuple[int, int],
) -> tuple[FloatArray, ...]:
    per_tilt = scan_positions(given.path, stored, scan, given.position_columns, given.scan_step_angstrom)
    in_pixels = stored is not None and given.position_unit == "pixel"
    unit = 1.0 if stored is None or in_pixels else _LENGTH_UNITS[given.position_unit]
    flips = np.array([-1.0 if given.flip_position_y else 1.0, -1.0 if given.flip_position_x else 1.0])
    c, s = np.cos(given.scan_rotation_deg * _DEGREE), np.sin(given.scan_rotation_deg * _DEGREE)
    turn = np.array([[c, s], [-s, c]])  # (y, x) components: x' = c x − s y, y' = s x + c y
    offset = np.array(window) // 2 * np.array(sampling) if given.position_reference == "corner" else np.zeros(2)
    scale = np.array(sampling) if in_pixels else np.full(2, unit)
    converted = {i: (per_tilt[i] * scale * flips) @ turn.T + offset for i in set(kept.tolist())}
    return tuple(converted[int(i)] for i in kept)


def _mask(given: SeriesOptions, stored: Array | None, frame_shape: tuple[int, int]) -> BoolArray | None:
    if stored is None:
        return None
    squeezed = np.squeeze(stored)
    if squeezed.shape != frame_shape:
        raise DataError(f"{given.path}: the mask has shape {stored.shape}, the frames {frame_shape}")
    good: BoolArray = squeezed != 0 if given.mask_good == "nonzero" else squeezed == 0
    if not good.any():
        raise DataError(f"{given.path}: the mask leaves no good pixel; check mask_good ({given.mask_good!r})")
    return None if good.all() else good


def _probe(where: str, stored: Array | None, window: tuple[int, int]) -> ComplexArray | None:
    if stored is None:
        return None
    probe = stored.reshape(-1, *stored.shape[-2:]) if stored.ndim >= 2 else stored
    if probe.shape[1:] != window:
        raise DataError(f"{where}: the start probe has shape {stored.shape}, expected (mode, {window[0]}, {window[1]})")
    if not np.isfinite(probe).all() or not np.any(probe):
        raise DataError(f"{where}: the start probe is zero or holds values that are not finite")
    return probe.astype(np.complex64)


def _real(path: Path, what: str, stored: Array) -> FloatArray:
    if stored.dtype.kind not in "uif":
        raise DataError(f"{path}: {what} are of type {stored.dtype}; expected real numbers")
    values = np.asarray(stored, np.float64)
    if not np.isfinite(values).all():
        raise DataError(
            f"{path}: {what} hold values that are not finite (first at {np.argwhere(~np.isfinite(values))[0]})"
        )
    return values
