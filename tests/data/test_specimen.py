import numpy as np
import pytest
from scipy.spatial import cKDTree

from hpcrec.data.specimen import (
    SpecimenOptions,
    amorphous_layer,
    build_specimen,
    co3o4_cube,
    joined,
    posed,
    specimen_from_atoms,
)
from hpcrec.errors import ConfigError
from hpcrec.geometry.pose import Pose


def test_spinel_has_its_stoichiometry_and_coordination():
    cube = co3o4_cube(3)
    assert cube.n_atoms == 27 * 56
    assert cube.symbols.count("Co") == 27 * 24
    cobalt, oxygen = cube.positions[cube.numbers == 27], cube.positions[cube.numbers == 8]
    inside = cobalt[np.abs(cobalt).max(axis=1) < 8]
    distances = np.sort(cKDTree(oxygen).query(inside, k=7)[0], axis=1)
    four = distances[:, 4] > 2.5
    # Tetrahedral 1.934 Å = a√3(u − 1/8), octahedral 1.920 Å: Smith & Hobson 1973.
    assert np.allclose(distances[four, :4], 1.934, atol=2e-3)
    assert np.allclose(distances[~four, :6], 1.920, atol=2e-3)
    assert distances[~four, 6].min() > 2.5
    assert 0.2 < four.mean() < 0.45  # one cobalt of three in an infinite crystal


def test_spinel_is_what_the_space_group_says():
    spacegroup = pytest.importorskip("ase.spacegroup", reason="ase is not installed")
    crystal = spacegroup.crystal(
        ("Co", "Co", "O"),
        [(0.125,) * 3, (0.5,) * 3, (0.2631,) * 3],
        spacegroup=227,
        setting=2,
        cellpar=[8.084, 8.084, 8.084, 90, 90, 90],
    )
    ours = co3o4_cube(1)
    offset = ours.positions[ours.numbers == 27][0][::-1]
    reference = crystal.positions[crystal.numbers == 27]
    # The same set of atoms modulo the cell, once one cobalt of each is brought together.
    found = False
    for origin in reference:
        moved = (ours.positions[:, ::-1] - offset + origin) % 8.084 % 8.083999
        distance, index = cKDTree(crystal.positions % 8.084, boxsize=8.084).query(moved)
        found |= bool(distance.max() < 1e-3 and (crystal.numbers[index] == ours.numbers).all())
    assert found


def test_tilt_about_y_moves_the_downstream_atom_to_the_right():
    one = specimen_from_atoms([8], np.array([[5.0, 1.0, 2.0]]))
    lab = posed(one, Pose.from_tilt(np.deg2rad(30)))
    x = 2 * np.cos(np.deg2rad(30)) + 5 * np.sin(np.deg2rad(30))
    z = 5 * np.cos(np.deg2rad(30)) - 2 * np.sin(np.deg2rad(30))
    np.testing.assert_allclose(lab.positions, [[z, 1.0, x]])


def test_shift_is_added_in_the_laboratory():
    one = specimen_from_atoms([8], np.zeros((1, 3)))
    np.testing.assert_allclose(posed(one, Pose(rotation=np.eye(3), shift=(1.5, -2.0))).positions, [[0, 1.5, -2.0]])


def test_amorphous_layer_keeps_its_distances_and_density():
    layer = amorphous_layer((8, 30, 30), (3, 0, 0), min_distance=1.4, seed=1)
    assert layer.n_atoms == 720
    assert cKDTree(layer.positions).query(layer.positions, k=2)[0][:, 1].min() >= 1.4
    assert np.abs(layer.positions[:, 0] - 3).max() <= 4
    np.testing.assert_array_equal(layer.positions, amorphous_layer((8, 30, 30), (3, 0, 0), seed=1).positions)


def test_amorphous_layer_says_when_it_is_jammed():
    with pytest.raises(ConfigError, match="do not fit"):
        amorphous_layer((5, 10, 10), (0, 0, 0), density=0.5, min_distance=1.4)


def test_carbon_lies_downstream_of_the_particle():
    bare = build_specimen(SpecimenOptions(n_cells=(1, 1, 1)))
    both = build_specimen(SpecimenOptions(n_cells=(1, 1, 1), carbon_thickness_angstrom=5, carbon_width_angstrom=20))
    assert both.n_atoms == bare.n_atoms + 200
    assert both.positions[bare.n_atoms :, 0].min() >= bare.positions[:, 0].max() + 2
    assert joined(bare, bare).n_atoms == 2 * bare.n_atoms


@pytest.mark.parametrize(
    ("numbers", "positions", "match"),
    [
        ([8, 8], np.zeros((1, 3)), "shape"),
        ([0], np.zeros((1, 3)), "atomic numbers"),
        ([8], np.full((1, 3), np.nan), "finite"),
    ],
)
def test_atoms_that_cannot_be(numbers, positions, match):
    with pytest.raises(ConfigError, match=match):
        specimen_from_atoms(numbers, positions)


def test_file_kind_is_not_built():
    with pytest.raises(ConfigError, match="io.atoms"):
        build_specimen(SpecimenOptions(kind="file", path="x.xyz"))
    with pytest.raises(ConfigError, match="at least one cell"):
        co3o4_cube(0)
