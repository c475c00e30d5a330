import numpy as np
import pytest

from hpcrec.data.specimen import co3o4_cube, specimen_from_atoms
from hpcrec.errors import DataError, StorageError
from hpcrec.io.atoms import read_specimen, write_xyz


def test_xyz_comes_back_as_it_was_written(tmp_path):
    cube = co3o4_cube((1, 2, 1))
    write_xyz(tmp_path / "cube.xyz", cube, "two cells\nin y")
    back = read_specimen(tmp_path / "cube.xyz", 0.4)
    np.testing.assert_array_equal(back.numbers, cube.numbers)
    np.testing.assert_allclose(back.positions, cube.positions, atol=1e-6)  # six digits are written
    np.testing.assert_array_equal(back.b_factors, 0.4)


def test_columns_of_the_file_are_x_y_z(tmp_path):
    (tmp_path / "a.xyz").write_text("2\ncomment\nCo 1.0 2.0 3.0 extra\n8 -1 -2 -3.5\n")
    specimen = read_specimen(tmp_path / "a.xyz", centre=False)
    assert specimen.symbols == ["Co", "O"]
    np.testing.assert_array_equal(specimen.positions, [[3, 2, 1], [-3.5, -2, -1]])
    centred = read_specimen(tmp_path / "a.xyz").positions
    np.testing.assert_allclose(centred.min(axis=0), -centred.max(axis=0))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "line 1"),
        ("many\n\n", "line 1"),
        ("3\n\nCo 0 0 0\n", "cut short"),
        ("1\n\nXx 0 0 0\n", "line 3"),
        ("1\n\nCo 0 0\n", "line 3"),
        ("1\n\nCo 0 zero 0\n", "line 3"),
        ("1\n\nCo 0 nan 0\n", "finite"),
    ],
)
def test_damaged_xyz_is_named(tmp_path, text, match):
    path = tmp_path / "bad.xyz"
    path.write_text(text)
    with pytest.raises(DataError, match=match) as error:
        read_specimen(path)
    assert "bad.xyz" in str(error.value)


def test_missing_file_and_unwritable_place(tmp_path):
    with pytest.raises(DataError, match="found none"):
        read_specimen(tmp_path / "none.cif")
    with pytest.raises(StorageError, match="cannot write"):
        write_xyz(tmp_path / "no" / "folder.xyz", specimen_from_atoms([8], np.zeros((1, 3))))


def test_cif_is_read_by_ase(tmp_path):
    spacegroup = pytest.importorskip("ase.spacegroup", reason="ase is not installed")
    salt = spacegroup.crystal(["Na", "Cl"], [(0, 0, 0), (0.5, 0.5, 0.5)], spacegroup=225, cellpar=[5.64] * 3 + [90] * 3)
    salt.write(tmp_path / "salt.cif")
    specimen = read_specimen(tmp_path / "salt.cif")
    assert sorted(specimen.symbols) == ["Cl"] * 4 + ["Na"] * 4
    (tmp_path / "broken.cif").write_text("this is no crystal")
    with pytest.raises(DataError, match="broken.cif"):
        read_specimen(tmp_path / "broken.cif")
    (tmp_path / "what.unknown").write_text("?")
    with pytest.raises(DataError, match="what.unknown"):
        read_specimen(tmp_path / "what.unknown")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-1\n\n", "line 1: expected the number of atoms of an xyz file, got -1"),
        ("1\n\nC 1.0\n", "line 3: expected a symbol and x y z, got 'C 1.0'"),
        ("1\n\nC 1.0 2.0\n", "line 3: expected a symbol and x y z, got 'C 1.0 2.0'"),
    ],
)
def test_numbers_that_are_missing_are_not_made_up(tmp_path, text, words):
    (tmp_path / "atoms.xyz").write_text(text)
    with pytest.raises(DataError, match=words):
        read_specimen(tmp_path / "atoms.xyz")
