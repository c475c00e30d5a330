"""What a rank needs of a GPU's memory, and how what is left is shared between waves and patterns.

Arrays are counted as on the host (``memory.py``), where they were measured; on a GPU nothing has been.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hpcrec.backend.device import PLAN_BYTES, Device
from hpcrec.data.batches import BLOCK_BYTES
from hpcrec.data.dataset import TiltSeries
from hpcrec.engines import engine_class
from hpcrec.errors import DeviceError
from hpcrec.geometry.grid import Grid
from hpcrec.models.room import DEFAULT_BYTES
from hpcrec.run.job import Job
from hpcrec.run.memory import GIB, n_positions, object_bytes, pattern_bytes, wave_bytes, waves_bytes
from hpcrec.run.runner import batch_size

# A call should have the waves of some patterns at a time; it can do with those of one
_FEW: Final = 16
_PROBE_ARRAYS: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRooms:
    """How a rank's share of a GPU is used, in bytes: by arrays of the object, patterns, and waves at a time.

    ``needed`` : in all, with the waves of one pattern at a time and patterns that come batch by batch
    ``resident`` : whether all patterns of the rank stay on the GPU
    """

    needed: int
    patterns: int
    waves: int
    resident: bool


def device_rooms(job: Job, series: TiltSeries, grid: Grid, size: int, device: Device) -> DeviceRooms:
    """Return how a rank of a group of ``size`` uses its share of a GPU.

    Raises
    ------
    DeviceError : the share does not suffice.
    """
    held = _held_bytes(job, series, grid, size)
    one, streamed, share = wave_bytes(job, series), _streamed_bytes(job, series, size), _share_bytes(job, series, size)
    needed, limit = held + one + streamed, device.pool_bytes
    if needed > limit:
        raise DeviceError(
            f"{device}: a rank would need {needed / GIB:.3g} GiB of its memory and may take {limit / GIB:.3g} GiB: "
            "start fewer ranks for each GPU, take a smaller ptychography.batch_size, or let more ranks share each tilt "
            "(parallel.group_size, parallel.exchange = 'tiled')"
        )
    left = limit - held
    waves = min(DEFAULT_BYTES, max(left // 4, _FEW * one))
    resident = share <= left - waves
    if not resident:
        waves = min(waves, left - streamed)
    return DeviceRooms(needed=needed, patterns=left - waves, waves=waves, resident=resident)


def _held_bytes(job: Job, series: TiltSeries, grid: Grid, size: int) -> int:
    """Return the bytes of the object in an update, of exit waves that an engine keeps, of the probe and of plans."""
    _, most = object_bytes(job, series, grid, size, compiled=False)
    engine = engine_class(job.ptychography.engine)
    waves = waves_bytes(job, series) * 2 / size if engine.keeps_waves else 0.0
    return int(most + waves + _PROBE_ARRAYS * waves_bytes(job, series) / n_positions(series)) + PLAN_BYTES


def _share_bytes(job: Job, series: TiltSeries, size: int) -> int:
    """Return the bytes of a rank's patterns, and of a batch that is picked from them."""
    n = n_positions(series)
    return pattern_bytes(series) * (-(-n // size) + -(-batch_size(job, n) // size))


def _streamed_bytes(job: Job, series: TiltSeries, size: int) -> int:
    """Return the bytes of two batches, or blocks, on their way."""
    batch = pattern_bytes(series) * -(-batch_size(job, n_positions(series)) // size)
    return 2 * max(batch, BLOCK_BYTES)
