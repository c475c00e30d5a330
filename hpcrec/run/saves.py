"""Checkpoints of a part of a tilt, as its ranks write and find them together.

A group of tiles writes them in parts: each rank its own core of the object and its own patterns' memory. The index,
which makes them a checkpoint, follows once all parts are on the disk; ranks agree on that after a sweep, when they meet
anyway. Where every rank holds the whole object the first one writes all, in one file.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from hpcrec.backend.array import Array, IntArray, array_module, to_host
from hpcrec.errors import DataError, StorageError
from hpcrec.geometry.tiles import Box
from hpcrec.io.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    OpenedCheckpoint,
    newest_first,
    open_checkpoint,
    remove_strays,
    save_index,
)
from hpcrec.io.checkpoint_parts import Part, Parts, part_path, write_part
from hpcrec.io.store import Attributes
from hpcrec.models.base import PtychographyState
from hpcrec.parallel.communicator import Communicator
from hpcrec.parallel.exchange import Exchange
from hpcrec.parallel.patterns import gather_patterns, hand_out_patterns

logger = logging.getLogger(__name__)

_TOKEN_BYTES: Final = 4
_PATTERNS: Final = "patterns:"
# What lies on the object's pixels
_ON_PIXELS: Final = ("obj", "object_memory:")


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a group keeps the checkpoints of a part of a tilt, and what of them is this rank's.

    ``places`` : of this rank's patterns among all that are used, ascending
    """

    folder: Path
    prefix: str
    group: Communicator
    exchange: Exchange
    places: IntArray

    def path(self, iteration: int) -> Path:
        """Return the path of a checkpoint."""
        return self.folder / f"{self.prefix}_{iteration:06d}.h5"


class Saves(Protocol):
    """Writes checkpoints of a state; all methods but :meth:`wait` are collective."""

    def save(self, state: PtychographyState, curves: Mapping[str, Array], *, wait: bool) -> None:
        """Begin to write a checkpoint, once the one before is written; with ``wait``, write it."""

    def check(self) -> None:
        """Go on with what is under way as far as that needs no waiting, and raise what it has raised."""

    def finish(self) -> None:
        """Write what is under way to its end, and raise what it has raised."""

    def wait(self) -> None:
        """Wait for what this rank is writing, and raise what it has raised; others need not come here."""


def make_saves(site: Site, *, tiled: bool) -> Saves:
    """Return how a group writes checkpoints: in parts where it is ``tiled``; collective."""
    return PartSaves(site) if tiled else WholeSaves(site)


class WholeSaves:
    """The first rank, which holds the whole object, writes all."""

    def __init__(self, site: Site) -> None:
        self._site, self._writer = site, CheckpointWriter()

    def save(self, state: PtychographyState, curves: Mapping[str, Array], *, wait: bool) -> None:
        """Begin to write a checkpoint."""
        site = self._site
        arrays: dict[str, Any] = {
            name: apart(site.exchange.whole(values), values) for name, values in _on_pixels(state).items()
        }
        for key, values in sorted(state.pattern_memory.items()):
            arrays[f"{_PATTERNS}{key}"] = gather_patterns(site.group, site.places, values)
        if site.group.rank == 0:
            arrays |= _of_all(state, curves)
            self._writer.save(site.path(state.iteration), arrays, {"iteration": state.iteration})
            # Exit waves are too many to be there once more
            if wait or state.pattern_memory:
                self._writer.wait()

    def check(self) -> None:
        """Raise what the last write has raised by now, on the first rank."""
        self._writer.check()

    def finish(self) -> None:
        """Wait on the first rank."""
        self._writer.wait()

    def wait(self) -> None:
        """Wait on the first rank."""
        self._writer.wait()


@dataclass(frozen=True, kw_only=True)
class _UnderWay:
    """A checkpoint that is being written; ``parts``: known on the first rank once all of them are on the disk."""

    path: Path
    arrays: dict[str, Array]
    attributes: Attributes
    parts: bool = False


class PartSaves:
    """Each rank writes its part, the first one the index when all have done so."""

    def __init__(self, site: Site) -> None:
        self._site, self._writer = site, CheckpointWriter()
        self._token: str = site.group.broadcast(secrets.token_hex(_TOKEN_BYTES) if site.group.rank == 0 else None)
        self._under_way: _UnderWay | None = None
        self._result: Any = None
        self._fault: StorageError | None = None

    def save(self, state: PtychographyState, curves: Mapping[str, Array], *, wait: bool) -> None:
        """Begin to write a checkpoint: a copy of the own core, patterns' memory as it is."""
        self.finish()
        site, first = self._site, self._site.group.rank == 0
        core = site.exchange.core
        pixels = {name: cut(values, core, site.exchange.held) for name, values in _on_pixels(state).items()}
        patterns = {key: to_host(values) for key, values in sorted(state.pattern_memory.items())}
        path = site.path(state.iteration)
        mine = part_path(path, self._token, site.group.rank)
        self._under_way = _UnderWay(
            path=path, arrays=_of_all(state, curves) if first else {}, attributes={"iteration": state.iteration}
        )
        self._writer.begin(partial(write_part, mine, core, site.places, pixels, patterns))
        # Exit waves are too many to be there once more
        if wait or state.pattern_memory:
            self.finish()

    def check(self) -> None:
        """See whether all ranks have written: then the index follows."""
        if self._under_way is not None:
            done = self._writer.done
            if done:
                self._take()
            self._agree(done=done)

    def finish(self) -> None:
        """Write what is under way, parts and index."""
        while self._under_way is not None:
            self._take()
            self._site.group.idle_barrier()
            self._agree(done=True)

    def wait(self) -> None:
        """Wait for the own part, or the index; without the others it makes no checkpoint."""
        self._writer.wait()

    def _take(self) -> None:
        """Take what the own write has returned or raised."""
        try:
            self._result = self._writer.wait() or self._result
        except StorageError as fault:
            self._fault = fault

    def _agree(self, *, done: bool) -> None:
        """Go on to the index, or to nothing, when no rank writes any more; raise on all ranks what one has raised."""
        group, under_way = self._site.group, self._under_way
        mine = np.array([not done, self._fault is not None], np.int64)
        writing, failed = (bool(n) for n in group.max(mine))
        if under_way is None or (writing and not failed):
            return
        if failed:
            self._under_way = None
            texts = group.gather(None if self._fault is None else str(self._fault))
            raise StorageError(group.broadcast(next(filter(None, texts), "") if texts else None))
        if under_way.parts:
            self._under_way = None
            return
        parts: list[Part] | None = group.gather(self._result)
        self._result = None
        if parts is not None:
            named = Parts(under_way.path, self._token, tuple(parts))
            self._writer.begin(partial(save_index, under_way.arrays, under_way.attributes, named))
        self._under_way = _UnderWay(path=under_way.path, arrays={}, attributes={}, parts=True)


def cut(values: Array, core: Box, held: Box) -> Array:
    """Return a copy (host memory) of what ``values`` (…, y, x) on the box ``held`` are on ``core`` inside it."""
    if core.empty:
        return np.empty((*values.shape[:-2], *core.shape), values.dtype)
    here = to_host(values[(..., *core.slices(held))])
    return here.copy() if array_module(values) is np else np.ascontiguousarray(here)


def apart(whole: Array | None, live: Array) -> Array | None:
    """Return ``whole`` as an array that does not change with ``live``."""
    here = whole is not None and array_module(live) is np
    return whole.copy() if whole is not None and here and np.may_share_memory(whole, live) else whole


def _on_pixels(state: PtychographyState) -> dict[str, Array]:
    memory = {f"object_memory:{key}": values for key, values in sorted(state.object_memory.items())}
    return {"obj": state.obj, **memory}


def _of_all(state: PtychographyState, curves: Mapping[str, Array]) -> dict[str, Array]:
    """Return copies of what is the same on all ranks."""
    arrays = {"probe": to_host(state.probe).copy(), "positions": state.positions.copy(), **curves}
    arrays |= {f"memory:{k}": to_host(v).copy() for k, v in state.memory.items()}
    return arrays | {f"refined:{k}": to_host(v).copy() for k, v in state.refined.items()}


def begun(folder: Path, prefix: str, group: Communicator) -> bool:
    """Whether a part of a tilt has a sound checkpoint; collective."""
    return _latest(folder, prefix, group) is not None


def find_checkpoint(site: Site) -> Checkpoint | None:
    """Return the newest sound checkpoint, each array as far as this rank holds it, or None; collective.

    Of parts each rank reads what it needs; a checkpoint in one file is read by the first rank, and handed out.
    """
    group = site.group
    if group.rank == 0:
        remove_strays(site.folder, site.prefix)
    found = _latest(site.folder, site.prefix, group)
    if found is None:
        return None
    if found.parts is not None:
        waves = found.parts.patterns(site.places)
        arrays = found.arrays | found.parts.pixels(site.exchange.held)
        arrays |= {f"{_PATTERNS}{name}": values for name, values in waves.items()}
        return Checkpoint(found.path, arrays, found.attributes)
    return _handed_out(site, found)


def _handed_out(site: Site, found: OpenedCheckpoint) -> Checkpoint:
    """Hand out the first rank's checkpoint."""
    # What belongs to single patterns goes to their ranks only
    waves = _taken(found.arrays, (_PATTERNS,))
    # What lies on the object's pixels goes to the ranks that hold them
    on_pixels = _taken(found.arrays, _ON_PIXELS)
    arrays, names, maps = site.group.broadcast((found.arrays, list(waves), list(on_pixels)))
    placed = {name: site.exchange.place(on_pixels.pop(name, None)) for name in maps}
    handed = {name: hand_out_patterns(site.group, site.places, waves.get(name)) for name in names}
    return Checkpoint(found.path, {**arrays, **placed, **handed}, found.attributes)


def _taken(arrays: dict[str, Array], prefixes: tuple[str, ...]) -> dict[str, Array]:
    """Take the arrays whose names begin so out of others."""
    return {name: arrays.pop(name) for name in sorted(arrays) if name.startswith(prefixes)}


def _latest(folder: Path, prefix: str, group: Communicator) -> OpenedCheckpoint | None:
    """Return the newest sound checkpoint, damaged ones are named in the log; collective.

    The arrays of one without parts are on the first rank only. Each rank checks some of the parts.
    """
    first = group.rank == 0
    for path in group.broadcast(newest_first(folder, prefix) if first else None):
        found, faults = _attempt(partial(open_checkpoint, path)) if first else (None, [])
        shown = found if found is None or found.parts is not None else found._replace(arrays={})
        shown = group.broadcast(shown)
        if shown is not None and shown.parts is not None:
            for i in range(group.rank, len(shown.parts), group.size):
                faults += _attempt(partial(shown.parts.check, i))[1]
        told = group.gather(faults)
        for text in (text for texts in told or () for text in texts):
            logger.warning("checkpoint skipped: %s", text)
        if not group.broadcast(any(told) if told is not None else None):
            return found if first else shown
    return None


def _attempt(read: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return what was read, or the sentence that it is damaged."""
    try:
        return read(), []
    except DataError as fault:
        return None, [str(fault)]
