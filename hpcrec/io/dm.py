"""Gatan DigitalMicrograph files (.dm3, .dm4): 4D-STEM data cubes and stacks of patterns.

RosettaSciIO (an optional library) reads the tags; the frames are mapped where the tags say they lie, so nothing is
loaded. Patterns are the axes with reciprocal or angular units, or the last two where units do not tell. The voltage is
that of the tag "Microscope Info"; the zero frequency is where the calibration of the axes has its origin.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from hpcrec.backend.array import Array
from hpcrec.errors import DataError
from hpcrec.io.facts import FileFacts
from hpcrec.io.frames import FrameOptions, FrameSeries, MappedFrames, file_size, map_frames
from hpcrec.io.optional import optional_library
from hpcrec.io.units import ANGLES_MRAD, FREQUENCIES, LENGTHS, plain_unit
from hpcrec.options import options

# The type numbers of the tag DataType that hold real numbers.
_TYPES: Final = {1: "i2", 2: "f4", 6: "u1", 7: "i4", 9: "i1", 10: "u2", 11: "u4", 12: "f8"}
# What the parser lets through where a file is damaged.
_FAULTS: Final = (
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    OSError,
    EOFError,
    NotImplementedError,
    AttributeError,
    NameError,
    OverflowError,
    RecursionError,
    struct.error,
)
_TOLERANCE: Final = 0.01


@options
class DmOptions(FrameOptions):
    """How DigitalMicrograph files are read; the shared options are those of :class:`FrameOptions`.

    format : the reader's name
    """

    format: Literal["dm4"] = "dm4"


class DmSeries(FrameSeries):
    """A scan (or one file a tilt) in .dm3 or .dm4 files, mapped into memory."""

    Options = DmOptions

    def __init__(self, given: DmOptions) -> None:
        super().__init__(given, open_dm)


Axis = tuple[float, float, str]


def open_dm(path: Path, given: DmOptions) -> MappedFrames:
    """Open one file. Raises :class:`DataError` without a stack of patterns, ConfigError without RosettaSciIO."""
    library = optional_library("rsciio.digitalmicrograph", "reading DigitalMicrograph files")
    size = file_size(path)
    tag_faults = optional_library("rsciio.exceptions", "reading DigitalMicrograph files")
    faults = (
        *_FAULTS,
        tag_faults.DM3TagError,
        tag_faults.DM3TagIDError,
        tag_faults.DM3TagTypeError,
        tag_faults.DM3DataTypeError,
    )
    try:
        found = library.file_reader(str(path), lazy=True)
        image = _largest(path, [signal["original_metadata"] for signal in found])
        stored, axes = _stack(path, image, size)
    except faults as fault:
        text = " ".join(str(fault).split()) or type(fault).__name__
        raise DataError(f"{path}: is no sound DigitalMicrograph file of patterns ({text}); check the path") from fault
    frames, axes = _patterns_last(stored, axes)
    tags = image.get("ImageTags", {})
    stack = frames.reshape(-1, *frames.shape[-2:]) if frames.flags.c_contiguous or frames.ndim == 3 else _flat(frames)
    return MappedFrames((path,), stack, _facts(path, frames.shape, axes, tags))


def _largest(path: Path, tags: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the image of three or four axes with most pixels (thumbnails have two axes)."""
    images: list[dict[str, Any]] = [image for tag in tags for image in tag["ImageList"].values()]
    sizes = [list(image.get("ImageData", {}).get("Dimensions", {}).values()) for image in images]
    stacks = [(int(np.prod(size)), i) for i, size in enumerate(sizes) if len(size) in (3, 4)]
    if not stacks:
        raise DataError(f"{path}: holds no stack of patterns, only images of {[len(size) for size in sizes]} axes")
    return images[max(stacks)[1]]


def _stack(path: Path, image: dict[str, Any], size: int) -> tuple[Array, list[Axis]]:
    """Return the mapped array and (scale, origin, unit) of its axes, slowest first."""
    data = image["ImageData"]
    shape = tuple(int(n) for n in reversed(list(data["Dimensions"].values())))
    kind = _TYPES.get(int(data["DataType"]))
    if kind is None:
        raise DataError(f"{path}: holds values of type {data['DataType']}; expected integers or real numbers")
    dtype = np.dtype(kind).newbyteorder("<" if data["Data"]["endian"] == "little" else ">")
    offset = int(data["Data"]["offset"])
    if offset + int(np.prod(shape)) * dtype.itemsize > size:
        raise DataError(f"{path}: ends before its {shape} patterns do; copy it again")
    given = reversed(list(data["Calibrations"]["Dimension"].values()))
    axes = [(float(a["Scale"]), float(a["Origin"]), plain_unit(str(a["Units"] or ""))) for a in given]
    return map_frames(path, dtype, shape, offset), axes


def _patterns_last(stored: Array, axes: list[Axis]) -> tuple[Array, list[Axis]]:
    """Return the array with the axes of the pattern last, whatever order the file has."""
    reciprocal = [i for i, axis in enumerate(axes) if axis[2] in FREQUENCIES or axis[2] in ANGLES_MRAD]
    if len(reciprocal) != 2:
        return stored, axes
    order = [i for i in range(stored.ndim) if i not in reciprocal] + reciprocal
    return stored.transpose(order), [axes[i] for i in order]


def _flat(frames: Array) -> Array:
    """Return (n, rows, columns) as a view: of scan axes that lie behind one another, whatever the strides."""
    step_y, step_x = frames.strides[0], frames.strides[1]
    if step_y != step_x * frames.shape[1]:
        raise DataError(f"patterns of shape {frames.shape} are interleaved in a way that is not supported")
    shape = (frames.shape[0] * frames.shape[1], *frames.shape[2:])
    return np.lib.stride_tricks.as_strided(frames, shape, (step_x, *frames.strides[2:]), writeable=False)


def _facts(path: Path, shape: tuple[int, ...], axes: list[Axis], tags: dict[str, Any]) -> FileFacts:
    rows, columns = axes[-2:]
    scan = axes[:-2] if len(axes) == 4 else []
    if rows[2] == columns[2] and abs(rows[0] - columns[0]) > _TOLERANCE * abs(rows[0]):
        raise DataError(f"{path}: pattern pixels of {rows[0]:g}×{columns[0]:g} {rows[2]} are not square")
    scale, unit = abs(rows[0]), rows[2]
    centre = (round(rows[1]), round(columns[1]))
    calibrated = unit in FREQUENCIES or unit in ANGLES_MRAD
    inside = calibrated and all(0 < c < n for c, n in zip(centre, shape[-2:]))
    lengths = [abs(a[0]) * LENGTHS[a[2]] for a in scan if a[2] in LENGTHS]
    voltage = tags.get("Microscope Info", {}).get("Voltage")
    return FileFacts(
        energy_ev=float(voltage) if voltage else None,
        detector_pixel_inverse_angstrom=scale * FREQUENCIES[unit] if unit in FREQUENCIES else None,
        detector_pixel_mrad=scale * ANGLES_MRAD[unit] if unit in ANGLES_MRAD else None,
        centre_pixel=centre if inside else None,
        scan_shape=(shape[0], shape[1]) if len(axes) == 4 else None,
        scan_step=(lengths[0], lengths[1]) if len(lengths) == 2 else None,
    )
