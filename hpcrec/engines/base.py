"""What an engine is: an update rule that never sees ranks, files or devices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

from hpcrec.backend.array import Array
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.partial import Partial, Total
from hpcrec.models.placement import batch_beside
from hpcrec.models.stream import StepRule

DONE = "done"


def bounded(options: Any, copies: float) -> float:
    """Return the copies of the object in an update, with those that a bound of |O| makes."""
    return copies if options.object_constraint == "none" else copies + 2


def of_update(copies: Callable[[Any, bool], tuple[float, float]]) -> Callable[[Any, bool], tuple[float, float]]:
    """Return the ``box_copies`` of an engine whose updates need arrays of the batch's box beside what is kept."""

    def box_copies(options: Any, windowed: bool) -> tuple[float, float]:
        beside, update = copies(options, windowed)
        return 0.0, update - beside

    return box_copies


class Engine(ABC):
    """An update rule for :class:`PtychographyState`.

    For each batch and each name in ``passes``, in order: every rank calls :meth:`accumulate` on its share, an exchange
    adds the partials, every rank calls :meth:`apply` with the same total. ``peaks[pass]`` names the fields whose
    global maximum the total must carry. ``accumulate`` is pure; ``apply`` alone changes the state and what the engine
    keeps from pass to pass. It may say which pass comes next, so that a search repeats until it has found, or that the
    update is ``DONE``; :func:`visit` is that loop.

    In each update, the total of one pass at least has the sums ``loss`` (the objective), ``error`` = Σ(|F| − √I)² and
    ``counts`` = ΣI, each an array of shape (1,), float64, over the good pixels: ``data_error`` is error / counts.

    ``pixel_passes`` : passes that look at no pattern: their partials are sums over the pixels of ``state.core``
    ``default_batch_size`` : patterns in one update; 0: all
    ``full_batch`` : an update needs all patterns; a sweep is one update
    ``one_slice_only`` : objects of more slices are refused
    ``keeps_waves`` : the exit waves of all patterns are kept, twice during an update
    ``keeps_batch`` : the waves of a batch in front of all slices and behind them are kept for a second pass
    ``moves_probe`` : the probe is reconstructed too
    ``divided`` : passes for whose batches :meth:`accumulate` may be called part by part, adding the partials
    ``copies`` : of the options, and whether the state is ``windowed``: arrays of the object's size, the object among
        them, that are there beside the sums of a batch, and all at most in an update, as ``tests/run/test_memory.py``
        measures them
    ``box_copies`` : of both numbers, those of the box of a batch only, which is small where batches are compact
    """

    passes: tuple[str, ...] = ("update",)
    pixel_passes: tuple[str, ...] = ()
    peaks: dict[str, tuple[str, ...]] = {}
    default_batch_size: int = 32
    full_batch: bool = False
    one_slice_only: bool = False
    keeps_waves: bool = False
    keeps_batch: bool = False
    moves_probe: bool = True
    divided: tuple[str, ...] = ()
    copies: Callable[[Any, bool], tuple[float, float]] = staticmethod(
        lambda options, windowed: (1.0, bounded(options, 3.6))
    )
    box_copies: Callable[[Any, bool], tuple[float, float]] = staticmethod(lambda options, windowed: (0.0, 0.0))

    @abstractmethod
    def prepare(self, state: PtychographyState) -> None:
        """Fill ``state.memory`` and ``state.object_memory`` with zeros where they lack; called at start and resume."""

    @abstractmethod
    def accumulate(self, name: str, state: PtychographyState, batch: Batch) -> Partial:
        """Return this share's contribution to pass ``name``; an empty share gives zeros of the right shapes."""

    @abstractmethod
    def apply(self, name: str, state: PtychographyState, total: Total) -> str | None:
        """Change the state by the total of pass ``name``; return the pass to come, DONE, or None: the next one."""

    @abstractmethod
    def finish_iteration(self, state: PtychographyState) -> None:
        """Do what is due once a sweep (orthogonal modes, gauge); the same on all ranks, pointwise on the object."""


class StreamingEngine(Engine):
    """An engine whose batches need not come back to the interpreter, where one rank has all patterns."""

    @abstractmethod
    def step_rule(self, state: PtychographyState) -> StepRule | None:
        """Return what :meth:`accumulate` and :meth:`apply` do in this sweep, to round-off; None: more than a rule."""


def visit(
    engine: Engine,
    state: PtychographyState,
    batch: Batch,
    exchange: Callable[[Partial, tuple[str, ...]], Total],
    in_flight: Callable[[Callable[[Batch], Partial], Batch, Array, tuple[str, ...]], Total] | None = None,
) -> Total:
    """Run the passes of one batch, this rank's share of it; return the last total that tells the loss.

    ``exchange(partial, peaks)`` adds the partials of all ranks; ``in_flight(accumulate, batch, positions, peaks)`` does
    both, part by part, for passes that may be divided. Patterns move to where the object lives, once for all passes.
    """
    name, told, batch = engine.passes[0], Total({}, {}), batch_beside(state.obj, batch, events=True)
    while name != DONE:
        peaks = engine.peaks.get(name, ())
        if in_flight is not None and name in engine.divided:
            total = in_flight(partial(engine.accumulate, name, state), batch, state.positions, peaks)
        else:
            total = exchange(engine.accumulate(name, state, batch), peaks)
        told = total if "loss" in total.sums else told
        following = (*engine.passes, DONE)[engine.passes.index(name) + 1]
        name = engine.apply(name, state, total) or following
    return told
