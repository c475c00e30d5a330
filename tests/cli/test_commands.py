"""What the commands print, seen as a user would; faults are in test_bad_input.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

import hpcrec as package

Run = Callable[..., tuple[int, str]]

SAMPLE = """
[specimen]
kind = "co3o4_cube"
n_cells = [1, 1, 1]
[scan]
shape = [3, 3]
[detector]
pixels = 32
pixel_inverse_angstrom = 0.15625
[tilt]
n_tilts = 2
[multislice]
grid_pixels = 48
n_phonons = 0
"""


def test_help_names_every_command(hpcrec: Run) -> None:
    code, text = hpcrec("--help")
    assert code == 0
    assert "Start with: hpcrec check JOB.toml" in text
    for name in ("run", "check", "info", "simulate", "calibrate", "preview", "report", "export"):
        assert f"│ {name} " in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run", ["JOB.toml|DIR", "--out", "--set", "--until", "--verbose", "Continues what was interrupted"]),
        ("check", ["JOB.toml", "--set", "--ranks", "memory per rank"]),
        ("simulate", ["SAMPLE.toml", "--out", "FILE.h5"]),
        ("report", ["DIR"]),
        ("export", ["DIR", "--format", "--out"]),
        ("info", ["MPI", "cores", "libraries"]),
    ],
)
def test_each_command_explains_itself(hpcrec: Run, name: str, words: list[str]) -> None:
    code, text = hpcrec(name, "--help")
    assert code == 0
    assert [word for word in words if word not in text] == []


def test_check_prints_the_plan_and_starts_nothing(hpcrec: Run, tiny_job: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    code, text = hpcrec("check", tiny_job, "--ranks", 6, "--set", "ptychography.iterations=7")
    assert code == 0
    assert "tiny.h5 (hdf5)" in text
    assert "32 × 32 of uint16, zero frequency at (16, 16)" in text
    assert "0.2 × 0.2 Å; of the detector 0.15625 × 0.15625 1/Å" in text
    assert "200000 eV, wavelength 0.0250793 Å" in text
    assert "108 of 32 × 32 pixels" in text
    assert "6 on" in text
    assert "2 work on a tilt as" in text
    assert "patterns/s a tilt, measured just now" in text
    assert "tiny.toml can run" in text
    assert sorted(tmp_path.iterdir()) == before
    code, text = hpcrec("check", tiny_job, "--ranks", 6, "--set", "parallel.group_size=2")
    assert "threads each, 2 a tilt" in " ".join(text.split())
    assert "patterns/s a rank, measured just now" in text


def test_check_refuses_what_does_not_fit(hpcrec: Run, tiny_job: Path) -> None:
    code, text = hpcrec("check", tiny_job, "--set", "parallel.memory_gib_per_rank=0.1")
    assert code == 5
    assert "can run" not in text
    code, text = hpcrec(
        "check", tiny_job, "--set", "parallel.memory_gib_per_rank=0.1", "--set", "parallel.group_size=1"
    )
    assert code == 5
    assert "can run" not in text


def test_info_names_machine_and_libraries(hpcrec: Run) -> None:
    code, text = hpcrec("info")
    assert code == 0
    for words in (
        f"hpcrec {package.__version__}",
        "cores",
        "memory",
        "GPU",
        "MPI",
        "1 on 1 host(s)",
        "OMP_NUM_THREADS=",
    ):
        assert words in text
    for library in ("numpy", "pyfftw", "mpi4py", "dask"):
        assert library in text


def test_info_says_brackets_as_they_are(hpcrec: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrec.cli.info.describe", lambda: "none: install hpcrec[gpu]")
    assert "none: install hpcrec[gpu]" in hpcrec("info")[1]


def test_simulate_writes_a_series_that_can_be_reconstructed(hpcrec: Run, tiny_job: Path, tmp_path: Path) -> None:
    sample, series = tmp_path / "sample.toml", tmp_path / "new" / "series.h5"
    sample.write_text(SAMPLE)
    code, text = hpcrec("simulate", sample, "--out", series, "--set", "tilt.n_tilts=1")
    assert code == 0
    assert f"wrote 1 tilts to {series}" in text
    with h5py.File(series) as file:
        assert file["diffraction"].shape == (1, 9, 32, 32)
        assert len(file["truth/atomic_numbers"]) == 56
    code, text = hpcrec(
        "run", tiny_job, "--set", f"data.path={series}", "--out", tmp_path / "out", "--until", "analysis"
    )
    assert code == 0
    assert "1 of 1 tilts to do, 1 rank(s), gradient" in text
    assert "over 1 tilt(s)" in text


def test_report_is_written_anew(hpcrec: Run, tiny_job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text = hpcrec("run", tiny_job, "--out", out, "--until", "ptychography")
    assert code == 0
    assert f"run directory {out}" in text
    assert "tilt 0 done" in text
    assert not (out / "report.html").exists()
    code, text = hpcrec("report", out)
    assert code == 0
    assert f"report: {out / 'report.html'}" in text
    assert "<h2>Ptychography</h2>" in (out / "report.html").read_text()


def test_export_writes_what_a_run_left(hpcrec: Run, tiny_job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert hpcrec("export", tmp_path, "--format", "mrc")[0] == 2  # no run directory
    assert (
        hpcrec("run", tiny_job, "--out", out, "--set", "ptychography.iterations=1", "--until", "ptychography")[0] == 0
    )
    code, text = hpcrec("export", out, "--format", "mrc", "--out", tmp_path / "mrc")
    assert code == 0
    assert "wrote 6 files" in text
    written = sorted(path.name for path in (tmp_path / "mrc").iterdir())
    assert written == ["amplitude.mrc", "phase.mrc", "phase.rawtlt", *(f"tilt_000{i}_probe.mrc" for i in range(3))]
    assert hpcrec("export", out, "--format", "png")[0] == 2


def test_brackets_in_names_and_messages_are_printed_as_they_are(hpcrec: Run, tiny_job: Path, tmp_path: Path) -> None:
    """What looks like markup must neither vanish nor get a backslash."""
    folder = tmp_path / "a [b] c [/] d"
    folder.mkdir(parents=True)
    job = shutil.copy(tiny_job, folder / "job.toml")
    code, text = hpcrec("check", job)
    assert code == 0, text
    assert f"ok: {job} can run" in text
    code, text = hpcrec("run", job, "--out", folder / "out", "--set", "ptychography.iterations=1")
    assert code == 0, text
    assert f"run directory {folder / 'out'}\n" in text
    assert f"report: {folder / 'out' / 'report.html'}\n" in text
    code, text = hpcrec("check", job, "--set", "data.tilts=[9]")
    assert code == 2
    assert "error: tilts [9] do not exist" in text


def test_the_version_is_the_packages(hpcrec: Run) -> None:
    assert hpcrec("--version") == (0, f"hpcrec {package.__version__}\n")
