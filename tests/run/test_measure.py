"""What the result table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcrec.run.directory import RunDirectory
from hpcrec.run.measure import summary


@pytest.mark.parametrize(("error", "doubted"), [(0.6, False), (1.2, True)])
def test_a_volume_worse_than_none_is_said_to_be_so(tmp_path: Path, error: float, doubted: bool) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_json(directory.quality, {"projection_error": error})
    row = summary(directory)["projection error R1"]
    assert row.startswith(f"{error:.3f}")
    assert ("do not trust it" in row) == doubted


@pytest.mark.parametrize("unit", ["Å", "px"])
def test_lengths_carry_the_unit_of_the_data(tmp_path: Path, unit: str) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_json(directory.quality, {"length_unit": unit, "tilts": [{"half_bit": 4.0}]})
    assert summary(directory)["resolution, FRC half-bit (half scans)"] == f"4 {unit}, at worst 4 {unit}"


def test_a_resolution_is_judged_by_its_voxel(tmp_path: Path) -> None:
    """80 Å is fine for X-rays and voxels of 30 Å, and none along a missing wedge at 0.4 Å; no unit, no Å."""
    directory, rows = RunDirectory(tmp_path), {}
    for voxel, unit in ((30.0, "Å"), (0.4, "Å"), (30.0, "px")):
        resolution = {"half_bit_axes": {"z": 80.0}, "last_peak": {"axial": 70.0}}
        figures = {"length_unit": unit, "voxel_size": voxel, "resolution": resolution}
        directory.write_json(directory.quality, figures)
        rows[voxel, unit] = list(summary(directory).values())
    assert rows[30.0, "Å"] == ["80.00 Å", "70.00 Å"]
    assert rows[0.4, "Å"] == ["none up to 8 Å (missing wedge)", "70.00 Å"]
    assert rows[30.0, "px"] == ["80.00 px", "70.00 px"]
