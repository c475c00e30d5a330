"""The ptychography stage: rank 0 hands tilts out to groups of ranks, each tilt is written when it is done."""

from __future__ import annotations

import logging
import math
import os
import platform
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcrec.analysis.resolution import ShellCorrelation
from hpcrec.backend.device import Device
from hpcrec.backend.fft import plan_wisdom, use_wisdom
from hpcrec.backend.kernels.transforms import known_size
from hpcrec.data.dataset import TiltSeries
from hpcrec.data.views import half_resolution
from hpcrec.errors import DataError, StoppedError, StorageError
from hpcrec.geometry.grid import Grid
from hpcrec.io.atomic import write_bytes
from hpcrec.io.joined import JoinedArray
from hpcrec.io.results import JoinedTilt, TiltResult, tilt_number, tilt_path, write_tilt_result
from hpcrec.io.tilt_parts import remove_stray_parts
from hpcrec.parallel.communicator import Communicator
from hpcrec.parallel.crew import Crew, alone, muster
from hpcrec.parallel.queue import Master
from hpcrec.run import watch
from hpcrec.run.balance import Pace
from hpcrec.run.costs import sweep_costs, sweeps_left
from hpcrec.run.device_memory import device_rooms
from hpcrec.run.devices import device_name, rank_device, routed
from hpcrec.run.hands import Hands
from hpcrec.run.job import Job
from hpcrec.run.means import Means
from hpcrec.run.memory import GIB, pattern_room
from hpcrec.run.observers import Observer
from hpcrec.run.outcome import TiltOutcome
from hpcrec.run.parts import TiltTask, reconstruct_tilt, remove_parts
from hpcrec.run.plan import rank_threads
from hpcrec.run.record import quality_arrays, quality_path, quality_record, write_quality_record
from hpcrec.run.rounds import Round, rounds_of
from hpcrec.run.runner import batch_size
from hpcrec.run.sharing import Sharing, joins_ranks, share_ranks
from hpcrec.run.start import common_grid, probe_window
from hpcrec.run.stop import leave_if_asked

logger = logging.getLogger(__name__)


def reconstruct_tilts(job: Job, series: TiltSeries, world: Communicator, checkpoints: Path, observer: Observer) -> None:
    """Reconstruct every tilt that has no result yet; collective over all ranks.

    Once a rank is asked to stop, groups leave between sweeps, and :class:`StoppedError` is raised on all ranks.

    ``observer`` hears the events of all groups, on rank 0. Results are ``checkpoints/tilt_0017.h5``, numbered as in
    the input file.
    """
    device = rank_device(device_name(job), world)
    if device.kind == "cpu":
        _same_plans(job, probe_window(job, series), world, checkpoints, "fftw_wisdom")
        if job.ptychography.coarse_iterations:
            _same_plans(job, probe_window(job, half_resolution(series)), world, checkpoints, "fftw_wisdom_coarse")
    grid, threads = common_grid(job, series), rank_threads(job, world)
    sharing = _agreed(job, series, grid, world, threads, device)
    job, size = sharing.job(job), sharing.size
    todo = unfinished_tilts(series, checkpoints) if world.rank == 0 else []
    if world.rank == 0:
        remove_stray_parts(checkpoints)
        # Of tilts whose rank was killed between its result and the end of its checkpoints
        for i in set(range(series.n_tilts)) - set(todo):
            remove_parts(checkpoints, int(series.tilt_numbers[i]))
    todo = longest_first(job, series, todo, checkpoints)
    found = rounds_of(job, series, grid, todo, world.size, size, threads, device) if world.rank == 0 else None
    pace = Pace()
    for i, one in enumerate(world.broadcast(found)):
        group = routed(job, device, world.split(one.group_of(world.rank)))
        crew = muster(group, threads) if size > 1 and joins_ranks(job, device) else alone(group, threads)
        means = replace(_means(job, series, grid, crew, world.size, device), pace=pace)
        if world.rank == 0:
            for text in _again(one) if i else _arrangement(crew, device, sharing):
                observer({"event": "note", "text": text})
        with Master(world, one.tilts, observer, crew.group) as master, suppress(StoppedError):
            hands = Hands(master, crew, joins_ranks(job, device))
            if crew.size > 0:
                _take_tilts(job, series, grid, crew.group, checkpoints, master, means, hands)
        leave_if_asked(world)


def _take_tilts(
    job: Job,
    series: TiltSeries,
    grid: Grid,
    group: Communicator,
    checkpoints: Path,
    master: Master[int],
    means: Means,
    hands: Hands,
) -> None:
    """Reconstruct one tilt after the other, as the master gives them, then lend what this rank worked with."""
    if means.device.kind == "cpu":
        means = replace(means, threads=hands.threads)
    while (i_tilt := master.next()) is not None:
        number, n_positions = int(series.tilt_numbers[i_tilt]), len(series.facts.positions[i_tilt])
        sweeps, batch = sweeps_left(job, number, checkpoints), batch_size(job, n_positions)
        outcome, frc = reconstruct_tilt(
            TiltTask(
                job=job,
                series=series,
                grid=grid,
                i_tilt=i_tilt,
                group=group,
                checkpoints=checkpoints,
                report=hands.listening(master.report, sweeps, batch),
                means=means,
            )
        )
        if outcome is not None:
            write_quality_record(quality_path(checkpoints, number), quality_record(outcome, frc))
            write_tilt_result(tilt_path(checkpoints, number), tilt_result(job, outcome, number, frc))
            remove_parts(checkpoints, number)
    watch.now("has no tilt left", patient=True)
    hands.lend()


def _again(formed: Round) -> list[str]:
    """Say how ranks are grouped anew."""
    sizes = sorted(set(formed.sizes))
    return [f"the last {len(formed.tilts)} tilt(s): {' or '.join(map(str, sizes))} ranks work on each"]


def _means(job: Job, series: TiltSeries, grid: Grid, crew: Crew, n_ranks: int, device: Device) -> Means:
    """Return what this rank may use for each tilt; a GPU is current in one thread alone."""
    room = pattern_room(job, series, grid, crew.group.size, n_ranks, crew.threads, crew.size)
    means = Means(threads=crew.threads, pattern_bytes=room)
    if device.kind == "cpu":
        return means
    rooms = device_rooms(job, series, grid, crew.group.size, device)
    return replace(means, threads=1, device=device, device_pattern_bytes=rooms.patterns, wave_bytes=rooms.waves)


def _agreed(job: Job, series: TiltSeries, grid: Grid, world: Communicator, threads: int, device: Device) -> Sharing:
    """Return what the first rank finds the best way to share the tilts; collective."""
    hosts = world.gather(platform.node())
    found = None if hosts is None else share_ranks(job, series, grid, world.size, threads, device, len(set(hosts)))
    agreed: Sharing = world.broadcast(found)
    return agreed


def _arrangement(crew: Crew, device: Device, sharing: Sharing) -> list[str]:
    """Say how the ranks work, where that is not the usual way."""
    if sharing.reason:
        return [f"{sharing.size} ranks a tilt, {sharing.exchange}: {sharing.reason}", *_seats(crew, device)]
    return _seats(crew, device)


def _seats(crew: Crew, device: Device) -> list[str]:
    """Say where ranks sit that share a tilt."""
    if device.kind == "gpu":
        way = {"host": "through host memory", "mpi": "by MPI from GPU to GPU", "nccl": "by NCCL"}
        route = getattr(crew.group, "route", "")
        sums = f"; sums of {crew.group.size} ranks pass {way[route]}" if route and crew.group.size > 1 else ""
        return [f"on GPUs, rank 0 on {device} with {device.pool_bytes / GIB:.3g} GiB of its memory{sums}"]
    if crew.size > 1:
        return [f"{crew.size} ranks work on each tilt as {crew.threads} threads of one of them"]
    return []


def _same_plans(job: Job, window: tuple[int, int], world: Communicator, checkpoints: Path, name: str) -> None:
    """Let all ranks, now and after an interruption, use the same FFTW plans: other plans round differently.

    Windows of sizes that hpcrec's own transforms know need no plans. Others' are kept as ``checkpoints/NAME``, and for
    further runs on this machine in the user's cache.
    """
    compiled = job.ptychography.precision == "single" and job.ptychography.kernel != "array"
    if not compiled or all(map(known_size, window)):
        return
    wisdom = b""
    if world.rank == 0:
        kept, cached = checkpoints / name, wisdom_cache(window)
        known = next((path for path in (kept, cached) if path.exists()), None)
        wisdom = plan_wisdom(*window) if known is None else known.read_bytes()
        if known != kept:
            write_bytes(kept, wisdom)
        if known is None:
            _remember(cached, wisdom)
    if not use_wisdom(world.broadcast(wisdom)):
        logger.warning("FFTW cannot use the plans kept in %s: results agree to single precision only", checkpoints)


def wisdom_cache(shape: tuple[int, int]) -> Path:
    """Return where this machine keeps its FFTW plans of one window: below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "hpcrec" / f"fftw-{platform.node()}-{shape[0]}x{shape[1]}"


def _remember(path: Path, wisdom: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, wisdom)
    except (OSError, StorageError) as fault:
        logger.info("FFTW plans are not kept for other runs: %s", fault)


def unfinished_tilts(series: TiltSeries, checkpoints: Path) -> list[int]:
    """Return the tilts (counted in the series) without a sound result; a damaged result counts as none."""

    def sound(number: int) -> bool:
        path = tilt_path(checkpoints, number)
        try:
            return path.exists() and tilt_number(path) == number
        except DataError as fault:
            logger.warning("a tilt is reconstructed again: %s", fault)
            return False

    return [i for i, number in enumerate(series.tilt_numbers) if not sound(int(number))]


def longest_first(job: Job, series: TiltSeries, tilts: list[int], checkpoints: Path) -> list[int]:
    """Return tilts in descending order of what is left to do of each, so that the end is not one long tilt.

    Of equal ones those at high angles, through which the specimen is thicker, come first.
    """
    one = sweep_costs(job, series)
    left = {i: one[i] * sweeps_left(job, int(series.tilt_numbers[i]), checkpoints) for i in tilts}
    return sorted(tilts, key=lambda i: (-left[i], -abs(series.tilt_angles[i])))


def tilt_result(
    job: Job, outcome: TiltOutcome, number: int, frc: ShellCorrelation | None = None
) -> TiltResult | JoinedTilt:
    """Return an outcome in the form the store writes; ``number`` is the tilt's index in the input file."""
    setup = outcome.setup
    facts: dict[str, Any] = dict(  # noqa: C408
        tilt_index=number,
        tilt_deg=math.degrees(setup.angle),
        probe=outcome.probe,
        positions=outcome.positions,
        illumination=outcome.illumination,
        loss=outcome.loss,
        data_error=outcome.data_error,
        sampling=setup.sampling,
        origin=setup.grid.origin,
        slice_thickness=setup.slice_thickness,
        engine=job.ptychography.engine,
        iterations=len(outcome.loss),
        seconds=outcome.seconds,
        energy_ev=job.beam.energy_ev if job.beam else None,
        wavelength=setup.wavelength if job.beam else None,
        refined=outcome.refined,
        quality=quality_arrays(outcome, frc),
    )
    if isinstance(outcome.obj, JoinedArray):
        return JoinedTilt(obj=outcome.obj, **facts)
    return TiltResult(obj=outcome.obj, **facts)
