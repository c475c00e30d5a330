"""``hpcrec run``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hpcrec.errors import ConfigError, HpcrecError, QualityError, StoppedError
from hpcrec.logs import configure_logging
from hpcrec.parallel import mpi
from hpcrec.parallel.communicator import Communicator
from hpcrec.run import stop
from hpcrec.run.config import check_job, load_job
from hpcrec.run.directory import STAGES, RunDirectory, default_path, find_job, open_directory
from hpcrec.run.measure import limits_broken
from hpcrec.run.pipeline import run_pipeline
from hpcrec.run.watch import Watch


def run_job(target: Path, out: Path | None, overrides: Sequence[str], until: str, verbose: bool) -> None:
    """Run or continue a job on all ranks; rank 0 prints. Once asked to stop all ranks raise :class:`StoppedError`."""
    world = mpi.world()
    configure_logging(world.rank, verbose)
    raw, directory = _agree(world, target, out, overrides, until)
    console = Console(quiet=world.rank != 0, width=None if sys.stdout.isatty() else 120)
    if world.rank == 0:
        console.print(f"run directory [bold]{escape(str(directory.path))}[/]", highlight=False, soft_wrap=True)
    job = check_job(raw)
    stop.watch_file(directory.stop)
    leave: StoppedError | None = None
    quality: dict[str, str] | None = None
    with Watch(world, directory.ranks, job.parallel.patience_s, job.parallel.stall_s):
        try:
            quality = run_pipeline(job, raw, directory, world, console, until, _write_report)
        except StoppedError as error:
            leave = error
        leave = world.broadcast(leave)
    if leave is not None:
        raise leave
    if quality is not None:
        console.print(quality_table(quality))
        if directory.report.exists():
            console.print(f"report: [bold]{escape(str(directory.report))}[/]", highlight=False, soft_wrap=True)
    broken = limits_broken(job, directory) if world.rank == 0 else []
    _leave_together(world, _limits_error(broken) if broken else None)


def _write_report(directory: RunDirectory) -> None:
    """Write the report of a run; of all ranks the first one comes here, at the end."""
    # matplotlib takes half a second to load
    from hpcrec.report.collect import write_report

    write_report(directory)


def _limits_error(broken: list[str]) -> QualityError:
    return QualityError("\n  ".join(["the run is done and written, but breaks its limits:", *broken]))


def _agree(
    world: Communicator, target: Path, out: Path | None, overrides: Sequence[str], until: str
) -> tuple[dict[str, Any], RunDirectory]:
    """Read the job and open the directory on rank 0; all ranks return the same, or leave with the same exit code."""
    answer: Any = None
    fault: HpcrecError | None = None
    if world.rank == 0:
        try:
            if until not in STAGES:
                raise ConfigError(f"--until {until}: choose one of {', '.join(STAGES)}")
            path, out = find_job(target, out)
            job, raw = load_job(path, overrides)
            directory = open_directory((out or default_path(job.name)).absolute(), raw)
            directory.stop.unlink(missing_ok=True)
            answer = raw, directory
        except HpcrecError as error:
            fault = error
    _leave_together(world, fault)
    return world.broadcast(answer)  # type: ignore[no-any-return]


def _leave_together(world: Communicator, fault: HpcrecError | None) -> None:
    """Leave with the exit code of rank 0's fault on all ranks, said once; go on where there is none."""
    fault = world.broadcast(fault)
    if fault is None:
        return
    if world.size == 1:
        raise fault
    if world.rank == 0:
        Console(stderr=True).print(f"error: {fault}", highlight=False, soft_wrap=True, markup=False)
    sys.exit(fault.exit_code)


def quality_table(quality: dict[str, str]) -> Table:
    """Return the figures of a run as a table."""
    table = Table(title="Result", show_header=False, title_justify="left")
    for name, value in quality.items():
        table.add_row(escape(str(name)), escape(str(value)))
    return table
