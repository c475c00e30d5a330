"""The loss along a line: what line searches look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, FloatArray, array_module, numbers_to_host
from hpcrec.models import compiled
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import share_of
from hpcrec.models.events import dense
from hpcrec.models.placement import batch_beside
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.objectives.losses import LOSSES

# Patterns at a time: on a device large against the launch of a kernel; estimated, not measured
_CHUNK, _DEVICE_CHUNK = 64, 256


def losses_along(
    model: PtychographyModel,
    state: PtychographyState,
    batch: Batch,
    obj_change: ComplexArray,
    probe_change: ComplexArray,
    steps: Sequence[float],
) -> FloatArray:
    """Return the loss (step,) float64 of a batch at O + t D_O, P + t D_P for each step t; the state stays as it is.

    For one slice the modelled intensities are polynomials of fourth degree in t, for S slices of degree 2 S + 2.
    """
    batch, found = batch_beside(state.obj, batch), []
    loss = _compiled_loss if model.code(state) is compiled else _plain_loss
    for step in steps:
        there = replace(
            state,
            obj=(state.obj + step * obj_change).astype(state.obj.dtype, copy=False),
            probe=(state.probe + step * probe_change).astype(state.probe.dtype, copy=False),
        )
        found.append(loss(model, there, batch))
    return numbers_to_host(found)


def _compiled_loss(model: PtychographyModel, state: PtychographyState, batch: Batch) -> Any:
    chain, _ = model._chain(state, batch.indices)
    good = model.good(batch)
    patterns = dense(batch.patterns)
    parts = [(*share_of(chain, good, share), patterns[share]) for share in model._shares(state, batch)]
    calls = [partial(compiled.chain_loss, part, counts, seen) for part, seen, counts in parts]
    return np.float64(sum(model.threads.run(calls)))


def _plain_loss(model: PtychographyModel, state: PtychographyState, batch: Batch) -> Any:
    """Return the loss, float64, a number where the object lives."""
    patterns, good, size = model.clean(batch), model.good(batch), _CHUNK
    if array_module(state.obj) is not np:
        size = _DEVICE_CHUNK
    found = array_module(state.obj).zeros(())
    for start in range(0, len(batch.indices), size):
        part = slice(start, start + size)
        modelled = model.simulate(state, batch.indices[part])
        measured: Array = patterns[part].astype(modelled.dtype, copy=False)
        mask = good if good is None or len(good) == 1 else good[part]
        found = found + LOSSES[model.detector.loss].evaluate(modelled, measured, mask)[0].astype(np.float64)
    return found
