"""``hpcrec calibrate data``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from hpcrec.errors import ConfigError
from hpcrec.io.atomic import write_bytes
from hpcrec.run.config import job_text, read_job_file
from hpcrec.run.orient import Diagnosis, Side, examine


def examine_data(
    path: Path,
    out: Path | None,
    tilt: int | None,
    overrides: Sequence[str],
    move: str,
    turns_deg: Sequence[float],
    positions: int,
    sweeps: int,
) -> None:
    """Print the ranking and the block of a job; write the block to ``out``."""
    sides: dict[str, Side | None] = {"auto": None, "frames": "frames", "positions": "positions"}
    if move not in sides:
        raise ConfigError(f"--move {move}: choose one of {', '.join(sides)}")
    raw = read_job_file(path, overrides)
    console = Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("trying orientations", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        found = examine(
            raw,
            tilt,
            side=sides[move],
            turns=[float(np.radians(angle)) for angle in turns_deg],
            n_positions=positions,
            iterations=sweeps,
            progress=progress,
        )
    for table in (evidence_table(found), ranking_table(found)):
        if table is not None:
            console.print(table)
    colour = {"certain": "green", "likely": "yellow"}.get(found.sure, "red")
    console.print(f"[{colour}]{found.sure}[/]: {escape(found.because)}", highlight=False, soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    text = block_text(found)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    if out is not None:
        write_bytes(out, text.encode())
        console.print(f"wrote [bold]{escape(str(out))}[/]", highlight=False, soft_wrap=True)


def evidence_table(found: Diagnosis) -> Table | None:
    """Return what curl and parallax say; None where they say nothing."""
    if not found.evidence.curl:
        return None
    table = Table(title=f"Evidence of the bright field, tilt {found.tilt}", title_justify="left")
    for name in ("frames", "curl share", "explained", "defocus (Å)", "astigmatism (Å)", "determinant of the parallax"):
        table.add_column(name, justify="left" if name == "frames" else "right")
    for mirrored in (False, True):
        lens, shifts = found.evidence.lens.get(mirrored), found.evidence.shifts.get(mirrored)
        cells = [f"{found.evidence.curl[mirrored].curl_share:.3f}", "", "", "", ""]
        if lens is not None and shifts is not None:
            cells[1] = f"{lens.explained:.3f}"
            cells[2] = f"±{abs(lens.c10):.0f}"
            cells[3] = f"{lens.astigmatism[0]:.1f}"
            cells[4] = f"{np.linalg.det(shifts.matrix):+.3g}"
        table.add_row("mirrored against the scan" if mirrored else "of the scan's handedness", *cells)
    return table


def ranking_table(found: Diagnosis) -> Table:
    """Return the candidates, best first."""
    table = Table(title="Short reconstructions", title_justify="left")
    for name in (
        f"flips of the {found.side}",
        "turn (°)",
        "defocus (Å)",
        "data error",
        "held-out error",
        "times the best",
    ):
        table.add_column(name, justify="left" if name.startswith("flips") else "right")
    best = found.ranking[0].error
    for one in found.ranking:
        lens = "" if one.lens is None else f"{one.lens.defocus:.0f}{' measured' if one.lens.measured else ''}"
        errors = ["diverged", "", ""]
        if one.trial is not None:
            errors = [f"{one.trial.data_error:.4f}", f"{one.error:.4f}", f"{one.error / best:.2f}"]
        table.add_row(one.label, f"{one.options['scan_rotation_deg']:.1f}", lens, *errors)
    return table


def block_text(found: Diagnosis) -> str:
    """Return the block for the job file, with what it rests on as comments."""
    comments = [f"found by hpcrec calibrate data on tilt {found.tilt}: {found.sure}; {found.because}", *found.notes]
    return "".join(f"# {line}\n" for line in comments) + job_text(found.block)
