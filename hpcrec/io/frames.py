"""Tilt series of one file a tilt, each a list of frames: the common part of the readers of detector formats.

A format supplies a function that opens one file as :class:`FrameFile`; layout, positions, several tilts and the
agreement between file and job are settled here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from hpcrec.backend.array import Array, BoolArray, IntArray
from hpcrec.data.dataset import SeriesFacts, TiltSeries, joint_identity
from hpcrec.errors import ConfigError, DataError
from hpcrec.io.base import SeriesOptions, describe_series
from hpcrec.io.facts import PIXEL_KEYS, FileFacts, contradiction, differing_fact, fill_in, without
from hpcrec.io.layout import ScanLayout
from hpcrec.io.numpy_files import read_npy
from hpcrec.options import options

Fact = Literal["energy", "detector_pixel", "centre", "scan_shape", "scan_step", "positions", "mask", "probe"]


@options
class FrameOptions(SeriesOptions):
    """What the readers of detector formats share besides :class:`SeriesOptions`.

    scan_shape : rows and columns of the scan, where the file does not say
    positions : file of positions (.npy, or text with a row a position) in the same folder, where the file has none
    mask : file of a detector mask (.npy) in the same folder; a pixel is good if neither this nor the file's is bad
    tilt_files : further files in the same folder, one a tilt, after the one that path names
    tilt_angles_deg : one angle a file
    ignore_in_file : what the file says wrongly; the job must say it instead
    """

    scan_shape: tuple[int, int] | None = None
    positions: str | None = None
    mask: str | None = None
    tilt_files: list[str] | None = None
    tilt_angles_deg: list[float] | None = None
    ignore_in_file: list[Fact] | None = None


class FrameFile(Protocol):
    """One open file of frames (n, rows, columns)."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that were read, the one of the frames among them."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, rows, columns) of the frames."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of the frames as returned, in native byte order."""

    @property
    def facts(self) -> FileFacts:
        """What the file says of itself."""

    def number(self, given: float | str | None) -> float | None:
        """Return an option's number, looked up in the file if it names an attribute."""

    def read(self, indices: IntArray, where: str) -> Array:
        """Return a copy of frames (n, rows, columns); ``where`` begins the message of a :class:`DataError`."""

    def close(self) -> None:
        """Close the file."""


class MappedFrames:
    """Frames in an uncompressed file, mapped into memory; ``frames`` (n, rows, columns), any strides."""

    def __init__(self, paths: Sequence[Path], frames: Array, facts: FileFacts, *, per_count: float = 1.0) -> None:
        self.paths = tuple(paths)
        self.shape: tuple[int, int, int] = (frames.shape[0], frames.shape[1], frames.shape[2])
        self.dtype: np.dtype[np.generic] = frames.dtype.newbyteorder("=")
        self.facts = facts
        self._frames: Array | None = frames
        self._per_count = per_count

    def number(self, given: float | str | None) -> float | None:
        """Return the number; raises :class:`ConfigError` for text, because such a file has no attributes."""
        return plain_number(given)

    def read(self, indices: IntArray, where: str) -> Array:
        """Return a copy of frames (n, rows, columns), divided by what one count is stored as."""
        if self._frames is None:
            raise DataError(f"{where}: the file was closed before it was read")
        frames = self._frames[indices].astype(self.dtype, copy=False)
        return frames if self._per_count == 1.0 else (frames / self._per_count).astype(self.dtype, copy=False)

    def close(self) -> None:
        """Give the mapping back."""
        self._frames = None


def plain_number(given: float | str | None) -> float | None:
    """Return a number; raises :class:`ConfigError` for text that would name an attribute."""
    if isinstance(given, str):
        raise ConfigError(f"{given!r}: this format has no attributes to look up; give a number")
    return given


def map_frames(path: Path, dtype: Any, shape: tuple[int, ...], offset: int = 0) -> Array:
    """Map frames of a raw file; raises :class:`DataError` if it cannot be read or is too short."""
    try:
        mapped: Array = np.memmap(path, dtype, "r", offset, shape)
    except FileNotFoundError as fault:
        raise DataError(f"{path}: no such file; check the path (relative paths start at the job file)") from fault
    except (OSError, ValueError) as fault:
        raise DataError(f"{path}: cannot be read ({fault}); check permission and size") from fault
    return mapped


def file_size(path: Path) -> int:
    """Return the bytes of a file; raises :class:`DataError` if there is none or it may not be read."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file; check the path (relative paths start at the job file)")
        with path.open("rb"):
            return path.stat().st_size
    except OSError as fault:
        raise DataError(f"{path}: cannot be read ({fault.strerror or fault}); check permission") from fault


class FrameSeries(TiltSeries):
    """A tilt series of one file a tilt; ``open_file(path, given)`` opens one of them."""

    def __init__(self, given: Any, open_file: Callable[[Path, Any], FrameFile]) -> None:
        self._files: list[FrameFile] = []
        try:
            for path in [given.path, *(given.path.parent / name for name in given.tilt_files or [])]:
                self._files.append(open_file(path, given))
            super().__init__(_describe(given, self._files))
        except BaseException:
            self.close()
            raise

    def read_frames(self, tilt_number: int, indices: IntArray) -> Array:
        """Return frames (n, rows, columns) as stored; raises :class:`DataError` where a file is damaged."""
        file = self._files[tilt_number]
        return file.read(indices, f"{file.paths[0]}: positions {indices.min()}…{indices.max()}")

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()


def _describe(given: FrameOptions, files: Sequence[FrameFile]) -> SeriesFacts:
    first, facts = files[0], [without(file.facts, list(given.ignore_in_file or [])) for file in files]
    _check_alike(given, files, facts)
    numbers: dict[str, Any] = {key: first.number(getattr(given, key)) for key in (*PIXEL_KEYS, "energy_ev")}
    asked = dataclasses.replace(given, **numbers)
    filled = fill_in(asked, facts[0], first.shape[1:])
    scan_shape = _scan_shape(given, facts[0].scan_shape, first.shape[0])
    scan = ScanLayout(shape=(len(files), *scan_shape, *first.shape[1:]), has_tilts=True)
    filled, positions = _positions(filled, facts, scan)
    if positions is None and len(scan_shape) == 1:
        raise ConfigError(
            f"{given.path}: the file says neither the shape of the scan nor positions; "
            "give data.scan_shape = [rows, columns] with data.scan_step_angstrom, or data.positions"
        )
    filled, mask = _mask(filled, facts)
    angles = None if given.tilt_angles_deg is None else np.array(given.tilt_angles_deg, np.float64)
    filled = dataclasses.replace(filled, tilt_unit="degree")
    arrays = {"positions": positions, "tilt_angles": angles, "mask": mask, "probe": facts[0].probe}
    numbers = {key: getattr(filled, key) for key in (*PIXEL_KEYS, "energy_ev")}
    described = describe_series(filled, scan, first.dtype, arrays, numbers)
    keys = ("energy_ev", *PIXEL_KEYS, "centre_pixel", "scan_step_angstrom")
    found = [key for key in keys if getattr(asked, key) is None and getattr(filled, key) is not None]
    found += [name for name in ("positions", "mask", "probe") if getattr(facts[0], name) is not None]
    found += ["scan_shape"] if given.scan_shape is None and facts[0].scan_shape is not None else []
    beside = [given.path.parent / name for name in (given.positions, given.mask) if name is not None]
    identity = joint_identity(given.path, [*(path for file in files for path in file.paths), *beside])
    return dataclasses.replace(described, identity=identity, from_file=tuple(found))


def _check_alike(given: FrameOptions, files: Sequence[FrameFile], facts: Sequence[FileFacts]) -> None:
    if given.tilt_angles_deg is not None and len(given.tilt_angles_deg) != len(files):
        raise ConfigError(f"data.tilt_angles_deg: {len(given.tilt_angles_deg)} angles for {len(files)} files")
    if len(files) > 1 and given.tilt_angles_deg is None:
        raise ConfigError("data.tilt_files needs data.tilt_angles_deg, one angle a file, that of data.path first")
    for file, fact in zip(files[1:], facts[1:]):
        if file.shape != files[0].shape or file.dtype != files[0].dtype:
            raise DataError(
                f"{file.paths[0]}: holds frames {file.shape} of {file.dtype}, {files[0].paths[0]} holds "
                f"{files[0].shape} of {files[0].dtype}; all tilts of a series must be alike"
            )
        name = differing_fact(facts[0], fact)
        if name is not None:
            raise DataError(
                f"{file.paths[0]}: {name} is {getattr(fact, name)}, but {getattr(facts[0], name)} in "
                f"{files[0].paths[0]}; all tilts of a series must be alike"
            )


def _scan_shape(given: FrameOptions, found: tuple[int, int] | None, n_frames: int) -> tuple[int, ...]:
    asked = given.scan_shape
    if asked is not None and min(asked) < 1:
        raise ConfigError(f"data.scan_shape must be at least one row and one column, got {list(asked)}")
    if asked is not None and found is not None and tuple(asked) != tuple(found):
        raise contradiction(given.path, "scan_shape", f"{list(asked)}", f"{list(found)}", "scan_shape")
    shape = asked or found
    if shape is None:
        return (n_frames,)
    if shape[0] * shape[1] != n_frames:
        whose = "the job" if asked else "the file's own description"
        raise DataError(
            f"{given.path}: holds {n_frames} frames, but by {whose} the scan has {shape[0]}×{shape[1]}; "
            "is the measurement complete? Else give the right data.scan_shape"
        )
    return shape


def _positions(given: FrameOptions, facts: Sequence[FileFacts], scan: ScanLayout) -> tuple[FrameOptions, Array | None]:
    """Return options that fit the positions, and positions (tilt, position, 2): the file's in Å, or the job's own."""
    found = facts[0].positions
    if given.positions is not None:
        if found is not None:
            raise _two_scans(given.path, "data.positions")
        return given, _companion(given.path.parent / given.positions)
    if found is None:
        return given, None
    if given.scan_step_angstrom is not None and facts[0].scan_step is None:
        raise _two_scans(given.path, "data.scan_step_angstrom")
    stored = [fact.positions for fact in facts]
    if any(p is None or p.shape != (scan.n_positions, 2) for p in stored):
        shapes = sorted({str(None if p is None else p.shape) for p in stored})
        raise DataError(f"{given.path}: positions have shape {', '.join(shapes)} for {scan.n_positions} frames")
    plain = dataclasses.replace(given, position_unit="angstrom", position_columns=(0, 1))
    return plain, np.stack([p for p in stored if p is not None])


def _two_scans(path: Path, key: str) -> DataError:
    return DataError(
        f"{path}: the file has positions and the job gives others by {key}; remove that, or set "
        "data.ignore_in_file = ['positions'] if the file is wrong"
    )


def _mask(given: FrameOptions, facts: Sequence[FileFacts]) -> tuple[FrameOptions, Array | None]:
    """Return the mask of the pixels that are good in all files and by the job."""
    masks = [fact.mask for fact in facts if fact.mask is not None]
    good: BoolArray | None = np.logical_and.reduce(masks) if masks else None
    if given.mask is not None:
        stored = _companion(given.path.parent / given.mask)
        own = stored != 0 if given.mask_good == "nonzero" else stored == 0
        if good is not None and own.shape != good.shape:
            raise DataError(f"{given.mask}: the mask has shape {own.shape}, that of the file {good.shape}")
        good = own if good is None else good & own
    return dataclasses.replace(given, mask_good="nonzero"), None if good is None else good.astype(np.uint8)


def _companion(path: Path) -> Array:
    if path.suffix == ".npy":
        return read_npy(path)
    try:
        array: Array = np.loadtxt(path, delimiter="," if path.suffix == ".csv" else None, ndmin=2)
    except (OSError, ValueError) as fault:
        raise DataError(f"{path}: cannot be read as an array ({fault}); expected .npy, or text in columns") from fault
    return array
