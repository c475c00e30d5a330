"""Halos cut where the probe is weak: what a tilt sends, what it finds, and that it goes on as if never interrupted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_tilt import run_one

from hpcrec.errors import TimeUpError
from hpcrec.geometry.tiles import Box
from hpcrec.io.base import open_series
from hpcrec.parallel.communicator import Communicator, run_ranks
from hpcrec.run import halos, stop
from hpcrec.run.config import load_job
from hpcrec.run.job import Job
from hpcrec.run.sharing import exchange_bytes
from hpcrec.run.start import common_grid, tilt_setup
from hpcrec.run.stop import Request

# The probe of the tiny series fills its window: this one is smaller, and cut where it is not faint at all
CUT = 0.05
SMALLER = ("probe.defocus_angstrom=20", "ptychography.gradient.probe_start=99")
NARROW = (*SMALLER, "parallel.halo_margin_angstrom=0", "ptychography.batch_size=6", "parallel.exchange=tiled")


def reconstruct(job: Job, folder: Path, n_ranks: int, hear: Any = lambda event: None) -> tuple[Any, int]:
    """Return the outcome on ``n_ranks`` ranks, and the bytes that they swapped before it."""
    folder.mkdir(exist_ok=True)
    sent: list[int] = []

    def rank(group: Communicator) -> Any:
        swap = group.swap

        def noted(out: Any, into: Any) -> None:
            sent.extend(a.nbytes for a in out.values())
            swap(out, into)

        group.swap = noted  # type: ignore[method-assign]
        return run_one(job, folder, group, hear)

    return run_ranks(n_ranks, rank)[0], sum(sent)


def deviation(found: Any, truth: Any) -> float:
    """Return the deviation of the object where it is lit well, relative."""
    lit = truth.illumination > 0.2 * truth.illumination.max()
    return float(np.linalg.norm((found.obj - truth.obj)[:, lit]) / np.linalg.norm(truth.obj[:, lit]))


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_less_travels_and_little_changes(tiny_job: Path, tmp_path: Path, n_ranks: int) -> None:
    """The object changes by less than what is cut; how much less is seen with finer cuts, test_cut_halos.py."""
    whole, _ = load_job(tiny_job, NARROW)
    cut, _ = load_job(tiny_job, [*NARROW, f"parallel.halo_cut={CUT}"])
    plain, sent = reconstruct(whole, tmp_path / "whole", n_ranks)
    found, its_sent = reconstruct(cut, tmp_path / "cut", n_ranks)
    assert its_sent < 0.8 * sent
    assert 0 < deviation(found, plain) < CUT
    alone, _ = reconstruct(cut, tmp_path / "alone", 1)
    assert deviation(plain, alone) < 1e-5


@pytest.mark.parametrize("engine", ["gradient", "lsqml"])
def test_a_cut_tilt_goes_on_as_if_never_interrupted(tiny_job: Path, tmp_path: Path, engine: str) -> None:
    """What lies beyond the cut is that of its owners after every sweep, moments too: the same to the last bit."""
    options = ["ptychography.gradient.method=adam", "ptychography.lsqml.momentum=0.4"]
    job, _ = load_job(tiny_job, [*NARROW, *options, f"parallel.halo_cut={CUT}", f"ptychography.engine={engine}"])
    whole, _ = reconstruct(job, tmp_path / "whole", 3)

    def ask(event: Any) -> None:
        if event["event"] == "sweep" and event["iteration"] == 1:
            stop._listener.ask(Request.REQUEUE, "a test")

    with stop.listening(), pytest.raises(TimeUpError):
        reconstruct(job, tmp_path / "cut", 3, ask)
    again, _ = reconstruct(job, tmp_path / "cut", 3)
    np.testing.assert_array_equal(again.obj, whole.obj)
    np.testing.assert_array_equal(again.data_error, whole.data_error)


def test_a_probe_that_grows_beyond_the_halos_is_told(tiny_job: Path, tmp_path: Path, monkeypatch: Any) -> None:
    job, _ = load_job(tiny_job, [*NARROW, f"parallel.halo_cut={CUT}", "ptychography.iterations=1"])
    with open_series(job.data) as series:
        setup = tilt_setup(job, series, 1, common_grid(job, series))
    heard: list[Any] = []
    reconstruct(job, tmp_path / "sound", 2, heard.append)
    assert not [event for event in heard if event["event"] == "warning"]
    reach = halos.cut_reach(job, setup)
    assert reach is not None
    monkeypatch.setattr(halos, "probe_reach", lambda modes, *_: reach.grow(1))
    text = halos.grown_probe(setup, setup.probe, reach, 0, CUT)
    assert text is not None
    assert "probe grew beyond the halos" in text
    assert halos.grown_probe(setup, setup.probe, reach, 1, CUT) is None
    assert halos.grown_probe(setup, setup.probe, None, 0, CUT) is None
    monkeypatch.setattr("hpcrec.run.runner.cut_reach", lambda *_: reach.grow(-1))
    reconstruct(job, tmp_path / "grown", 2, heard.append)
    assert [event["text"] for event in heard if event["event"] == "warning"][0].startswith("tilt 1: the probe grew")


def test_the_planner_counts_what_is_cut(tiny_job: Path, monkeypatch: Any) -> None:
    """Half the reach, about half the halo; a probe that fills its window cuts nothing."""
    whole, _ = load_job(tiny_job, NARROW)
    cut = dataclasses.replace(whole, parallel=dataclasses.replace(whole.parallel, halo_cut=CUT))
    with open_series(whole.data) as series:
        grid = common_grid(whole, series)
        sent = [exchange_bytes(job, series, grid, 4, "tiled") for job in (whole, cut)]
        assert sent[1] < sent[0]
        assert exchange_bytes(cut, series, grid, 4, "replicated") == exchange_bytes(
            whole, series, grid, 4, "replicated"
        )
        window = tilt_setup(whole, series, 1, grid).window
        monkeypatch.setattr(halos, "probe_reach", lambda *_: Box(0, window[0], 0, window[1]))
        assert exchange_bytes(cut, series, grid, 4, "tiled") == sent[0]
