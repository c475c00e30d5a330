"""Shares that follow measured speeds: which weights, when, and that they change nothing but round-off."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcrec.io.base import open_series
from hpcrec.models.partial import Partial, Total
from hpcrec.parallel.communicator import Communicator, SerialCommunicator, run_ranks
from hpcrec.run import balance, runner
from hpcrec.run.balance import STEP, WIDEST, Balance, Pace, agreed_weights, coarse_weights
from hpcrec.run.config import load_job
from hpcrec.run.job import Job
from hpcrec.run.means import Means
from hpcrec.run.parts import TiltTask, reconstruct_tilt
from hpcrec.run.start import common_grid


@pytest.mark.parametrize("speeds", [(1.0, 1.0, 1.0), (100.0, 114.0, 108.0), (5.0, 0.0, 1.0), (7.0,)])
def test_like_speeds_and_unknown_ones_share_equally(speeds: tuple[float, ...]) -> None:
    assert coarse_weights(speeds) is None


def test_weights_come_in_coarse_steps() -> None:
    """Noise of 5 % changes nothing; ratios are kept to a step; the slowest is not starved."""
    weights = coarse_weights((100.0, 200.0, 100.0))
    assert weights is not None
    assert weights[0] == weights[2] == 1
    assert weights[1] == pytest.approx(2, rel=0.07)
    assert coarse_weights((103.0, 205.0, 98.0)) == weights
    assert coarse_weights((1.0, 1.0, 1000.0)) == (1, 1, WIDEST)
    assert coarse_weights((1.0, 1.0, 0.001)) == (1, 1, 1 / WIDEST)
    assert coarse_weights((1.0, STEP * 1.01)) is not None


def test_the_fastest_sweep_of_a_tilt_tells_the_pace() -> None:
    pace = Pace()
    pace.sweep(0, 1.0)
    assert pace.speed is None
    for seconds in (9.0, 2.0, 3.0):
        pace.sweep(10, seconds)
    assert pace.speed == 5
    pace.start()
    pace.sweep(10, 4.0)
    assert pace.speed == 2.5


def test_waits_are_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds pass, of which seven in the exchange."""
    clock = iter([100.0, 101.0, 108.0, 110.0])
    monkeypatch.setattr(balance.time, "perf_counter", lambda: next(clock))
    pace = Pace()
    group = SerialCommunicator()
    group.size = 2
    group.sum = lambda a: a  # type: ignore[method-assign]
    shared = Balance(group, pace)
    shared.timed(lambda partial, peaks: Total({}, {}))(Partial(), ())
    shared.swept(6)
    assert pace.speed == 2


def test_ranks_agree_on_weights() -> None:
    def rank(group: Communicator) -> Any:
        pace = Pace()
        before = agreed_weights(group, pace)
        pace.sweep(group.rank + 1, 1.0)
        return before, agreed_weights(group, pace)

    found = run_ranks(3, rank)
    assert all(one == ((None, False), (coarse_weights((1.0, 2.0, 3.0)), True)) for one in found)


def reconstruct(job: Job, folder: Path, n_ranks: int, speeds: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Reconstruct tilts 1 and 2 by ranks of these speeds; return the objects, events, and weights of each layout."""
    folder.mkdir(exist_ok=True)
    heard: list[Any] = []
    weights: list[Any] = []
    real = runner.make_exchange

    def noted(kind: Any, group: Any, *rest: Any) -> Any:
        if group.rank == 0:
            weights.append(rest[-1])
        return real(kind, group, *rest)

    monkeypatch.setattr(runner, "make_exchange", noted)

    class OfKnownSpeed(Pace):
        def __init__(self, speed: float) -> None:
            super().__init__()
            self._true = speed

        def sweep(self, n_waves: int, seconds: float) -> None:
            super().sweep(n_waves, n_waves / self._true)

    with open_series(job.data) as series:

        def rank(group: Communicator) -> Any:
            means, found = Means(pace=OfKnownSpeed(speeds[group.rank])), []
            for i_tilt in (1, 2):
                grid = common_grid(job, series)
                task = TiltTask(
                    job=job, series=series, grid=grid, i_tilt=i_tilt, group=group, checkpoints=folder,
                    report=heard.append, means=means,
                )  # fmt: skip
                found.append(reconstruct_tilt(task)[0])
            return found

        return run_ranks(n_ranks, rank)[0], heard, weights


@pytest.mark.parametrize("exchange", ["replicated", "tiled"])
def test_a_tilt_goes_on_with_shares_that_fit_its_ranks(
    tiny_job: Path, tmp_path: Path, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two sweeps of the first tilt, and from the first of the second; single precision: round-off of 1e-5."""
    options = ["ptychography.iterations=6", "parallel.balance=measured", f"parallel.exchange={exchange}"]
    job, _ = load_job(tiny_job, [*options, "ptychography.engine=lsqml", "ptychography.lsqml.momentum=0.4"])
    one, heard, _ = reconstruct(job, tmp_path / "one", 1, (1.0,), monkeypatch)
    assert not [event for event in heard if event["event"] == "note"]
    found, heard, weights = reconstruct(job, tmp_path / "three", 3, (1.0, 2.0, 1.0), monkeypatch)
    wanted = coarse_weights((1.0, 2.0, 1.0))
    assert weights == [None, wanted, wanted]
    assert [event["resumed_at"] for event in heard if event["event"] == "tilt_started"] == [0, 2, 0]
    assert [event["iteration"] for event in heard if event["event"] == "sweep"] == [1, 2, 3, 4, 5, 6] * 2
    notes = [event["text"] for event in heard if event["event"] == "note"]
    assert notes == ["tilt 1: its ranks are as fast as 1 : 2.01 : 1, and share it so from here"]
    for a, b in zip(one, found):
        assert np.linalg.norm(a.obj - b.obj) <= 1e-5 * np.linalg.norm(a.obj)


@pytest.mark.parametrize("change", ["like speeds", "parallel.balance=equal"])
def test_nothing_changes_where_ranks_are_alike_or_shares_equal(
    tiny_job: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = load_job(tiny_job, ["ptychography.iterations=5", "parallel.exchange=tiled"])
    plain, _, _ = reconstruct(job, tmp_path / "plain", 2, (1.0, 1.0), monkeypatch)
    alike = change == "like speeds"
    if alike:
        job = dataclasses.replace(job, parallel=dataclasses.replace(job.parallel, balance="measured"))
    found, _, weights = reconstruct(job, tmp_path / "other", 2, (1.0, 1.1 if alike else 3.0), monkeypatch)
    assert weights == [None, None]
    for a, b in zip(plain, found):
        np.testing.assert_array_equal(a.obj, b.obj)
