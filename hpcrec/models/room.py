"""Room for waves on a device: how much of its memory a call may take at a time, and less where that was too much."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from hpcrec.backend.device import free_unused, out_of_memory

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Large against the launch of a kernel, small against a GPU's memory; estimated, not measured
DEFAULT_BYTES: Final = 1 << 31
# With less the waves of one pattern no longer fit, or launches take all the time
_LEAST: Final = 1 << 20


@dataclass(slots=True)
class Room:
    """``nbytes`` of waves that a device has at a time."""

    nbytes: int = DEFAULT_BYTES

    def use(self, call: Callable[[int], T]) -> T:
        """Return ``call(nbytes)``; where the device's memory does not suffice, call again with half, from now on.

        ``call`` must begin anew each time. Raises what CuPy raises where a megabyte is still too much.
        """
        while True:
            try:
                return call(self.nbytes)
            except out_of_memory() as fault:
                free_unused()
                if self.nbytes // 2 < _LEAST:
                    raise
                self.nbytes //= 2
                logger.warning("%s: going on with %.3g GiB of waves at a time", fault, self.nbytes / 2**30)
