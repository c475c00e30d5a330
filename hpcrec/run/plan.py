"""The plan of a job: ranks a tilt, memory a rank, time; printed by ``hpcrec check`` before anything starts."""

from __future__ import annotations

import math
import os
import platform
import time
from dataclasses import dataclass

import numpy as np

from hpcrec.analysis.patterns import pattern_figures
from hpcrec.backend.array import complex_dtype, to_host
from hpcrec.backend.device import settle, use_device, visible
from hpcrec.data.dataset import TiltSeries
from hpcrec.data.views import half_resolution
from hpcrec.engines.base import StreamingEngine, visit
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.pose import Pose
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import Batch
from hpcrec.models.placement import beside, state_on
from hpcrec.models.stream import Block
from hpcrec.operators.projection import Projector
from hpcrec.parallel.communicator import Communicator, SerialCommunicator
from hpcrec.parallel.exchange import make_exchange
from hpcrec.run.build import build_engine, build_model
from hpcrec.run.costs import slices_of, sweep_costs, sweeps_left
from hpcrec.run.device_memory import device_rooms
from hpcrec.run.devices import device_name
from hpcrec.run.gather import in_memory
from hpcrec.run.job import Job
from hpcrec.run.means import PLAIN, Means
from hpcrec.run.memory import GIB, base_memory, memory_limit, rank_memory
from hpcrec.run.runner import batch_size
from hpcrec.run.sharing import joins_ranks, share_ranks
from hpcrec.run.start import TiltSetup, common_grid, start_state, starting_probe, tilt_setup

TIMED_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a job will take on ``n_ranks`` ranks of this machine; ``crew`` of them work as threads of one.

    device : of the ranks; of a GPU's memory each needs ``device_gib`` at least and may take ``device_limit_gib``
    resident : whether a GPU keeps all patterns of its tilt
    exchange : between ranks that share a tilt by messages, "" where none do; ``reason``: why, where it was chosen
    """

    n_ranks: int
    threads: int
    group_size: int
    crew: int
    n_tilts: int
    n_positions: int
    pattern_shape: tuple[int, int]
    max_slices: int
    object_shape: tuple[int, int]
    memory_gib_per_rank: float
    memory_limit_gib: float
    patterns_per_s: float
    ptychography_seconds: float
    tomography_seconds: float
    device: str
    device_gib: float = 0.0
    device_limit_gib: float = 0.0
    resident: bool = False
    exchange: str = ""
    reason: str = ""

    def sentence(self, n_todo: int) -> str:
        """Return the plan of the ``n_todo`` tilts left in a line."""
        left = duration(self.ptychography_seconds * n_todo / self.n_tilts)
        text = f"{self.memory_gib_per_rank:.1f} GiB a rank, ptychography {left}"
        return text + (f", tomography at most {duration(self.tomography_seconds)}" if self.tomography_seconds else "")

    @property
    def fits(self) -> bool:
        """Whether the plan stays within the memory limit."""
        return self.memory_gib_per_rank <= self.memory_limit_gib


def duration(seconds: float) -> str:
    """Return a time span as a person would say it."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def available_cores() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rank_threads(job: Job, world: Communicator) -> int:
    """Return the threads of this rank: the job's number, or its cores over the ranks that may use the same; collective.

    Launchers that bind ranks to cores of their own leave each all of them.
    """
    here = (platform.node(), tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ())
    everywhere = world.broadcast(world.gather(here))
    chosen = job.parallel.threads
    return max(1, available_cores() // everywhere.count(here)) if chosen == "auto" else chosen


def make_plan(job: Job, series: TiltSeries, n_ranks: int) -> Plan:
    """Return the plan of a job; it times a few real patterns, which takes about a second."""
    grid = common_grid(job, series)
    middle = int(np.argmin(np.abs(series.tilt_angles)))
    setup = tilt_setup(job, series, middle, grid)
    chosen, device = job.parallel.threads, use_device(device_name(job), 0, n_ranks)
    threads = max(1, available_cores() // n_ranks) if chosen == "auto" else chosen
    threads = 1 if device.kind == "gpu" else threads
    # Speed first: what a rank takes before any data is measured when all is loaded
    speed, limit = measure_speed(job, series, setup, Means(threads=threads, device=device)), memory_limit(job, n_ranks)
    sharing = share_ranks(job, series, grid, n_ranks, threads, device)
    job, size = sharing.job(job), sharing.size
    rooms = device_rooms(job, series, grid, size, device) if device.kind == "gpu" else None
    crew = size if joins_ranks(job, device) else 1
    if crew > 1:
        threads *= crew
        speed = measure_speed(job, series, setup, Means(threads=threads))
    if job.ptychography.coarse_iterations:
        starting_probe(job, half_resolution(series), 1)  # a fault now is better than one in the run
    slices = slices_of(job, series)
    work = sum(sweep_costs(job, series)) * sweeps_left(job) / setup.n_slices
    workers = max(n_ranks // size, 1) * size // crew
    # Ranks that share a GPU gain nothing of each other; those of other GPUs do
    busy = min(workers, len(visible()) - 1 if rooms else max(available_cores() // threads, 1))
    return Plan(
        n_ranks=n_ranks,
        group_size=size,
        crew=crew,
        n_tilts=series.n_tilts,
        n_positions=sum(len(p) for p in series.facts.positions),
        pattern_shape=series.pattern_shape,
        max_slices=max(slices),
        object_shape=grid.shape,
        threads=threads,
        memory_gib_per_rank=rank_memory(
            job,
            series,
            grid,
            size // crew,
            threads,
            base=base_memory(n_ranks),
            limit=limit * crew,
            resident=rooms is not None and rooms.resident,
        ),
        memory_limit_gib=limit * crew,
        patterns_per_s=speed,
        ptychography_seconds=work / speed / busy,
        tomography_seconds=tomography_seconds(job, series, grid) / n_workers(job, n_ranks),
        device=str(device),
        device_gib=rooms.needed / GIB if rooms else 0.0,
        device_limit_gib=device.pool_bytes / GIB,
        resident=rooms is not None and rooms.resident,
        exchange=sharing.exchange if size > crew else "",
        reason=sharing.reason,
    )


def n_workers(job: Job, n_ranks: int) -> int:
    """Return the number of Dask workers that the tomography stage starts: at most one a core, or a GPU, or a rank."""
    some = available_cores()
    if job.parallel.device != "cpu" and (gpus := len(visible()) - 1) > 0:
        some = gpus
    return job.parallel.workers or max(1, min(some, n_ranks))


def tomography_seconds(job: Job, series: TiltSeries, grid: Grid) -> float:
    """Return the seconds that one worker would need at most for alignment and volume: one projection is timed.

    The whole field is counted; the support of an isolated object makes it less.
    """
    section = job.tomography
    if section is None or series.n_tilts < 2:
        return 0.0
    voxel = grid.sampling[0] * section.binning
    ny, nx = (max(int(n * grid.sampling[0] / voxel), 8) for n in grid.shape)
    nz = max(int(section.thickness_angstrom / voxel), 8) if section.thickness_angstrom else nx
    # Of some rows: the whole volume would be the largest thing this rank ever holds
    rows = min(ny, TIMED_ROWS)
    projector = Projector((nz, rows, nx), voxel, (rows, nx), [Pose.from_tilt(0.3)])
    volume = np.ones((nz, rows, nx), np.float32)
    projector.forward(volume)
    started = time.perf_counter()
    projector.adjoint(projector.forward(volume))
    one = (time.perf_counter() - started) * ny / rows
    steps = getattr(section, section.solver).n_iterations * (2 if section.half_sets else 1)
    a = section.alignment
    aligning = sum((n + 2) * (a.volume_iterations + 2) / b**3 for n, b in zip(a.rounds, a.bins))
    return float(one * series.n_tilts * (steps + aligning))


def measure_speed(job: Job, series: TiltSeries, setup: TiltSetup, means: Means = PLAIN, seconds: float = 0.6) -> float:
    """Return the patterns per second of one rank for this job, measured on real patterns of one tilt.

    All that a run needs is loaded then, so that :func:`hpcrec.run.memory.base_memory` can be measured. Of a large
    object only what these patterns see is made: what a rank does to all of its pixels is then left out.
    """
    model = build_model(job, setup.window, setup.sampling, setup.wavelength, setup.mask, means)
    engine = build_engine(job, model)
    scan = series.tilt(setup.i_tilt)
    indices = np.arange(min(32, scan.n_positions))
    held = Box(0, setup.grid.shape[0], 0, setup.grid.shape[1])
    n_images = setup.n_slices * job.ptychography.object_states
    if not in_memory(math.prod(held.shape) * n_images * complex_dtype(job.ptychography.precision).itemsize):
        seen = model.box(setup.positions[indices], setup.grid)
        by, bx = (math.ceil(job.parallel.halo_margin_angstrom / step) for step in setup.sampling)
        held = held.intersect(Box(seen.y0 - by, seen.y1 + by, seen.x0 - bx, seen.x1 + bx))
    state = start_state(job, setup, held)
    if means.device.kind == "gpu":
        state = state_on(means.device.module, state)
    state.own, state.windowed = indices, True
    # The last sweep does all that is due
    state.iteration = job.ptychography.iterations - 1
    engine.prepare(state)
    patterns = scan.read(indices)
    batch = Batch(indices=indices, patterns=beside(state.obj, patterns), n_global=len(indices))
    exchange = make_exchange("replicated", SerialCommunicator(), setup.positions, setup.grid, setup.window)
    rule = engine.step_rule(state) if model.streams_on(state) and isinstance(engine, StreamingEngine) else None
    edges = np.append(np.arange(0, len(indices), batch_size(job, scan.n_positions)), len(indices))
    block = Block(indices=indices, edges=edges, patterns=patterns, rows=indices)

    def update() -> None:
        if rule is None:
            visit(engine, state, batch, exchange.total)
        else:
            model.stream(state, block, rule)
        settle()

    update()
    # The assessment's loops, too, are loaded (the first time compiled) before the process is measured
    pattern_figures(to_host(model.simulate(state, indices[:1])), patterns[:1], None)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        update()
        done += len(indices)
    return done / (time.perf_counter() - started)
