"""A device's own kernels, each compared with array code before its first use: what disagrees is not used.

A driver, a compiler or an architecture that nobody tried may break a kernel; a run of days must not depend on it.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np

from hpcrec.backend.array import Array, BoolArray, array_module, to_host
from hpcrec.backend.cuda import gaps_of
from hpcrec.backend.launch import compiles, device_number
from hpcrec.models import launched, multislice
from hpcrec.models.chain import Chain, ChainSums, part_of
from hpcrec.models.events import Events, dense, events_of, kind_of

logger = logging.getLogger(__name__)

chain_intensities = multislice.chain_intensities
add_responses = multislice.add_responses

# Kernels and array code differ by some 1e-6 of the largest value in single precision; a broken kernel by itself
_TOLERANCE: Final = 1e-3
_PHASE: Final = 0.5
_verdicts: dict[Hashable, bool] = {}


def add_gradients(
    chain: Chain, patterns: Array | Events, good: BoolArray | None, sums: ChainSums, *, deterministic: bool = False
) -> None:
    """Add the gradients of ``patterns`` by :mod:`hpcrec.models.launched`, if what that chooses can be trusted."""
    known = compiles(chain.obj) and len(chain.corners) > 0
    chosen = launched.family(chain, patterns, sums) if known else "array"
    if chosen == "array" or not _agrees(chosen, chain, patterns, good, sums, deterministic):
        multislice.add_gradients(chain, dense(patterns), good, sums)
    else:
        launched.add_gradients(chain, patterns, good, sums, deterministic=deterministic)


def _agrees(
    chosen: str, chain: Chain, patterns: Array | Events, good: BoolArray | None, sums: ChainSums, deterministic: bool
) -> bool:
    """Whether a kernel's gradients are those of array code, as the first patterns that it was asked for showed."""
    variant = (chosen, deterministic, *_variant(chain, patterns, good, sums))
    if variant not in _verdicts:
        error = _disagreement(chain, patterns, good, sums, deterministic)
        # Not-a-number is no agreement
        _verdicts[variant] = error <= _TOLERANCE
        if not _verdicts[variant]:
            logger.error(
                "the %s kernel for %d pixels disagrees with array code on this GPU, by %.2g of the largest value: "
                "array code is used instead, which is slower; please report it with what hpcrec info prints",
                *(chosen, chain.spectrum.shape[-1], error),
            )
    return _verdicts[variant]


def _variant(chain: Chain, patterns: Array | Events, good: BoolArray | None, sums: ChainSums) -> tuple[Hashable, ...]:
    """Return what tells kernels, and ways through them, apart."""
    masks = 0 if good is None else min(len(good), 2)
    wanted = tuple(getattr(sums, one.name) is None for one in fields(sums))
    shape = chain.spectrum.shape, chain.obj.shape[1], len(gaps_of(chain.propagators).factors)
    counts = patterns.dtype.name, kind_of(patterns), masks
    return device_number(), chain.detector.loss, *counts, chain.whole, wanted, *shape


def _disagreement(
    chain: Chain, patterns: Array | Events, good: BoolArray | None, sums: ChainSums, deterministic: bool
) -> float:
    """Return how far gradients of two patterns, and of two of random counts, are off array code's, of the largest.

    They are seen through an object of random phases: through one that fits them gradients would be round-off, and
    through an empty one slopes by positions.
    """
    xp, share, window = array_module(chain.obj), slice(0, 2), chain.spectrum.shape[-2:]
    rng = np.random.default_rng(0)
    phases = _PHASE * rng.standard_normal((*chain.obj.shape[:2], *window))
    two = part_of(chain, share)
    two = replace(two, obj=xp.asarray(np.exp(1j * phases).astype(chain.obj.dtype)), corners=0 * two.corners)
    first = patterns[share]
    drawn: Any = xp.asarray(rng.integers(0, 4, first.shape).astype(first.dtype))
    drawn = events_of(drawn) if isinstance(first, Events) else drawn
    mask = good if good is None else good[share]
    found = []
    for counts in (drawn, first):
        rooms = [_room(two, sums), _room(two, sums)]
        launched.add_gradients(two, counts, mask, rooms[0], deterministic=deterministic)
        multislice.add_gradients(two, dense(counts), mask, rooms[1])
        found.append([_arrays(room) for room in rooms])
    scales = {name: max(float(np.abs(pair[1][name]).max()) for pair in found) for name in found[0][1]}
    errors = [
        float(np.abs(by_kernel[name] - wanted).max()) / (scales[name] or 1.0)
        for by_kernel, by_array in found
        for name, wanted in by_array.items()
    ]
    return max(errors) if np.isfinite(errors).all() else float("inf")


def _room(chain: Chain, sums: ChainSums) -> ChainSums:
    """Return empty sums on the pixels of a chain's object, of what ``sums`` has."""
    xp = array_module(chain.obj)
    return replace(
        sums,
        origin=(0, 0),
        obj=xp.zeros(chain.obj.shape, sums.obj.dtype),
        illumination=xp.zeros(chain.obj.shape, sums.illumination.dtype),
        totals=np.zeros(3),
        spectrum=None if sums.spectrum is None else xp.zeros_like(sums.spectrum),
        shifts=None if sums.shifts is None else np.zeros((len(chain.corners), *sums.shifts.shape[1:])),
    )


def _arrays(sums: ChainSums) -> dict[str, Array]:
    """Return the sums that kernels know, on the host, by name."""
    arrays = {name: getattr(sums, name) for name in ("obj", "illumination", "totals", "spectrum", "shifts")}
    return {name: to_host(values) for name, values in arrays.items() if values is not None}
