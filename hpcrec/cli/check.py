"""``hpcrec check``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hpcrec.errors import DeviceError
from hpcrec.io.base import open_series
from hpcrec.run.config import load_job
from hpcrec.run.plan import Plan, available_cores, duration, make_plan


def check_job_file(path: Path, overrides: Sequence[str], n_ranks: int) -> None:
    """Print the plan of a job file; faults end with exit code 2 (job), 3 (data) or 5 (memory)."""
    job, _ = load_job(path, overrides)
    with open_series(job.data) as series:
        plan = make_plan(job, series, n_ranks)
    console = Console()
    console.print(plan_table(plan))
    if not plan.fits:
        raise DeviceError(
            f"{path} does not fit: a rank would need {plan.memory_gib_per_rank:.1f} GiB, the limit is "
            f"{plan.memory_limit_gib:.1f} GiB; raise parallel.memory_gib_per_rank or parallel.group_size"
        )
    console.print(f"[green]ok[/]: {path} can run", highlight=False, soft_wrap=True)


def plan_table(plan: Plan) -> Table:
    """Return the plan as a table."""
    table = Table(title="Plan", show_header=False, title_justify="left")
    ny, nx = plan.pattern_shape
    oy, ox = plan.object_shape
    for name, value in (
        ("tilts", f"{plan.n_tilts}"),
        ("patterns", f"{plan.n_positions} of {ny} × {nx} pixels"),
        ("object", f"{oy} × {ox} pixels, up to {plan.max_slices} slices"),
        ("ranks", f"{plan.n_ranks} on {available_cores()} cores, {plan.group_size} a tilt"),
        ("memory a rank", f"{plan.memory_gib_per_rank:.2f} GiB of {plan.memory_limit_gib:.1f} GiB"),
        ("speed", f"{plan.patterns_per_s:.0f} patterns/s a rank, measured just now"),
        ("ptychography", duration(plan.ptychography_seconds)),
        ("tomography", f"at most {duration(plan.tomography_seconds)}" if plan.tomography_seconds else "none"),
    ):
        table.add_row(name, value)
    return table
