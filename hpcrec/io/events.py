"""Sparse electron events, as the 4D Camera's counting (stempy) writes them.

Literature: Ercius et al., Microsc. Microanal. 30, 903 (2024); the layout is that of stempy 3.
``electron_events/frames`` holds lists of the flat pixels row·Ny + column that electrons hit; its attributes Nx, Ny are
the frame's rows and columns (so stempy reads them; the camera is square). ``electron_events/scan_positions`` holds flat
places in a scan of Nx columns and Ny rows, in the same order; each has one list, or the same number of lists (frames)
one after the other. Places that were never recorded have no pattern; those recorded several times are added up.

Only frames asked for become dense; a file of hundreds of gigabytes as patterns stays as small as its events.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import h5py
import numpy as np

from hpcrec.backend.array import Array, FloatArray, IntArray
from hpcrec.errors import ConfigError, DataError
from hpcrec.geometry.scan import raster_positions
from hpcrec.io.facts import FileFacts
from hpcrec.io.frames import FrameOptions, FrameSeries
from hpcrec.io.hdf5_access import Hdf5Access, LinkedFiles, damage_reported
from hpcrec.options import options

_GROUP: Final = "electron_events"
_MAX_SIDE: Final = 16384
_MAX_GAP: Final = 16  # rows read too much cost less than another call
_MAX_ROWS: Final = 64


@options
class EventOptions(FrameOptions):
    """How event files are read; the shared options are those of :class:`FrameOptions`.

    format : the reader's name
    linked_files : refuse data in other files, or follow links inside the file's own folder

    A raster needs ``scan_step_angstrom``; the file tells the shape of scan and frames only.
    """

    format: Literal["events"] = "events"
    linked_files: LinkedFiles = "refuse"


class EventSeries(FrameSeries):
    """A scan (or one file a tilt) of counted electrons."""

    Options = EventOptions

    def __init__(self, given: EventOptions) -> None:
        super().__init__(given, EventFrames)


class EventFrames:
    """The patterns of one event file, uint16, made dense when read: a :class:`~hpcrec.io.frames.FrameFile`."""

    def __init__(self, path: Path, given: EventOptions) -> None:
        self._access = Hdf5Access(path, given.linked_files)
        try:
            self._events = self._event_table()
            columns, rows = self._size(f"{_GROUP}/frames")
            scan_shape = self._size(f"{_GROUP}/scan_positions")
            self._order, self._starts, places = self._recorded(scan_shape)
        except BaseException:
            self._access.close()
            raise
        self.paths = self._access.paths
        self.shape: tuple[int, int, int] = (len(places), rows, columns)
        self.dtype: np.dtype[np.generic] = np.dtype(np.uint16)
        self.facts = self._facts(given, scan_shape, places)

    def number(self, given: float | str | None) -> float | None:
        """Return a number as given, or from an attribute or data set of the file."""
        return self._access.number(given)

    def read(self, indices: IntArray, where: str) -> Array:
        """Return dense frames (n, rows, columns), events of one place added up."""
        n_pixels = self.shape[1] * self.shape[2]
        frames = np.zeros((len(indices), n_pixels), self.dtype)
        for i_frame, events in self._events_of(indices, where):
            outside = events[(events < 0) | (events >= n_pixels)]
            if outside.size:
                raise DataError(f"{where}: an event lies at pixel {outside[0]} of {n_pixels}; the file is damaged")
            counts = frames[i_frame] + np.bincount(events, minlength=n_pixels)
            if counts.max(initial=0) > np.iinfo(np.uint16).max:
                raise DataError(f"{where}: a pixel holds more than 65535 electrons; the file is damaged")
            frames[i_frame] = counts
        return frames.reshape(-1, *self.shape[1:])

    def close(self) -> None:
        """Close the file."""
        self._access.close()

    def _event_table(self) -> h5py.Dataset:
        """Return the data set of events, (row,) or (row, frame) of arrays of variable length."""
        name = f"{_GROUP}/frames"
        if self._access.first_of(name) is None:
            raise DataError(f"{self._access.path}: has no {name!r}; it is no file of electron events")
        return self._access.ragged(name)

    def _size(self, name: str) -> tuple[int, int]:
        """Return (Ny, Nx)."""
        rows, columns = (self._access.number(f"attribute:{name}@{key}") or 0 for key in ("Ny", "Nx"))
        if not (1 <= rows <= _MAX_SIDE and 1 <= columns <= _MAX_SIDE):
            raise DataError(
                f"{self._access.path}: {name} says Ny = {rows:g}, Nx = {columns:g}; expected sizes of 1…{_MAX_SIDE}"
            )
        return int(rows), int(columns)

    def _recorded(self, scan_shape: tuple[int, int]) -> tuple[IntArray, IntArray, IntArray]:
        """Return rows of the table sorted by place, where each recorded place starts among them, and the places."""
        stored = self._access.array(f"{_GROUP}/scan_positions")
        where = f"{self._access.path}: {_GROUP}/scan_positions"
        n_lists = self._events.size
        unlike = self._events.ndim == 2 and stored is not None and stored.size != len(self._events)
        if stored is None or stored.dtype.kind not in "ui" or stored.size == 0 or n_lists % stored.size or unlike:
            n = "nothing" if stored is None else f"{stored.size} values of {stored.dtype}"
            raise DataError(f"{where} holds {n} for {self._events.shape} lists of events; the file is damaged")
        self._per_place = 1 if self._events.ndim == 2 else n_lists // stored.size
        if int(stored.min()) < 0 or int(stored.max()) >= scan_shape[0] * scan_shape[1]:
            raise DataError(f"{where} leads outside the scan of {scan_shape[0]}×{scan_shape[1]} places")
        order = np.argsort(stored.ravel(), kind="stable")
        places, starts = np.unique(stored.ravel()[order], return_index=True)
        return order, np.append(starts, len(order)), places.astype(np.int64)

    def _facts(self, given: EventOptions, scan_shape: tuple[int, int], places: IntArray) -> FileFacts:
        """Return the scan's shape where it is complete, else the positions of the places that were recorded."""
        if len(places) == scan_shape[0] * scan_shape[1]:
            return FileFacts(scan_shape=scan_shape)
        if given.positions is not None:
            return FileFacts()
        step = given.scan_step_angstrom
        if step is None:
            raise ConfigError(f"{self._access.path}: give data.scan_step_angstrom, the file does not say it")
        positions: FloatArray = raster_positions(scan_shape, step)[places]
        return FileFacts(scan_step=step, positions=positions)

    def _events_of(self, indices: IntArray, where: str) -> Iterator[tuple[int, IntArray]]:
        """Yield (index into ``indices``, flat pixels) of the lists that the patterns need, few lists at a time."""
        n = self._per_place
        wanted = sorted(
            (int(row) * n + k, i)
            for i, p in enumerate(indices)
            for row in self._order[self._starts[p] : self._starts[p + 1]]
            for k in range(n)
        )
        rows = np.array([row for row, _ in wanted], np.int64)
        # A run ends at a gap, and before it is long: lists take more room than the frames that are made of them
        cuts = np.flatnonzero((np.diff(rows) > _MAX_GAP) | (np.diff(rows // _MAX_ROWS) > 0)) + 1
        for part in np.split(np.arange(len(rows)), cuts):
            if len(part) == 0:
                continue
            first, last = int(rows[part[0]]), int(rows[part[-1]])
            with damage_reported(f"{where}, rows {first}…{last} of the events"):
                block = self._events[first : last + 1]
            for k in part:
                table_row, i_frame = wanted[k]
                cell = block[table_row - first]
                for events in cell if self._events.ndim == 2 else [cell]:
                    yield i_frame, events.astype(np.int64)
