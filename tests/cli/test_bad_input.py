"""A user's mistake gets one clear sentence and a non-zero exit code, never a traceback, and loses nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcrec.cli import main as command
from hpcrec.errors import DeviceError
from hpcrec.run.runner import TiltRun

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def hpcrec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process: return its exit code and what it wrote to standard error."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["hpcrec", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "500")
        capsys.readouterr()
        code = 0
        try:
            command.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return code, capsys.readouterr().err

    return call


def damaged(series: Path, folder: Path, change: Callable[[h5py.File], None]) -> Path:
    path = folder / "damaged.h5"
    shutil.copy(series, path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replace(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        values = make(file[name][()])
        del file[name]
        file[name] = values

    return change


def with_nan(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float32)
    values[1, 7, 3, 4] = np.nan
    return values


def with_negative(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.int32)
    values[0, 5, 2, 2] = -3
    return values


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (replace("diffraction", with_nan), 3, ["tilt 1", "position 7"]),
        (replace("diffraction", with_negative), 3, ["tilt 0", "position 5", "negative"]),
        (replace("diffraction", lambda v: v[:, :-1]), 3, ["36", "35"]),
        (replace("diffraction", lambda v: v[0, 0]), 3, ["(32, 32)", "axes"]),
        (replace("scan_positions_A", lambda v: np.full_like(v, np.nan)), 3, ["position"]),
        (replace("diffraction", lambda v: v * 0), 3, ["no counts"]),
    ],
    ids=["nan", "negative", "count", "shape", "positions", "empty"],
)
def test_damaged_data_are_named(
    hpcrec: Run,
    tiny_series: Path,
    tiny_job: Path,
    tmp_path: Path,
    change: Callable[[h5py.File], None],
    code: int,
    words: list[str],
) -> None:
    path = damaged(tiny_series, tmp_path, change)
    found, text = hpcrec("run", tiny_job, "--set", f"data.path={path}", "--out", tmp_path / "out")
    assert found == code, text
    assert "Traceback" not in text
    assert all(word in text for word in words), text


def test_a_missing_dataset_suggests_the_nearest(hpcrec: Run, tiny_job: Path, tmp_path: Path) -> None:
    code, text = hpcrec("run", tiny_job, "--set", "data.patterns=diffractoin", "--out", tmp_path / "out")
    assert code == 3
    assert "diffractoin" in text
    assert "diffraction" in text


def test_a_truncated_file_is_named(hpcrec: Run, tiny_series: Path, tiny_job: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.h5"
    path.write_bytes(tiny_series.read_bytes()[: tiny_series.stat().st_size // 2])
    code, text = hpcrec("run", tiny_job, "--set", f"data.path={path}", "--out", tmp_path / "out")
    assert code == 3
    assert "short.h5" in text
    assert "truncated" in text or "cut" in text


def test_a_mistyped_key_is_suggested(hpcrec: Run, tiny_job: Path, tmp_path: Path) -> None:
    code, text = hpcrec("run", tiny_job, "--set", "ptychography.iteratons=3", "--out", tmp_path / "out")
    assert code == 2
    assert "did you mean 'iterations'?" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["probe.defocus_angstrom=400", "probe.semiangle_mrad=90"])
def test_a_probe_larger_than_its_window_is_refused(hpcrec: Run, tiny_job: Path, tmp_path: Path, change: str) -> None:
    code, text = hpcrec("run", tiny_job, "--set", change, "--out", tmp_path / "out")
    assert code == 2
    assert "impossible geometry" in text


def test_a_place_that_cannot_be_written_is_named(hpcrec: Run, tiny_job: Path) -> None:
    code, text = hpcrec("run", tiny_job, "--out", "/proc/hpcrec-run")
    assert code == 4
    assert "/proc/hpcrec-run" in text


def test_a_full_disk_keeps_what_is_there(
    hpcrec: Run, tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert hpcrec("run", tiny_job, "--out", out, "--until", "ptychography")[0] == 0
    first = (out / "checkpoints" / "tilt_0000.h5").read_bytes()
    (out / "checkpoints" / "tilt_0001.h5").unlink()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, text = hpcrec("run", tiny_job, "--out", out)
    assert code == 4
    assert "the disk is full" in text
    assert (out / "checkpoints" / "tilt_0000.h5").read_bytes() == first
    assert not (out / "checkpoints" / "tilt_0001.h5").exists()


def test_another_job_does_not_overwrite_a_run(hpcrec: Run, tiny_job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert hpcrec("run", tiny_job, "--out", out, "--until", "ptychography")[0] == 0
    code, text = hpcrec("run", tiny_job, "--set", "ptychography.iterations=9", "--out", out)
    assert code == 2
    assert "ptychography.iterations: 4 → 9" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "absent.toml"], "no job file"),
        (["report", "."], "no run directory"),
        (["run", "{job}", "--until", "lunch"], "choose one of"),
        (["check", "{job}", "--set", "data.tilts=[9]"], "tilts [9] do not exist"),
        (["check", "{job}", "--ranks", "0"], "Invalid value for '--ranks'"),
        (["calibrate", "data", "{job}", "--sweeps", "0"], "Invalid value for '--sweeps'"),
        (["calibrate", "data", "{job}", "--positions", "8"], "Invalid value for '--positions'"),
    ],
)
def test_wrong_calls_are_explained(hpcrec: Run, tiny_job: Path, arguments: list[str], words: str) -> None:
    code, text = hpcrec(*[a.format(job=tiny_job) for a in arguments])
    assert code != 0
    assert words in text


def test_a_process_without_memory_says_what_to_do(
    tiny_job: Path, tmp_path: Path, hpcrec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TiltRun, "sweep", lambda run: np.empty(2**58))
    code, told = hpcrec("run", tiny_job, "--out", tmp_path / "out", "--until", "ptychography")
    assert code == DeviceError.exit_code
    assert "error: no memory left (Unable to allocate 2.00 EiB" in told
    assert "use fewer ranks on each node" in told
