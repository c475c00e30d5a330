"""Objects too large for one rank: tiled groups write them in parts, and all that follows is as with gathered ones."""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from all_tilts import reconstruct_all
from one_tilt import run_one
from ranks import LAUNCHER, launch

from hpcrec.errors import ConfigError, DivergedError, StorageError
from hpcrec.io import one_file
from hpcrec.io.base import open_series
from hpcrec.io.joined import JoinedArray
from hpcrec.io.results import assemble_projections, read_tilt_result, tilt_number, tilt_path
from hpcrec.parallel.communicator import ThreadedCommunicator, run_ranks
from hpcrec.run import gather, tilts
from hpcrec.run.config import load_job
from hpcrec.run.memory import rank_memory
from hpcrec.run.start import common_grid
from hpcrec.run.tilts import unfinished_tilts

SMALL_MEMORY = Path(__file__).with_name("small_memory_rank.py")
TILED = ["parallel.exchange=tiled", "parallel.group_size=3", "ptychography.iterations=2"]
ONE_TILT = [*TILED, "data.tilts=[1]"]


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "IN_MEMORY_BYTES", 0)


def parts_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("tilt_*.*-*.h5"))


def without_times(path: Path) -> dict[str, Any]:
    """Return all arrays and attributes of a file but what tells of time."""
    found: dict[str, Any] = {}
    with h5py.File(path) as file:

        def note(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset):
                assert not node.is_virtual
                assert not node.external
                found[name] = node[()]
            found.update({f"{name}@{k}": v for k, v in node.attrs.items() if k not in ("seconds", "sha256")})

        file.visititems(note)
    return found


@pytest.mark.parametrize("more", [[], ["quality.frc=true", "ptychography.coarse_iterations=1"]])
def test_parts_equal_what_is_gathered(
    tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    """Every bit of every tilt, and of the projections; half scans and coarse starts are gathered in a file."""
    job, _ = load_job(tiny_job, [*(ONE_TILT if more else TILED), *more])
    for name, limit in (("gathered", 1 << 30), ("parts", 0)):
        monkeypatch.setattr(gather, "IN_MEMORY_BYTES", limit)
        reconstruct_all(job, tmp_path / name / "checkpoints", 3)
    numbers = [1] if more else [0, 1, 2]
    found = {path.name.split(".")[0] for path in parts_in(tmp_path / "parts/checkpoints")}
    assert found == {f"tilt_{number:04d}" for number in numbers}
    assert len(parts_in(tmp_path / "parts/checkpoints")) == 3 * len(numbers)
    assert not parts_in(tmp_path / "gathered/checkpoints")
    for number in numbers:
        one, other = (read_tilt_result(tilt_path(tmp_path / n / "checkpoints", number)) for n in ("gathered", "parts"))
        np.testing.assert_array_equal(other.obj, one.obj)
    gathered, parts = (without_times(assemble_projections(tmp_path / name)) for name in ("gathered", "parts"))
    assert gathered.keys() == parts.keys()
    for name, values in gathered.items():
        np.testing.assert_array_equal(parts[name], values, err_msg=name)
    # They are read without their parts
    for path in parts_in(tmp_path / "parts/checkpoints"):
        path.unlink()
    assert without_times(tmp_path / "parts/projections.h5").keys() == gathered.keys()


@pytest.mark.parametrize("damage", ["cut", "byte", "gone"])
def test_a_tilt_with_a_damaged_part_is_done_again(
    tiny_job: Path, tmp_path: Path, small_memory: None, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    job, _ = load_job(tiny_job, ONE_TILT)
    reconstruct_all(job, tmp_path, 3)
    before = read_tilt_result(tilt_path(tmp_path, 1)).obj
    victim = parts_in(tmp_path)[1]
    content = bytearray(victim.read_bytes())
    content[-9] ^= 1
    victim.write_bytes(content[:-50] if damage == "cut" else content)
    if damage == "gone":
        victim.unlink()
    with open_series(job.data) as series:
        assert unfinished_tilts(series, tmp_path) == [0]
    assert f"a tilt is reconstructed again: {tmp_path}" in caplog.text
    assert victim.name in caplog.text
    reconstruct_all(job, tmp_path, 3)
    np.testing.assert_array_equal(read_tilt_result(tilt_path(tmp_path, 1)).obj, before)
    assert len(parts_in(tmp_path)) == 3, "the old ones are gone"
    assert victim not in parts_in(tmp_path)


def test_killed_between_parts_and_result(
    tiny_job: Path, tmp_path: Path, small_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = load_job(tiny_job, ONE_TILT)

    def killed(*arguments: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(tilts, "write_tilt_result", killed)
        with pytest.raises(SystemExit):
            reconstruct_all(job, tmp_path, 3)
    strays = parts_in(tmp_path)
    assert len(strays) == 3
    temporary = tmp_path / f".{strays[0].name}.node-1.12.0.tmp"
    temporary.write_bytes(b"")
    with open_series(job.data) as series:
        assert unfinished_tilts(series, tmp_path) == [0]
    reconstruct_all(job, tmp_path, 3)
    assert tilt_number(tilt_path(tmp_path, 1)) == 1
    assert len(parts_in(tmp_path)) == 3
    assert not set(strays) & set(parts_in(tmp_path))
    assert not temporary.exists()


def told_by_ranks(job: Any, folder: Path, kind: type[Exception]) -> list[str]:
    def rank(group: Any) -> str:
        try:
            run_one(job, folder, group)
        except kind as fault:
            return str(fault)
        return "nothing"

    return run_ranks(3, rank)


def test_a_full_disk_is_told_alike_by_all_ranks(
    tiny_job: Path, tmp_path: Path, small_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = load_job(tiny_job, TILED)
    real = gather.write_object_part

    def full(path: Path, values: Any) -> None:
        if path.stem.endswith("-0001"):
            raise StorageError(f"{path}: cannot be written: the disk is full; free some space")
        real(path, values)

    monkeypatch.setattr(gather, "write_object_part", full)
    told = told_by_ranks(job, tmp_path, StorageError)
    assert len(set(told)) == 1
    assert told[0].endswith("cannot be written: the disk is full; free some space")
    assert not tilt_path(tmp_path, 1).exists()


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_values_that_are_not_finite_are_told_by_all_ranks_and_not_written(
    tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """In the core of the last rank alone."""
    monkeypatch.setattr(gather, "IN_MEMORY_BYTES", limit)
    job, _ = load_job(tiny_job, TILED)
    real = gather.written_in_parts, gather.gathered

    def spoiled(work: Any) -> Any:
        def call(exchange: Any, values: Any, *more: Any) -> Any:
            values = values.copy()
            if exchange.communicator.rank == 2:
                (y, _), (x, _) = ((s.start, s.stop) for s in exchange.core.slices(exchange.held))
                values[0, y, x] = np.nan
            return work(exchange, values, *more)

        return call

    monkeypatch.setattr("hpcrec.run.runner.written_in_parts", spoiled(real[0]))
    monkeypatch.setattr("hpcrec.run.runner.gathered", spoiled(real[1]))
    told = told_by_ranks(job, tmp_path, DivergedError)
    assert told == ["tilt 1: the object holds values that are not finite; take smaller steps"] * 3
    assert not parts_in(tmp_path)


def test_the_outcome_reads_its_parts(tiny_job: Path, tmp_path: Path, small_memory: None) -> None:
    job, _ = load_job(tiny_job, TILED)
    outcome = run_ranks(3, lambda group: run_one(job, tmp_path, group))[0]
    assert outcome is not None
    assert isinstance(outcome.obj, JoinedArray)
    assert outcome.whole.shape == outcome.obj.shape
    assert np.isfinite(outcome.whole).all()


def test_the_plan_leaves_no_room_for_the_whole(tiny_job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, _ = load_job(tiny_job, TILED)
    with open_series(job.data) as series:
        grid = dataclasses.replace(common_grid(job, series), shape=(11000, 11000))
        whole = 11000**2 * 8
        assert whole < gather.IN_MEMORY_BYTES
        need = {limit: 0.0 for limit in (whole, whole - 1)}
        for limit in need:
            monkeypatch.setattr(gather, "IN_MEMORY_BYTES", limit)
            need[limit] = rank_memory(job, series, grid, 64)
    assert need[whole] - need[whole - 1] > 0.5 * whole / 2**30


@pytest.mark.mpi
@pytest.mark.skipif(not LAUNCHER.exists(), reason=f"no mpiexec beside {sys.executable}")
def test_the_first_rank_needs_blocks_beside_its_tile(tmp_path: Path) -> None:
    """Of 64 MiB on four ranks, in blocks of 1 MiB: what the plan counts, and one more for HDF5's own."""
    done = launch(SMALL_MEMORY, "memory", tmp_path, n_ranks=4)
    assert done.returncode == 0, done.stderr
    tile, took = map(float, done.stdout.split())
    assert tile > 16
    assert took < gather.PIECES_BYTES / (16 << 20) + 1


@pytest.fixture
def one_of_threads(monkeypatch: pytest.MonkeyPatch, small_memory: None) -> None:
    """Ranks are threads here, which open the file that MPI would open for them as any file."""
    monkeypatch.setattr(one_file, "available", lambda: True)
    monkeypatch.setattr(one_file, "open_together", lambda path, handle: h5py.File(path, "r+"))
    monkeypatch.setattr(
        ThreadedCommunicator, "handle", property(lambda group: group.rank, lambda group, _: None), False
    )


@pytest.mark.usefixtures("one_of_threads")
@pytest.mark.parametrize("way", ["auto", "one", "parts"])
def test_one_file_of_all_ranks_holds_what_parts_hold(tiny_job: Path, tmp_path: Path, way: str) -> None:
    job, _ = load_job(tiny_job, [*ONE_TILT, f"parallel.large_results={way}"])
    reconstruct_all(job, tmp_path / way, 3)
    assert len(parts_in(tmp_path / way)) == (3 if way == "parts" else 1)
    reconstruct_all(load_job(tiny_job, [*ONE_TILT, "parallel.large_results=parts"])[0], tmp_path / "other", 3)
    one, other = (read_tilt_result(tilt_path(tmp_path / name, 1)) for name in (way, "other"))
    np.testing.assert_array_equal(one.obj, other.obj)
    assert not list((tmp_path / way).glob(".*"))


@pytest.mark.usefixtures("one_of_threads")
@pytest.mark.parametrize("where", ["room", "rank", "name"])
def test_one_file_that_cannot_be_written_is_told_alike_and_removed(
    tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Where room is made for it, where one rank writes, and where it gets its name."""
    real = h5py.File

    def full(*arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "room":
        monkeypatch.setattr(os, "posix_fallocate", full)
    elif where == "name":
        monkeypatch.setattr(Path, "replace", full)
    else:
        monkeypatch.setattr(one_file, "open_together", lambda path, handle: full() if handle == 1 else real(path, "r+"))
    job, _ = load_job(tiny_job, TILED)
    told = told_by_ranks(job, tmp_path, StorageError)
    assert len(set(told)) == 1
    assert told[0].endswith("cannot be written: the disk is full; free some space, or choose another output folder")
    assert not parts_in(tmp_path)
    assert not list(tmp_path.glob(".tilt*"))


def test_one_file_is_refused_where_hdf5_has_no_mpi(tiny_job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_file, "available", lambda: False)
    with pytest.raises(ConfigError, match=r"parallel.large_results: .* built with MPI"):
        load_job(tiny_job, ["parallel.large_results=one"])
    load_job(tiny_job, ["parallel.large_results=auto"])


@pytest.mark.mpi
@pytest.mark.skipif(not LAUNCHER.exists(), reason=f"no mpiexec beside {sys.executable}")
@pytest.mark.parametrize("way", ["parts", "one"])
def test_a_run_on_two_ranks(tiny_job: Path, tmp_path: Path, hpcrec: Callable[..., int], way: str) -> None:
    """The command of one process goes on from it, and takes its results as they are."""
    if way == "one" and not one_file.available():
        pytest.skip("h5py was built without MPI")
    settings = [*ONE_TILT[:1], "parallel.group_size=2", *ONE_TILT[2:], f"parallel.large_results={way}"]
    words = ["--until", "ptychography", *(f"--set={one}" for one in settings)]
    for name, program in (("parts", (SMALL_MEMORY, "run")), ("gathered", ("-m", "hpcrec.cli.main"))):
        done = launch(*program, "run", tiny_job, "--out", tmp_path / name, *words)
        assert done.returncode == 0, done.stderr
    made = parts_in(tmp_path / "parts/checkpoints")
    assert len(made) == (2 if way == "parts" else 1)
    assert not parts_in(tmp_path / "gathered/checkpoints")
    gathered, parts = (without_times(tmp_path / name / "projections.h5") for name in ("gathered", "parts"))
    assert gathered.keys() == parts.keys()
    for name, values in gathered.items():
        np.testing.assert_array_equal(parts[name], values, err_msg=name)
    written = [path.stat().st_mtime_ns for path in made]
    assert hpcrec("run", tiny_job, "--out", tmp_path / "parts", *words) == 0
    assert [path.stat().st_mtime_ns for path in made] == written
