"""The chaos run: ``python -m benchmarks.chaos --seed 1 --faults 50 [--only KIND …] [--ranks tiles] [--json FILE]``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.chaos.drive import HANG_S, Chaos, Course
from benchmarks.chaos.faults import KINDS, draw_faults
from benchmarks.chaos.series import SETTINGS
from benchmarks.table import print_table


def parse(arguments: Sequence[str] | None = None) -> Namespace:
    """Return the options of the command line."""
    kinds = "\n".join(f"  {name:20} {kind.text}" for name, kind in KINDS.items())
    parser = ArgumentParser("python -m benchmarks.chaos", description=f"Strike faults into a small job.\n\n{kinds}")
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, default=1, help="what the draw follows from")
    parser.add_argument("--faults", type=int, default=50, help="how many")
    parser.add_argument("--only", nargs="+", choices=sorted(KINDS), default=[], metavar="KIND", help="these kinds")
    parser.add_argument("--ranks", choices=list(SETTINGS), help="so in all of them: a tilt each, or one together")
    parser.add_argument("--just", nargs="+", type=int, default=[], metavar="N", help="of the draw, these numbers alone")
    parser.add_argument("--folder", type=Path, help="where series and runs lie; kept (default: a temporary one)")
    parser.add_argument(
        "--hang",
        type=float,
        default=HANG_S,
        metavar="S",
        help=f"without an event or an end: a hang (default {HANG_S:g}; a busy machine may need more)",
    )
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    found = parser.parse_args(arguments)
    if found.faults < 1:
        parser.error(f"--faults must be 1 or more, got {found.faults}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the faults; return 0 if all ended well."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))).absolute()
    draw = draw_faults(options.seed, options.faults, options.only)
    chosen = [fault for fault in draw if not options.just or fault.index in options.just]
    if options.ranks:
        chosen = [replace(fault, ranks=options.ranks) for fault in chosen]
    courses: list[Course] = []
    began = time.monotonic()
    try:
        chaos = Chaos(folder, options.hang)
        for fault in chosen:
            started = time.monotonic()
            courses.append(chaos.run(fault))
            row = courses[-1].row()
            took = time.monotonic() - started
            print(
                f"{len(courses)}/{len(chosen)} {row['fault']}, {row['where']}: {row['verdict']} ({took:.0f} s)",
                flush=True,
            )
    finally:
        _report(options, courses, time.monotonic() - began)
    failed = [course for course in courses if course.faults]
    if failed:
        print(f"{len(failed)} of {len(courses)} FAILED; what they left is kept below {folder}")
    elif options.folder is None:
        shutil.rmtree(folder)
    return int(bool(failed))


def _report(options: Namespace, courses: list[Course], seconds: float) -> None:
    rows = [course.row() for course in courses]
    load = os.getloadavg()[1]
    title = f"seed {options.seed}, {len(rows)} faults, {seconds / 60:.1f} min, {os.cpu_count()} cores, load {load:.1f}"
    short = [{key: _short(value) for key, value in row.items()} for row in rows]
    if rows:
        print_table(short, title)
    if options.json:
        content = {"seed": options.seed, "seconds": seconds, "load": load, "rows": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def _short(value: object) -> object:
    return value[:57] + "…" if isinstance(value, str) and len(value) > 58 and not value.startswith("FAILED") else value


if __name__ == "__main__":
    # So that also a run that is ended from outside leaves no process behind
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
