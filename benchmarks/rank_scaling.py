"""How much faster are more ranks? ``python -m benchmarks.rank_scaling [JOB.toml] [--ranks N] [--rounds R]``.

The ptychography stage of a job on one rank and on N ranks of one thread, in turn; and N jobs of one rank each at the
same time, which share the tilts but know nothing of one another: what the machine allows. One size of transforms on 1
and N cores beside that. Medians over rounds; the efficiency is how much faster, over N. Default job:
jobs/nanocube.toml, twelve tilts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.limits import machine, transforms_per_second
from benchmarks.table import report

ENGINES = ("lsqml", "gradient")


class Runs:
    """Runs of one job in a folder."""

    def __init__(self, job: str, folder: Path) -> None:
        self._job, self._folder, self._count = job, folder, 0

    def start(self, tilts: list[int], ranks: int, engine: str) -> tuple[Path, subprocess.Popen[str]]:
        """Start ``ranks`` ranks of one thread on some tilts; return their run directory and process."""
        self._count += 1
        out, bin_folder = self._folder / str(self._count), Path(sys.executable).parent
        settings = {"data.tilts": tilts, "ptychography.engine": engine, "parallel.threads": 1}
        words = [bin_folder / "mpiexec", "-n", ranks, sys.executable, "-m", "hpcrec", "run", self._job, "--out", out]
        words += ["--until", "ptychography", *(f"--set={key}={value}" for key, value in settings.items())]
        return out, subprocess.Popen(
            [str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def seconds(self, started: list[tuple[Path, subprocess.Popen[str]]]) -> float:
        """Return the mean seconds of the stage of runs that go on at the same time."""
        found = []
        for out, process in started:
            message = process.communicate()[1]
            if process.returncode:
                raise SystemExit(f"{self._job} on {out.name} ended with {process.returncode}: {message[-2000:]}")
            events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
            found += [e["seconds"] for e in events if e["event"] == "stage_done" and e["stage"] == "ptychography"]
        return statistics.mean(found)


def row(runs: Runs, engine: str, tilts: list[int], ranks: int, rounds: int) -> dict[str, object]:
    """Return the medians of one engine."""
    one, many, apart, limit = [], [], [], []
    runs.seconds([runs.start(tilts[:ranks], ranks, engine)])  # compiles
    for _ in range(rounds):
        one.append(runs.seconds([runs.start(tilts, 1, engine)]))
        many.append(runs.seconds([runs.start(tilts, ranks, engine)]))
        apart.append(runs.seconds([runs.start(tilts[i::ranks], 1, engine) for i in range(ranks)]))
        limit.append(transforms_per_second(128, ranks) / transforms_per_second(128, 1))
    ratios = [a / b for a, b in zip(one, many)]
    return {
        "engine": engine,
        "tilts": len(tilts),
        "1 rank, s": statistics.median(one),
        f"{ranks} ranks, s": statistics.median(many),
        "faster": statistics.median(ratios),
        "efficiency": statistics.median(ratios) / ranks,
        "least": min(ratios),
        "most": max(ratios),
        f"{ranks} jobs of 1 rank": statistics.median(a / b for a, b in zip(one, apart)),
        "transforms alone": statistics.median(limit),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", nargs="?", default="jobs/nanocube.toml")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tilts", type=int, default=12, help="the job's first so many tilts")
    parser.add_argument("--engines", nargs="+", default=ENGINES)
    asked = parser.parse_args()
    here, tilts, found = machine(priority=True), list(range(asked.tilts)), []
    with tempfile.TemporaryDirectory() as folder:
        for engine in asked.engines:
            found.append(row(Runs(asked.job, Path(folder, engine)), engine, tilts, asked.ranks, asked.rounds))
    report("rank_scaling", here, found)


if __name__ == "__main__":
    main()
