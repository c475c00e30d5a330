import numpy as np
import pytest

from hpcrec.errors import ConfigError
from hpcrec.physics.beam import depth_of_field, electron_beam, electron_energy, photon_beam, photon_energy
from hpcrec.physics.probe import aberration_function


# Kirkland (2010) tables of wavelength and interaction parameter, given to the printed digits
@pytest.mark.parametrize(("energy", "wavelength", "sigma"), [(100e3, 0.03701, 0.9244e-3), (200e3, 0.02508, 0.7288e-3)])
def test_electron_beam_agrees_with_published_tables(energy, wavelength, sigma):
    beam = electron_beam(energy)
    assert beam.wavelength == pytest.approx(wavelength, rel=3e-4)
    assert beam.interaction == pytest.approx(sigma, rel=3e-4)


def test_photon_beam_is_hc_over_energy():
    assert photon_beam(12398.419843).wavelength == pytest.approx(1.0, rel=1e-9)
    assert photon_beam(1000.0).interaction is None


@pytest.mark.parametrize("energy", [0.0, -5.0, float("nan")])
def test_a_beam_without_energy_is_refused(energy):
    with pytest.raises(ConfigError, match="energy_ev"):
        electron_beam(energy)


@pytest.mark.parametrize("energy", [1e3, 60e3, 300e3, 3e6])
def test_energies_come_back_from_wavelengths(energy):
    assert electron_energy(electron_beam(energy).wavelength) == pytest.approx(energy, rel=1e-12)
    assert photon_energy(photon_beam(energy).wavelength) == pytest.approx(energy, rel=1e-12)
    with pytest.raises(ConfigError, match="positive wavelength"):
        electron_energy(0.0)


def test_at_the_ends_of_the_depth_of_field_the_edge_is_a_quarter_wave_off():
    wavelength, semiangle = 0.025, 0.03
    end = 0.5 * depth_of_field(wavelength, semiangle)
    edge = aberration_function(np.zeros(1), np.array([semiangle / wavelength]), wavelength, {"C10": end})
    assert edge[0] == pytest.approx(np.pi / 2)
