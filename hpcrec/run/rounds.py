"""Rounds: which tilts groups of which sizes take on. Groups are formed anew for tilts that do not suffice for all.

Where ranks lend cores to one another (:mod:`hpcrec.run.hands`) one round is enough. Others, on GPUs or with an exchange
that was asked for, can share a tilt by messages only, as a group from its first sweep on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from hpcrec.backend.device import Device
from hpcrec.data.dataset import TiltSeries
from hpcrec.errors import DeviceError
from hpcrec.geometry.grid import Grid
from hpcrec.run.device_memory import device_rooms
from hpcrec.run.job import Job
from hpcrec.run.memory import base_memory, memory_limit, n_positions, rank_memory
from hpcrec.run.runner import batch_size
from hpcrec.run.sharing import joins_ranks

# With 32 patterns of each batch two ranks took as long as one or longer (README, decision 22)
_WORTH_A_MESSAGE: Final = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Tilts (counted in the series), in order, for groups of ``sizes`` ranks, which follow one another."""

    tilts: tuple[int, ...]
    sizes: tuple[int, ...]

    def group_of(self, rank: int) -> int:
        """Return the group of a rank."""
        group = 0
        while rank >= self.sizes[group]:
            rank -= self.sizes[group]
            group += 1
        return group


def rounds(tilts: Sequence[int], n_ranks: int, size: int, allowed: Callable[[int], bool]) -> list[Round]:
    """Return the rounds for tilts in order: groups of ``size``, then larger ones for the last tilts.

    Of n tilts and g groups the last n mod g are for all ranks, in groups as equal as possible; the round before ends
    when its last tilt does, so the shortest tilts should be last. Sizes are ``allowed`` by memory and by what messages
    cost; where no larger one is, there is one round. There is one at least, of no tilts if there are none.
    """
    n_groups = max(n_ranks // size, 1)
    usual = (*[size] * (n_groups - 1), n_ranks - size * (n_groups - 1))
    n_last = len(tilts) % n_groups
    # Groups beyond the number of the last tilts go without, as some would anyhow
    for n in range(n_last, n_groups) if n_last else ():
        sizes = _even(n_ranks, n)
        if all(map(allowed, set(sizes))):
            first, last = tuple(tilts[:-n_last]), tuple(tilts[-n_last:])
            return [*([Round(tilts=first, sizes=usual)] if first else []), Round(tilts=last, sizes=sizes)]
    return [Round(tilts=tuple(tilts), sizes=usual)]


def _even(n_ranks: int, n_groups: int) -> tuple[int, ...]:
    edges = [-(-i * n_ranks // n_groups) for i in range(n_groups + 1)]
    return tuple(b - a for a, b in zip(edges, edges[1:]))


def rounds_of(
    job: Job,
    series: TiltSeries,
    grid: Grid,
    tilts: Sequence[int],
    n_ranks: int,
    size: int,
    threads: int,
    device: Device,
) -> list[Round]:
    """Return the rounds of a job: one where the group size was asked for, or where ranks lend cores instead."""
    if isinstance(job.parallel.group_size, int) or joins_ranks(job, device):
        return rounds(tilts, n_ranks, size, lambda larger: False)
    limit, base = memory_limit(job, n_ranks), base_memory(n_ranks)
    batch = batch_size(job, n_positions(series))

    def allowed(larger: int) -> bool:
        resident = False
        if larger == size:
            return True
        if batch // larger < _WORTH_A_MESSAGE:
            return False
        if device.kind == "gpu":
            try:
                resident = device_rooms(job, series, grid, larger, device).resident
            except DeviceError:
                return False
        return rank_memory(job, series, grid, larger, threads, base=base, limit=limit, resident=resident) <= limit

    return rounds(tilts, n_ranks, size, allowed)
