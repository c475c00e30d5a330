"""Slabs of a volume in the run directory: what a lost worker held, and where an interrupted run goes on.

Each slab is a checkpoint ``NAME-slab0007_000020.h5``, written by the worker that holds it: the coefficients after 20
updates, and the point of the next gradient where that is another one. ``NAME-progress_000020.h5`` comes when all are
there; the last two of each are kept.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpcrec.backend.array import Array, BoolArray, FloatArray, to_host
from hpcrec.backend.device import library
from hpcrec.engines.solvers import Scalars, SlabState
from hpcrec.errors import DataError
from hpcrec.io.atomic import storage_error
from hpcrec.io.checkpoint import load_checkpoint, save_checkpoint
from hpcrec.models.tomography import Misfit
from hpcrec.tomography.executor import Executor
from hpcrec.tomography.slabs import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SlabFiles:
    """The saved slabs of one reconstruction; the :class:`hpcrec.tomography.slabs.SlabSaver` of a run.

    ``key`` : of the problem, see :func:`problem_key`; saved states of another one are not taken
    """

    folder: Path
    name: str
    key: str
    every: int

    def _slabs(self, n: int, number: int) -> list[Path]:
        return [self.folder / f"{self.name}-slab{i:04d}_{number:06d}.h5" for i in range(n)]

    def save(self, executor: Executor, states: list[Any], number: int, progress: Progress) -> None:
        """Let the workers write their slabs, then write how far the iterations came. Raises StorageError."""
        n = len(states)
        executor.map(_save_slab, self._slabs(n, number), [self.key] * n, states)
        arrays = {
            "history": np.array([[m.loss, m.r1, m.rms] for m in progress.history], np.float64).reshape(-1, 3),
            "per_projection": np.array([m.per_projection for m in progress.history], np.float64),
        }
        s = progress.scalars
        if s is not None:
            arrays["scalars"] = np.array([s.step, s.momentum, s.threshold, s.t, s.loss], np.float64)
        path = self.folder / f"{self.name}-progress_{number:06d}.h5"
        save_checkpoint(path, arrays, {"key": self.key, "n_slabs": n, "number": number, "done": progress.done})

    def load(self, executor: Executor, number: int, supports: list[Any]) -> list[Any]:
        """Let workers read the slabs that were saved after ``number`` updates."""
        n = len(supports)
        return executor.keep(_load_slab, self._slabs(n, number), [self.key] * n, supports, [executor.device] * n)

    def latest(self, executor: Executor) -> tuple[int, Progress] | None:
        """Return the updates after which all slabs of this problem are there and sound, and what came before."""
        for path in sorted(self.folder.glob(f"{self.name}-progress_*.h5"), reverse=True):
            try:
                found = load_checkpoint(path)
                if found.attributes.get("key") != self.key:
                    continue
                n, number = (int(np.asarray(found.attributes[name])) for name in ("n_slabs", "number"))
                executor.map(_check_slab, self._slabs(n, number), [self.key] * n)
            except DataError as fault:
                logger.warning("saved volume skipped: %s", fault)
                continue
            return number, _progress(found.arrays, bool(found.attributes["done"]))
        return None

    def remove(self) -> None:
        """Remove all files of this name, of other problems too. Raises StorageError."""
        for pattern in (f"{self.name}-slab*_*.h5", f"{self.name}-progress_*.h5"):
            for path in self.folder.glob(pattern):
                try:
                    path.unlink(missing_ok=True)
                except OSError as fault:
                    raise storage_error(path, fault) from fault


def problem_key(settings: str, *parts: Array) -> str:
    """Return a short hash of all that decides a reconstruction: settings, data, weights, poses, support."""
    digest = hashlib.sha256(settings.encode())
    for part in parts:
        digest.update(f"{part.dtype.str} {part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:16]


def _progress(arrays: dict[str, Array], done: bool) -> Progress:
    history = tuple(
        Misfit(residual=np.empty(0, np.float32), loss=float(loss), r1=float(r1), rms=float(rms), per_projection=each)
        for (loss, r1, rms), each in zip(arrays["history"], arrays["per_projection"])
    )
    scalars = None
    if "scalars" in arrays:
        step, momentum, threshold, t, loss = map(float, arrays["scalars"])
        scalars = Scalars(step=step, momentum=momentum, threshold=threshold, t=t, loss=loss)
    return Progress(history=history, scalars=scalars, done=done)


def _save_slab(path: Path, key: str, state: SlabState) -> None:
    arrays: dict[str, FloatArray] = {"volume": to_host(state.volume)}
    if state.point is not state.volume:
        arrays["point"] = to_host(state.point)
    save_checkpoint(path, arrays, {"key": key, "first_row": state.slab[0], "end_row": state.slab[1]})


def _check_slab(path: Path, key: str) -> None:
    _read_slab(path, key)


def _read_slab(path: Path, key: str) -> tuple[tuple[int, int], dict[str, Array]]:
    found = load_checkpoint(path)
    if found.attributes.get("key") != key:
        raise DataError(f"{path}: belongs to another volume")
    first, end = (int(np.asarray(found.attributes[name])) for name in ("first_row", "end_row"))
    return (first, end), found.arrays


def _load_slab(path: Path, key: str, support: BoolArray | None, device: Literal["cpu", "gpu"]) -> SlabState:
    slab, arrays = _read_slab(path, key)
    xp = library(device)
    volume = xp.asarray(arrays["volume"])
    return SlabState(
        slab=slab,
        volume=volume,
        point=xp.asarray(arrays["point"]) if "point" in arrays else volume,
        support=None if support is None else xp.asarray(support),
    )
