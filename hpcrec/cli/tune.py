"""``hpcrec tune``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hpcrec.errors import ConfigError
from hpcrec.io.atomic import write_bytes
from hpcrec.parallel import mpi
from hpcrec.run.config import job_text, load_job, with_values
from hpcrec.run.tune import Study, Trial, Tuned, TuneOptions, parse_parameter

SHOWN = 8


def tune_job(path: Path, overrides: Sequence[str], parameters: Sequence[str], options: TuneOptions, out: Path) -> None:
    """Search, print the best trials, and write the job with the best values to ``out``."""
    if mpi.world().size > 1:
        raise ConfigError(
            "hpcrec tune is one process: start it without mpiexec; "
            "the same command, started several times, shares one study"
        )
    if out.resolve() == path.resolve():
        raise ConfigError(f"--out {out} is the job file itself: give another name")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it, or choose another")
    _, raw = load_job(path, overrides)
    chosen = [parse_parameter(raw, text) for text in parameters]
    console = Console()
    study = Study(raw, chosen, options, out.with_suffix(".sqlite3"))
    best = min((t.error for t in study.trials() if t.error is not None), default=None)

    def heard(trial: Trial, n_done: int) -> None:
        nonlocal best
        better = trial.error is not None and (best is None or trial.error < best)
        best = trial.error if better else best
        text = f"given up: {trial.reason}" if trial.error is None else f"held-out error {trial.error:.5f}"
        mark = " (best so far)" if better else ""
        line = f"trial {n_done} of {options.trials}: {_values(trial)}: {text}{mark}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    tuned = study.run(heard)
    write_bytes(out, job_text(with_values(raw, tuned.values)).encode())
    console.print(_table(tuned))
    if tuned.importance:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in tuned.importance.items())
        console.print(f"importance: {shares}", highlight=False, soft_wrap=True)
    console.print(f"job with the best values: [bold]{escape(str(out))}[/]", highlight=False, soft_wrap=True)


def _table(tuned: Tuned) -> Table:
    keys = list(tuned.values)
    table = Table(title="Best trials", title_justify="left")
    for name in ("trial", *keys, "held-out error"):
        table.add_column(name)
    for trial in tuned.trials[:SHOWN]:
        if trial.error is not None:
            table.add_row(str(trial.number + 1), *(escape(_text(trial.values[k])) for k in keys), f"{trial.error:.5f}")
    return table


def _values(trial: Trial) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in trial.values.items())


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
