import numpy as np

from hpcrec.backend.fft import fft2, ifft2
from hpcrec.physics.propagation import fresnel_factor, propagation_fault

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
