"""What an engine is: an update rule that never sees ranks, files or devices."""

from __future__ import annotations

from abc import ABC, abstractmethod

from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.partial import Partial, Total


class Engine(ABC):
    """An update rule for :class:`PtychographyState`.

    For each batch and each name in ``passes``, in order: every rank calls :meth:`accumulate` on its share, an exchange
    adds the partials, every rank calls :meth:`apply` with the same total. ``peaks[pass]`` names the fields whose
    global maximum the total must carry. ``accumulate`` is pure; ``apply`` alone changes the state and what the engine
    keeps from pass to pass.

    Each total of the last pass has the sums ``loss`` (the objective), ``error`` = Σ(|F| − √I)² and ``counts`` = ΣI,
    each an array of shape (1,), float64, over the good pixels: ``data_error`` is error / counts.
    """

    passes: tuple[str, ...] = ("update",)
    peaks: dict[str, tuple[str, ...]] = {}
    default_batch_size: int = 32

    @abstractmethod
    def prepare(self, state: PtychographyState) -> None:
        """Fill ``state.memory`` and ``state.object_memory`` with zeros where they lack; called at start and resume."""

    @abstractmethod
    def accumulate(self, name: str, state: PtychographyState, batch: Batch) -> Partial:
        """Return this share's contribution to pass ``name``; an empty share gives zeros of the right shapes."""

    @abstractmethod
    def apply(self, name: str, state: PtychographyState, total: Total) -> None:
        """Change the state by the total of pass ``name``."""

    @abstractmethod
    def finish_iteration(self, state: PtychographyState) -> None:
        """Do what is due once a sweep (orthogonal modes, gauge); the same on all ranks, pointwise on the object."""
