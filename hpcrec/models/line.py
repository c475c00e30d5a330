"""The loss along a line: what line searches look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, FloatArray
from hpcrec.models import compiled
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import share_of
from hpcrec.models.events import dense
from hpcrec.models.placement import batch_beside
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.objectives.losses import LOSSES

_CHUNK = 64


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
    fast, batch = model.code(state) is compiled, batch_beside(state.obj, batch)
    patterns, good = dense(batch.patterns) if fast else model.clean(batch), model.good(batch)
    found = np.zeros(len(steps))
    for i, step in enumerate(steps):
        there = replace(
            state,
            obj=(state.obj + step * obj_change).astype(state.obj.dtype, copy=False),
            probe=(state.probe + step * probe_change).astype(state.probe.dtype, copy=False),
        )
        if fast:
            chain, _ = model._chain(there, batch.indices)
            parts = [(*share_of(chain, good, share), patterns[share]) for share in model._shares(state, batch)]
            calls = [partial(compiled.chain_loss, part, counts, seen) for part, seen, counts in parts]
            found[i] = sum(model.threads.run(calls))
            continue
        for start in range(0, len(batch.indices), _CHUNK):
            part = slice(start, start + _CHUNK)
            modelled = model.simulate(there, batch.indices[part])
            measured: Array = patterns[part].astype(modelled.dtype, copy=False)
            mask = good if good is None or len(good) == 1 else good[part]
            found[i] += LOSSES[model.detector.loss].evaluate(modelled, measured, mask)[0]
    return found
