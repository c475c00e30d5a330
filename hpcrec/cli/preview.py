"""``hpcrec preview``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from hpcrec.io.atomic import write_bytes
from hpcrec.report.preview import preview_png
from hpcrec.run.config import load_job
from hpcrec.run.preview import make_preview


def preview_job(path: Path, out: Path, method: str, tilt: int | None, overrides: Sequence[str]) -> None:
    """Draw one tilt of a job by a direct method and write the picture to ``out``."""
    job, _ = load_job(path, overrides)
    shown = make_preview(job, method, tilt)
    write_bytes(out, preview_png(shown))
    console = Console()
    for note in shown.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    console.print(f"wrote [bold]{escape(str(out))}[/]", highlight=False, soft_wrap=True)
