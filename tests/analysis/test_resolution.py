"""Shell correlations against the closed form for signal plus noise, and peaks of a known lattice."""

import numpy as np
import pytest

from hpcrec.analysis.resolution import (
    crystal_resolution,
    directional_correlations,
    fourier_shell_correlation,
    last_peak,
    soft_mask,
)
from hpcrec.errors import DataError

VOXEL = (0.5, 0.5, 0.5)


def low_passed(shape, voxel, cut, seed=0, axis=None):
    """White noise below a frequency (1/Å), radially or along one axis; float64 with unit variance before the cut."""
    spectrum = np.fft.fftn(np.random.default_rng(seed).standard_normal(shape))
    q = np.meshgrid(*(np.fft.fftfreq(n, v) for n, v in zip(shape, voxel)), indexing="ij")
    radius = np.sqrt(sum(k**2 for k in q)) if axis is None else np.abs(q[axis])
    return np.fft.ifftn(spectrum * (radius < cut)).real


@pytest.mark.parametrize("shape", [(48, 48, 48), (40, 33, 51)])
def test_signal_to_noise_is_recovered(shape):
    rng = np.random.default_rng(1)
    signal = rng.standard_normal(shape)
    halves = [signal + 0.5 * rng.standard_normal(shape) for _ in range(2)]
    fsc = fourier_shell_correlation(*halves, VOXEL)
    outer = fsc.n_independent > 300
    # FSC = SNR/(1+SNR) = 0.8; its standard error with n = 300 voxels is about 0.36/√300 = 0.02
    np.testing.assert_allclose(fsc.correlation[outer], 0.8, atol=0.1)
    assert fsc.signal_to_noise()[outer].mean() == pytest.approx(8.0, rel=0.1)


def test_independent_voxels_count_friedel_pairs_once():
    volume = np.random.default_rng(0).standard_normal((20, 20, 20))
    fsc = fourier_shell_correlation(volume, volume, VOXEL)
    inside = fsc.n_independent.sum()
    assert inside == pytest.approx(0.5 * 4 / 3 * np.pi * 10.5**3, rel=0.05)
    mask = np.zeros_like(volume)
    mask[:, :, :10] = 1
    masked = fourier_shell_correlation(volume, volume, VOXEL, mask)
    np.testing.assert_allclose(masked.n_independent, 0.5 * fsc.n_independent)


@pytest.mark.parametrize(("n", "voxel"), [(n, v) for n in (20, 28, 46, 58, 92) for v in (0.1, 0.17, 0.3, 0.35)])
def test_the_last_shell_is_that_of_nyquist(n, voxel):
    image = np.random.default_rng(0).standard_normal((n, n))
    curve = fourier_shell_correlation(image, image, (voxel, voxel))
    assert len(curve.frequency) == n // 2 + 1
    assert curve.frequency[-1] == pytest.approx(0.5 / voxel)


def test_identical_volumes_reach_nyquist():
    volume = np.random.default_rng(2).standard_normal((32, 32, 32))
    crossing = fourier_shell_correlation(volume, volume, VOXEL).crossing("half_bit")
    assert crossing.at_nyquist
    assert crossing.resolution == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["half_bit", "one_bit", "0.143", "three_sigma"])
def test_white_noise_has_no_resolution(name):
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 40, 40, 40))
    fsc = fourier_shell_correlation(a, b, VOXEL)
    assert not fsc.crossing(name).at_nyquist
    assert fsc.crossing(name).resolution > 4.0


@pytest.mark.parametrize("name", ["half_bit", "one_bit", "0.143"])
def test_cut_off_is_found(name):
    shape = (64, 64, 64)
    signal = low_passed(shape, VOXEL, 0.5)
    rng = np.random.default_rng(4)
    halves = [signal + 0.2 * rng.standard_normal(shape) for _ in range(2)]
    crossing = fourier_shell_correlation(*halves, VOXEL).crossing(name)
    assert crossing.frequency == pytest.approx(0.5, abs=1.0 / 32)  # one shell
    assert not crossing.at_nyquist


def test_cones_see_a_direction_that_is_blurred():
    shape = (48, 48, 48)
    signal = low_passed(shape, VOXEL, 0.3, axis=0)
    rng = np.random.default_rng(5)
    halves = [signal + 0.1 * rng.standard_normal(shape) for _ in range(2)]
    curves = directional_correlations(*halves, VOXEL)
    found = {name: curve.crossing("half_bit").frequency for name, curve in curves.items()}
    # inside the cone q·cos 20° ≤ |q_z|, so the cut at |q_z| = 0.3 shows between 0.3 and 0.32
    assert found["z"] == pytest.approx(0.31, abs=0.05)
    assert found["x"] > 0.8
    assert found["y"] > 0.8


def test_first_shells_of_a_cone_are_too_few_to_decide():
    rng = np.random.default_rng(9)
    shape = (40, 40, 40)
    signal = low_passed(shape, VOXEL, 0.5)
    halves = np.array([signal + 0.1 * rng.standard_normal(shape) for _ in range(2)])
    spectra = np.fft.fftn(halves, axes=(1, 2, 3))
    for k in ((1, 0, 0), (2, 0, 0), (3, 0, 0)):  # the only voxels of the first shells in the cone about z
        spectra[0][k] = spectra[0][tuple(-i for i in k)] = 0
    curves = directional_correlations(*np.fft.ifftn(spectra, axes=(1, 2, 3)).real, VOXEL)
    assert curves["z"].crossing("half_bit").frequency == pytest.approx(0.5, abs=0.06)


def test_ring_correlation_of_images():
    image = low_passed((64, 80), (0.5, 0.5), 0.4)
    rng = np.random.default_rng(6)
    halves = [image + 0.1 * rng.standard_normal(image.shape) for _ in range(2)]
    assert fourier_shell_correlation(*halves, (0.5, 0.5)).crossing().frequency == pytest.approx(0.4, abs=0.04)


def lattice(shape, voxel, period, sigma):
    """Gaussian atoms on a simple cubic lattice in a spherical particle (z, y, x); sigma per axis, Å."""
    centre = [n * v / 2 for n, v in zip(shape, voxel)]
    axes = [np.arange(n) * v - c for n, v, c in zip(shape, voxel, centre)]
    sites = np.arange(-4, 5) * period
    profiles = [np.exp(-0.5 * ((a[:, None] - sites) / s) ** 2).sum(axis=1) for a, s in zip(axes, sigma)]
    return np.einsum("i,j,k->ijk", *profiles)


def test_last_peak_per_axis():
    shape, voxel = (72, 72, 72), (0.3, 0.3, 0.3)
    volume = lattice(shape, voxel, 2.4, (0.9, 0.35, 0.35))
    volume = volume + 0.02 * np.random.default_rng(7).standard_normal(shape)
    found = crystal_resolution(volume, voxel)
    orders = {name: peak.frequency * 2.4 for name, peak in found.items()}
    for order in orders.values():
        assert order**2 == pytest.approx(round(order**2), abs=0.4)  # h² + k² of a reflection, to half a pixel
    assert orders["axial"] < 1.5
    assert orders["along"] > 2.0
    assert orders["across"] > 2.0
    assert "crystals only" in found["axial"].warning
    in_plane = last_peak(volume, voxel, (0,))
    assert in_plane.frequency >= found["along"].frequency - 0.02
    single = last_peak(volume, voxel, (0, 2)).frequency * 2.4
    assert single == pytest.approx(round(single), abs=0.1)


def test_noise_has_no_last_peak():
    volume = np.random.default_rng(8).standard_normal((48, 48, 48))
    assert last_peak(volume, VOXEL, (1, 2)).resolution is None
    assert last_peak(volume, VOXEL, (1,)).resolution is None


def test_soft_mask_covers_the_particle():
    volume = np.zeros((40, 40, 40))
    volume[12:28, 12:28, 12:28] = 1.0
    mask = soft_mask(volume, sigma=1.0, edge=4.0)
    assert mask[14:26, 14:26, 14:26].min() > 0.9
    assert mask[:3].max() < 0.01


def test_bad_input():
    a = np.zeros((4, 4, 4))
    with pytest.raises(DataError, match="one shape"):
        fourier_shell_correlation(a, np.zeros((4, 4, 5)), VOXEL)
    with pytest.raises(DataError, match="not finite"):
        fourier_shell_correlation(a + np.nan, a, VOXEL)
    with pytest.raises(DataError, match="empty"):
        fourier_shell_correlation(a, a, VOXEL, np.zeros_like(a))
    with pytest.raises(DataError, match="sum"):
        last_peak(a, VOXEL, (0, 1, 2))
