import numpy as np
import pytest
from scipy import constants, integrate, special

from hpcrec.errors import ConfigError
from hpcrec.geometry.grid import Grid
from hpcrec.physics.scattering import (
    VOLT_ANGSTROM_SQUARED,
    atomic_number,
    chemical_symbols,
    mean_inner_potential,
    projected_potential,
    scattering_factor,
)

BOHR = constants.physical_constants["Bohr radius"][0] * 1e10

# Another group's fit to other atomic calculations: Peng, Ren, Dudarev & Whelan, Acta Cryst. A52 (1996) 257, table 1,
# f = Σ a exp(−b k²/4), good to k = 4 1/Å.
PENG = {
    6: ((0.0893, 0.2563, 0.757, 1.0487, 0.3575), (0.2465, 1.71, 6.4094, 18.6113, 50.2523)),
    8: ((0.0974, 0.2921, 0.691, 0.699, 0.2039), (0.2067, 1.3815, 4.6943, 12.7105, 32.4726)),
    27: ((0.4118, 1.3161, 1.6493, 2.193, 1.283), (0.2742, 2.0372, 7.7205, 29.968, 84.9383)),
}


def test_every_element_has_the_mott_bethe_limit_and_falls_monotonically():
    k = np.linspace(0, 12, 601)
    assert len(chemical_symbols()) == 103
    for z in range(1, 104):
        f = scattering_factor(z, k)
        assert np.all(f > 0)
        assert np.all(np.diff(f) < 0)
        # At k = 1000 1/Å the next term of the series is below 1e-4 even for the innermost shell of Lr.
        limit = z / (2 * np.pi**2 * BOHR * 1e6)
        assert scattering_factor(z, np.array(1000.0)) == pytest.approx(limit, rel=1e-3)


def test_hydrogen_is_the_exact_one():
    # f = (1 − fx)/(2π²a₀k²) with fx = (1 + π²a₀²k²)^(−2); the fit promises about 1e-3 here.
    k = np.linspace(0.05, 3, 50)
    exact = (1 - (1 + (np.pi * BOHR * k) ** 2) ** -2) / (2 * np.pi**2 * BOHR * k**2)
    np.testing.assert_allclose(scattering_factor(1, k), exact, rtol=3e-3)
    assert scattering_factor(1, np.array(0.0)) == pytest.approx(BOHR, rel=1e-6)


@pytest.mark.parametrize("z", PENG)
def test_agrees_with_another_parametrisation(z):
    a, b = (np.array(v)[:, None] for v in PENG[z])
    k = np.linspace(0, 4, 81)
    # Two Hartree-Fock calculations and two fits: 3 % is their known spread for light atoms.
    np.testing.assert_allclose(scattering_factor(z, k), (a * np.exp(-b * k**2 / 4)).sum(axis=0), rtol=0.03)


def test_mean_inner_potentials_of_independent_atoms():
    # Silicon 13.9 V in Kirkland's table of independent-atom values; gold near 30 V.
    assert mean_inner_potential(np.full(8, 14), 5.431**3) == pytest.approx(13.9, rel=0.01)
    assert mean_inner_potential(np.full(4, 79), 4.078**3) == pytest.approx(29.9, rel=0.02)


def test_symbols_and_numbers():
    assert atomic_number("Co") == 27
    assert atomic_number(" o ") == 8
    assert chemical_symbols()[78] == "Au"
    with pytest.raises(ConfigError, match="Xx"):
        atomic_number("Xx")
    with pytest.raises(ConfigError, match="104"):
        scattering_factor(104, np.array(1.0))


GRID = Grid(shape=(96, 80), sampling=(0.1, 0.12), origin=(-4.8, -4.8))


def test_integral_of_the_potential_is_the_forward_scattering_factor():
    numbers, positions = np.array([27, 8, 8]), np.array([[0.03, 0.4], [1.1, -0.77], [-1.0, 2.0]])
    potential = projected_potential(numbers, positions, GRID, 0.3)
    expected = mean_inner_potential(numbers, 1.0)
    # Only the zero frequency counts, so float32 round-off is all that is left.
    assert potential.sum(dtype=float) * 0.1 * 0.12 == pytest.approx(expected, rel=1e-4)


def test_potential_has_its_shape_from_a_hankel_transform():
    b_factor = 0.5
    pixel = (40, 44)
    position = GRID.to_length(np.array([pixel]))
    potential = projected_potential(np.array([27]), position, GRID, b_factor)

    def integrand(k, r):
        f = scattering_factor(27, np.array(k)) * np.exp(-b_factor * k**2 / 4)
        return 2 * np.pi * k * f * special.j0(2 * np.pi * k * r)

    for offset in (0, 3, 8, 15):
        exact = VOLT_ANGSTROM_SQUARED * integrate.quad(integrand, 0, 12, args=(0.1 * offset,), limit=400)[0]
        # The periodic images 9.6 Å away add less than 0.1 V·Å; B leaves e^-3 at the Nyquist frequency of 5 1/Å.
        assert potential[pixel[0] + offset, pixel[1]] == pytest.approx(exact, rel=0.01, abs=0.3)


def test_atoms_may_stand_between_pixels():
    grid = Grid(shape=(64, 64), sampling=(0.1, 0.1))
    at_pixel = projected_potential(np.array([8]), np.array([[3.0, 3.2]]), grid, 1.0)
    between = projected_potential(np.array([8]), np.array([[3.04, 3.17]]), grid, 1.0)
    ky, kx = grid.frequencies()
    shifted = np.fft.ifft2(np.fft.fft2(at_pixel) * np.exp(-2j * np.pi * (ky * 0.04 - kx * 0.03))).real
    assert np.unravel_index(at_pixel.argmax(), grid.shape) == (30, 32)
    # Fourier shift; the Nyquist frequency, which cannot be shifted, holds e^-6 of the signal.
    np.testing.assert_allclose(between, shifted, atol=2e-3 * at_pixel.max())


def test_debye_waller_blurs_and_keeps_the_integral():
    sharp, blurred = (projected_potential(np.array([27]), np.array([[0.0, 0.0]]), GRID, b) for b in (0.2, 1.0))
    assert blurred.max() < 0.8 * sharp.max()
    assert blurred.sum() == pytest.approx(sharp.sum(), rel=1e-4)


def test_no_atoms_no_potential():
    assert not projected_potential(np.array([], int), np.empty((0, 2)), GRID).any()
