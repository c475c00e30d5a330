"""A volume held as slabs by an executor, which outlives the workers that hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from hpcrec.backend.array import BoolArray, FloatArray, to_host
from hpcrec.engines.solvers import (
    Scalars,
    SlabState,
    Solver,
    back_project_slab,
    project_slab,
    start_slab,
    update_slab,
)
from hpcrec.errors import WorkersLostError
from hpcrec.models.tomography import Misfit, TomographyModel
from hpcrec.tomography.executor import Executor

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far iterations came: the misfit before each, without its residual, and the last numbers; ``done``: ended."""

    history: tuple[Misfit, ...] = ()
    scalars: Scalars | None = None
    done: bool = False


class SlabSaver(Protocol):
    """Keeps what slabs held after some updates, where neither a lost worker nor a dead run can lose it."""

    @property
    def every(self) -> int:
        """Updates from one time to the next."""

    def save(self, executor: Executor, states: list[Any], number: int, progress: Progress) -> None:
        """Keep the ``states`` after ``number`` updates, and what came before."""

    def load(self, executor: Executor, number: int, supports: list[Any]) -> list[Any]:
        """Return handles of the states kept after ``number`` updates, with their parts of the support."""

    def latest(self, executor: Executor) -> tuple[int, Progress] | None:
        """Return the updates after which sound states of the same problem were kept last, and what came before."""

    def remove(self) -> None:
        """Forget everything."""


def split_rows(n_rows: int, n_slabs: int, support: BoolArray | None = None) -> list[tuple[int, int]]:
    """Split the rows of a volume into slabs of about equal work (support voxels, else rows); none is empty."""
    work = np.ones(n_rows) if support is None else support.sum(axis=(0, 2)) + 1.0
    share = np.cumsum(work) / work.sum()
    edges = [0]
    for i in range(1, min(n_slabs, n_rows)):
        edge = int(np.searchsorted(share, i / min(n_slabs, n_rows))) + 1
        edges.append(min(max(edge, edges[-1] + 1), n_rows - (min(n_slabs, n_rows) - i)))
    return list(zip(edges, [*edges[1:], n_rows]))


class SlabVolume:
    """A volume held as slabs by an executor, with the sums over slabs that the drivers need.

    With a ``saver``, lost slabs are made again on the workers that are left: as they began or were saved last, and then
    the updates since, whose residuals are remembered here. Nothing of the result changes; the number of slabs stays.
    """

    def __init__(
        self,
        model: TomographyModel,
        executor: Executor,
        n_slabs: int = 1,
        support: BoolArray | None = None,
        start: FloatArray | None = None,
        saver: SlabSaver | None = None,
    ) -> None:
        self.executor, self.n_updates = executor, 0
        self.slabs = split_rows(model.volume_shape[1], n_slabs, support)
        self._model, self._support, self._start, self._saver = model, support, start, saver
        self._steps: list[tuple[Solver, TomographyModel, FloatArray, Scalars]] = []
        self._applied, self._generation = 0, 0
        self._states: list[Any] | None = None
        self._safely(lambda _: None)

    @property
    def states(self) -> list[Any]:
        """Handles of the slabs' states, one a slab; use them at once."""
        return self._safely(lambda states: states)

    def _repeat(self, value: Any) -> list[Any]:
        return [value] * len(self.slabs)

    def _rows(self, array: Any) -> list[Any]:
        if array is None:
            return self._repeat(None)
        return [np.ascontiguousarray(array[:, y0:y1]) for y0, y1 in self.slabs]

    def _safely(self, work: Callable[[list[Any]], _T]) -> _T:
        """Return ``work(states)``; where workers are lost meanwhile, bring the states back and try again."""
        while True:
            try:
                return work(self._current())
            except WorkersLostError as fault:
                if self._saver is None:
                    raise
                self.executor.recover(fault)

    def _current(self) -> list[Any]:
        """Return the states after all updates."""
        if self._states is None or self._generation != self.executor.generation:
            self._generation, self._applied = self.executor.generation, 0
            self._states = None  # the lost ones first: what workers keep for them would stand beside the new
            self._states = self._saved_states()
        for solver, model, residual, scalars in self._steps[self._applied :]:
            shared = self.executor.share(residual)
            self._states = self.executor.keep(
                update_slab, *map(self._repeat, (solver, model)), self._states, *map(self._repeat, (shared, scalars))
            )
            self._applied += 1
        if self._saver is None:
            self._forget_steps()
        return self._states

    def _saved_states(self) -> list[Any]:
        number, supports = self.n_updates - len(self._steps), self._rows(self._support)
        if number and self._saver is None:
            raise WorkersLostError("Dask workers died with slabs that nothing saved: start the same command again")
        if number and self._saver is not None:
            return self._saver.load(self.executor, number, supports)
        columns = self._repeat(self._model), self.slabs, supports, self._rows(self._start)
        return self.executor.keep(start_slab, *columns, self._repeat(self.executor.device))

    def _forget_steps(self) -> None:
        self._steps.clear()
        self._applied = 0

    def resume(self) -> Progress:
        """Take the states that the saver holds of an interrupted run, if any, and return how far they had come."""
        found = self._saver.latest(self.executor) if self._saver is not None else None
        if found is None:
            return Progress()
        self.n_updates, progress = found
        self._states = None
        return progress

    def save(self, progress: Progress) -> None:
        """Save the states and ``progress``, if there is a saver."""
        saver = self._saver
        if saver is not None:
            self._safely(lambda states: saver.save(self.executor, states, self.n_updates, progress))
            self._forget_steps()

    def save_if_due(self, history: list[Misfit], scalars: Scalars | None) -> None:
        """Save after as many updates as the saver asks for."""
        if self._saver is not None and len(self._steps) >= self._saver.every:
            self.save(Progress(history=tuple(history), scalars=scalars))

    def sum(self, function: Callable[[TomographyModel, SlabState], FloatArray], model: TomographyModel) -> FloatArray:
        """Return the sum over slabs of ``function(model, state)``."""
        found: FloatArray = self._safely(
            lambda states: self.executor.sum(function, self._repeat(model), states),
        )
        return found

    def project(self, model: TomographyModel) -> FloatArray:
        """Return the projections of all slabs at their points, not yet blurred: (projection, y, x)."""
        return self.sum(project_slab, model)

    def update(self, solver: Solver, model: TomographyModel, residual: FloatArray, scalars: Scalars) -> None:
        """Take one step on every slab; ``residual`` is the weighted one, blurred."""
        self._steps.append((solver, model, residual, scalars))
        self.n_updates += 1
        self._safely(lambda _: None)

    def highest_back_projection(self, model: TomographyModel, stack: FloatArray) -> float:
        """Return max Aᵀ stack over all slabs; ``stack`` is already blurred."""

        def highest(states: list[Any]) -> float:
            shared = self.executor.share(stack)
            return float(max(self.executor.map(_highest, self._repeat(model), states, self._repeat(shared))))

        return self._safely(highest)

    def gather(self) -> FloatArray:
        """Bring the whole volume of coefficients to the host: (z, y, x)."""
        parts = self._safely(lambda states: self.executor.map(_coefficients, states))
        return np.concatenate([to_host(part) for part in parts], axis=1)


def _coefficients(state: SlabState) -> FloatArray:
    return state.volume


def _highest(model: TomographyModel, state: SlabState, stack: FloatArray) -> float:
    return max(float(back_project_slab(model, state, stack).max()), 0.0)
