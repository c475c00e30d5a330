"""``hpcrec check``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hpcrec.data.dataset import TiltSeries
from hpcrec.errors import DeviceError
from hpcrec.io.base import open_series
from hpcrec.run.advice import Advice, advise
from hpcrec.run.config import load_job
from hpcrec.run.plan import Plan, available_cores, duration, make_plan


def check_job_file(path: Path, overrides: Sequence[str], n_ranks: int) -> None:
    """Print the plan of a job file; faults end with exit code 2 (job), 3 (data) or 5 (memory)."""
    # The plan counts what this process takes: it must have what a run loads
    import_module("hpcrec.cli.run")
    job, _ = load_job(path, overrides)
    with open_series(job.data) as series:
        console = Console(width=None if sys.stdout.isatty() else 120)
        console.print(data_table(job.data.format, series))
        plan = make_plan(job, series, n_ranks)
        advice = advise(job, series)
    console.print(plan_table(plan))
    console.print(advice_table(advice))
    if not plan.fits:
        raise DeviceError(
            f"{path} does not fit: a rank would need {plan.memory_gib_per_rank:.3g} GiB, the limit is "
            f"{plan.memory_limit_gib:.3g} GiB; raise parallel.memory_gib_per_rank or parallel.group_size"
        )
    console.print(f"[green]ok[/]: {escape(str(path))} can run", highlight=False, soft_wrap=True)


def data_table(name: str, series: TiltSeries) -> Table:
    """Return what the reader found, in the units of the package, and what of it the file itself said."""
    facts = series.facts
    scans = np.concatenate([np.ptp(p, axis=0)[None] for p in facts.positions])
    (sy, sx), (ky, kx), (ry, rx) = series.sampling, series.detector_sampling, facts.frame.stored
    beam = "not known" if facts.energy_ev is None else f"{facts.energy_ev:g} eV, wavelength {facts.wavelength:.6g} Å"
    bad = 0 if facts.mask is None else int((~facts.mask).sum())
    table = Table(title="Data", show_header=False, title_justify="left")
    for key, value in (
        ("file", f"{facts.identity.path} ({name})"),
        ("frames", f"{ry} × {rx} of {facts.dtype}, zero frequency at {facts.frame.centre}"),
        ("scan", f"{scans[:, 0].max():.6g} × {scans[:, 1].max():.6g} Å"),
        ("pixel", f"{sy:.6g} × {sx:.6g} Å; of the detector {ky:.6g} × {kx:.6g} 1/Å"),
        ("beam", beam),
        ("bad pixels", f"{bad}"),
        ("from the file", ", ".join(facts.from_file) or "patterns, and what the job names in it"),
    ):
        table.add_row(key, escape(value))
    return table


def plan_table(plan: Plan) -> Table:
    """Return the plan as a table."""
    table = Table(title="Plan", show_header=False, title_justify="left")
    ny, nx = plan.pattern_shape
    oy, ox = plan.object_shape
    for name, value in (
        ("tilts", f"{plan.n_tilts}"),
        ("patterns", f"{plan.n_positions} of {ny} × {nx} pixels"),
        ("object", f"{oy} × {ox} pixels, up to {plan.max_slices} slices"),
        ("ranks", _ranks(plan)),
        ("device", _device(plan)),
        ("memory a rank", f"{plan.memory_gib_per_rank:.2f} GiB of {plan.memory_limit_gib:.1f} GiB"),
        ("speed", f"{plan.patterns_per_s:.0f} patterns/s {'a tilt' if plan.crew > 1 else 'a rank'}, measured just now"),
        ("ptychography", duration(plan.ptychography_seconds)),
        ("tomography", f"at most {duration(plan.tomography_seconds)}" if plan.tomography_seconds else "none"),
    ):
        table.add_row(name, value)
    return table


def _ranks(plan: Plan) -> str:
    some = f"{plan.n_ranks} on {available_cores()} cores"
    if plan.crew > 1:
        return f"{some}; {plan.crew} work on a tilt as {plan.threads} threads of one of them"
    text = f"{some}, {plan.threads} threads each, {plan.group_size} a tilt"
    if plan.exchange:
        text += f", {plan.exchange}" + (f": {plan.reason}" if plan.reason else "")
    return text


def _device(plan: Plan) -> str:
    if plan.device_limit_gib == 0:
        return plan.device
    patterns = "all patterns of a tilt stay there" if plan.resident else "patterns come batch by batch"
    return f"{plan.device}, at least {plan.device_gib:.2f} GiB of {plan.device_limit_gib:.1f} GiB a rank; {patterns}"


def advice_table(advice: Sequence[Advice]) -> Table:
    """Return what the job says beside what hpcrec would choose."""
    table = Table(title="Choices", title_justify="left")
    for name in ("", "this job", "better", "why"):
        table.add_column(name, overflow="fold")
    for row in advice:
        table.add_row(*map(escape, (row.name, row.now, row.better or "–", row.why)))
    return table
