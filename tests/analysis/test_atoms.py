"""Atom tracing on a Co3O4 particle seen through a missing wedge: oxygen beside cobalt, no side lobe as an atom."""

import numpy as np
import pytest
from scipy.ndimage import spline_filter
from scipy.spatial import cKDTree

from hpcrec.analysis.atoms import (
    AtomOptions,
    ball_sums,
    keep_distant,
    local_maxima,
    particle_support,
    refine_maxima,
    trace_atoms,
)
from hpcrec.errors import ConfigError, DataError

COBALT_OXIDE = AtomOptions(species=("Co", "O"))


def score(table, positions, species):
    """(found share per species, false share, rms of the found) within 0.5 Å and of the right species."""
    distance, index = cKDTree(positions).query(table.positions)
    right = (distance < 0.5) & (species[index] == table.species)
    found = {name: len(set(index[right & (table.species == name)])) / (species == name).sum() for name in ("Co", "O")}
    return found, 1 - right.mean(), np.sqrt(np.mean(distance[right] ** 2))


def test_clean_particle(particle, reconstruct_particle):
    table = trace_atoms(reconstruct_particle(*particle), 0.2, COBALT_OXIDE)
    found, false, rms = score(table, *particle)
    assert found == {"Co": 1.0, "O": 1.0}
    assert false == 0.0
    assert rms < 0.1  # the wedge pulls oxygen towards cobalt along z by a tenth of an ångström
    assert table.counts() == {name: int((particle[1] == name).sum()) for name in ("Co", "O")}
    assert np.all(np.diff(table.intensity) <= 0)


def test_noisy_particle(particle, noisy_volume):
    table = trace_atoms(noisy_volume, 0.2, COBALT_OXIDE)
    found, false, rms = score(table, *particle)
    assert found["Co"] == 1.0
    assert found["O"] > 0.85
    assert false <= 0.05
    assert rms < 0.15
    assert table.n_candidates > len(table)
    assert np.all((table.confidence >= 0.5) & (table.confidence <= 1))


def test_one_species_keeps_the_heavy_atoms(particle, noisy_volume):
    table = trace_atoms(noisy_volume, 0.2, AtomOptions(species=("Co",), min_distance_angstrom=2.3))
    heavy = particle[0][particle[1] == "Co"]
    distance, _ = cKDTree(table.positions).query(heavy)
    assert np.mean(distance < 0.5) > 0.98


def gaussian(centre, sigma=(1.6, 1.4, 1.8), size=21):
    axes = np.meshgrid(*(np.arange(size),) * 3, indexing="ij")
    return np.exp(-0.5 * sum(((a - c) / s) ** 2 for a, c, s in zip(axes, centre, sigma))).astype(np.float32)


@pytest.mark.parametrize("centre", [(10.0, 10.0, 10.0), (10.31, 9.77, 10.48), (9.5, 10.5, 10.0)])
def test_sub_voxel_position_of_a_gaussian(centre):
    volume = gaussian(centre)
    start = local_maxima(volume, 3.0)[:1]
    position, curvature = refine_maxima(spline_filter(volume, 3), start, 2.5)
    np.testing.assert_allclose(position[0], centre, atol=0.01)  # spline and degree-4 truncation, voxels
    # second derivatives of a Gaussian at its top: −1/σ², ascending; degree 4 over 2.5 voxels flattens them
    np.testing.assert_allclose(curvature[0], [-1 / 1.4**2, -1 / 1.6**2, -1 / 1.8**2], rtol=0.2)


def test_ball_sum_does_not_depend_on_the_sub_voxel_position():
    sums = [ball_sums(gaussian(c), np.array([c]), 4.0)[0] for c in [(10, 10, 10), (10.5, 10.2, 9.7), (9.6, 10, 10.4)]]
    np.testing.assert_allclose(sums, sums[0], rtol=0.01)
    constant = ball_sums(np.ones((21, 21, 21), np.float32), np.array([[10.2, 9.9, 10.0]]), 4.0)[0]
    assert constant == pytest.approx(4 / 3 * np.pi * 4**3, rel=0.03)


def test_brighter_atoms_win():
    points = np.array([[0, 0, 0], [1.0, 0, 0], [2.0, 0, 0], [5.0, 0, 0]])
    assert keep_distant(points, 1.5).tolist() == [0, 2, 3]


def test_support_leaves_the_vacuum_out(particle, noisy_volume):
    inside = particle_support(noisy_volume, 0.2)
    voxels = np.rint(particle[0] / 0.2).astype(int) + 52
    assert inside[tuple(voxels.T)].all()
    assert inside.mean() < 0.75  # the cube with 2.5 Å round it fills 0.58 of the box
    assert not inside[:10, :10, :10].any()


@pytest.mark.parametrize(
    ("volume", "options", "error"),
    [
        (np.zeros((40, 40, 40)), COBALT_OXIDE, DataError),
        (np.full((40, 40, 40), np.nan), COBALT_OXIDE, DataError),
        (np.zeros((40, 40)), COBALT_OXIDE, DataError),
        (np.zeros((40, 40, 40)), AtomOptions(species=("O", "O")), ConfigError),
        (np.zeros((40, 40, 40)), AtomOptions(min_distance_angstrom=0.3), ConfigError),
        (np.zeros((10, 10, 10)), COBALT_OXIDE, ConfigError),
    ],
)
def test_bad_input(volume, options, error):
    with pytest.raises(error):
        trace_atoms(volume, 0.2, options)
