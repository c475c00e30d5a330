"""The iterative reconstruction of a volume from aligned projections, slab by slab, on any executor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from hpcrec.backend.array import BoolArray, FloatArray, array_module
from hpcrec.backend.device import library
from hpcrec.engines.solvers import Solver
from hpcrec.errors import DataError, DivergedError, WorkersLostError
from hpcrec.models.tomography import Misfit, TomographyModel
from hpcrec.tomography.executor import Executor, InlineExecutor
from hpcrec.tomography.slabs import Progress, SlabSaver, SlabVolume

logger = logging.getLogger(__name__)
_APART: Final = np.empty(0, np.float32)


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
    held: tuple[int, list[Any]] | None = None

    def judge(model: TomographyModel, projected: FloatArray) -> tuple[Misfit, FloatArray]:
        nonlocal held
        while True:
            try:
                if held is None or held[0] != executor.generation:
                    held = executor.generation, executor.keep(_held, [data], [weights], [executor.device])
                found: tuple[Misfit, FloatArray] = executor.map(_judged, [model], [projected], held[1])[0]
                return found
            except WorkersLostError as fault:
                executor.recover(fault)

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
    before: Progress | None = None,
    noise: float | None = None,
    callback: Callable[[int, Misfit], None] | None = None,
) -> Progress:
    """Run ``n_iterations`` of ``solver`` on ``volume``; stop early when the rms residual reaches ``noise`` (rad).

    Goes on where ``before`` ended, and returns how far it came.
    """
    before = before or Progress()
    history, scalars = list(before.history), before.scalars
    judge = judge_by(volume.executor, data, weights)
    for i in range(len(history), n_iterations):
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
        volume.save_if_due(history, scalars)
    return Progress(history=tuple(history), scalars=scalars, done=True)


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
    saver: SlabSaver | None = None,
    callback: Callable[[int, Misfit], None] | None = None,
) -> Reconstruction:
    """Reconstruct the volume whose projections are ``data``.

    data, weights : (projection, y, x) phase in rad and its trust within [0, 1]
    support : (z, y, x) boolean; start : (z, y, x) coefficients; noise : rms in rad at which to stop early
    saver : keeps the slabs from time to time, and what an interrupted run has left, from which this one goes on
    callback : called before each iteration with its number and :class:`Misfit`

    Given and returned arrays live on the host, whatever the executor's device.
    """
    check_stack(model, data, weights)
    data, weights = np.asarray(data, np.float32), np.asarray(weights, np.float32)
    executor = executor or InlineExecutor()
    volume = SlabVolume(model, executor, n_slabs, support, start, saver)
    progress = volume.resume()
    if not progress.done:
        _, residual = judge_by(executor, data, weights)(model, np.zeros_like(data))
        progress = iterate(
            volume,
            solver,
            model,
            data,
            weights,
            n_iterations=solver.options.n_iterations,
            norm=model_norm(model, executor),
            scale=volume.highest_back_projection(model, -residual),
            before=progress,
            noise=noise,
            callback=callback,
        )
        volume.save(progress)
    coefficients = volume.gather()
    return Reconstruction(
        volume=model.density(coefficients),
        coefficients=coefficients,
        r1=np.array([m.r1 for m in progress.history]),
        per_projection=progress.history[-1].per_projection,
    )
