import numpy as np
import pytest
from scipy.special import j1

from hpcrec.backend.fft import fft2, ifft2
from hpcrec.errors import ConfigError
from hpcrec.geometry.tiles import Box
from hpcrec.physics.probe import (
    aberrated_probe,
    aberration_basis,
    aberration_function,
    coherent_mode_shares,
    orthogonal_start_modes,
    probe_reach,
    probe_window_fault,
)
from hpcrec.physics.propagation import fresnel_factor

SHAPE, SAMPLING, WAVELENGTH, SEMIANGLE = (64, 48), (0.2, 0.25), 0.02508, 0.03


def probe(**aberrations):
    return aberrated_probe(SHAPE, SAMPLING, WAVELENGTH, SEMIANGLE, aberrations)


def test_probe_is_centred_with_unit_power():
    wave = probe(C30=1e4)
    assert np.sum(np.abs(wave) ** 2) == pytest.approx(1, rel=1e-12)
    assert np.unravel_index(np.abs(wave).argmax(), SHAPE) == (32, 24)


def test_c10_equals_the_focused_probe_propagated_by_c10():
    factor = fresnel_factor(SHAPE, SAMPLING, WAVELENGTH, 80.0, dtype=np.complex128)
    np.testing.assert_allclose(probe(C10=80.0), ifft2(factor * fft2(probe())), atol=1e-12)


def test_aberration_function_of_astigmatism():
    # At azimuth phi12 the cosine is one: χ = (2π/λ) C12 (λk)² / 2
    k, angle = 1.0, 0.4
    chi = aberration_function(
        np.array(k * np.sin(angle)), np.array(k * np.cos(angle)), WAVELENGTH, {"C12": 30.0, "phi12": angle}
    )
    assert chi == pytest.approx(np.pi * WAVELENGTH * 30.0 * k**2, rel=1e-12)


ORDERS = [(n, m) for n in range(1, 6) for m in range(n + 2) if (n + m) % 2]


@pytest.mark.parametrize(("n", "m"), ORDERS)
def test_aberrations_are_polynomials_of_the_complex_angle(n, m):
    """χ = (2π/λ) Re[C e^(imφ_nm) ω^a ω̄^b] / (n+1), ω = λ(kx + i ky), a + b = n + 1, b − a = m: no cosines."""
    ky, kx = np.random.default_rng(5).uniform(-1, 1, (2, 7))
    value, angle = 25.0, 0.3
    omega = WAVELENGTH * (kx + 1j * ky)
    b = (n + 1 + m) // 2
    wave = value * np.exp(1j * m * angle) * omega ** (n + 1 - b) * omega.conj() ** b
    given = {f"C{n}{m}": value} | ({f"phi{n}{m}": angle} if m else {})
    chi = aberration_function(ky, kx, WAVELENGTH, given)
    np.testing.assert_allclose(chi, 2 * np.pi / WAVELENGTH * wave.real / (n + 1), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("n", "m"), ORDERS)
def test_the_basis_adds_up_to_the_aberration(n, m):
    """C cos m(φ − φ_nm) = C cos(mφ_nm) cos mφ + C sin(mφ_nm) sin mφ."""
    value, angle = 25.0, 0.3
    names = [f"C{n}{m}a", f"C{n}{m}b"] if m else [f"C{n}{m}"]
    weights = [value * np.cos(m * angle), value * np.sin(m * angle)][: len(names)]
    ky, kx = np.fft.fftfreq(SHAPE[0], SAMPLING[0])[:, None], np.fft.fftfreq(SHAPE[1], SAMPLING[1])
    given = {f"C{n}{m}": value} | ({f"phi{n}{m}": angle} if m else {})
    wanted = aberration_function(ky, kx, WAVELENGTH, given)
    basis = aberration_basis(SHAPE, SAMPLING, WAVELENGTH, names)
    np.testing.assert_allclose(np.tensordot(weights, basis, 1), wanted, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["C12", "C10a", "C12c", "C11a", "defocus"])
def test_unknown_terms_of_the_basis_are_named(name):
    with pytest.raises(ConfigError, match=f"'{name}' is not an aberration"):
        aberration_basis(SHAPE, SAMPLING, WAVELENGTH, [name])


@pytest.mark.parametrize("name", ["C11", "C14", "phi10", "defocus"])
def test_unknown_aberrations_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        probe(**{name: 1.0})


@pytest.mark.parametrize("n_modes", [1, 2, 6])
def test_start_modes_are_orthogonal_and_share_the_power(n_modes):
    wave = probe(C10=-50.0)
    modes = orthogonal_start_modes(wave, n_modes, share=0.03).reshape(n_modes, -1)
    gram = modes @ modes.conj().T
    expected = np.diag([1 - 0.03 * (n_modes - 1)] + [0.03] * (n_modes - 1))
    np.testing.assert_allclose(gram, expected, atol=1e-12)
    # Mode 0 keeps the probe's own phase
    assert np.vdot(wave, modes[0].reshape(SHAPE)).real == pytest.approx(np.sqrt(expected[0, 0]), rel=1e-9)


def test_modes_need_power_for_the_first():
    with pytest.raises(ConfigError, match="n_modes"):
        orthogonal_start_modes(probe(), 5, share=0.3)


def test_window_faults():
    assert probe_window_fault(probe(), SAMPLING, WAVELENGTH, SEMIANGLE) is None
    assert "larger than its window" in probe_window_fault(probe(C10=-600.0), SAMPLING, WAVELENGTH, SEMIANGLE)
    assert "Nyquist" in probe_window_fault(probe(), SAMPLING, WAVELENGTH, 0.08)


def test_a_coherent_probe_has_one_mode():
    np.testing.assert_allclose(coherent_mode_shares(0.025, 0.03, 0.0)[0], 1.0)
    assert coherent_mode_shares(0.025, 0.03, 0.01)[0] > 0.98


@pytest.mark.parametrize("sigma", [0.15, 0.5, 1.0])
def test_mode_shares_are_those_of_shifted_probes(sigma):
    """The purity Σ shares² is the mean of |⟨ψ_s|ψ_t⟩|² over source points, here by their Airy overlap and sampling."""
    wavelength, semiangle = 0.025, 0.03
    shares = coherent_mode_shares(wavelength, semiangle, sigma)
    assert shares.sum() == pytest.approx(1)
    assert (np.diff(shares) <= 0).all()
    rng = np.random.default_rng(0)
    distance = np.hypot(*(rng.normal(0, sigma, (2, 40_000)) - rng.normal(0, sigma, (2, 40_000))))
    z = 2 * np.pi * semiangle / wavelength * distance
    overlap = 2 * j1(z) / z
    # Standard error of the mean of 40 000 samples: 0.002; pixels of the aperture's edge: 0.005
    assert np.sum(shares**2) == pytest.approx(np.mean(overlap**2), abs=0.01)


@pytest.mark.parametrize("spread", [10.0, 30.0, 100.0, 300.0])
def test_mode_shares_are_those_of_defocused_probes(spread):
    """As above: over a round aperture, uniform in k², probes Δf apart overlap by sinc(λ Δf k_α²/2)."""
    wavelength, semiangle = 0.025, 0.03
    shares = coherent_mode_shares(wavelength, semiangle, 0.0, spread)
    rng = np.random.default_rng(1)
    apart = rng.normal(0, spread, 40_000) - rng.normal(0, spread, 40_000)
    overlap = np.sinc(apart * semiangle**2 / wavelength / 2)
    assert np.sum(shares**2) == pytest.approx(np.mean(overlap**2), abs=0.01)


def test_the_reach_of_a_gaussian_probe():
    """exp(−r²/2w²) falls to 1e-4 at 4.29 w, √2 times further after 2πw²/λ Å; one of 1e-3 of it, to 0.1 at 2.15 w."""
    y, x = np.meshgrid(np.arange(64) - 32, np.arange(48) - 24, indexing="ij")
    wave = np.exp(-(y**2 + x**2) / (2 * 2.0**2)).astype(complex)
    sampling, wavelength = (0.2, 0.2), 0.02508
    assert probe_reach(wave[None], sampling, wavelength, 0.0, 1e-4) == Box(32 - 9, 32 + 10, 24 - 9, 24 + 10)
    depth = 2 * np.pi * 0.4**2 / wavelength
    assert probe_reach(wave[None], sampling, wavelength, depth, 1e-4) == Box(32 - 13, 32 + 14, 24 - 13, 24 + 14)
    modes = np.stack([wave, np.roll(1e-3 * wave, 6, axis=0)])
    assert probe_reach(modes, sampling, wavelength, 0.0, 1e-4) == Box(32 - 9, 32 + 6 + 4 + 2, 24 - 9, 24 + 10)


def test_a_probe_that_fills_its_window_reaches_all_of_it():
    window = Box(0, *SHAPE[:1], 0, *SHAPE[1:])
    assert probe_reach(probe(C10=400.0)[None], SAMPLING, WAVELENGTH, 0.0, 1e-4) == window
    assert probe_reach(np.zeros((1, *SHAPE), complex), SAMPLING, WAVELENGTH, 50.0, 1e-4) == window
