"""Early stop and divergence: decided from the curves, the same on all ranks and after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_tilt import run_one

from hpcrec.engines.gradient import GradientEngine
from hpcrec.errors import DivergedError
from hpcrec.models.base import PtychographyState
from hpcrec.parallel.communicator import run_ranks
from hpcrec.run.config import load_job
from hpcrec.run.monitor import converged, course, last_start

EARLY = ["ptychography.iterations=30", "ptychography.early_stop_tolerance=0.2", "ptychography.early_stop_window=3"]


def test_a_curve_that_flattens_is_converged() -> None:
    falling = [0.5**i for i in range(10)]
    assert not converged(falling, 0.01, 3)
    flat = [*falling, 0.5**9, 0.5**9, 0.5**9]
    assert converged(flat, 0.01, 3)
    assert not converged(flat, 0.01, 5), "half of the window still fell"
    assert not converged(flat, 0.0, 3)
    assert not converged(flat, 0.01, 3, earliest=11), "what begins in sweep 11 has no full window yet"


def test_one_good_sweep_in_the_window_goes_on() -> None:
    noisy = [1.0, 0.9, 1.0, 0.7, 1.0]
    assert not converged(noisy, 0.1, 3)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ([0.5, 0.3, 0.2, 0.1], "well"),
        ([0.5, 0.1, 0.2, 0.1, 0.2], "well"),
        ([0.5, 0.1, 0.2, 0.2, 0.2], "rising"),
        ([0.5, 0.1, 0.1, 1.2, 1.3, 1.4, 1.5], "rising"),
        ([0.5, 0.1, 1.2, 1.3, 1.4, 1.5, 1.6], "lost"),
        ([5.0, 4.0, 3.0, 2.5, 2.0, 1.5], "well"),
        ([0.5, float("nan")], "lost"),
        ([0.5, float("inf")], "lost"),
    ],
)
def test_the_course_of_an_error(error: list[float], expected: str) -> None:
    assert course(error, error) == expected


def test_what_begins_late_is_waited_for(tiny_job: Path) -> None:
    assert last_start(load_job(tiny_job)[0]) == 2
    assert last_start(load_job(tiny_job, ["refine.positions.start_iteration=7"])[0]) == 7


@pytest.mark.parametrize("held_out", [0.0, 0.03])
def test_ranks_and_interruptions_stop_in_the_same_sweep(tiny_job: Path, tmp_path: Path, held_out: float) -> None:
    job, _ = load_job(tiny_job, [*EARLY, f"quality.hold_out={held_out}"])
    heard: list[Any] = []
    whole = run_one(job, tmp_path / "whole", hear=heard.append)
    assert whole is not None
    n = len(whole.loss)
    assert 5 <= n < 30
    assert whole.stopped_early
    assert f"tilt 1: converged after {n} sweeps" in [e.get("text") for e in heard]
    shared = run_ranks(2, lambda group: run_one(job, tmp_path / "ranks", group))[0]
    assert shared is not None
    assert len(shared.loss) == n

    def die(event: Any) -> None:
        if event["event"] == "sweep" and event["iteration"] == n:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_one(job, tmp_path / "cut", hear=die)
    again = run_one(job, tmp_path / "cut")
    assert again is not None
    np.testing.assert_array_equal(again.data_error, whole.data_error)


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[PtychographyState], None]) -> None:
    real = GradientEngine.finish_iteration

    def finish(self: GradientEngine, state: PtychographyState) -> None:
        real(self, state)
        change(state)

    monkeypatch.setattr(GradientEngine, "finish_iteration", finish)


def make_wild(state: PtychographyState) -> None:
    state.obj *= 2.5


def lose_probe(state: PtychographyState) -> None:
    state.probe *= 3


def flatten_probe(state: PtychographyState) -> None:
    state.probe[:] = np.sqrt(np.mean(np.abs(state.probe) ** 2))


def scatter(state: PtychographyState) -> None:
    rng = np.random.default_rng(state.iteration)
    if state.iteration > 3:
        state.positions[:] = rng.uniform(-9, 9, state.positions.shape)


@pytest.mark.parametrize(
    ("change", "what", "advice"),
    [
        (make_wild, "the object transmits up to", "object_constraint"),
        (lose_probe, "the probe's power is", "probe_start"),
        (flatten_probe, "the probe fills its window", "probe.defocus_angstrom"),
        (scatter, "the positions have moved by", "refine.positions.step"),
    ],
)
def test_the_sentence_says_what_diverged_and_what_to_try(
    tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, what: str, advice: str
) -> None:
    """As a warning where the error rises, or as the end where it is lost."""
    spoil(monkeypatch, change)
    room = ["refine.positions.start_iteration=99", "parallel.halo_margin_angstrom=70"]
    job, _ = load_job(tiny_job, ["ptychography.iterations=9", *room])
    heard: list[Any] = []
    try:
        run_one(job, tmp_path / "out", hear=heard.append)
        said = ""
    except DivergedError as fault:
        said = str(fault)
    said += "".join(e["text"] for e in heard if e["event"] == "warning")
    assert what in said
    assert advice in said


@pytest.mark.parametrize("exchange", ["replicated", "tiled"])
def test_an_object_that_is_not_finite_on_one_rank_ends_all(
    tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: str
) -> None:
    """Not-a-number in a corner that no loss sees at once still ends the next sweep, with one sentence."""

    def change(state: PtychographyState) -> None:
        if state.iteration == 2:
            state.obj[:, 50:52, 50:52] = np.nan

    spoil(monkeypatch, change)
    job, _ = load_job(tiny_job, [f"parallel.exchange={exchange}"])
    with pytest.raises(DivergedError, match=r"tilt 1: diverged at sweep 3: the .*object.*not finite.*drop_tilts"):
        run_ranks(2, lambda group: run_one(job, tmp_path / exchange, group))
