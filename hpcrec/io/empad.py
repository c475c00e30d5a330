"""EMPAD raw files: frames of 130×128 float32, whose last two rows are not pixels (Tate et al., Microsc. Microanal. 22,
237 (2016)), and the xml beside them.

The xml tells the scan's shape and the voltage. Its field of view, calibrated angle and calibrated pixel size are
documented nowhere and disagree with one another in real files, so scan step and detector pixel are left to the job.
"""

from __future__ import annotations

import math
import re
from pathlib import Path, PureWindowsPath
from typing import Final, Literal
from xml.etree import ElementTree

from hpcrec.errors import ConfigError, DataError
from hpcrec.io.facts import FileFacts
from hpcrec.io.frames import FrameOptions, FrameSeries, MappedFrames, file_size, map_frames
from hpcrec.options import options

_ROWS: Final = 130
_SIDE: Final = 128
_MAX_XML: Final = 1 << 20


@options
class EmpadOptions(FrameOptions):
    """How EMPAD files are read; the shared options are those of :class:`FrameOptions`.

    path : the xml of an acquisition, or a raw file, whose name then tells the scan (``scan_x128_y64.raw``)
    format : the reader's name
    adu_per_electron : the frames are divided by this, to be counts; the detector's noise around zero needs
        clip_negative
    """

    format: Literal["empad"] = "empad"
    adu_per_electron: float = 1.0


class EmpadSeries(FrameSeries):
    """A scan (or one file a tilt) of an EMPAD, mapped into memory."""

    Options = EmpadOptions

    def __init__(self, given: EmpadOptions) -> None:
        super().__init__(given, open_empad)


def open_empad(path: Path, given: EmpadOptions) -> MappedFrames:
    """Open one acquisition by its xml or its raw file. Raises :class:`DataError` if it is damaged or cut short."""
    if not given.adu_per_electron > 0:
        raise ConfigError(f"data.adu_per_electron must be positive, got {given.adu_per_electron:g}")
    raw, facts = _described(path) if path.suffix.lower() == ".xml" else (path, FileFacts(scan_shape=_named_shape(path)))
    size, frame_bytes = file_size(raw), 4 * _ROWS * _SIDE
    if size == 0 or size % frame_bytes:
        raise DataError(
            f"{raw}: is {size} bytes long, which is not a whole number of EMPAD frames ({frame_bytes} bytes); "
            "it is cut short or no EMPAD file"
        )
    frames = map_frames(raw, "<f4", (size // frame_bytes, _ROWS, _SIDE))[:, :_SIDE]
    paths = (raw,) if raw == path else (path, raw)
    return MappedFrames(paths, frames, facts, per_count=given.adu_per_electron)


def _named_shape(raw: Path) -> tuple[int, int] | None:
    found = re.search(r"x(\d+)_y(\d+)", raw.stem)
    return (int(found[2]), int(found[1])) if found else None


def _described(path: Path) -> tuple[Path, FileFacts]:
    """Return the raw file that an xml names, and what the xml says."""
    if file_size(path) > _MAX_XML:
        raise DataError(f"{path}: is too long for the xml of an acquisition; give the right file")
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except ElementTree.ParseError as fault:
        raise DataError(f"{path}: is not a sound xml file ({fault}); give the raw file instead") from fault
    raw = root.find("raw_file")
    name = "" if raw is None else raw.get("filename", "")
    if not name:
        raise DataError(f"{path}: names no raw file; give the raw file instead")
    voltage = next((_number(path, node) for node in root.iter() if node.tag in _VOLTAGES), None)
    return path.parent / PureWindowsPath(name).name, FileFacts(energy_ev=voltage, scan_shape=_shape(path, root))


_VOLTAGES: Final = ("source.get_voltage", "high_voltage")


def _shape(path: Path, root: ElementTree.Element) -> tuple[int, int] | None:
    """Return (rows, columns): of the file itself, else of the acquisition; None for a series without a scan."""
    acquire = next((node for node in root.iter("scan_parameters") if node.get("mode") == "acquire"), None)
    pairs = [(root.find("pix_y"), root.find("pix_x"))]
    if acquire is not None:
        pairs.append((acquire.find("scan_resolution_y"), acquire.find("scan_resolution_x")))
    for rows, columns in pairs:
        if rows is not None and columns is not None:
            return int(_number(path, rows)), int(_number(path, columns))
    return None


def _number(path: Path, node: ElementTree.Element) -> float:
    try:
        value = float(node.text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: {node.tag} is {node.text!r}, expected a number; give the raw file instead")
    return value
