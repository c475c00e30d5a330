"""``hpcrec simulate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from hpcrec.data.experiment import SimulationOptions
from hpcrec.errors import StorageError
from hpcrec.io.simulated import write_simulated_series
from hpcrec.run.config import load_options


def simulate_file(path: Path, out: Path, overrides: Sequence[str]) -> None:
    """Simulate the series that a TOML file describes and write it to ``out``."""
    chosen = load_options(SimulationOptions, path, overrides)
    console = Console()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise StorageError(f"cannot make the folder {out.parent}: {fault.strerror}; choose another --out") from None
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("simulating tilts", total=chosen.tilt.n_tilts)
        write_simulated_series(out, chosen, lambda done, _: bar.update(task, completed=done))
    console.print(f"wrote {chosen.tilt.n_tilts} tilts to [bold]{escape(str(out))}[/]", highlight=False, soft_wrap=True)
