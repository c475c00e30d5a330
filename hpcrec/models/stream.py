"""Many batches in one compiled call, for update rules that step object and probe after each batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray, IntArray
from hpcrec.backend.fft import aligned_empty
from hpcrec.backend.kernels.batches import run_batches
from hpcrec.backend.kernels.waves import COUNTS
from hpcrec.backend.threads import run_together
from hpcrec.models import compiled
from hpcrec.models.base import PtychographyState
from hpcrec.models.chain import Chain
from hpcrec.models.spectra import spectra_of, waves_of
from hpcrec.models.windows import BOUNDS


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRule:
    """What an engine does after each batch, with W = Σ|ψ|², V = Σ|O_1|² and the gradients g of the batch.

    Object: O += scale · g / d, with momentum as :func:`hpcrec.backend.kernels.updates.step_with_momentum`, where
    W exceeds ``dark_share`` of its peak; d = √((share · W)² + floor²) if ``quadratic``, else
    share · W + max((1 − share) · W, floor); floor = floor_share · max W, or max Σ|P|² for ``floor_of`` = "probe".
    Probe, if it ``moves_probe``: P −= step · u with u = g / (curvature · ((1 − γ) V + γ max V)), γ its regularity;
    with ``momentum`` step · (u + μv), v ← μv + u, which takes γ = 1.
    ``velocity`` : name of v in ``state.object_memory`` and, with "probe_" in front, in ``state.memory``; None: without
    """

    share: float
    floor_share: float
    floor_of: Literal["illumination", "probe"]
    scale: float
    curvature: float
    quadratic: bool
    dark_share: float
    bound: Literal["none", "amplitude_bound", "phase_only"]
    moves_probe: bool
    probe_step: float
    probe_regularity: float
    velocity: str | None = None
    momentum: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Consecutive batches of a sweep: positions ``indices`` (n,), batch i from ``edges[i]`` to ``edges[i + 1]``.

    ``patterns`` (…, ky, kx) in the detector's type; pattern j of the block is ``patterns[rows[j]]``; ``good`` (n, ky,
    kx) as in :class:`hpcrec.models.base.Batch`.
    """

    indices: IntArray
    edges: IntArray
    patterns: Array
    rows: IntArray
    good: BoolArray | None = None


def blocks_of(batches: Sequence[IntArray], n_patterns: int) -> list[list[IntArray]]:
    """Return consecutive batches (n,) in groups of at most so many patterns, or of one batch."""
    blocks: list[list[IntArray]] = []
    size = n_patterns
    for batch in batches:
        if size + len(batch) > n_patterns:
            blocks.append([])
            size = 0
        blocks[-1].append(batch)
        size += len(batch)
    return blocks


def stream(
    state: PtychographyState,
    chain: Chain,
    block: Block,
    good: BoolArray | None,
    rule: StepRule,
    lent: tuple[ComplexArray, FloatArray],
) -> FloatArray:
    """Take the steps of all batches of a block; return the sums of loss, error and counts (3,).

    ``chain`` is that of all patterns of the block, ``good`` their pixels; ``lent`` : gradient and illumination
    (thread, slice, y, x), zero before and after. Changes object, probe and velocities of the state.
    """
    n_threads, (n_modes, ny, nx) = len(lent[0]), chain.spectrum.shape
    # The loops write into these: with whole pixels the spectrum is the caller's probe itself
    spectrum = chain.spectrum.copy()
    momenta, flat = _momenta(state, chain, rule), spectrum.reshape(n_modes, -1).view(np.float32)
    waves = list(compiled.waves_of(chain))
    obj, waves[2] = waves[0], flat
    lead = (n_threads, *chain.obj.shape[:2])
    patterns, rows = block.patterns, block.rows
    if patterns.dtype.type not in COUNTS:  # never the whole of what may be all patterns of a tilt
        patterns, rows = patterns[rows], np.arange(len(rows))
    gradient, light = (a.reshape(*lead, *a.shape[2:]) for a in lent)
    spectra = np.zeros((n_threads, *flat.shape), np.float32)
    powers, totals = np.zeros((n_threads, ny, nx), np.float32), np.zeros((n_threads, 3))
    peaks = np.zeros(2 + n_threads, np.float32)
    peaks[0] = np.sum(np.abs(state.probe) ** 2, axis=0).max()
    meeting = np.zeros(2, np.int64)
    common = (
        tuple(waves), compiled.detector_of(chain, patterns, rows, good),
        (block.edges, _ordered_windows(chain, block), np.float32(chain.share**2)),
    )  # fmt: skip
    sums = compiled.frequencies_of(chain), (gradient.view(np.float32), light, spectra, powers)
    floats = momenta[0].view(np.float32), momenta[1].view(np.float32).reshape(len(momenta[1]), 2 * ny * nx)
    rules = _of_object(rule), _of_probe(rule)

    def run(place: int) -> None:
        own = n_threads, meeting, compiled.plan_of(chain, place)
        run_batches(place, *own, *common, _room(chain, place), *sums, floats, *rules, peaks, totals[place])

    run_together(run, n_threads)
    state.obj = obj.view(np.complex64).reshape(state.obj.shape)
    if rule.moves_probe:
        state.probe = spectrum if chain.whole else waves_of(spectrum)
        if rule.velocity is not None:
            state.memory[f"probe_{rule.velocity}"] = momenta[1] if chain.whole else waves_of(momenta[1])
    return totals.sum(axis=0)  # type: ignore[no-any-return]


def _momenta(state: PtychographyState, chain: Chain, rule: StepRule) -> tuple[ComplexArray, ComplexArray]:
    """Return the velocities of object and spectrum, which the loops change; of no slice and mode without."""
    if rule.velocity is None:
        return np.zeros((0, 1, 1), np.complex64), np.zeros((0, 1, 1), np.complex64)
    of_object = np.ascontiguousarray(state.object_memory[rule.velocity], np.complex64)
    state.object_memory[rule.velocity] = of_object
    of_probe = state.memory[f"probe_{rule.velocity}"].astype(np.complex64)
    return of_object, of_probe if chain.whole else spectra_of(of_probe)


def _ordered_windows(chain: Chain, block: Block) -> IntArray:
    """Return the windows' first pixels (n · flight, 2), in ascending order of x within each batch."""
    flight, windows = chain.corners.shape[1], chain.corners.reshape(-1, 2)
    batch = np.repeat(np.arange(len(block.edges) - 1), np.diff(block.edges) * flight)
    return np.ascontiguousarray(windows[np.lexsort((windows[:, 1], batch))])


def _of_object(rule: StepRule) -> tuple[Any, ...]:
    of_light = rule.floor_of == "illumination"
    numbers = (np.float32(number) for number in (rule.share, rule.floor_share, rule.scale, rule.momentum))
    return *numbers, of_light, np.float32(rule.dark_share), rule.quadratic, BOUNDS[rule.bound]


def _of_probe(rule: StepRule) -> tuple[Any, ...]:
    numbers = rule.probe_regularity, 1 / rule.curvature, rule.probe_step, rule.momentum
    return rule.moves_probe, *(np.float32(number) for number in numbers)


def _room(chain: Chain, place: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    n_parts, n_modes, floats = chain.n_parts, len(chain.spectrum), compiled.room_floats(chain.rate.size)
    incoming = _kept_room((n_parts, chain.obj.shape[1], floats), place)[None]
    return incoming, _kept_room((n_parts + 3, floats), place), _kept_room((n_modes, 1, 1, floats), place)[:, 0, 0]


@lru_cache(maxsize=96)
def _kept_room(shape: tuple[int, ...], place: int) -> FloatArray:
    return aligned_empty(shape, np.float32)
