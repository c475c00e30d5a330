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
