"""How many ranks share a tilt, and whether each holds the whole object or a tile of it: by bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

from hpcrec.backend.array import complex_dtype
from hpcrec.backend.device import PROCESSOR, Device
from hpcrec.data.dataset import TiltSeries
from hpcrec.engines import engine_class
from hpcrec.errors import DeviceError
from hpcrec.geometry.grid import Grid
from hpcrec.run.device_memory import device_rooms
from hpcrec.run.halos import planned_reach
from hpcrec.run.job import Job
from hpcrec.run.memory import base_memory, memory_limit, n_positions, rank_memory
from hpcrec.run.optics import slice_count
from hpcrec.run.runner import batch_size
from hpcrec.run.start import probe_window

# Tiles take two rounds of messages where a sum takes one: chosen, not measured
_WORTH: Final = 0.5
ExchangeName = Literal["replicated", "tiled"]
# Gradient and illumination, on the way to their owners and back; of both exchanges
_SENT_COPIES: Final = 2 * 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing:
    """Ranks that share a tilt, the exchange between them, and why it is that one; no reason where there is no choice.

    resident : whether a GPU keeps all patterns of its tilt
    """

    size: int
    exchange: ExchangeName
    reason: str = ""
    resident: bool = False

    def job(self, job: Job) -> Job:
        """Return the job with this exchange, where it leaves the choice."""
        if self.exchange == "replicated":
            return job
        return replace(job, parallel=replace(job.parallel, exchange=self.exchange))


def joins_ranks(job: Job, device: Device = PROCESSOR) -> bool:
    """Whether ranks that share a tilt on one host may work as threads of one of them."""
    return device.kind == "cpu" and job.parallel.group_size == "auto" and job.parallel.exchange == "auto"


def share_ranks(
    job: Job,
    series: TiltSeries,
    grid: Grid,
    n_ranks: int,
    threads: int = 1,
    device: Device = PROCESSOR,
    n_hosts: int = 1,
) -> Sharing:
    """Return how the ranks share the tilts.

    As many ranks to a tilt as the job says, else the fewest that fit memory and idle no rank. Each holds the whole
    object where that fits, and where ranks of several hosts need not send more for it than tiles do; else a tile.

    Raises
    ------
    DeviceError : not even all ranks together fit, or not as many as the job says; the message names the smallest
        change that would.
    """
    limit, base = memory_limit(job, n_ranks), base_memory(n_ranks)
    asked = job.parallel.exchange
    kinds: list[ExchangeName] = ["replicated", "tiled"] if asked == "auto" else [asked]

    def need(size: int, kind: ExchangeName, resident: bool) -> float:
        overlap = job.parallel.overlap
        if overlap == "auto" and size * n_hosts > n_ranks:
            overlap = "always"
        chosen = replace(job, parallel=replace(job.parallel, exchange=kind, overlap=overlap))
        return rank_memory(chosen, series, grid, size, threads, base=base, limit=limit, resident=resident)

    fixed = job.parallel.group_size
    smallest = max(1, n_ranks // max(series.n_tilts, 1))
    sizes = [min(fixed, n_ranks)] if isinstance(fixed, int) else list(range(smallest, n_ranks + 1))
    for size in sizes:
        resident = False
        if device.kind == "gpu":
            try:
                resident = device_rooms(job, series, grid, size, device).resident
            except DeviceError:
                if size < sizes[-1]:
                    continue
                raise
        needs = {kind: need(size, kind, resident) for kind in kinds}
        fitting = [kind for kind in kinds if needs[kind] <= limit and (size > 1 or kind == kinds[0])]
        if asked != "auto" or size == 1:
            if fitting:
                return Sharing(size=size, exchange=kinds[0], resident=resident)
        elif fitting == ["tiled"]:
            reason = (
                f"with the whole object a rank would need {needs['replicated']:.3g} of {limit:.3g} GiB, with a tile "
            )
            return Sharing(size=size, exchange="tiled", reason=f"{reason}{needs['tiled']:.3g}", resident=resident)
        elif fitting:
            kind, reason = _cheaper(job, series, grid, size, spread=size * n_hosts > n_ranks)
            return Sharing(size=size, exchange=kind, reason=reason, resident=resident)
    refusal = _refusal(asked, {kind: need(sizes[-1], kind, False) for kind in kinds}, limit)
    if isinstance(fixed, int):
        refusal = f"with parallel.group_size = {fixed} {refusal}; or set parallel.group_size = 'auto'"
    raise DeviceError(refusal)


def _refusal(asked: str, needs: dict[ExchangeName, float], limit: float) -> str:
    if asked == "replicated":
        return (
            f"a rank would need {needs['replicated']:.3g} GiB, the limit is {limit:.3g} GiB: start fewer ranks per "
            "node, raise parallel.memory_gib_per_rank, or set parallel.exchange = 'tiled' and start more ranks"
        )
    also = f" ({needs['replicated']:.3g} with the whole object)" if "replicated" in needs else ""
    return (
        f"a rank would need {needs['tiled']:.3g} GiB with a tile of the object{also}, the limit is {limit:.3g} GiB: "
        "start more ranks on more nodes, fewer per node, or raise parallel.memory_gib_per_rank"
    )


def _cheaper(job: Job, series: TiltSeries, grid: Grid, size: int, *, spread: bool) -> tuple[ExchangeName, str]:
    """Return the exchange that sends less, and why; on one host ranks work as threads and send nothing."""
    if not spread:
        return "replicated", ""
    whole, tile = (exchange_bytes(job, series, grid, size, kind) for kind in ("replicated", "tiled"))
    kind: ExchangeName = "tiled" if tile < _WORTH * whole else "replicated"
    return kind, f"a rank sends {whole / 2**20:.3g} MiB a sweep for whole objects, {tile / 2**20:.3g} MiB for tiles"


def exchange_bytes(job: Job, series: TiltSeries, grid: Grid, size: int, kind: str) -> float:
    """Return the bytes that a rank of a group of ``size`` sends in a sweep, about.

    A sum of whole objects over n ranks sends 2 (n − 1)/n of it (Thakur et al., Int. J. High Perform. Comput. Appl. 19,
    49 (2005)), a tile what its neighbours' cores and halos share with it. Batches touch all of it, as random ones do.
    Of halos that are cut, what lies beyond the cut travels once a sweep.
    """
    section = job.ptychography
    slices = max(slice_count(job, int(n), float(a)) for n, a in zip(series.tilt_numbers, series.tilt_angles))
    pixel = slices * section.object_states * complex_dtype(section.precision).itemsize
    batches = math.ceil(n_positions(series) / batch_size(job, n_positions(series)))
    if kind == "replicated":
        return float(_SENT_COPIES * pixel * batches * math.prod(grid.shape) * (size - 1) / size)
    whole = _halo_pixels(job, series, grid, size, min(probe_window(job, series)))
    reach = planned_reach(job, series, slices)
    if reach is None:
        return float(_SENT_COPIES * pixel * whole * batches)
    kept, _ = engine_class(section.engine).copies(getattr(section, section.engine), False)
    cut = _halo_pixels(job, series, grid, size, min(reach.shape))
    return float(pixel * (_SENT_COPIES * cut * batches + kept * (whole - cut)))


def _halo_pixels(job: Job, series: TiltSeries, grid: Grid, size: int, window: int) -> float:
    """Return the pixels around a tile that windows of ``window`` pixels make."""
    halo = window / 2 + job.parallel.halo_margin_angstrom / min(series.sampling)
    # A tile has neighbours on its inner sides only
    inner = 2 * (1 - 1 / math.sqrt(size))
    sides = [n / math.sqrt(size) for n in grid.shape]
    held = [min(side + inner * halo, n) for side, n in zip(sides, grid.shape)]
    return math.prod(held) - math.prod(sides)
