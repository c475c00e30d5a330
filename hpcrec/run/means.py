"""What one rank may use for a tilt: threads, memory, device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hpcrec.backend.device import PROCESSOR, Device
from hpcrec.backend.threads import Threads
from hpcrec.run.balance import Pace

UNBOUNDED: Final = 1 << 62


@dataclass(frozen=True, kw_only=True, slots=True)
class Means:
    """What one rank may use.

    threads : of compiled loops; :class:`Threads` where others may come in the course of a tilt
    pattern_bytes : room for patterns in the host's memory
    device : where object and probe are, and the work is done
    device_pattern_bytes : room for patterns in the device's memory
    wave_bytes : room for the waves that a device has at a time; 0: the model's own choice
    pace : how fast this rank worked on former tilts; None where shares do not follow it
    """

    threads: int | Threads = 1
    pattern_bytes: int = UNBOUNDED
    device: Device = PROCESSOR
    device_pattern_bytes: int = UNBOUNDED
    wave_bytes: int = 0
    pace: Pace | None = None


PLAIN: Final = Means()
"""One thread, and memory without bounds."""
