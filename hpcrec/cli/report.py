"""``hpcrec report``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from hpcrec.errors import ConfigError
from hpcrec.report.collect import write_report
from hpcrec.run.directory import RunDirectory


def rewrite_report(path: Path) -> None:
    """Write the report of a run directory anew and print where it is."""
    directory = RunDirectory(path)
    if not directory.job.exists():
        raise ConfigError(f"{path} is no run directory: it holds no job.toml")
    write_report(directory)
    Console().print(f"report: [bold]{escape(str(directory.report))}[/]", highlight=False, soft_wrap=True)
