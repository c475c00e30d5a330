"""What a refinement is: a rule for one quantity beside object and probe, fed by the engine that carries it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from hpcrec.backend.array import Array, FloatArray
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.gradients import Gradients
from hpcrec.models.ptychography import PtychographyModel, Wanted
from hpcrec.options import options


@options
class RefinementOptions:
    """When a quantity is refined.

    start_iteration : first sweep (from 0) that refines it
    stop_iteration : first sweep that no longer does; none: to the end
    """

    start_iteration: int = 5
    stop_iteration: int | None = None


class Refinement(ABC):
    """A rule for one quantity of :class:`PtychographyState`; it never sees ranks.

    In the sweeps where it is :meth:`due`, an engine asks the model for ``wanted`` gradients; every rank turns those of
    its share into arrays that may be added (:meth:`collect`), an exchange adds them, and every rank calls
    :meth:`apply` with the same sums, and :meth:`finish` once a sweep. What it keeps stands in ``state.memory``.
    """

    wanted: tuple[Wanted, ...] = ()

    def __init__(self, model: PtychographyModel, options: RefinementOptions) -> None:
        self.model, self.when = model, options

    def due(self, state: PtychographyState) -> bool:
        """Whether this sweep refines the quantity."""
        stop = self.when.stop_iteration
        return self.when.start_iteration <= state.iteration and (stop is None or state.iteration < stop)

    @abstractmethod
    def prepare(self, state: PtychographyState) -> None:
        """Fill ``state.refined`` and ``state.memory`` where they lack."""

    @abstractmethod
    def collect(self, state: PtychographyState, batch: Batch, gradients: Gradients) -> dict[str, Array]:
        """Return a share's sums by name."""

    @abstractmethod
    def apply(self, state: PtychographyState, sums: Mapping[str, Array]) -> None:
        """Change the state by the sums of one batch."""

    @abstractmethod
    def finish(self, state: PtychographyState) -> None:
        """Do what is due once a sweep."""


def spread(batch: Batch, n_positions: int, values: FloatArray) -> FloatArray:
    """Return values (n, …) of a batch's patterns at their places among all positions (position, …), zero elsewhere."""
    whole = np.zeros((n_positions, *values.shape[1:]))
    whole[batch.indices] = values
    return whole
