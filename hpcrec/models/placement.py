"""Where the arrays of a reconstruction lie: on the host, or beside an object on a device."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any, Final

import numpy as np

from hpcrec.backend.array import Array, array_module, to_host
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import Detector
from hpcrec.models.events import Events

_OF_DETECTOR: Final = ("mask", "propagator", "blur")
_LARGE: Final = ("variation", "background")


def beside(like: Array, values: Any) -> Any:
    """Return an array of the host where ``like`` lives, any other as it is; None stays None."""
    xp = array_module(like)
    if xp is np or values is None or array_module(values) is xp:
        return values
    # CUDA knows the byte order of the machine only, HDF5 files may have the other one
    return xp.asarray(values.astype(values.dtype.newbyteorder("="), copy=False))


def batch_beside(like: Array, batch: Batch, *, events: bool = False) -> Batch:
    """Return a batch whose patterns and good pixels are where ``like`` lives; its indices stay on the host.

    ``events`` : whether events stay events; else the patterns returned are an array.
    """
    xp, patterns = array_module(like), batch.patterns
    if isinstance(patterns, Events):
        patterns = patterns.on(xp) if events else patterns.on(xp).dense()
    elif xp is np:
        return batch
    else:
        patterns = beside(like, patterns)
    return replace(batch, patterns=patterns, good=beside(like, batch.good))


def state_on(xp: ModuleType, state: PtychographyState) -> PtychographyState:
    """Return a state whose waves and images are arrays of ``xp``: CuPy, or NumPy for the host.

    Those are object and probe; "variation" and "background"; all of ``object_memory``; what in ``memory`` has the
    pixels of the probe's window or of the background; and all of ``pattern_memory``: the exit waves of all patterns,
    which are the largest, but would else cross the bus in every step. Positions and other numbers of patterns, and
    small sums, stay on the host. What engines and refinements make by themselves they put into the same places.
    """
    images = {a.shape[-2:] for a in (state.probe, state.refined.get("background")) if a is not None}

    def moved(values: Array) -> Array:
        return to_host(values) if xp is np else xp.asarray(values)

    def of_pixels(values: Array) -> bool:
        return values.ndim > 1 and values.shape[-2:] in images

    return replace(
        state,
        obj=moved(state.obj),
        probe=moved(state.probe),
        refined={name: moved(a) if name in _LARGE else a for name, a in state.refined.items()},
        object_memory={name: moved(a) for name, a in state.object_memory.items()},
        memory={name: moved(a) if of_pixels(a) else a for name, a in state.memory.items()},
        pattern_memory={name: moved(a) for name, a in state.pattern_memory.items()},
    )


class Copies:
    """Copies on a device of host arrays that stay the same from batch to batch, moved once."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Array, Array]] = {}

    def of(self, name: str, values: Any, like: Array) -> Any:
        """Return ``values`` where ``like`` lives: the copy made before if it is of the same array, else a new one."""
        if values is None or array_module(like) is np:
            return values
        held = self._held.get(name)
        if held is None or held[0] is not values:
            held = self._held[name] = (values, beside(like, values))
        return held[1]

    def of_detector(self, detector: Detector, like: Array) -> Detector:
        """Return a detector whose arrays are where ``like`` lives."""
        if array_module(like) is np:
            return detector
        return replace(detector, **{name: self.of(name, getattr(detector, name), like) for name in _OF_DETECTOR})
