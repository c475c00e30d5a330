"""Quantum Detectors Merlin: ``.mib`` files, each frame behind a text header, and the ``.hdr`` beside them.

A header is comma-separated text (Merlin manual, "MQ1" header): name, frame number, bytes of the header, chips, columns,
rows, pixel type, layout, …; pixels are big-endian. Rows come as stored, so that a pixel has the row and column by which
Merlin names it; programs that show y upwards have them in reverse (flip_y).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal

import numpy as np

from hpcrec.backend.array import Array
from hpcrec.errors import DataError
from hpcrec.io.facts import FileFacts
from hpcrec.io.frames import FrameOptions, FrameSeries, MappedFrames, file_size, map_frames
from hpcrec.options import options

_TYPES: Final = {"U08": ">u1", "U16": ">u2", "U32": ">u4", "U64": ">u8"}
_FIRST_BYTES: Final = 4096


@options
class MibOptions(FrameOptions):
    """How Merlin files are read; the shared options are those of :class:`FrameOptions`.

    path : the .mib file; the .hdr of the same name tells the scan's shape where the software wrote it
    format : the reader's name
    """

    format: Literal["mib"] = "mib"


class MibSeries(FrameSeries):
    """A scan (or one file a tilt) of a Merlin detector, mapped into memory."""

    Options = MibOptions

    def __init__(self, given: MibOptions) -> None:
        super().__init__(given, open_mib)


def open_mib(path: Path, given: MibOptions) -> MappedFrames:
    """Open one .mib file. Raises :class:`DataError` if it is cut short, raw (packed bits) or something else."""
    size = file_size(path)
    with path.open("rb") as stream:
        header_bytes, shape, kind = _header(path, stream.read(_FIRST_BYTES))
    record = np.dtype([("header", f"S{header_bytes}"), ("frame", kind, shape)])
    n_frames, rest = divmod(size, record.itemsize)
    if rest:
        raise DataError(
            f"{path}: ends within frame {n_frames + 1}, after {rest} of its {record.itemsize} bytes; "
            "copy it again, or the measurement was stopped"
        )
    mapped = map_frames(path, record, (n_frames,))
    if not bytes(mapped["header"][-1]).startswith(b"MQ1"):
        raise DataError(f"{path}: has no header before frame {n_frames}; the file is damaged")
    companion = path.with_suffix(".hdr")
    text = _text(companion) if companion.exists() else ""
    announced = re.search(r"^Frames in Acquisition \(Number\):\s*(\d+)", text, re.MULTILINE)
    if announced and int(announced[1]) > n_frames:
        raise DataError(f"{path}: holds {n_frames} of the {announced[1]} frames that {companion.name} announces")
    frames: Array = mapped["frame"]
    return MappedFrames((path, companion) if text else (path,), frames, FileFacts(scan_shape=_scan_shape(text)))


def _header(path: Path, start: bytes) -> tuple[int, tuple[int, int], str]:
    """Return the bytes of a frame's header, (rows, columns) and the type of its pixels."""
    fields = start.split(b",", 8)
    words = [field.decode("ascii", errors="replace").strip() for field in fields]
    if len(words) < 8 or words[0] != "MQ1" or not all(word.isdigit() for word in words[2:6]):
        raise DataError(f"{path}: does not start with a Merlin header (MQ1); check the path or choose another format")
    header_bytes, columns, rows, kind = int(words[2]), int(words[4]), int(words[5]), words[6]
    if kind.startswith("R"):
        raise DataError(
            f"{path}: holds raw frames ({kind}: packed bits in the order of the chip); switch 'raw' off or convert it"
        )
    if kind not in _TYPES or min(header_bytes, columns, rows) < 1:
        raise DataError(f"{path}: its header says {rows}×{columns} pixels of type {kind!r}, which is unknown")
    return header_bytes, (rows, columns), _TYPES[kind]


def _text(path: Path) -> str:
    return path.read_bytes()[: 1 << 16].decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")


def _scan_shape(text: str) -> tuple[int, int] | None:
    found = [re.search(rf"^Scan{axis}:\s*(\d+)", text, re.MULTILINE) for axis in "YX"]
    sizes = [int(one[1]) if one else 0 for one in found]
    return (sizes[0], sizes[1]) if min(sizes) > 0 else None  # zeros: no scan
