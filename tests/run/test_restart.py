"""A checkpoint holds what it was when it was taken, and goes on with any ranks, in any layout."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_tilt import run_one

from hpcrec.errors import StorageError, TimeUpError
from hpcrec.io import checkpoint
from hpcrec.io.checkpoint import load_checkpoint
from hpcrec.parallel.communicator import run_ranks
from hpcrec.run import stop
from hpcrec.run.config import load_job
from hpcrec.run.stop import Request

LAYOUTS = [(1, "replicated"), (2, "tiled"), (3, "replicated"), (3, "tiled")]


def on_ranks(job: Any, folder: Path, n_ranks: int, exchange: str, hear: Any = lambda event: None) -> Any:
    parallel = dataclasses.replace(job.parallel, exchange=exchange)
    folder.mkdir(exist_ok=True)
    laid_out = dataclasses.replace(job, parallel=parallel)
    return run_ranks(n_ranks, lambda group: run_one(laid_out, folder, group, hear))[0]


def asked_in(sweep: int) -> Any:
    """Return a listener in whose hearing a sweep ends, and then the process is asked to leave."""

    def hear(event: Any) -> None:
        if event["event"] == "sweep" and event["iteration"] == sweep:
            stop._listener.ask(Request.REQUEUE, "a test")

    return hear


@pytest.mark.parametrize("engine", ["lsqml", "gradient"])
def test_any_layout_continues_any_other(tiny_job: Path, tmp_path: Path, engine: str) -> None:
    """Asked in the third sweep of six, each layout in turn does one sweep more; single precision: 1e-5."""
    job, _ = load_job(tiny_job, ["ptychography.iterations=6", f"ptychography.engine={engine}"])
    whole = on_ranks(job, tmp_path / "whole", 1, "replicated")
    for i, (n_ranks, exchange) in enumerate(LAYOUTS):
        with stop.listening(), pytest.raises(TimeUpError):
            on_ranks(job, tmp_path / "cut", n_ranks, exchange, asked_in(i + 1))
        assert (tmp_path / "cut" / f"sweeps_0001_{i + 1:06d}.h5").exists()
    heard: list[Any] = []
    again = on_ranks(job, tmp_path / "cut", 2, "replicated", heard.append)
    assert heard[0]["resumed_at"] == len(LAYOUTS)
    assert np.linalg.norm(again.obj - whole.obj) <= 1e-5 * np.linalg.norm(whole.obj)
    np.testing.assert_allclose(again.data_error, whole.data_error, rtol=1e-4)


def test_a_checkpoint_does_not_follow_the_sweeps_during_which_it_is_written(
    tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write begins when the third sweep is done, and holds the second; every array of the state."""
    real, changes = checkpoint.save_checkpoint, [f"refine.{name}.start_iteration=0" for name in ("positions", "tilt")]
    settings = ["ptychography.iterations=4", "ptychography.gradient.method=adam", "ptychography.slices=2", *changes]
    job, _ = load_job(tiny_job, [*settings, "ptychography.slice_thickness_angstrom=4"])

    def first(event: Any) -> None:
        if event["event"] == "sweep" and event["iteration"] == 3:
            done.set()

    done = threading.Event()
    on_ranks(job, tmp_path / "plain", 1, "replicated")
    plain = load_checkpoint(tmp_path / "plain/sweeps_0001_000002.h5")

    def late(path: Path, arrays: Any, attributes: Any) -> None:
        assert done.wait(60)
        real(path, arrays, attributes)

    monkeypatch.setattr(checkpoint, "save_checkpoint", late)
    on_ranks(job, tmp_path / "late", 1, "replicated", first)
    found = load_checkpoint(tmp_path / "late/sweeps_0001_000002.h5")
    assert found.arrays.keys() == plain.arrays.keys()
    assert {"obj", "probe", "positions"} < set(found.arrays)
    for name, values in plain.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], values, err_msg=name)


def test_a_full_disk_is_told_and_the_last_good_checkpoint_stays(
    tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.save_checkpoint
    job, _ = load_job(tiny_job, ["ptychography.iterations=9"])

    def full(path: Path, arrays: Any, attributes: Any) -> None:
        if attributes["iteration"] == 4:
            raise StorageError(f"{path}: cannot be written: the disk is full")
        real(path, arrays, attributes)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", full)
        with pytest.raises(StorageError, match=r"000004.h5: cannot be written"):
            on_ranks(job, tmp_path, 1, "replicated")
    heard: list[Any] = []
    on_ranks(job, tmp_path, 2, "tiled", heard.append)
    assert heard[0]["resumed_at"] == 2
