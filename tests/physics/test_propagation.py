import numpy as np

from hpcrec.backend.fft import fft2, ifft2
from hpcrec.physics.propagation import fresnel_factor, propagation_fault, propagation_rate, tilted_factor

SHAPE, SAMPLING, WAVELENGTH = (32, 48), (0.3, 0.2), 0.025


def test_factor_is_the_paraxial_phase():
    ky, kx = np.fft.fftfreq(32, 0.3)[:, None], np.fft.fftfreq(48, 0.2)[None]
    factor = fresnel_factor(SHAPE, SAMPLING, WAVELENGTH, 20.0, dtype=np.complex128)
    np.testing.assert_allclose(factor, np.exp(-1j * np.pi * WAVELENGTH * 20.0 * (ky**2 + kx**2)), atol=1e-12)


def test_steps_add_and_go_back():
    rng = np.random.default_rng(1)
    wave = rng.standard_normal(SHAPE) + 1j * rng.standard_normal(SHAPE)

    def step(a, distance):
        return ifft2(fresnel_factor(SHAPE, SAMPLING, WAVELENGTH, distance, dtype=np.complex128) * fft2(a))

    np.testing.assert_allclose(step(step(wave, 5.0), 7.0), step(wave, 12.0), atol=1e-12)
    np.testing.assert_allclose(step(step(wave, 9.0), -9.0), wave, atol=1e-12)


def test_band_limit_is_square_and_the_type_is_kept():
    factor = fresnel_factor(SHAPE, SAMPLING, WAVELENGTH, 20.0, band_limit=2 / 3)
    assert factor.dtype == np.complex64
    ky, kx = np.abs(np.fft.fftfreq(32)) <= 1 / 3, np.abs(np.fft.fftfreq(48)) <= 1 / 3
    np.testing.assert_array_equal(factor != 0, ky[:, None] & kx[None])


def test_too_long_steps_are_named():
    longest = 32 * 0.3**2 / WAVELENGTH
    assert propagation_fault(SHAPE, SAMPLING, WAVELENGTH, 0.6 * longest) is None
    assert "aliases along y" in propagation_fault(SHAPE, SAMPLING, WAVELENGTH, 1.01 * longest)


def test_a_straight_step_is_the_fresnel_factor():
    rate = propagation_rate(SHAPE, SAMPLING, WAVELENGTH)
    for limit in (None, 2 / 3):
        factor = tilted_factor(rate, SAMPLING, 20.0, band_limit=limit, dtype=np.complex128)
        wanted = fresnel_factor(SHAPE, SAMPLING, WAVELENGTH, 20.0, limit, dtype=np.complex128)
        np.testing.assert_allclose(factor, wanted, atol=1e-12)


def test_the_exact_rate_is_that_of_plane_waves():
    """A plane wave (k, k_z) with k² + k_z² = λ⁻²: its phase 2π k_z a step, less that of the straight one."""
    exact, paraxial = (propagation_rate(SHAPE, SAMPLING, WAVELENGTH, kind) for kind in ("exact", "fresnel"))
    k2 = np.fft.fftfreq(32, 0.3)[:, None] ** 2 + np.fft.fftfreq(48, 0.2)[None] ** 2
    k_z = exact / (2 * np.pi) + 1 / WAVELENGTH
    np.testing.assert_allclose(k_z**2 + k2, WAVELENGTH**-2, rtol=1e-12)
    # √(1 − u) = 1 − u/2 − u²/8 …
    np.testing.assert_allclose(exact - paraxial, -np.pi / 4 * WAVELENGTH**3 * k2**2, rtol=1e-2, atol=1e-9)


def test_evanescent_waves_are_dropped():
    rate = propagation_rate(SHAPE, SAMPLING, 0.5, "exact")
    factor = tilted_factor(rate, SAMPLING, 1.0, dtype=np.complex128)
    ky, kx = np.fft.fftfreq(32, 0.3)[:, None], np.fft.fftfreq(48, 0.2)[None]
    np.testing.assert_allclose(np.abs(factor), np.hypot(ky, kx) <= 1 / 0.5, atol=1e-12)


def test_in_a_tilted_sample_waves_move_against_its_columns():
    shift = np.array([2, -3])
    tilt = np.arctan(shift * SAMPLING / 20.0)
    rng = np.random.default_rng(2)
    wave = rng.standard_normal(SHAPE) + 1j * rng.standard_normal(SHAPE)
    rate = propagation_rate(SHAPE, SAMPLING, WAVELENGTH)
    straight, tilted = (
        ifft2(tilted_factor(rate, SAMPLING, 20.0, t, dtype=np.complex128) * fft2(wave)) for t in ((0, 0), tilt)
    )
    np.testing.assert_allclose(tilted, np.roll(straight, -shift, (0, 1)), atol=1e-12)
