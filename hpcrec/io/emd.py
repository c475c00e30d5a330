"""EMD files of 4D data: EMD 1.0 as py4DSTEM and emdfile write, and the older EMD 0.2.

An array is a group with a data set ``data`` and one ``dimN`` an axis, whose units and step calibrate it (from dim0 in
EMD 1.0, from dim1 in EMD 0.2); py4DSTEM keeps its calibration in ``ROOT/metadatabundle/calibration`` too. Axes are
(row, column) of the scan, then (row, column) of the pattern, which py4DSTEM calls x and y. Its rotation and flip
between scan and pattern (QR_rotation, QR_flip) are not used: give scan_rotation_deg or transpose in the job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import numpy as np

from hpcrec.errors import ConfigError, DataError
from hpcrec.io.facts import FileFacts
from hpcrec.io.frames import FrameOptions, FrameSeries
from hpcrec.io.hdf5_access import Hdf5Access, LinkedFiles
from hpcrec.io.hdf5_frames import Hdf5Frames
from hpcrec.io.units import ANGLES_MRAD, FREQUENCIES, LENGTHS, plain_unit
from hpcrec.options import options

_TOLERANCE: Final = 0.01


@options
class EmdOptions(FrameOptions):
    """How EMD files are read; the shared options are those of :class:`FrameOptions`.

    format : the reader's name
    patterns : data set of the patterns (row, column, ky, kx), where the file holds several of four axes
    linked_files : refuse data in other files, or follow links inside the file's own folder

    ``energy_ev`` may be given as ``"attribute:OBJECT@NAME"`` or ``"dataset:NAME"``.
    """

    format: Literal["emd"] = "emd"
    patterns: str | None = None
    linked_files: LinkedFiles = "refuse"


class EmdSeries(FrameSeries):
    """A scan (or one file a tilt) in EMD files."""

    Options = EmdOptions

    def __init__(self, given: EmdOptions) -> None:
        super().__init__(given, open_emd)


def open_emd(path: Path, given: EmdOptions) -> Hdf5Frames:
    """Open one EMD file. Raises :class:`DataError` without 4D data or if its calibrations contradict."""
    access = Hdf5Access(path, given.linked_files)
    try:
        name = given.patterns or _only(path, access.datasets(4))
        patterns = access.dataset(name)
        if patterns.ndim != 4:
            raise DataError(f"{path}: {name!r} has shape {patterns.shape}; expected (row, column, ky, kx)")
        return Hdf5Frames(access, [patterns], _facts(access, name, patterns.shape))
    except BaseException:
        access.close()
        raise


def _only(path: Path, names: list[str]) -> str:
    if not names:
        raise DataError(f"{path}: holds no data set of four axes (row, column, ky, kx)")
    if len(names) > 1:
        raise ConfigError(f"{path}: holds several data sets of four axes; choose data.patterns from {', '.join(names)}")
    return names[0]


def _facts(access: Hdf5Access, name: str, shape: tuple[int, ...]) -> FileFacts:
    group, root = name.rpartition("/")[0], name.strip("/").partition("/")[0]
    calibration = f"{root}/metadatabundle/calibration"
    first = 0 if access.first_of(f"{group}/dim0") else 1
    steps = [_dimension(access, f"{group}/dim{first + axis}") for axis in range(4)]
    real = _size(access, f"{calibration}/R_pixel")
    reciprocal = _size(access, f"{calibration}/Q_pixel")
    pixel = _joined(access, "pattern", [steps[2], steps[3], reciprocal])
    scan = [_joined(access, "scan", [step, real]) for step in steps[:2]]
    lengths = [s[0] * LENGTHS[s[1]] for s in scan if s is not None and s[1] in LENGTHS]
    origin = [_number(access, f"{calibration}/{key}") for key in ("qx0_mean", "qy0_mean")]
    return FileFacts(
        detector_pixel_inverse_angstrom=pixel[0] * FREQUENCIES[pixel[1]] if pixel and pixel[1] in FREQUENCIES else None,
        detector_pixel_mrad=pixel[0] * ANGLES_MRAD[pixel[1]] if pixel and pixel[1] in ANGLES_MRAD else None,
        centre_pixel=None if None in origin else (round(origin[0] or 0.0), round(origin[1] or 0.0)),
        scan_shape=(shape[0], shape[1]),
        scan_step=(lengths[0], lengths[1]) if len(lengths) == 2 else None,
    )


Step = tuple[float, str]


def _dimension(access: Hdf5Access, name: str) -> Step | None:
    """Return the step of an axis and its unit; None where it is not calibrated."""
    if access.first_of(name) is None:
        return None
    values, unit = access.array(name), plain_unit(access.attribute_text(name, "units") or "")
    if values is None or values.size < 2 or not _is_known(unit):
        return None
    step = abs(float(values.ravel()[1]) - float(values.ravel()[0]))
    return (step, unit) if np.isfinite(step) and step > 0 else None


def _size(access: Hdf5Access, name: str) -> Step | None:
    """Return the pixel size and unit of py4DSTEM's calibration; None where it counts in pixels."""
    value = _number(access, f"{name}_size")
    unit = plain_unit(access.text(f"{name}_units")) if access.first_of(f"{name}_units") else ""
    return (value, unit) if value is not None and value > 0 and _is_known(unit) else None


def _is_known(unit: str) -> bool:
    return unit in LENGTHS or unit in FREQUENCIES or unit in ANGLES_MRAD


def _number(access: Hdf5Access, name: str) -> float | None:
    value = access.number(f"dataset:{name}") if access.first_of(name) else None
    return value if value is not None and np.isfinite(value) else None


def _joined(access: Hdf5Access, what: str, steps: list[Step | None]) -> Step | None:
    """Return the one step that several places of the file give; raises :class:`DataError` if they differ."""
    known = [step for step in steps if step is not None]
    table = next((t for t in (LENGTHS, FREQUENCIES, ANGLES_MRAD) if known and known[0][1] in t), {})
    for value, unit in known[1:]:
        if unit in table and abs(value * table[unit] / (known[0][0] * table[known[0][1]]) - 1) > _TOLERANCE:
            raise DataError(
                f"{access.path}: contradicts itself: the pixel of the {what} is {known[0][0]:.6g} {known[0][1]} and "
                f"{value:.6g} {unit}; correct the calibration in the file, or read it as format = 'hdf5'"
            )
    return known[0] if known else None
