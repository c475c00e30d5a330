"""The kernels under compute-sanitizer, as far as it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.gpu.bench import Bench

TOOLS: Final = ("memcheck", "racecheck")
UNDONE: Final = "not done"
_ROOT: Final = Path(__file__).resolve().parents[2]
_FOUND = 9


def program() -> str | None:
    """Return where compute-sanitizer is, on the path or in the toolkit's folder."""
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


def check(tool: str, most: float) -> tuple[str, str]:
    """Run the kernels under a tool for at most so many seconds; return "clean" or what it found, and its words."""
    where = program()
    if where is None:
        raise FileNotFoundError("compute-sanitizer is not installed")
    # Each kernel launch's first errors say enough
    options = ["--tool", tool, "--error-exitcode", str(_FOUND), "--print-limit", "10"]
    command = [where, *options, sys.executable, "-m", "benchmarks.gpu.sanitized"]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=most)
    except subprocess.TimeoutExpired:
        return UNDONE, ""
    said = done.stdout + done.stderr
    kinds = {0: "clean", _FOUND: "faults found"}
    return kinds.get(done.returncode, f"could not run (exit {done.returncode})"), said


def rows(bench: Bench) -> Iterator[dict[str, object]]:
    """Yield what each tool found, in the time that is left; its words go to the output."""
    for tool in TOOLS:
        left = bench.began + bench.seconds - time.monotonic()
        if bench.has_time(f"compute-sanitizer {tool}", 20.0):
            start = time.monotonic()
            outcome, said = check(tool, left)
            if outcome == UNDONE:
                bench.left.append(f"compute-sanitizer {tool}: {outcome} in {left:.0f} s")
                continue
            if outcome != "clean":
                print(said[-6000:])
            yield {"tool": tool, "outcome": outcome, "seconds": time.monotonic() - start}


def wrong(found: list[dict[str, object]]) -> list[str]:
    """Return the tools that did not find the kernels clean."""
    return [f"{row['tool']}: {row['outcome']}" for row in found if row["outcome"] != "clean"]
