"""What a tilt costs: patterns, slices and sweeps, and what its checkpoints have done of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcrec.data.dataset import TiltSeries
from hpcrec.data.views import SeriesView
from hpcrec.io.base import open_series
from hpcrec.run.config import load_job
from hpcrec.run.costs import sweep_costs, sweep_share, sweeps_left
from hpcrec.run.job import Job
from hpcrec.run.tilts import longest_first

ALL = ["ptychography.coarse_iterations=8", "quality.frc=true"]


def job_with(path: Path, *changes: str) -> Job:
    return load_job(path, changes)[0]


@pytest.fixture
def series(tiny_job: Path) -> Iterator[TiltSeries]:
    """The tiny series with 36, 30 and 24 patterns."""
    with open_series(load_job(tiny_job)[0].data) as opened:
        positions = tuple(p[: 36 - 6 * i] for i, p in enumerate(opened.facts.positions))
        yield SeriesView(opened, dataclasses.replace(opened.facts, positions=positions), {})


def begun(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / f"{name}.h5").touch()
    return folder


def test_a_sweep_costs_patterns_times_slices(tiny_job: Path, series: TiltSeries) -> None:
    assert sweep_costs(job_with(tiny_job), series) == [36, 30, 24]
    sliced = ["ptychography.slices=[1, 2, 4]", "ptychography.slice_thickness_angstrom=4"]
    assert sweep_costs(job_with(tiny_job, *sliced), series) == [36, 60, 96]


def test_parts_cost_by_their_pixels_and_positions(tiny_job: Path) -> None:
    """Four sweeps, and as many over two halves; eight at half the resolution before each cost two."""
    assert sweeps_left(job_with(tiny_job)) == 4
    assert sweeps_left(job_with(tiny_job, ALL[0])) == 6
    assert sweeps_left(job_with(tiny_job, ALL[1])) == 8
    assert sweeps_left(job_with(tiny_job, *ALL)) == 12


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["sweeps_0007_000002", "sweeps_0007_000001"], 2),
        (["sweeps_0007_000004"], 0),
        (["sweeps_0008_000002", "tilt_0007"], 4),
    ],
)
def test_what_checkpoints_have_done_is_left_out(tiny_job: Path, tmp_path: Path, names: list[str], left: float) -> None:
    assert sweeps_left(job_with(tiny_job), 7, begun(tmp_path, *names)) == left


def test_parts_that_are_done_cost_nothing(tiny_job: Path, tmp_path: Path) -> None:
    """The first half is done; the second is in its coarse start, which the first may have lost by now."""
    begun(tmp_path, "half1_0007_000004", "coarse_half2_0007_000006")
    assert sweeps_left(job_with(tiny_job, *ALL), 7, tmp_path) == 0 + (4 + 0.25 * 2) / 2 + 4 + 2


def test_the_longest_comes_first(tiny_job: Path, series: TiltSeries, tmp_path: Path) -> None:
    job = job_with(tiny_job)
    assert longest_first(job, series, [0, 1, 2], tmp_path) == [0, 1, 2]
    begun(tmp_path, "sweeps_0000_000002")
    assert longest_first(job, series, [0, 1, 2], tmp_path) == [1, 2, 0]
    assert longest_first(job, series, [2, 0], tmp_path) == [2, 0]


@pytest.mark.parametrize(
    ("event", "share"),
    [
        ({"event": "sweep"}, 1),
        ({"event": "part_sweep", "part": "coarse"}, 0.25),
        ({"event": "part_sweep", "part": "half2"}, 0.5),
        ({"event": "part_sweep", "part": "coarse_half1"}, 0.125),
        ({"event": "note"}, 0),
    ],
)
def test_events_tell_of_the_same_shares(event: dict[str, str], share: float) -> None:
    assert sweep_share(event) == share
