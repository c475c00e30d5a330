"""What a volume solver is: pure functions on slabs of the volume, joined by sums of projections.

One iteration: every slab projects, the images add up, the residual goes to every slab, every slab updates itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal

import numpy as np

from hpcrec.backend.array import BoolArray, FloatArray, array_module
from hpcrec.backend.device import library
from hpcrec.errors import ConfigError
from hpcrec.models.tomography import TomographyModel

SOLVERS = {
    "fista": "hpcrec.engines.fista:Fista",
    "resire": "hpcrec.engines.resire:Resire",
}


@dataclass(frozen=True, kw_only=True)
class SlabState:
    """One slab of the volume under reconstruction; a plain bundle of arrays, on the host or on one device.

    slab : rows [y0, y1) of the whole volume
    volume : (z, rows, x) float32, the coefficients in rad/Å
    point : (z, rows, x) float32, where the next gradient is taken (``volume`` itself without momentum)
    support : (z, rows, x) boolean, False = held at zero; None = everywhere free
    """

    slab: tuple[int, int]
    volume: FloatArray
    point: FloatArray
    support: BoolArray | None = None


@dataclass(frozen=True, kw_only=True)
class Scalars:
    """The numbers of one iteration, the same for every slab.

    ``step`` 1/‖A‖² scaled; ``momentum`` β of the extrapolation; ``threshold`` of the sparsity; ``t`` and ``loss`` are
    the schedule's memory.
    """

    step: float
    momentum: float = 0.0
    threshold: float = 0.0
    t: float = 1.0
    loss: float = np.inf


class Solver(ABC):
    """An iterative solver of min ½ ‖W^½ (A u − b)‖² + penalty(u) over slabs; holds its options only."""

    Options: ClassVar[type[Any]]
    options: Any

    @abstractmethod
    def scalars(self, before: Scalars | None, loss: float, norm: float, scale: float) -> Scalars:
        """Return the numbers of this iteration from the last ones, the loss at ``point``, ‖A‖² and max Aᵀ W b."""

    @abstractmethod
    def update(self, state: SlabState, gradient: FloatArray, scalars: Scalars) -> SlabState:
        """Return the slab after one step along ``gradient`` (z, rows, x), which is Aᵀ residual at ``point``."""


def solver_class(name: str) -> type[Solver]:
    """Return the solver of that name from :data:`SOLVERS`."""
    if name not in SOLVERS:
        raise ConfigError(f"there is no solver {name!r}; known are {', '.join(SOLVERS)}")
    module, _, attribute = SOLVERS[name].partition(":")
    return getattr(import_module(module), attribute)  # type: ignore[no-any-return]


def start_slab(
    model: TomographyModel,
    slab: tuple[int, int],
    support: BoolArray | None = None,
    volume: FloatArray | None = None,
    device: Literal["cpu", "gpu"] = "cpu",
) -> SlabState:
    """Return the state of a slab at ``volume`` (z, rows, x), zero by default, on the host or the current GPU."""
    xp, shape = library(device), (model.volume_shape[0], slab[1] - slab[0], model.volume_shape[2])
    volume = xp.zeros(shape, np.float32) if volume is None else xp.asarray(volume)
    return SlabState(slab=slab, volume=volume, point=volume, support=None if support is None else xp.asarray(support))


def project_slab(model: TomographyModel, state: SlabState) -> FloatArray:
    """Return the slab's share of the projections at ``point``, beside it, not blurred: (projection, y, x)."""
    return model.projector(state.slab, state.support).forward(state.point)


def back_project_slab(model: TomographyModel, state: SlabState, stack: FloatArray) -> FloatArray:
    """Return Aᵀ stack on the slab (z, rows, x), zero outside its support; ``stack`` is already blurred.

    A slab on a device copies a stack on the host to it.
    """
    back = model.projector(state.slab, state.support).adjoint(array_module(state.point).asarray(stack))
    return back if state.support is None else back * state.support


def update_slab(
    solver: Solver, model: TomographyModel, state: SlabState, residual: FloatArray, scalars: Scalars
) -> SlabState:
    """Return the slab after one iteration of ``solver``; ``residual`` (projection, y, x) is already blurred."""
    return solver.update(state, back_project_slab(model, state, residual), scalars)
