import numpy as np
import pytest

from hpcrec.backend.fft import fft2, ifft2
from hpcrec.errors import ConfigError
from hpcrec.physics.probe import aberrated_probe, aberration_function, orthogonal_start_modes, probe_window_fault
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
