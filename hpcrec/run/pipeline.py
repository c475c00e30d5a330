"""The stages of a run, each resumable: ptychography on all ranks; the rest on rank 0 and its Dask workers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from hpcrec.backend.device import free_unused
from hpcrec.data.dataset import Identity, TiltSeries
from hpcrec.errors import DataError, ParallelError, StoppedError
from hpcrec.io.atomic import remove_leftovers
from hpcrec.io.base import open_series
from hpcrec.io.results import assemble_projections, gathered_tilts
from hpcrec.parallel import mpi
from hpcrec.parallel.communicator import Communicator
from hpcrec.run import stop, watch
from hpcrec.run.config import fingerprint
from hpcrec.run.directory import STAGES, RunDirectory
from hpcrec.run.job import Job
from hpcrec.run.measure import measure, summary
from hpcrec.run.observers import Event, EventLog, Observer, make_progress
from hpcrec.run.plan import make_plan
from hpcrec.run.provenance import collect_provenance, now
from hpcrec.run.start import FEW_COUNTS, mean_power
from hpcrec.run.tilts import reconstruct_tilts, unfinished_tilts

ATTEMPTS = 3


def run_pipeline(
    job: Job,
    raw: dict[str, Any],
    directory: RunDirectory,
    world: Communicator,
    console: Console,
    until: str,
    write_report: Callable[[RunDirectory], None],
) -> dict[str, str] | None:
    """Run the stages that are not done yet, up to ``until``; return the quality figures on rank 0, None elsewhere.

    All ranks call it. Ranks other than 0 sleep after the ptychography stage, or work for Dask. ``write_report`` is the
    last stage. Rank 0 raises :class:`StoppedError` where a rank was asked to stop, others may.
    """
    with open_series(job.data) as series:
        if world.rank:
            with suppress(StoppedError):
                reconstruct_tilts(job, series, world, directory.checkpoints, _unheard)
            watch.now("has no tilts left", patient=True)
            _lend_ranks(job, world)
            world.idle_barrier()
            return None
        progress = make_progress(console, series.n_tilts)
        log = EventLog(directory.events)

        def observer(event: Event) -> None:
            log(event)
            progress(event)

        try:
            quality = _lead(job, raw, directory, world, series, observer, until, write_report)
        except StoppedError as leave:
            stop.interrupt(False)
            log({"event": "stopped", "text": str(leave)})
            _lend_ranks(job, world)
            world.idle_barrier()
            raise
        finally:
            stop.interrupt(False)
            progress.close()
    _lend_ranks(job, world)
    world.idle_barrier()
    return quality


def _lend_ranks(job: Job, world: Communicator) -> None:
    """Let other ranks than 0 work for Dask where the job says so, until rank 0 comes here too."""
    if job.parallel.cluster == "mpi":
        from hpcrec.run import workers

        workers.lend(job, world)


def _unheard(event: Event) -> None:
    raise ParallelError(f"only rank 0 hears events, got {event.get('event')}")


def _lead(
    job: Job,
    raw: dict[str, Any],
    directory: RunDirectory,
    world: Communicator,
    series: TiltSeries,
    observer: Observer,
    until: str,
    write_report: Callable[[RunDirectory], None],
) -> dict[str, str]:
    """What rank 0 does."""
    remove_leftovers(directory.path)
    remove_leftovers(directory.checkpoints)
    _begin(raw, directory, world, series)
    todo = unfinished_tilts(series, directory.checkpoints)
    text = f"{len(todo)} of {series.n_tilts} tilts to do, {world.size} rank(s), {job.ptychography.engine}"
    for notice in _notices(job, series):
        observer({"event": "warning", "text": notice})
    if todo:
        plan = make_plan(job, series, world.size)
        observer({"event": "note", "text": f"plan: {plan.sentence(len(todo))}"})
    with _stage("ptychography", text, observer):
        reconstruct_tilts(job, series, world, directory.checkpoints, observer)
        watch.now("later stages", patient=True)
        stop.interrupt(True)
        numbers = sorted(int(n) for n in series.tilt_numbers)
        # Others after a change of data.drop_tilts; none where the file is damaged
        if todo or gathered_tilts(directory.projections) != numbers:
            assemble_projections(directory.path, numbers)
    last = STAGES.index(until)
    if job.tomography and last >= STAGES.index("tomography") and series.n_tilts > 1:
        _tomography(job, raw, directory, world, observer)
    if last >= STAGES.index("analysis"):
        with _stage("analysis", "resolution, atoms, quality", observer):
            measure(job, directory, observer)
    if last >= STAGES.index("report"):
        with _stage("report", "figures and page", observer):
            write_report(directory)
    quality = summary(directory)
    _finish(directory)
    return quality


def _notices(job: Job, series: TiltSeries) -> list[str]:
    """Return what a user should know before the work begins, though it can go on."""
    found = []
    power = mean_power(series.tilt(series.n_tilts // 2))
    if power < FEW_COUNTS:
        found.append(
            f"the patterns sum to {power:.3g} on average: the losses expect counts, so results will be poor "
            "if the data were normalised; give counts"
        )
    if job.tomography and series.n_tilts < 2:
        found.append("one tilt makes no volume: the [tomography] section is left out")
    return found


def _tomography(
    job: Job, raw: dict[str, Any], directory: RunDirectory, world: Communicator, observer: Observer
) -> None:
    # Dask takes half a second to load; ranks but the first, and runs without a volume, never need it
    from hpcrec.run import cluster, volume, workers

    key = fingerprint(raw, "tomography")
    if directory.volume.exists() and directory.read_json(directory.stages).get("tomography") == key:
        observer({"event": "note", "text": "tomography: done before, kept"})
        return
    with _stage("tomography", workers.described(job, world.size), observer):
        for attempt in range(1, ATTEMPTS + 1):
            try:
                # Workers share the memory that is free when they begin
                free_unused()
                with workers.stage_workers(job, world, directory.checkpoints) as executor:
                    volume.reconstruct_volume(job, key, directory, executor, observer)
                break
            except cluster.WorkersLostError as fault:
                if attempt == ATTEMPTS:
                    raise
                observer({"event": "warning", "text": f"{fault} (done here: attempt {attempt + 1} of {ATTEMPTS})"})
    directory.write_json(directory.stages, {"tomography": key})


@contextmanager
def _stage(name: str, text: str, observer: Observer) -> Iterator[None]:
    started = time.perf_counter()
    observer({"event": "stage_started", "stage": name, "text": text})
    yield
    observer({"event": "stage_done", "stage": name, "seconds": time.perf_counter() - started})


def _begin(raw: dict[str, Any], directory: RunDirectory, world: Communicator, series: TiltSeries) -> None:
    """Write provenance before the work; a continued run adds an entry to ``restarts``."""
    library = mpi.library_info().library if world.size > 1 else "none"
    record = collect_provenance(raw, [identity_record(series.identity)], world.size, library)
    before = directory.read_json(directory.provenance)
    if before:
        known, now_read = before["inputs"][0]["digest"], record["inputs"][0]["digest"]
        if known != now_read:
            raise DataError(
                f"{series.identity.path}: is not the file this run began with ({known} → {now_read}); "
                "put the file back, or start anew with another --out"
            )
        restarts = [*before.get("restarts", []), {k: record[k] for k in ("started", "command", "ranks", "hpcrec")}]
        record = {**record, "started": before["started"], "restarts": restarts}
    directory.write_json(directory.provenance, record)


def _finish(directory: RunDirectory) -> None:
    record = directory.read_json(directory.provenance)
    outputs = sorted(p.name for p in directory.path.iterdir() if p.is_file() and p.name != directory.provenance.name)
    directory.write_json(directory.provenance, {**record, "finished": now(), "outputs": outputs})


def identity_record(identity: Identity) -> dict[str, Any]:
    """Return a file's identity for provenance."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(identity).items()}
