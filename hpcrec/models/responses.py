"""How the patterns of a batch answer to a change of object and probe: what step lengths of least squares need."""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np

from hpcrec.backend.array import ComplexArray, FloatArray
from hpcrec.geometry.tiles import EMPTY_BOX
from hpcrec.models import compiled
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import KeptWaves, share_of
from hpcrec.models.partial import Field
from hpcrec.models.placement import batch_beside
from hpcrec.models.ptychography import PtychographyModel

KEPT_BYTES: Final = 512 << 20
"""What the waves that gradients keep for responses may take; of batches that need more, none are kept."""


def room_to_keep(
    model: PtychographyModel, state: PtychographyState, n: int, had: KeptWaves | None = None
) -> KeptWaves | None:
    """Return room for the waves of n patterns, as part of what was ``had`` if that is enough.

    None where a model keeps no waves: plain kernel, near field, more than :data:`KEPT_BYTES`.
    """
    n_parts = len(model.flight) * state.n_states * len(state.probe)
    pixels = model.shape[0] * model.shape[1]
    asked = waves_bytes(n, n_parts, state.n_slices, pixels)
    if model.code(state) is not compiled or model.detector.propagator is not None or asked > KEPT_BYTES:
        return None
    if had is not None and had.entering.shape[1:3] == (n_parts, state.n_slices) and len(had.leaving) >= n:
        return had
    return compiled.room_to_keep(n, n_parts, state.n_slices, pixels)


def waves_bytes(n: int, n_parts: int, n_slices: int, pixels: int) -> int:
    """Return the bytes of the waves that n patterns keep."""
    return n * n_parts * (n_slices + 1) * pixels * np.dtype(np.complex64).itemsize


def responses(
    model: PtychographyModel,
    state: PtychographyState,
    batch: Batch,
    obj_change: Field,
    probe_change: ComplexArray,
    kept: KeptWaves | None = None,
) -> FloatArray:
    """Return how a batch's far fields answer to a change of object (slice, y, x) and probe (mode, y, x).

    Terms (n, 5) of the patterns, see :func:`hpcrec.models.multislice.add_responses`.

    ``obj_change`` must cover the windows of the batch. ``kept`` is what ``model.gradients`` filled for the same batch
    of the same state: with it no wave passes the slices a second time, and none goes to the detector.
    """
    batch = batch_beside(state.obj, batch)
    chain, box = model._chain(state, batch.indices)
    if not obj_change.box.contains(box):
        raise ValueError(f"the change covers {obj_change.box}, the windows of the batch {box}")
    origin = (obj_change.box.y0 - state.box.y0, obj_change.box.x0 - state.box.x0)
    change = model._by_state(state, obj_change.values)
    probe, good, calls = model._entering(chain.whole, probe_change), model.good(batch), []
    for share in model._shares(state, batch):
        part, own_good = share_of(chain, good, share)
        if kept is not None:
            calls.append(partial(compiled.kept_responses, part, change, origin, probe, kept.part(share)))
            continue
        room, counts = model._room(state, part, EMPTY_BOX, ()), batch.patterns[share]
        calls.append(partial(model.code(state).add_responses, part, counts, own_good, change, origin, probe, room))
    return np.concatenate(model.threads.run(calls))
