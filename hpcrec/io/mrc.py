"""MRC stacks of frames (MRC2014: Cheng et al., J. Struct. Biol. 192, 146 (2015)), as Direct Electron cameras write.

The header's cell is that of an image and says nothing of a diffraction pattern; what it is stays with the job. The text
file that a Direct Electron camera writes beside its movies tells the scan's shape and the voltage.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from pathlib import Path
from typing import Literal

import mrcfile

from hpcrec.backend.array import Array
from hpcrec.errors import DataError
from hpcrec.io.facts import FileFacts
from hpcrec.io.frames import FrameOptions, FrameSeries, MappedFrames, file_size
from hpcrec.options import options

logger = logging.getLogger(__name__)


@options
class MrcOptions(FrameOptions):
    """How MRC stacks are read; the shared options are those of :class:`FrameOptions`.

    path : the stack, (position, ky, kx) or a stack of volumes (row, column, ky, kx)
    format : the reader's name
    info : Direct Electron's text file (…info.txt) in the same folder
    """

    format: Literal["mrc"] = "mrc"
    info: str | None = None


class MrcSeries(FrameSeries):
    """A scan (or one file a tilt) in an MRC stack, mapped into memory."""

    Options = MrcOptions

    def __init__(self, given: MrcOptions) -> None:
        super().__init__(given, open_mrc)


def open_mrc(path: Path, given: MrcOptions) -> MappedFrames:
    """Open one MRC file. Raises :class:`DataError` if it is cut short or of a type without counts."""
    file_size(path)
    try:
        with warnings.catch_warnings(record=True) as heard, mrcfile.mmap(path, "r") as file:
            warnings.simplefilter("always", RuntimeWarning)
            frames: Array = file.data
    except (ValueError, OSError) as fault:
        text = " ".join(str(fault).split())
        raise DataError(f"{path}: is not a sound MRC file ({text}); check the path or copy it again") from fault
    for warning in heard:
        logger.warning("%s: %s", path, warning.message)
    if frames.dtype.kind not in "uif":
        raise DataError(f"{path}: holds {frames.dtype}; expected integers or real numbers")
    shape = (frames.shape[0], frames.shape[1]) if frames.ndim == 4 else None
    stack = frames.reshape(-1, *frames.shape[-2:])
    if given.info is None:
        return MappedFrames((path,), stack, FileFacts(scan_shape=shape))
    info = path.parent / given.info
    facts = _info_facts(info)
    return MappedFrames((path, info), stack, FileFacts(energy_ev=facts.energy_ev, scan_shape=shape or facts.scan_shape))


def _info_facts(path: Path) -> FileFacts:
    """Return what Direct Electron's ``key = value`` lines say."""
    if file_size(path) > 1 << 20:
        raise DataError(f"{path}: is too long for a camera's info file; give the right file")
    lines = re.findall(r"^([^=\n]+?)\s*=[ \t]*(.*?)\s*$", path.read_text("latin-1"), re.MULTILINE)
    values = dict(lines)
    roi = "ROI " if values.get("Scan - ROI Enable") == "Enable" else ""
    raster = values.get("Scan - ROI Type" if roi else "Scan - Type") == "Raster"
    rows, columns = (_positive(values.get(f"Scan - {roi}Size {axis}")) for axis in "YX")
    return FileFacts(
        energy_ev=_positive(values.get("Instrument Accelerating Voltage (V)")),
        scan_shape=(int(rows), int(columns)) if raster and rows and columns else None,
    )


def _positive(text: str | None) -> float | None:
    """Return a number above zero, None for nothing or for a value that was not set."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < math.inf else None
