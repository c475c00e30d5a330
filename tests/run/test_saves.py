"""Tiled groups write checkpoints in parts: any layout goes on, whatever has happened to them in between."""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_tilt import run_one
from ranks import LAUNCHER, launch

from hpcrec.errors import StorageError, TimeUpError
from hpcrec.io.checkpoint import load_checkpoint
from hpcrec.parallel.communicator import run_ranks
from hpcrec.run import saves, stop
from hpcrec.run.config import load_job
from hpcrec.run.observers import read_events
from hpcrec.run.runner import TiltRun
from hpcrec.run.saves import PartSaves, WholeSaves
from hpcrec.run.stop import Request

SAVING = Path(__file__).with_name("saving_rank.py")
# Checkpoints after the second and fourth sweep, and, on request, the third
SWEEPS = ["ptychography.iterations=6", "ptychography.checkpoint_every=2"]
LAYOUTS = [(1, "replicated"), (2, "tiled"), (3, "replicated"), (5, "tiled")]


def on_ranks(job: Any, folder: Path, n_ranks: int, exchange: str, hear: Any = lambda event: None) -> list[Any]:
    laid_out = dataclasses.replace(job, parallel=dataclasses.replace(job.parallel, exchange=exchange))
    folder.mkdir(exist_ok=True)
    return run_ranks(n_ranks, lambda group: run_one(laid_out, folder, group, hear))


def asked_in(sweep: int) -> Any:
    def hear(event: Any) -> None:
        if event["event"] == "sweep" and event["iteration"] == sweep:
            stop._listener.ask(Request.REQUEUE, "a test")

    return hear


def interrupted(job: Any, folder: Path, sweep: int = 3) -> None:
    """Stop three tiled ranks after a sweep."""
    with stop.listening(), pytest.raises(TimeUpError):
        on_ranks(job, folder, 3, "tiled", asked_in(sweep))


def resumed(job: Any, folder: Path, n_ranks: int = 3, exchange: str = "tiled") -> tuple[int, Any]:
    heard: list[Any] = []
    found = on_ranks(job, folder, n_ranks, exchange, heard.append)[0]
    return heard[0]["resumed_at"], found


def parts_in(folder: Path, number: int) -> list[Path]:
    return sorted(folder.glob(f"sweeps_0001_{number:06d}.*-*.h5"))


@pytest.fixture(scope="module")
def whole(tiny_job_text: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one rank finds without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "job.toml").write_text(tiny_job_text)
    return on_ranks(load_job(folder / "job.toml", SWEEPS)[0], folder / "out", 1, "replicated")[0]


def check(found: Any, whole: Any) -> None:
    """Single precision sums differ by round-off only, as on other ranks."""
    assert np.linalg.norm(found.obj - whole.obj) <= 1e-5 * np.linalg.norm(whole.obj)
    np.testing.assert_allclose(found.data_error, whole.data_error, rtol=1e-4)


def test_parts_go_on_in_any_layout(tiny_job: Path, tmp_path: Path, whole: Any) -> None:
    """Parts and files of one rank follow one another."""
    job, _ = load_job(tiny_job, SWEEPS)
    interrupted(job, tmp_path / "cut")
    assert [len(parts_in(tmp_path / "cut", number)) for number in (2, 3)] == [3, 3]
    kept = {path.name: path.read_bytes() for path in (tmp_path / "cut").iterdir()}
    for n_ranks, exchange in [(3, "tiled"), *LAYOUTS]:
        folder = tmp_path / f"{n_ranks}-{exchange}"
        folder.mkdir()
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        at, found = resumed(job, folder, n_ranks, exchange)
        assert at == 3
        check(found, whole)
        assert len(parts_in(folder, 4)) == (n_ranks if exchange == "tiled" else 0)
        assert len(list(folder.glob("*.h5"))) == 2 + 3 + len(parts_in(folder, 4)), "of the third and fourth sweep"


@pytest.mark.parametrize("engine", ["gradient", "dm"])
def test_parts_hold_what_the_first_rank_would_gather(
    tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """Object, its memory, exit waves: the same to the last bit, and read back on as many ranks or on others."""
    settings = [f"ptychography.engine={engine}", "ptychography.iterations=2", "parallel.exchange=tiled"]
    job, _ = load_job(tiny_job, [*settings, "ptychography.gradient.method=adam", "quality.hold_out=0.1"])
    compared = []
    real = TiltRun._outcome

    def both(run: TiltRun, *figures: Any) -> Any:
        curves = {"loss": np.array(run.loss)}
        for kind, name in ((PartSaves, "parts"), (WholeSaves, "whole")):
            site = dataclasses.replace(run._site, prefix=name)
            kind(site).save(run.state, curves, wait=True)
        again = saves.find_checkpoint(dataclasses.replace(run._site, prefix="parts"))
        handed = saves.find_checkpoint(dataclasses.replace(run._site, prefix="whole"))
        assert again is not None
        assert handed is not None
        assert again.arrays.keys() == handed.arrays.keys()
        for name, values in handed.arrays.items():
            np.testing.assert_array_equal(again.arrays[name], values, err_msg=name)
            compared.append(name)
        return real(run, *figures)

    monkeypatch.setattr(TiltRun, "_outcome", both)
    for n_ranks in (2, 5):
        on_ranks(job, tmp_path / str(n_ranks), n_ranks, "tiled")
        parts, one = (load_checkpoint(tmp_path / str(n_ranks) / f"{name}_000002.h5") for name in ("parts", "whole"))
        assert parts.arrays.keys() == one.arrays.keys()
        for name, values in one.arrays.items():
            np.testing.assert_array_equal(parts.arrays[name], values, err_msg=name)
    kinds = {name.split(":")[0] for name in compared}
    assert {"obj", "probe", "patterns" if engine == "dm" else "object_memory"} <= kinds


@pytest.mark.parametrize("damage", ["cut", "byte", "gone", "index cut", "index gone"])
def test_a_damaged_part_or_index_gives_way_to_the_one_before(
    tiny_job: Path, tmp_path: Path, whole: Any, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    job, _ = load_job(tiny_job, SWEEPS)
    interrupted(job, tmp_path)
    index = tmp_path / "sweeps_0001_000003.h5"
    victim = index if "index" in damage else parts_in(tmp_path, 3)[2]
    content = bytearray(victim.read_bytes())
    if damage.endswith("gone"):
        victim.unlink()
    elif damage == "byte":
        obj = load_checkpoint(index).arrays["obj"]
        # The third rank's core ends where the object ends
        content[content.index(obj[0, -1, -2:].tobytes())] ^= 1
        victim.write_bytes(content)
    else:
        victim.write_bytes(content[:-50])
    at, found = resumed(job, tmp_path, 2)
    assert at == 2
    check(found, whole)
    assert damage == "index gone" or f"checkpoint skipped: {victim}" in caplog.text
    assert "index" not in damage or not parts_in(tmp_path, 3), "what no sound index names is gone"


def test_killed_between_parts_and_index(
    tiny_job: Path, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = load_job(tiny_job, SWEEPS)
    real = saves.save_index

    def killed(arrays: Any, attributes: Any, parts: Any) -> None:
        if attributes["iteration"] == 4:
            raise SystemExit
        real(arrays, attributes, parts)

    with monkeypatch.context() as patch:
        patch.setattr(saves, "save_index", killed)
        with pytest.raises(SystemExit):
            on_ranks(job, tmp_path, 3, "tiled")
    assert len(parts_in(tmp_path, 4)) == 3
    at, found = resumed(job, tmp_path, 2)
    assert at == 2
    check(found, whole)
    assert len(parts_in(tmp_path, 4)) == 2


@pytest.mark.parametrize("whose", ["part of rank 1", "index"])
def test_a_full_disk_is_told_alike_by_all_ranks_and_the_last_good_one_stays(
    tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    job, _ = load_job(tiny_job, SWEEPS)
    tiled = dataclasses.replace(job, parallel=dataclasses.replace(job.parallel, exchange="tiled"))
    real, index = saves.write_part, saves.save_index
    sentence = "the disk is full; free some space"

    def full(path: Path, *content: Any) -> Any:
        if "000004" in path.name and path.stem.endswith("-0001"):
            raise StorageError(f"{path}: cannot be written: {sentence}")
        return real(path, *content)

    def full_index(arrays: Any, attributes: Any, parts: Any) -> None:
        if attributes["iteration"] == 4:
            raise StorageError(f"{parts.index}: cannot be written: {sentence}")
        index(arrays, attributes, parts)

    def rank(group: Any) -> str:
        try:
            run_one(tiled, tmp_path, group)
        except StorageError as fault:
            return str(fault)
        return "nothing"

    with monkeypatch.context() as patch:
        patch.setattr(saves, *(("save_index", full_index) if whose == "index" else ("write_part", full)))
        told = run_ranks(3, rank)
    assert len(set(told)) == 1
    assert told[0].endswith(f"cannot be written: {sentence}")
    assert load_checkpoint(tmp_path / "sweeps_0001_000002.h5").attributes["iteration"] == 2
    assert resumed(job, tmp_path)[0] == 2


def test_sweeps_go_on_while_a_rank_writes_and_the_index_comes_last(
    tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 2 writes its part of the second sweep when the fifth is done; it holds the second."""
    job, _ = load_job(tiny_job, ["ptychography.iterations=8", "ptychography.checkpoint_every=4"])
    on_ranks(job, tmp_path / "plain", 3, "tiled")
    plain = load_checkpoint(tmp_path / "plain/sweeps_0001_000004.h5")
    real, go, before = saves.write_part, threading.Event(), []

    def late(path: Path, *content: Any) -> Any:
        if path.stem.endswith("-0002"):
            assert go.wait(60)
        return real(path, *content)

    def hear(event: Any) -> None:
        if event["event"] == "sweep" and event["iteration"] == 6:
            before.append((tmp_path / "late/sweeps_0001_000004.h5").exists())
            go.set()

    monkeypatch.setattr(saves, "write_part", late)
    on_ranks(job, tmp_path / "late", 3, "tiled", hear)
    assert before == [False]
    found = load_checkpoint(tmp_path / "late/sweeps_0001_000004.h5")
    for name, values in plain.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], values, err_msg=name)


def test_a_request_to_stop_waits_for_what_is_being_written(
    tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked in the sweep after a checkpoint of which rank 1 still writes its part: both are whole when all leave."""
    job, _ = load_job(tiny_job, SWEEPS)
    real = saves.write_part

    def slow(path: Path, *content: Any) -> Any:
        if path.stem.endswith("-0001"):
            time.sleep(0.3)
        return real(path, *content)

    monkeypatch.setattr(saves, "write_part", slow)
    interrupted(job, tmp_path)
    numbers = [load_checkpoint(tmp_path / f"sweeps_0001_{n:06d}.h5").attributes["iteration"] for n in (2, 3)]
    assert numbers == [2, 3]
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


@pytest.mark.mpi
@pytest.mark.skipif(not LAUNCHER.exists(), reason=f"no mpiexec beside {sys.executable}")
def test_the_first_rank_needs_no_more_than_its_tile(tmp_path: Path) -> None:
    """Of four ranks: a copy of the core to write, the tile and an eighth of it (an image) to read; pieces beside."""
    done = launch(SAVING, "memory", tmp_path, n_ranks=4)
    assert done.returncode == 0, done.stderr
    wrote, read, whole = map(float, done.stdout.split())
    assert whole > 3
    assert wrote < 1.1
    assert read < 1.4
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.mpi
@pytest.mark.skipif(not LAUNCHER.exists(), reason=f"no mpiexec beside {sys.executable}")
def test_a_disk_that_is_full_for_another_rank_ends_the_job_in_one_sentence(
    tiny_job: Path, tmp_path: Path, hpcrec: Callable[..., int]
) -> None:
    """One rank goes on."""
    out = tmp_path / "out"
    words = ["--set=ptychography.checkpoint_every=1", "--set=data.tilts=[1]"]
    job = ("run", tiny_job, "--out", out, "--until", "ptychography", *words)
    done = launch(SAVING, "full", *job, "--set=parallel.exchange=tiled", "--set=parallel.group_size=2")
    assert done.returncode == StorageError.exit_code, done.stderr
    assert done.stderr.count("cannot be written: the disk is full") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert load_checkpoint(out / "checkpoints/sweeps_0001_000001.h5").attributes["iteration"] == 1
    assert hpcrec(*job) == 0
    begun = [e["resumed_at"] for e in read_events(out / "events.jsonl") if e["event"] == "tilt_started"]
    assert begun == [0, 1]
    assert not list(out.glob("checkpoints/sweeps_*")), "nothing is left over"
