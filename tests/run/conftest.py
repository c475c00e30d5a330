"""A job from patterns to atoms on the tiny series, and the command line called in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

from hpcrec.cli import main as command

TINY_LATER_STAGES = """
[parallel]
workers = 1
[tomography.alignment]
bins = [2]
rounds = [2]
volume_iterations = 2
[tomography.denoise]
method = "none"
[tomography.fista]
n_iterations = 4
[analysis]
reference = "{path}"
[analysis.atoms]
species = ["Co", "O"]
"""


@pytest.fixture(scope="session")
def whole_job(tiny_job_text: str, tiny_series: Path, made_once: Callable[..., Path]) -> Path:
    """A job with every section: four sweeps, two rounds of alignment, four steps of the volume."""
    text = tiny_job_text + TINY_LATER_STAGES.format(path=tiny_series)
    return made_once("whole_job", lambda folder: (folder / "whole.toml").write_text(text)) / "whole.toml"


@pytest.fixture(scope="session")
def hpcrec() -> Callable[..., int]:
    """Call the command line in this process: return its exit code."""

    def call(*arguments: object) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["hpcrec", *map(str, arguments)])
            try:
                command.main()
            except SystemExit as end:
                return end.code if isinstance(end.code, int) else int(end.code is not None)
        return 0

    return call


@pytest.fixture(scope="session")
def whole_run(whole_job: Path, hpcrec: Callable[..., int], made_once: Callable[..., Path]) -> Path:
    """The run directory of the job, made by one process with one Dask worker; do not change it."""

    def run(folder: Path) -> None:
        assert hpcrec("run", whole_job, "--out", folder / "out") == 0

    return made_once("whole_run", run) / "out"


@pytest.fixture(scope="session")
def scheduler() -> Iterator[str]:
    """The address of a Dask scheduler with two workers that run in threads of this process: they start at once."""
    kind = {"processes": False, "protocol": "tcp://", "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=2, threads_per_worker=1, **kind) as running:
        yield running.scheduler_address
