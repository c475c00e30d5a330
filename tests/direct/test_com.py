"""Centre of mass against the gradient of a known phase, its integral, and the angle that leaves no curl."""

import numpy as np
import pytest
from thin_object import SAMPLING, ThinObject, correlation

from hpcrec.direct.com import centre_of_mass, field_gradients, icom_phase, least_curl
from hpcrec.direct.raster import find_raster
from hpcrec.geometry.scan import raster_positions


def field_of(data):
    return centre_of_mass(data.patterns, data.detector_sampling)


@pytest.mark.parametrize("strength", [0.02, 0.5])
def test_in_focus_the_integral_is_the_phase(strength):
    data = ThinObject(strength)
    found = icom_phase(field_of(data), data.raster, periodic=True)
    assert correlation(found, data.phase) > 0.98  # the probe's |P|² blurs it a little
    assert 0.5 < found.std() / data.phase.std() < 1.0


def test_defocused_it_is_still_the_phase_but_blurred():
    data = ThinObject(0.02, defocus=60.0)
    assert correlation(icom_phase(field_of(data), data.raster, periodic=True), data.phase) > 0.80


def test_centre_of_mass_is_the_blurred_gradient_of_any_strength():
    data = ThinObject(0.3)
    power = np.fft.fft2(np.fft.ifftshift(np.abs(data.probe) ** 2))
    q = np.fft.fftfreq(len(power), SAMPLING)
    slope = np.fft.ifft2(1j * q[None, :] * np.fft.fft2(data.phase) * power.conj()).real
    # The derivative of the lattice wave is the frequency; only what reaches the window's edge differs
    assert np.abs(field_of(data)[..., 1] - slope).max() < 0.02 * np.abs(slope).max()


def test_bad_pixels_and_empty_patterns_do_no_harm():
    data = ThinObject(0.1)
    mask = np.ones(data.patterns.shape[2:], bool)
    mask[18, 18] = False
    broken = data.patterns[:4, :4].copy()
    broken[..., 18, 18] = 1e6
    good = centre_of_mass(np.where(mask, broken, 0), data.detector_sampling)
    assert np.allclose(centre_of_mass(broken, data.detector_sampling, mask), good, atol=1e-9)
    broken[0, 0] = 0
    assert np.isfinite(centre_of_mass(broken, data.detector_sampling, mask)).all()


def test_integer_counts_stay_integers_and_give_the_same():
    data = ThinObject(0.3, counts=100_000)
    exact = ThinObject(0.3)
    assert data.patterns.dtype == np.uint16
    assert correlation(field_of(data), field_of(exact)) > 0.98


def test_mirrored_edges_integrate_a_ramp():
    raster = find_raster(raster_positions((12, 15), (0.5, 0.7)))
    field = np.zeros((12, 15, 2))
    field[..., 0] = 0.04  # a phase of 2π · 0.04 per Å along y
    found = icom_phase(field, raster)
    inner = np.diff(found, axis=0)[3:-3]
    assert np.allclose(inner, 2 * np.pi * 0.04 * 0.5, rtol=0.15)  # a mirrored ramp is a triangle; its tip rings
    assert np.abs(np.diff(found, axis=1)).max() < 1e-5


def test_gradients_at_scattered_positions_are_exact_for_planes():
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 10, (200, 2))
    slopes = np.array([[0.3, -0.2], [0.5, 0.1]])
    assert np.allclose(field_gradients(positions, positions @ slopes.T), slopes, atol=1e-9)


@pytest.mark.parametrize("positions", [np.zeros((1, 2)), np.ones((5, 2)), np.outer(np.arange(4.0), (1, 2))])
def test_positions_on_a_point_or_a_line_have_no_gradients(positions):
    field = np.random.default_rng(0).standard_normal(positions.shape)
    assert not field_gradients(positions, field).any()
    assert least_curl(positions, field).curl_share == 0.5


@pytest.mark.parametrize("turn_deg", [0.0, 25.0, -70.0, 170.0])
@pytest.mark.parametrize("handed", [False, True])
def test_least_curl_finds_the_rotation_and_the_handedness(turn_deg, handed):
    data = ThinObject(0.3, counts=20_000)
    field = field_of(data).reshape(-1, 2)
    c, s = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
    turned = field @ np.array([[c, s], [-s, c]]).T  # from x towards y, in components (y, x)
    seen = turned[:, ::-1] if handed else turned
    right, wrong = (least_curl(data.positions, f) for f in (seen[:, ::-1] if handed else seen, turned[:, ::-1]))
    assert (np.rad2deg(right.angle) + turn_deg + 90) % 180 == pytest.approx(90, abs=2)
    assert right.curl_share < 0.1 < 0.3 < wrong.curl_share
