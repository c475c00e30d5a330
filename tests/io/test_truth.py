"""The truth of a simulated series, and reference atoms of other files: axes in (z, y, x), angles in rad."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcrec.errors import DataError
from hpcrec.io.truth import read_truth


def test_the_truth_of_a_series_is_turned_into_our_axes(tiny_series: Path) -> None:
    truth = read_truth(tiny_series)
    with h5py.File(tiny_series) as file:
        group = {name: file["truth"][name][()] for name in file["truth"]}
    np.testing.assert_array_equal(truth.specimen.numbers, group["atomic_numbers"])
    np.testing.assert_array_equal(truth.specimen.positions, group["atom_positions_A"][:, ::-1])
    assert sorted(set(truth.specimen.symbols)) == ["Co", "O"]
    np.testing.assert_allclose(np.rad2deg(truth.angles), [[0, -40, 0], [0, 0, 0], [0, 40, 0]], atol=1e-12)
    np.testing.assert_array_equal(truth.shifts, np.zeros((3, 2)))


def changed(series: Path, folder: Path, change: Callable[[h5py.Group], None]) -> Path:
    path = folder / "changed.h5"
    shutil.copy(series, path)
    with h5py.File(path, "r+") as file:
        change(file["truth"])
    return path


def test_drift_is_stored_as_x_y_and_angles_in_degrees(tiny_series: Path, tmp_path: Path) -> None:
    def change(group: h5py.Group) -> None:
        group["drift_A"][...] = [[1, 2], [3, 4], [5, 6]]
        group["inplane_deg"][...] = [10, 20, 30]

    truth = read_truth(changed(tiny_series, tmp_path, change))
    np.testing.assert_array_equal(truth.shifts, [[2, 1], [4, 3], [6, 5]])
    np.testing.assert_allclose(np.rad2deg(truth.angles[:, 0]), [10, 20, 30])


def test_parts_of_the_truth_may_be_missing(tiny_series: Path, tmp_path: Path) -> None:
    def change(group: h5py.Group) -> None:
        for name in ("drift_A", "tilt_angles_deg"):
            del group[name]

    truth = read_truth(changed(tiny_series, tmp_path, change))
    assert truth.angles is None
    assert truth.shifts is None
    assert len(truth.specimen.numbers) == 56


def test_atoms_of_an_xyz_file_stay_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "model.xyz"
    path.write_text("2\ncomment\nCo 1.0 2.0 3.0\nO 4.0 5.0 6.5\n")
    truth = read_truth(path)
    np.testing.assert_array_equal(truth.specimen.positions, [[3, 2, 1], [6.5, 5, 4]])
    assert list(truth.specimen.symbols) == ["Co", "O"]
    assert truth.angles is None
    assert truth.shifts is None


def without(name: str) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        del group[name]

    return change


def replaced(name: str, values: object) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        del group[name]
        group[name] = values

    return change


@pytest.mark.parametrize(
    "change",
    [
        without("atomic_numbers"),
        without("atom_positions_A"),
        replaced("atomic_numbers", np.zeros(56, int)),
        replaced("atom_positions_A", np.zeros(56)),
        replaced("atom_positions_A", np.zeros((5, 3))),
        lambda group: (group.file.pop("truth"), group.file.create_dataset("truth", data=1.0)),
    ],
    ids=["no_numbers", "no_positions", "no_element", "one_axis", "too_few", "no_group"],
)
def test_a_series_without_sound_atoms_is_named(
    tiny_series: Path, tmp_path: Path, change: Callable[[h5py.Group], None]
) -> None:
    with pytest.raises(DataError, match=r"changed\.h5"):
        read_truth(changed(tiny_series, tmp_path, change))


@pytest.mark.parametrize("name", ["absent.h5", "absent.xyz"])
def test_a_missing_reference_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=name):
        read_truth(tmp_path / name)


def test_a_file_that_is_no_hdf5_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(DataError, match=r"text\.h5"):
        read_truth(tmp_path / "text.h5")
