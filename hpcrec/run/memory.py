"""What memory a rank may use, what it needs, and what is left for patterns.

A rank needs what its process takes before any data (measured, :func:`base_memory`), its patterns, what single positions
take, and the largest of: loading the patterns, an update with its copies of the object, the assessment, and on the
first rank what the report shows of all tilts.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from hpcrec.backend.array import FloatArray, complex_dtype
from hpcrec.data.batches import BLOCK_BYTES, READ_AHEAD, compact_extents
from hpcrec.data.dataset import TiltSeries
from hpcrec.engines import engine_class
from hpcrec.geometry.grid import Grid
from hpcrec.models.chain import Detector
from hpcrec.models.compiled import fault
from hpcrec.models.multislice import WAVES_BESIDE
from hpcrec.models.responses import KEPT_BYTES
from hpcrec.run.assess import CHUNK_PIXELS
from hpcrec.run.constrain import bytes_between_sweeps
from hpcrec.run.gather import PIECES_BYTES, in_memory
from hpcrec.run.job import Job
from hpcrec.run.optics import mode_count, slice_count
from hpcrec.run.runner import batch_size
from hpcrec.run.start import probe_window

GIB: Final = 2**30
# Measured: MPICH's library and queues, in a rank of a group
MPI_GIB: Final = 15 / 1024
# Measured: what the heap and code that is loaded later take beyond the plan, results and their file among them
LATER_GIB: Final = 24 / 1024
# Measured: Dask, Matplotlib and what these load, for the stages after ptychography, whose arrays are gone by then
_STAGES_GIB: Final = 90 / 1024
# Of the object's size: gradient and illumination of a thread; the widest of an exchange of both: a field of the common
# box, its sum, and MPI's buffer of half of that (MPICH's Allreduce, measured)
_THREAD_COPIES: Final = 1.5
_EXCHANGE_COPIES: Final = 1.5 + 2.5
# Of tiles: gradient and illumination of the rank, of its core, and of its tile; boxes differ from batch to batch, and
# the heap keeps freed ones (measured)
_TILED_COPIES: Final = 3 * 1.5 + 1.0
# Gradient and illumination of the interior, beside those that travel meanwhile (counted, not measured)
_INTERIOR_COPIES: Final = 1.5
# A reader has frames, a piece of its file, what it picks of that, and patterns of a block; the block before is there
_READER_BLOCKS: Final = 4
# Positions as given, refined and shared out, batches of two sweeps, and two tables of figures, in float64 and int64
_POSITION_BYTES: Final = 8 * (3 * 2 + 12 + 2 * 6)
_ARRAY_BYTES: Final = 250  # of Python for an array of a batch, and its share
_SHARE: Final = 0.9
_CGROUPS: Final = Path("/sys/fs/cgroup")


def memory_limit(job: Job, n_ranks: int) -> float:
    """Return the GiB one rank may use: the job's limit, or what the machine, its scheduler and the shell leave it.

    Nine tenths of the machine's memory, or of what a control group (Slurm, a container) allows, shared by the ranks;
    at most what the process may still take under a limit of its address space (ulimit -v).
    """
    if job.parallel.memory_gib_per_rank:
        return job.parallel.memory_gib_per_rank
    shared = min(psutil.virtual_memory().total, _cgroup_limit()) * _SHARE / n_ranks
    return float(min(shared, _address_limit()) / GIB)


def _cgroup_limit() -> float:
    """Return the bytes that this process's control group and those around it allow (version 2)."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rpartition("::")[2].lstrip("/")
    except OSError:
        return float("inf")
    found = [float("inf")]
    for folder in (_CGROUPS / own, *(_CGROUPS / own).parents):
        try:
            text = (folder / "memory.max").read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(float(text))
    return min(found)


def _address_limit() -> float:
    """Return the bytes that this process may have: what it has, and what is left of its address space."""
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed == resource.RLIM_INFINITY:
        return float("inf")
    used = psutil.Process().memory_info()
    return float(max(used.rss + allowed - used.vms, 0)) * _SHARE


def base_memory(n_ranks: int = 1) -> float:
    """Return the GiB that a rank takes before any data: what this process has, and MPI if it will still load it.

    Libraries and compiled loops differ with versions and machines; so call it late, when a model has run once here.
    """
    has = psutil.Process().memory_info().rss / GIB + LATER_GIB
    return float(has + (MPI_GIB if n_ranks > 1 and "mpi4py.MPI" not in sys.modules else 0.0))


def rank_memory(
    job: Job,
    series: TiltSeries,
    grid: Grid,
    size: int,
    threads: int = 1,
    *,
    base: float = 0.0,
    limit: float = float("inf"),
    resident: bool = False,
) -> float:
    """Return the GiB that a rank of a group of ``size`` needs, on top of ``base``, see :func:`base_memory`.

    Patterns that would exceed ``limit`` (GiB) wait in a scratch file; then a few batches are in memory, and so where
    patterns are ``resident`` on a GPU.
    """
    work, share = _work_bytes(job, series, grid, size, threads), _share_bytes(job, series, size)
    if resident or share > _room(limit, base, work):
        share = _streamed_bytes(job, series, size, threads)
    later = 0.0 if "matplotlib" in sys.modules else _STAGES_GIB
    return base + max((work + share) / GIB, later)


def pattern_room(job: Job, series: TiltSeries, grid: Grid, size: int, n_ranks: int, threads: int, crew: int = 1) -> int:
    """Return the bytes that the patterns of a rank's share may take; ``crew``: ranks whose memory it may use."""
    work = _work_bytes(job, series, grid, size, threads)
    return _room(memory_limit(job, n_ranks) * crew, base_memory(n_ranks), work)


def _room(limit: float, base: float, work: float) -> int:
    return max(int(min((limit - base) * GIB - work, 2.0**62)), 0)


def _share_bytes(job: Job, series: TiltSeries, size: int) -> float:
    """Return the bytes of a rank's patterns, in their own type."""
    return pattern_bytes(series) * n_positions(series) / size


def pattern_bytes(series: TiltSeries) -> int:
    """Return the bytes of a pattern in its own type."""
    return math.prod(series.pattern_shape) * np.dtype(series.facts.dtype).itemsize


def n_positions(series: TiltSeries) -> int:
    """Return the positions of the longest tilt."""
    return max(len(p) for p in series.facts.positions)


def _streamed_bytes(job: Job, series: TiltSeries, size: int, threads: int) -> float:
    """Return the bytes of patterns on their way from the scratch file: batches, or chunks of the assessment."""
    chunk = CHUNK_PIXELS // math.prod(series.pattern_shape) * threads
    block = max(BLOCK_BYTES // pattern_bytes(series), 1)
    largest = max(batch_size(job, n_positions(series)) / size, chunk, block)
    return (READ_AHEAD + 1) * largest * pattern_bytes(series)


def _work_bytes(job: Job, series: TiltSeries, grid: Grid, size: int, threads: int) -> float:
    """Return the bytes of a rank without its process and its patterns.

    Engines that take all patterns at once hold them a second time. Exit waves are there twice, and once more where a
    group's checkpoints are gathered; so is the copy of the object and its memories from which a checkpoint is written
    while sweeps go on: of the whole, or of the rank's own tile.
    """
    held, most = object_bytes(job, series, grid, size, threads, compiled=compiled_kernel(job))
    engine, n = engine_class(job.ptychography.engine), n_positions(series)
    tiled = job.parallel.exchange == "tiled" and size > 1
    batch = 2 * batch_size(job, n) * pattern_bytes(series) / size
    of_positions = n * _POSITION_BYTES + 2 * n / batch_size(job, n) * _ARRAY_BYTES
    waves = 0.0
    if engine.full_batch:
        batch = _share_bytes(job, series, size)
    if engine.keeps_waves:
        waves = waves_bytes(job, series) * (2 / size + (size > 1 and not tiled))
    if not engine.keeps_waves and job.ptychography.iterations > job.ptychography.checkpoint_every:
        most += held if tiled else object_bytes(job, series, grid, 1, compiled=compiled_kernel(job))[0]
    update = most + batch + waves + _kept_bytes(job, series, size) + threads * _room_bytes(job, series)
    loading = held + _READER_BLOCKS * min(BLOCK_BYTES, _share_bytes(job, series, size))
    assessing = held + waves / 2 + threads * CHUNK_PIXELS * (4 + 2 * np.dtype(series.facts.dtype).itemsize)
    gathering = held + _gathered_bytes(job, series, grid, size)
    return of_positions + max(update, loading, assessing, gathering)


def _gathered_bytes(job: Job, series: TiltSeries, grid: Grid, size: int) -> float:
    """Return the bytes of a tilt's result on the first rank: how often pixels were seen, and the object, if in tiles.

    Objects beyond a limit stay with their ranks, which write them a block at a time, as the first one reads them.
    """
    section, pixels = job.ptychography, math.prod(grid.shape)
    slices = max(slice_count(job, int(n), float(a)) for n, a in zip(series.tilt_numbers, series.tilt_angles))
    whole = pixels * slices * section.object_states * complex_dtype(section.precision).itemsize
    tiled = job.parallel.exchange == "tiled" and size > 1
    if not tiled:
        return pixels * 4
    return pixels * 4 + (whole if in_memory(whole) else PIECES_BYTES)


def _kept_bytes(job: Job, series: TiltSeries, size: int) -> float:
    """Return the bytes of the waves that a batch keeps, if the ranks share its patterns evenly; none if too many."""
    if not engine_class(job.ptychography.engine).keeps_batch or not compiled_kernel(job):
        return 0.0
    slices = max(slice_count(job, int(n), float(a)) for n, a in zip(series.tilt_numbers, series.tilt_angles))
    n = n_positions(series)
    kept = waves_bytes(job, series) * batch_size(job, n) / n * (slices + 1) / size
    return kept if kept <= KEPT_BYTES else 0.0


def object_bytes(
    job: Job, series: TiltSeries, grid: Grid, size: int, threads: int = 1, *, compiled: bool
) -> tuple[float, float]:
    """Return the bytes of arrays of the object's size: what stays from batch to batch, and the most in an update.

    ``compiled`` : whether the work is done by compiled loops, in several threads.
    """
    section = job.ptychography
    slices = max(slice_count(job, int(n), float(a)) for n, a in zip(series.tilt_numbers, series.tilt_angles))
    one = slices * section.object_states * complex_dtype(section.precision).itemsize
    whole = pixels = grid.shape[0] * grid.shape[1]
    held: tuple[float, ...] = grid.shape
    tiled = job.parallel.exchange == "tiled" and size > 1
    if tiled:
        window = probe_window(job, series)
        halo = 2 * (min(window) / 2 + job.parallel.halo_margin_angstrom / min(series.sampling))
        held = tuple(min(n / math.sqrt(size) + halo, n) for n in grid.shape)
        pixels = int(math.prod(held))
    kind, options, alone = engine_class(section.engine), getattr(section, section.engine), compiled and size == 1
    beside, update = kind.copies(options, alone)
    kept_box, update_box = kind.box_copies(options, alone)
    share = _box_share(job, series, grid, held) if update_box > 0 else 1.0
    exchanged = _TILED_COPIES if tiled else _EXCHANGE_COPIES
    if tiled and job.parallel.overlap == "always" and kind.divided:
        exchanged += _INTERIOR_COPIES
    sums = share * max(_THREAD_COPIES * (threads if compiled else 1), exchanged if size > 1 else 0.0)
    beside, update = beside - (1 - share) * kept_box, update - (1 - share) * update_box
    n_images = slices * section.object_states
    between = bytes_between_sweeps(job, whole, pixels, size, n_images, one // n_images)
    return beside * pixels * one, max(max(beside + sums, update) * pixels * one, beside * pixels * one + between)


def _box_share(job: Job, series: TiltSeries, grid: Grid, held: Sequence[float]) -> float:
    """Return the largest share of ``held`` (y, x) that the box of a batch covers: 1 unless batches are compact."""
    if job.ptychography.batch_kind != "compact":
        return 1.0
    positions, window = max(series.facts.positions, key=len), probe_window(job, series)
    boxes = _extents(positions.tobytes(), batch_size(job, len(positions))) / np.array(grid.sampling)
    # Its own windows, and what refinement may move them by
    around = np.array(window) + 1 + 2 * job.parallel.halo_margin_angstrom / np.array(grid.sampling)
    return float(np.max(np.prod(np.minimum(boxes + around, held) / np.array(held), axis=1)))


@lru_cache(maxsize=4)
def _extents(positions: bytes, size: int) -> FloatArray:
    """Return what :func:`compact_extents` does, once for all plans of a scan."""
    return compact_extents(np.frombuffer(positions, np.float64).reshape(-1, 2), size)


def compiled_kernel(job: Job) -> bool:
    """Whether the model of a job runs in the compiled kernels, and so in several threads."""
    detector = Detector(binning=job.detector.upsampling)
    blurred = job.detector.point_spread_pixels > 0
    known = fault(detector, job.ptychography.precision) is None and not blurred
    return job.ptychography.kernel != "array" and known


def _room_bytes(job: Job, series: TiltSeries) -> int:
    """Return the bytes of the waves of one pattern that a thread keeps room for, and of the probe's own arrays.

    Gradients, responses and intensities have rooms of their own, see :mod:`hpcrec.models.compiled`.
    """
    slices = max(slice_count(job, int(n), float(a)) for n, a in zip(series.tilt_numbers, series.tilt_angles))
    modes, window = mode_count(job), probe_window(job, series)
    parts = job.detector.flight_points * job.ptychography.object_states * modes
    rooms = parts * slices + (parts + 3) + modes + 4 * parts + (modes + 1) + (modes + 2)
    gaps = 2 * (slices - 1)
    return (rooms + gaps + 8 * modes) * math.prod(window) * complex_dtype(job.ptychography.precision).itemsize


def wave_bytes(job: Job, series: TiltSeries) -> int:
    """Return the bytes of the waves of one pattern on a device: twice in each slice, and some beside these."""
    slices = max(slice_count(job, int(n), float(a)) for n, a in zip(series.tilt_numbers, series.tilt_angles))
    return waves_bytes(job, series) // n_positions(series) * (2 * slices + WAVES_BESIDE)


def waves_bytes(job: Job, series: TiltSeries) -> int:
    """Return the bytes of the exit waves of a whole tilt, all its incoherent parts."""
    window, section = probe_window(job, series), job.ptychography
    parts = job.detector.flight_points * section.object_states * mode_count(job)
    itemsize = complex_dtype(section.precision).itemsize
    return n_positions(series) * parts * window[0] * window[1] * itemsize
