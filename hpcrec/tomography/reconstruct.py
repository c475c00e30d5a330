"""The iterative reconstruction of a volume from aligned projections, slab by slab, on any executor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

import numpy as np

from hpcrec.backend.array import BoolArray, FloatArray, array_module, to_host
from hpcrec.backend.device import library
from hpcrec.engines.solvers import (
    Scalars,
    SlabState,
    Solver,
    back_project_slab,
    project_slab,
    start_slab,
    update_slab,
)
from hpcrec.errors import DataError, DivergedError
from hpcrec.models.tomography import Misfit, TomographyModel

logger = logging.getLogger(__name__)
_APART: Final = np.empty(0, np.float32)


class Executor(Protocol):
    """Who runs the work: this process, its threads, or the workers of a cluster.

    Items passed to :meth:`map` and :meth:`keep` are values, or handles from :meth:`keep` and :meth:`share`, which a
    worker sees as the values behind them. Results keep the order of the items. ``device`` says where the workers' large
    arrays live; with "gpu" each worker's own GPU is current while it works. Kept results stay there; what :meth:`map`
    brings lives on the host if another process made it.
    """

    device: Literal["cpu", "gpu"]

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        """Return ``function`` of the items as values, brought here."""

    def keep(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        """Return handles of the results, which stay where they were computed."""

    def share(self, value: Any) -> Any:
        """Return a handle of one value made available to every worker once."""


class InlineExecutor:
    """Runs everything in this process, in ``n_threads`` threads (the projector leaves the interpreter lock).

    With the device "gpu" work goes to the GPU that is current in the calling thread, and through that thread alone.
    """

    def __init__(self, n_threads: int = 1, device: Literal["cpu", "gpu"] = "cpu") -> None:
        self.n_threads, self.device = n_threads, device

    def map(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        """Return ``function`` of the items, in order."""
        if self.n_threads == 1 or self.device == "gpu":
            return list(map(function, *iterables))
        with ThreadPoolExecutor(self.n_threads) as pool:
            return list(pool.map(function, *iterables))

    def keep(self, function: Callable[..., Any], *iterables: Iterable[Any]) -> list[Any]:
        """Return the results themselves: nothing is far away."""
        return self.map(function, *iterables)

    def share(self, value: Any) -> Any:
        """Return the value itself."""
        return value


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A reconstructed volume.

    volume : (z, y, x) float32 density in rad/Å, blobs included
    coefficients : (z, y, x) float32, to start from again
    r1 : (iteration,) Σ w|P − b| / Σ w|b| before each iteration
    per_projection : (projection,) root mean square residual in rad before the last iteration
    """

    volume: FloatArray
    coefficients: FloatArray
    r1: FloatArray
    per_projection: FloatArray


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
    """A volume held as slabs by an executor, with the sums over slabs that the drivers need."""

    def __init__(
        self,
        model: TomographyModel,
        executor: Executor,
        n_slabs: int = 1,
        support: BoolArray | None = None,
        start: FloatArray | None = None,
    ) -> None:
        self.executor = executor
        self.slabs = split_rows(model.volume_shape[1], n_slabs, support)
        self.states = executor.keep(
            start_slab,
            self._repeat(model),
            self.slabs,
            self._rows(support),
            self._rows(start),
            self._repeat(executor.device),
        )

    def _repeat(self, value: Any) -> list[Any]:
        return [value] * len(self.slabs)

    def _rows(self, array: Any) -> list[Any]:
        if array is None:
            return self._repeat(None)
        return [np.ascontiguousarray(array[:, y0:y1]) for y0, y1 in self.slabs]

    def project(self, model: TomographyModel) -> FloatArray:
        """Return the projections of all slabs at their points, not yet blurred: (projection, y, x)."""
        return sum_stacks(self.executor.map(project_slab, self._repeat(model), self.states))

    def update(self, solver: Solver, model: TomographyModel, residual: FloatArray, scalars: Scalars) -> None:
        """Take one step on every slab; ``residual`` is the weighted one, blurred."""
        shared = self.executor.share(residual)
        self.states = self.executor.keep(
            update_slab, *map(self._repeat, (solver, model)), self.states, *map(self._repeat, (shared, scalars))
        )

    def highest_back_projection(self, model: TomographyModel, stack: FloatArray) -> float:
        """Return max Aᵀ stack over all slabs; ``stack`` is already blurred."""
        shared = self.executor.share(stack)
        return float(max(self.executor.map(_highest, self._repeat(model), self.states, self._repeat(shared))))

    def gather(self) -> FloatArray:
        """Bring the whole volume of coefficients to the host: (z, y, x)."""
        return np.concatenate([to_host(part) for part in self.executor.map(_coefficients, self.states)], axis=1)


def sum_stacks(stacks: list[FloatArray]) -> FloatArray:
    """Return the sum of the slabs' images, in slab order."""
    total = stacks[0]
    for stack in stacks[1:]:
        total = total + stack
    return total


def _coefficients(state: SlabState) -> FloatArray:
    return state.volume


def _highest(model: TomographyModel, state: SlabState, stack: FloatArray) -> float:
    return max(float(back_project_slab(model, state, stack).max()), 0.0)


def _norm(model: TomographyModel, device: Literal["cpu", "gpu"]) -> float:
    return model.norm(xp=library(device))


def model_norm(model: TomographyModel, executor: Executor) -> float:
    """Return the model's ‖A‖², found here, or on a worker where that has a GPU."""
    return model.norm() if executor.device == "cpu" else executor.map(_norm, [model], [executor.device])[0]


Judge = Callable[[TomographyModel, FloatArray], tuple[Misfit, FloatArray]]
"""From projections that are not yet blurred: their misfit, and apart from it its residual, blurred, for the slabs."""


def judge_by(executor: Executor, data: FloatArray, weights: FloatArray) -> Judge:
    """Return what compares projections with ``data`` (projection, y, x): here, or on a GPU of the executor's.

    There data and weights stay on the first worker, which does all the filtering; projections and residual travel.
    """
    if executor.device == "cpu":
        return lambda model, projected: _judged(model, projected, (data, weights))
    held = executor.keep(_held, [data], [weights], [executor.device])

    def judge(model: TomographyModel, projected: FloatArray) -> tuple[Misfit, FloatArray]:
        found: tuple[Misfit, FloatArray] = executor.map(_judged, [model], [projected], held)[0]
        return found

    return judge


def _held(data: FloatArray, weights: FloatArray, device: Literal["cpu", "gpu"]) -> tuple[FloatArray, FloatArray]:
    xp = library(device)
    return xp.asarray(data), xp.asarray(weights)


def _judged(
    model: TomographyModel, projected: FloatArray, held: tuple[FloatArray, FloatArray]
) -> tuple[Misfit, FloatArray]:
    found = model.misfit(model.smooth(array_module(held[0]).asarray(projected)), *held)
    return replace(found, residual=_APART), model.smooth(found.residual)


def iterate(
    volume: SlabVolume,
    solver: Solver,
    model: TomographyModel,
    data: FloatArray,
    weights: FloatArray,
    *,
    n_iterations: int,
    norm: float,
    scale: float,
    scalars: Scalars | None = None,
    noise: float | None = None,
    callback: Callable[[int, Misfit], None] | None = None,
) -> tuple[list[Misfit], Scalars | None]:
    """Run ``n_iterations`` of ``solver`` on ``volume``; stop early when the rms residual reaches ``noise`` (rad).

    Returns each iteration's misfit without its residual, and the last numbers.
    """
    history: list[Misfit] = []
    judge = judge_by(volume.executor, data, weights)
    for i in range(n_iterations):
        found, residual = judge(model, volume.project(model))
        if not np.isfinite(found.loss):
            raise DivergedError(f"the tomographic residual is not finite at iteration {i}; the step is too long")
        history.append(found)
        if callback is not None:
            callback(i, found)
        if noise is not None and found.rms <= noise:
            logger.info("stopped at iteration %d: the residual reached the noise", i)
            break
        scalars = solver.scalars(scalars, found.loss, norm, scale)
        volume.update(solver, model, residual, scalars)
    return history, scalars


def check_stack(model: TomographyModel, data: FloatArray, weights: FloatArray) -> None:
    """Raise DataError unless data and weights are finite, of the model's shape, and the weights within [0, 1]."""
    expected = (len(model.poses), *model.detector_shape)
    for name, array in (("projections", data), ("weights", weights)):
        if array.shape != expected:
            raise DataError(f"the {name} must have the shape {expected} (poses, detector), got {array.shape}")
        if not np.isfinite(array).all():
            raise DataError(f"the {name} hold values that are not finite; prepare the projections first")
    if weights.min() < 0 or weights.max() > 1:
        raise DataError("weights must lie within [0, 1]")


def reconstruct(
    model: TomographyModel,
    data: FloatArray,
    weights: FloatArray,
    solver: Solver,
    *,
    support: BoolArray | None = None,
    start: FloatArray | None = None,
    noise: float | None = None,
    n_slabs: int = 1,
    executor: Executor | None = None,
    callback: Callable[[int, Misfit], None] | None = None,
) -> Reconstruction:
    """Reconstruct the volume whose projections are ``data``.

    data, weights : (projection, y, x) phase in rad and its trust within [0, 1]
    support : (z, y, x) boolean; start : (z, y, x) coefficients; noise : rms in rad at which to stop early
    callback : called before each iteration with its number and :class:`Misfit`

    Given and returned arrays live on the host, whatever the executor's device.
    """
    check_stack(model, data, weights)
    data, weights = np.asarray(data, np.float32), np.asarray(weights, np.float32)
    executor = executor or InlineExecutor()
    volume = SlabVolume(model, executor, n_slabs, support, start)
    _, residual = judge_by(executor, data, weights)(model, np.zeros_like(data))
    history, _ = iterate(
        volume,
        solver,
        model,
        data,
        weights,
        n_iterations=solver.options.n_iterations,
        norm=model_norm(model, executor),
        scale=volume.highest_back_projection(model, -residual),
        noise=noise,
        callback=callback,
    )
    coefficients = volume.gather()
    return Reconstruction(
        volume=model.density(coefficients),
        coefficients=coefficients,
        r1=np.array([m.r1 for m in history]),
        per_projection=history[-1].per_projection,
    )
