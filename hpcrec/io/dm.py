"""Gatan DigitalMicrograph files (.dm3, .dm4): 4D-STEM data cubes and stacks of patterns.

RosettaSciIO (an optional library) reads the tags; the frames are mapped where the tags say they lie, so nothing is
loaded. Patterns are the axes with reciprocal or angular units, or the last two where units do not tell. The voltage is
that of the tag "Microscope Info"; the zero frequency is where the calibration of the axes has its origin.
"""

from __future__ import annotations

import math
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
# What the parser lets through where a file is damaged: each was seen when bytes of a sound file were changed at random.
_FAULTS: Final = (
    AttributeError,
    KeyError,
    NameError,
    NotImplementedError,
    OSError,
    TypeError,
    ValueError,
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
    image = _largest(path, _tags(path))
    stored, axes = _stack(path, image)
    frames, axes = _patterns_last(stored, axes)
    stack = frames.reshape(-1, *frames.shape[-2:]) if frames.flags.c_contiguous or frames.ndim == 3 else _flat(frames)
    voltage = _at(image, "ImageTags", "Microscope Info", "Voltage")
    energy = float(voltage) if isinstance(voltage, int | float) and voltage > 0 else None
    return MappedFrames((path,), stack, _facts(path, frames.shape, axes, energy))


def _tags(path: Path) -> list[dict[str, Any]]:
    """Return the tags of each image in the file, as the library parses them; raises :class:`DataError` on damage."""
    library = optional_library("rsciio.digitalmicrograph", "reading DigitalMicrograph files")
    known = optional_library("rsciio.exceptions", "reading DigitalMicrograph files")
    file_size(path)
    try:
        found = library.file_reader(str(path), lazy=True)
    except (*_FAULTS, known.DM3TagIDError, known.DM3TagTypeError, known.DM3DataTypeError) as fault:
        text = " ".join(str(fault).split()) or type(fault).__name__
        raise DataError(
            f"{path}: is no sound DigitalMicrograph file ({text}); check the path or copy it again"
        ) from fault
    return [signal["original_metadata"] for signal in found]


def _at(tags: Any, *names: str) -> Any:
    """Return the tag of that path, None where a group on the way is missing or is no group."""
    for name in names:
        tags = tags.get(name) if isinstance(tags, dict) else None
    return tags


def _group(path: Path, tags: Any, *names: str) -> dict[str, Any]:
    found = _at(tags, *names)
    if not isinstance(found, dict):
        raise DataError(f"{path}: has no group of tags {'.'.join(names)}; the file is damaged, copy it again")
    return found


def _real(path: Path, tags: Any, name: str) -> float:
    value = _at(tags, name)
    if not isinstance(value, int | float) or not np.isfinite(value):
        raise DataError(f"{path}: the tag {name} is {value!r}, expected a number; the file is damaged, copy it again")
    return float(value)


def _largest(path: Path, tags: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the image of three or four axes with most pixels (thumbnails have two axes)."""
    images: list[dict[str, Any]] = [image for tag in tags for image in _group(path, tag, "ImageList").values()]
    shapes = [_shape(path, image) for image in images]
    stacks = [(math.prod(shape), i) for i, shape in enumerate(shapes) if len(shape) in (3, 4)]
    if not stacks:
        raise DataError(f"{path}: holds no stack of patterns, only images of {[len(shape) for shape in shapes]} axes")
    return images[max(stacks)[1]]


def _shape(path: Path, image: dict[str, Any]) -> tuple[int, ...]:
    """Return the pixels along each axis, slowest first."""
    sizes = _group(path, image, "ImageData", "Dimensions")
    shape = tuple(int(_real(path, sizes, name)) for name in reversed(sizes))
    if min(shape, default=0) < 1:
        raise DataError(f"{path}: holds an image of {shape} pixels; the file is damaged, copy it again")
    return shape


def _stack(path: Path, image: dict[str, Any]) -> tuple[Array, list[Axis]]:
    """Return the mapped array and (scale, origin, unit) of its axes, slowest first."""
    data, shape = _group(path, image, "ImageData"), _shape(path, image)
    stored = _group(path, data, "Data")
    kind = _TYPES.get(int(_real(path, data, "DataType")))
    if kind is None:
        raise DataError(f"{path}: holds values of type {data['DataType']}; expected integers or real numbers")
    dtype = np.dtype(kind).newbyteorder("<" if stored.get("endian") == "little" else ">")
    offset = int(_real(path, stored, "offset"))
    if offset + math.prod(shape) * dtype.itemsize > file_size(path):
        raise DataError(f"{path}: ends before its {shape} patterns do; copy it again")
    given = _group(path, data, "Calibrations", "Dimension")
    axes = [
        (_real(path, given[n], "Scale"), _real(path, given[n], "Origin"), plain_unit(str(_at(given[n], "Units") or "")))
        for n in reversed(given)
    ]
    if len(axes) != len(shape):
        raise DataError(
            f"{path}: has {len(axes)} calibrations for {len(shape)} axes; the file is damaged, copy it again"
        )
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


def _facts(path: Path, shape: tuple[int, ...], axes: list[Axis], energy: float | None) -> FileFacts:
    rows, columns = axes[-2:]
    scan = axes[:-2] if len(axes) == 4 else []
    if rows[2] == columns[2] and abs(rows[0] - columns[0]) > _TOLERANCE * abs(rows[0]):
        raise DataError(f"{path}: pattern pixels of {rows[0]:g}×{columns[0]:g} {rows[2]} are not square")
    scale, unit = abs(rows[0]), rows[2]
    centre = (round(rows[1]), round(columns[1]))
    calibrated = unit in FREQUENCIES or unit in ANGLES_MRAD
    inside = calibrated and all(0 < c < n for c, n in zip(centre, shape[-2:]))
    lengths = [abs(a[0]) * LENGTHS[a[2]] for a in scan if a[2] in LENGTHS]
    return FileFacts(
        energy_ev=energy,
        detector_pixel_inverse_angstrom=scale * FREQUENCIES[unit] if unit in FREQUENCIES else None,
        detector_pixel_mrad=scale * ANGLES_MRAD[unit] if unit in ANGLES_MRAD else None,
        centre_pixel=centre if inside else None,
        scan_shape=(shape[0], shape[1]) if len(axes) == 4 else None,
        scan_step=(lengths[0], lengths[1]) if len(lengths) == 2 else None,
    )
