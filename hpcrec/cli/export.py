"""``hpcrec export``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from hpcrec.errors import ConfigError
from hpcrec.io.export import export_run
from hpcrec.run.config import load_job
from hpcrec.run.directory import RunDirectory


def export_directory(path: Path, file_format: str, out: Path | None) -> None:
    """Write the results of a run directory in another format and print the files."""
    directory = RunDirectory(path)
    if not directory.job.exists():
        raise ConfigError(f"{path} is no run directory: it holds no job.toml")
    if not directory.projections.exists():
        raise ConfigError(f"{path} holds no projections.h5 yet: run its ptychography stage first")
    job, _ = load_job(directory.job)
    prepare = None if job.tomography is None else job.tomography.prepare
    target = out or path / file_format
    files = export_run(directory.projections, directory.volume, target, file_format, prepare)
    console = Console()
    console.print(f"wrote {len(files)} files to [bold]{escape(str(target))}[/]", highlight=False, soft_wrap=True)
    for file in files:
        console.print(f"  {file.name}", highlight=False, markup=False)
