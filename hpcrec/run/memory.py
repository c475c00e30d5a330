"""What memory a rank may use, what it needs, and what is left for patterns."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from hpcrec.backend.array import complex_dtype
from hpcrec.data.dataset import TiltSeries
from hpcrec.engines import engine_class
from hpcrec.geometry.grid import Grid
from hpcrec.run.constrain import whole_copies
from hpcrec.run.job import Job
from hpcrec.run.optics import mode_count, slice_count
from hpcrec.run.start import probe_window

GIB: Final = 2**30
BASE_GIB: Final = 0.7
OBJECT_COPIES: Final = 7
THREAD_COPIES: Final = 1.5
# Patterns that exceed the memory pass through it in blocks
LEAST_PATTERN_BYTES: Final = 64 << 20
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


def rank_memory(
    job: Job, series: TiltSeries, grid: Grid, size: int, threads: int = 1, *, limit: float = float("inf")
) -> float:
    """Return the GiB that a rank of a group of ``size`` needs: object copies, patterns in memory, a constant.

    Patterns that would exceed ``limit`` (GiB) wait in a scratch file and count with what is left, or one block.
    """
    fixed = _fixed_memory(job, series, grid, size, threads)
    return fixed + min(_share_bytes(job, series, size) / GIB, max(limit - fixed, LEAST_PATTERN_BYTES / GIB))


def pattern_room(job: Job, series: TiltSeries, grid: Grid, size: int, n_ranks: int, threads: int) -> int:
    """Return the bytes that the patterns of a rank's share may take."""
    left = memory_limit(job, n_ranks) - _fixed_memory(job, series, grid, size, threads)
    return max(int(left * GIB), LEAST_PATTERN_BYTES)


def _share_bytes(job: Job, series: TiltSeries, size: int) -> float:
    """Return the bytes of a rank's patterns, in their own type."""
    pattern = series.pattern_shape[0] * series.pattern_shape[1] * np.dtype(series.facts.dtype).itemsize
    return pattern * max(len(p) for p in series.facts.positions) / size


def _fixed_memory(job: Job, series: TiltSeries, grid: Grid, size: int, threads: int) -> float:
    """Return the GiB of a rank without its patterns.

    A rank keeps the object, its gradient, weight, direction, momentum and exchange buffers (at most seven copies of
    its object box, and what some engines keep beside); each of ``threads`` but the first has a gradient and a weight of
    its own. Engines that take all patterns at once hold them a second time. What constraints need on the first rank is
    counted for all; so are exit waves, which are there twice, and once more where a group's checkpoints are gathered.
    """
    slices = max(slice_count(job, int(n), float(a)) for n, a in zip(series.tilt_numbers, series.tilt_angles))
    itemsize = complex_dtype(job.ptychography.precision).itemsize
    whole = pixels = grid.shape[0] * grid.shape[1]
    if job.parallel.exchange == "tiled" and size > 1:
        window = probe_window(job, series)
        halo = 2 * (min(window) / 2 + job.parallel.halo_margin_angstrom / min(series.sampling))
        side = np.sqrt(pixels / size) + halo
        pixels = int(min(pixels, side * side))
    engine, of_patterns = engine_class(job.ptychography.engine), 0.0
    if engine.full_batch:
        of_patterns += _share_bytes(job, series, size)
    if engine.keeps_waves:
        of_patterns += waves_bytes(job, series) * (2 / size + (size > 1))
    history = getattr(getattr(job.ptychography, job.ptychography.engine), "history", 0)
    copies = OBJECT_COPIES + engine.extra_copies + 2 * history + THREAD_COPIES * (threads - 1)
    copies = copies * pixels + whole_copies(job) * whole
    return float(BASE_GIB + (copies * slices * job.ptychography.object_states * itemsize + of_patterns) / GIB)


def waves_bytes(job: Job, series: TiltSeries) -> int:
    """Return the bytes of the exit waves of a whole tilt, all its incoherent parts."""
    window, section = probe_window(job, series), job.ptychography
    parts = job.detector.flight_points * section.object_states * mode_count(job)
    itemsize = complex_dtype(section.precision).itemsize
    return max(len(p) for p in series.facts.positions) * parts * window[0] * window[1] * itemsize
