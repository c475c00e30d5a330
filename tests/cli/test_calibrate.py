"""``hpcrec calibrate data`` and ``hpcrec preview`` as a user would see them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def flipped_job(tiny_job: Path, tiny_series: Path, tmp_path: Path) -> Path:
    """The tiny job, with frames that were stored transposed and then reversed along their rows."""
    with h5py.File(tiny_series) as file:
        frames = file["diffraction"][...]
        angles, positions = file["tilt_angles_deg"][...], file["scan_positions_A"][...]
    reversed_rows = frames[..., -np.arange(32) % 32]  # about the zero frequency, which is at 16
    np.save(tmp_path / "frames.npy", reversed_rows.swapaxes(2, 3))
    np.save(tmp_path / "angles.npy", angles)
    np.save(tmp_path / "positions.npy", positions)
    _, tail = tiny_job.read_text().split("[beam]")
    path = tmp_path / "flipped.toml"
    path.write_text(
        'version = 1\nname = "flipped"\n[data]\nformat = "numpy"\npath = "frames.npy"\npositions = "positions.npy"\n'
        f'tilt_angles = "angles.npy"\ndetector_pixel_inverse_angstrom = 0.15625\n[beam]{tail}'
    )
    return path


def test_the_doctor_writes_a_block_that_puts_the_data_right(hpcrec: Run, flipped_job: Path, tmp_path: Path) -> None:
    block = tmp_path / "block.toml"
    code, text = hpcrec("calibrate", "data", flipped_job, "--tilt", 0, "--out", block, "--sweeps", 8)
    assert code == 0, text
    assert "Short reconstructions" in text
    assert f"wrote {block}" in text
    found = tomllib.loads(block.read_text())
    assert found["data"] == {"transpose": True, "flip_y": False, "flip_x": True, "scan_rotation_deg": 0.0}
    assert set(found["probe"]) == {"defocus_angstrom", "astigmatism_angstrom", "astigmatism_angle_deg"}
    assert block.read_text().startswith("# found by hpcrec calibrate data on tilt 0: ")


def test_faults_are_one_sentence(hpcrec: Run, tiny_job: Path, tmp_path: Path) -> None:
    assert hpcrec("calibrate", "data", tiny_job, "--move", "sample")[0] == 2
    assert hpcrec("calibrate", "data", tiny_job, "--positions", 3)[0] == 2
    code, text = hpcrec("calibrate", "data", tiny_job, "--tilt", 7)
    assert code == 2
    assert "--tilt 7: the job has the tilts [0, 1, 2]" in text
    assert hpcrec("calibrate", "data", tmp_path / "none.toml")[0] == 2


def test_a_preview_is_a_picture(hpcrec: Run, tiny_job: Path, tmp_path: Path) -> None:
    out = tmp_path / "shown.png"
    code, text = hpcrec("preview", tiny_job, "--method", "icom", "--out", out)
    assert code == 0, text
    assert f"wrote {out}" in text
    assert out.read_bytes().startswith(b"\x89PNG")
    assert hpcrec("preview", tiny_job, "--method", "xyz", "--out", out)[0] == 2
