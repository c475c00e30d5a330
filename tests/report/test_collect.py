"""From a run directory to its report: every part that is there is shown, those that are missing are left out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcrec.analysis.resolution import fourier_shell_correlation
from hpcrec.errors import ConfigError
from hpcrec.io.checkpoint import save_checkpoint
from hpcrec.io.results import (
    TiltResult,
    VolumeResult,
    assemble_projections,
    read_volume,
    tilt_path,
    write_tilt_result,
    write_volume,
)
from hpcrec.report.collect import report_content, write_report
from hpcrec.run.curves import correlation_arrays
from hpcrec.run.directory import RunDirectory, open_directory
from hpcrec.run.observers import EventLog

RAW: dict[str, Any] = {"version": 1, "name": "small", "data": {"format": "hdf5"}, "beam": {"energy_ev": 2e5}}
N = 16
TILTS = (3, 5, 8)


def phase(i: int) -> np.ndarray:
    y, x = np.mgrid[:N, :N] - N // 2
    return (0.5 * np.exp(-(y**2 + (x - i) ** 2) / 8)).astype(np.float32)


def add_tilts(directory: RunDirectory) -> None:
    for i, number in enumerate(TILTS):
        result = TiltResult(
            tilt_index=number,
            tilt_deg=10.0 * i,
            obj=np.exp(1j * np.stack([phase(i), phase(i)])).astype(np.complex64),
            probe=np.ones((1, 8, 8), np.complex64),
            positions=np.zeros((4, 2)),
            illumination=np.ones((N, N), np.float32),
            loss=np.array([2.0, 1.0]),
            data_error=np.array([0.2, 0.1]),
            sampling=(0.5, 0.5),
            origin=(0.0, 0.0),
            slice_thickness=4.0,
            engine="gradient",
            iterations=2,
            seconds=1.0,
        )
        write_tilt_result(tilt_path(directory.checkpoints, number), result)
    assemble_projections(directory.path)


def add_volume(directory: RunDirectory) -> np.ndarray:
    volume = np.random.default_rng(0).random((N, N, N)).astype(np.float32)
    n = len(TILTS)
    arrays = {
        "convergence/r1": np.array([1.0, 0.5]),
        "alignment/shifts_angstrom": np.tile([0.0, 1.0], (n, 1)),
        "alignment/angles_deg": np.stack([np.zeros(n), 10.0 * np.arange(n) + 0.25, np.zeros(n)], axis=1),
        "alignment/residuals": np.full(n, 0.1),
        "alignment/history_r1": np.array([0.6, 0.5]),
        "alignment/history_bin": np.array([2, 1]),
        "projections/prepared": np.stack([2 * phase(0)] * n),
        "projections/tilt_deg": 10.0 * np.arange(n),
        "projections/number": np.array(TILTS),
    }
    write_volume(directory.volume, VolumeResult(volume=volume, voxel_size=0.5, arrays=arrays), mrc=False)
    return volume


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return open_directory(tmp_path / "out", RAW)


def page(directory: RunDirectory) -> str:
    """Write the report and return it, after a look that it needs nothing but itself."""
    write_report(directory)
    text = directory.report.read_text(encoding="utf-8")
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", text)
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"<script|<link|@import|url\(", text)
    return text


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def test_a_run_that_has_not_begun_has_its_parameters(directory: RunDirectory) -> None:
    content = report_content(directory)
    assert content.title == "small"
    assert not content.tilts
    assert headings(page(directory)) == ["Parameters"]


def test_a_damaged_job_is_said_to_be_so(directory: RunDirectory) -> None:
    directory.job.write_text("version = ")
    with pytest.raises(ConfigError, match="job.toml is damaged"):
        report_content(directory)


def test_ptychography_alone(directory: RunDirectory) -> None:
    add_tilts(directory)
    content = report_content(directory)
    assert [tilt.index for tilt in content.tilts] == list(TILTS)
    # Phases of the slices add up; complex64 keeps seven digits
    np.testing.assert_allclose(content.tilts[1].phase, 2 * phase(1), atol=1e-6)
    assert content.tilts[0].sampling == (0.5, 0.5)
    missing = (content.volume, content.alignment, content.resolution, content.atoms, content.quality)
    assert missing == (None,) * 5
    text = page(directory)
    assert headings(text) == ["Ptychography", "Parameters"]
    assert text.count("data:image/") >= 3


def test_data_in_pixel_units_get_no_scale(tmp_path: Path) -> None:
    directory = open_directory(tmp_path / "out", {k: v for k, v in RAW.items() if k != "beam"})
    add_tilts(directory)
    add_volume(directory)
    quality = {"tilts": [{"index": 3, "drift": 0.1, "half_bit": 4.0, "mass": 3.0}], "resolution": {"half_bit": 4.0}}
    directory.write_json(directory.quality, quality)
    assert all(tilt.sampling is None for tilt in report_content(directory).tilts)
    text = page(directory)
    for words in ("drift (px)", "half-bit (px)", "summed phase (rad·px²)", "4.00 px", "of 0.5 px"):
        assert words in text
    assert "Å" not in text


def test_tilts_that_are_not_in_the_volume_keep_their_scale(directory: RunDirectory) -> None:
    add_tilts(directory)
    add_volume(directory)
    volume = read_volume(directory.volume)
    part = {name: a[1:] if len(a) == len(TILTS) else a for name, a in volume.arrays.items()}
    write_volume(directory.volume, replace(volume, arrays=part, voxel_size=1.0), mrc=False)
    tilts = report_content(directory).tilts
    assert [tilt.sampling for tilt in tilts] == [(0.5, 0.5), (1.0, 1.0), (1.0, 1.0)]


def test_object_states_are_averaged(tmp_path: Path) -> None:
    """Two slices that were written stand for two states of one slice."""
    directory = open_directory(tmp_path / "out", {**RAW, "ptychography": {"object_states": 2}})
    add_tilts(directory)
    np.testing.assert_allclose(report_content(directory).tilts[1].phase, phase(1), atol=1e-6)


def test_a_volume_without_analysis(directory: RunDirectory) -> None:
    add_tilts(directory)
    volume = add_volume(directory)
    content = report_content(directory)
    assert content.volume is not None
    np.testing.assert_array_equal(content.volume.volume, volume)
    assert content.alignment is not None
    np.testing.assert_allclose(content.alignment.angle_corrections_deg, [[0, 0.25, 0]] * 3)
    # A shift of +1 Å = 2 pixels is undone: the sums move by −2 pixels
    before, after = content.alignment.sums_before, content.alignment.sums_after
    np.testing.assert_allclose(after[0, :-2], before[0, 2:], atol=1e-6)
    np.testing.assert_array_equal(content.tilts[2].phase, 2 * phase(0), "the prepared projections are shown")
    assert content.resolution is None
    assert headings(page(directory)) == ["Ptychography", "Alignment", "Volume", "Parameters"]


def test_everything(directory: RunDirectory) -> None:
    add_tilts(directory)
    volume = add_volume(directory)
    log = EventLog(directory.events)
    for _ in range(2):
        log({"event": "warning", "text": "tilt 5 is dim & <small>"})
    for seconds in (61.0, 0.5):  # continued
        log({"event": "stage_done", "stage": "tomography", "seconds": seconds})
    noise = np.random.default_rng(1).random((2, N, N, N))
    atoms = {
        "atoms/positions": np.array([[0.0, 0, 0], [1, 1, 1]]),
        "atoms/numbers": np.array([27, 8]),
        "atoms/confidence": np.array([0.9, 0.8]),
        "atoms/intensity": np.array([2.0, 1.0]),
    }
    curve = correlation_arrays("all", fourier_shell_correlation(volume + noise[0], volume + noise[1], (0.5,) * 3))
    save_checkpoint(directory.checkpoints / "analysis_000001.h5", {**atoms, **curve}, {})
    quality = {"tilts": [{"index": 3, "data_error": 0.1}], "data_error": 0.1, "alignment": {"not": "of the page"}}
    directory.write_json(directory.quality, quality)
    directory.write_json(directory.provenance, {"mpi": "none", "job": {"secret": "shown once"}, "outputs": ["a"]})
    content = report_content(directory)
    assert content.warnings == ["tilt 5 is dim & <small>"]
    assert content.timings == {"tomography": 61.5}
    assert content.provenance == {"mpi": "none"}
    assert content.atoms is not None
    assert list(content.atoms.species) == ["Co", "O"]
    assert content.resolution is not None
    assert content.resolution.overall is not None
    assert content.resolution.overall.nyquist == 1.0
    assert content.quality is not None
    assert content.quality.tilts[0].data_error == 0.1
    text = page(directory)
    assert "tilt 5 is dim &amp; &lt;small&gt;" in text
    assert headings(text) == [
        "Warnings", "Ptychography", "Alignment", "Volume", "Resolution", "Atoms", "Quality by tilt", "Parameters",
        "Provenance",
    ]  # fmt: skip
