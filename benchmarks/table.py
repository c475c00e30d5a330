"""How benchmarks print and keep their figures: one table, and the same rows as JSON with machine and commit."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
Row = Mapping[str, object]


def print_table(rows: Sequence[Row], title: str = "") -> None:
    """Print rows under the keys of all of them; numbers with three digits, and a dash where there is none."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    shown = Table(title=title, title_justify="left")
    for name in names:
        numeric = any(isinstance(row.get(name), int | float) for row in rows)
        shown.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*(_text(row.get(name)) for name in names))
    Console(width=200).print(shown)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def add_json_option(parser: ArgumentParser) -> None:
    """Let a benchmark be asked for its figures in a file, see :func:`report`."""
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def report(name: str, machine: Row, rows: Sequence[Row], also: Path | None = None) -> None:
    """Print rows under what they were measured on, keep them, and write them to the file ``also``."""
    print_table(rows, f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']:.1f}, {machine['commit']}")
    kept = save_results(name, machine, rows)
    print(f"results: {kept}")
    if also:
        also.write_bytes(kept.read_bytes())


def save_results(name: str, machine: Row, rows: Sequence[Row]) -> Path:
    """Write ``results/NAME-TIME.json`` and return its path."""
    RESULTS.mkdir(exist_ok=True)
    stamp = str(machine["time"]).replace(":", "")[:17]
    path = RESULTS / f"{name}-{stamp}.json"
    path.write_text(json.dumps({"machine": machine, "rows": list(rows)}, indent=1) + "\n")
    return path
