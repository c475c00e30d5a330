"""Run directories: made, opened again by the same job, refused to another; what lies there is not overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcrec.errors import ConfigError, DataError, StorageError
from hpcrec.run.directory import RunDirectory, default_path, find_job, open_directory

RAW: dict[str, Any] = {
    "version": 1,
    "name": "x",
    "data": {"format": "hdf5", "path": "/data/a.h5"},
    "ptychography": {"iterations": 3},
    "tomography": {"binning": 1},
}


def test_a_new_directory_holds_the_frozen_job(tmp_path: Path) -> None:
    directory = open_directory(tmp_path / "deep" / "out", RAW)
    assert directory.checkpoints.is_dir()
    assert find_job(directory.path, None) == (directory.job, directory.path)
    assert open_directory(directory.path, RAW) == directory


def test_later_sections_and_parallel_may_change(tmp_path: Path) -> None:
    open_directory(tmp_path / "out", RAW)
    changed = {**RAW, "tomography": {"binning": 2}, "parallel": {"workers": 3}}
    assert "binning = 2" in open_directory(tmp_path / "out", changed).job.read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ptychography": {"iterations": 4}}, "ptychography.iterations: 3 → 4"),
        ({"data": {"format": "hdf5", "path": "/data/b.h5"}}, "data.path"),
        ({"name": "y"}, "name: 'x' → 'y'"),
        ({"beam": {"energy_ev": 2e5}}, "beam"),
    ],
)
def test_a_run_of_another_job_is_refused_and_kept(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    job = open_directory(tmp_path / "out", RAW).job
    before = job.read_bytes()
    with pytest.raises(ConfigError, match="holds a run of another job") as caught:
        open_directory(tmp_path / "out", {**RAW, **change})
    assert words in str(caught.value)
    assert job.read_bytes() == before


def test_a_job_file_with_remarks_is_not_rewritten_by_the_same_job(tmp_path: Path) -> None:
    """``hpcrec run FOLDER`` where the user's own job.toml lies."""
    directory = open_directory(tmp_path / "out", RAW)
    text = "# a remark of the user\n" + directory.job.read_text()
    directory.job.write_text(text)
    open_directory(tmp_path / "out", RAW)
    assert directory.job.read_text() == text


def test_a_damaged_frozen_job_is_named(tmp_path: Path) -> None:
    job = open_directory(tmp_path / "out", RAW).job
    for content in (b"version = ", b"\xff\xfe\x00"):
        job.write_bytes(content)
        with pytest.raises(ConfigError, match="job.toml"):
            open_directory(tmp_path / "out", RAW)


def test_other_folders_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ConfigError, match="no run directory"):
            open_directory(path, RAW)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert open_directory(tmp_path / "empty", RAW).job.exists()


def test_a_place_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        open_directory(tmp_path / "file" / "out", RAW)


def test_the_job_is_found_in_a_file_or_a_run_directory(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    assert find_job(file, None) == (file, None)
    assert find_job(file, tmp_path / "out") == (file, tmp_path / "out")
    out = open_directory(tmp_path / "out", RAW).path
    assert find_job(out, out) == (out / "job.toml", out)
    with pytest.raises(ConfigError, match="leave --out away"):
        find_job(out, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"without job\.toml"):
        find_job(tmp_path, None)


def test_json_files_take_numbers_of_numpy(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.read_json(directory.quality) == {}
    directory.write_json(directory.quality, {"a": np.float32(0.5), "b": np.arange(3), "c": np.array(7)})
    assert directory.read_json(directory.quality) == {"a": 0.5, "b": [0, 1, 2], "c": 7}


def test_default_directories_carry_name_and_time() -> None:
    assert default_path("gold").parent == Path("runs")
    assert default_path("gold").name.startswith("gold-20")


@pytest.mark.parametrize("content", [b'{"tomography": "a', b"", b"\xff\xfe", b"[1]"])
def test_a_damaged_json_file_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    directory = open_directory(tmp_path / "out", RAW)
    assert directory.read_json(directory.stages) == {}
    directory.stages.write_bytes(content)
    with pytest.raises(DataError, match=r"stages\.json: is damaged .*remove it"):
        directory.read_json(directory.stages)
