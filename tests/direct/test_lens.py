"""Lens values and the turn between scan and detector, found in the interference of the bright field."""

import numpy as np
import pytest
from thin_object import SAMPLING, SEMIANGLE, WAVELENGTH, N, ThinObject

from hpcrec.direct.lens import astigmatism_of, fit_lens
from hpcrec.direct.parallax import bright_field, fit_shifts

RADIUS = SEMIANGLE / WAVELENGTH


def turn_matrix(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])


def fits(data, positions):
    seen = bright_field(data.patterns.reshape(-1, N, N), data.detector_sampling)
    shifts = fit_shifts(positions, seen, 0.3 * N * SAMPLING)
    return {h: fit_lens(positions, seen, WAVELENGTH, shifts[h], 200.0, radius=RADIUS) for h in (False, True)}


@pytest.mark.parametrize(
    ("strength", "defocus", "astigmatism", "counts", "turn", "mirror"),
    [
        (0.02, 60.0, 0.0, 0, 0.0, False),
        (0.1, -60.0, 20.0, 20_000, 0.4, True),
        (0.1, 0.0, 15.0, 20_000, -0.3, True),
        (0.5, 60.0, 0.0, 0, 0.4, False),
    ],
)
def test_defocus_astigmatism_and_turn_are_found(strength, defocus, astigmatism, counts, turn, mirror):
    data = ThinObject(strength, defocus, astigmatism, 0.4, counts=counts)
    true = turn_matrix(turn) @ (np.array([[0, 1], [1, 0]]) if mirror else np.eye(2))
    found = fits(data, data.positions @ true)  # k = O q: the detector's frame stays
    right, wrong = found[mirror], found[not mirror]
    assert right.explained > 1.3 * wrong.explained
    right = right if np.vdot(right.turn, true) > 0 else right.conjugate()
    assert np.degrees(np.linalg.norm(right.turn - true) / np.sqrt(2)) < 1.0
    assert -right.c10 == pytest.approx(defocus, rel=0.05, abs=2.0)
    c12, phi12 = right.astigmatism
    assert c12 == pytest.approx(astigmatism, rel=0.1, abs=2.0)  # 2 Å: 0.1 rad at the aperture's edge
    if astigmatism:
        assert phi12 == pytest.approx(0.4, abs=0.05)


def test_astigmatism_is_that_of_the_aberration_function():
    c10, c12, phi = -30.0, 12.0, 0.7
    ky, kx, wavelength = 0.3, -0.5, 0.02
    azimuth = np.arctan2(ky, kx)
    chi = np.pi * wavelength * (ky**2 + kx**2) * (c10 + c12 * np.cos(2 * (azimuth - phi)))
    a, b = c12 * np.cos(2 * phi), c12 * np.sin(2 * phi)
    hessian = np.array([[c10 - a, b], [b, c10 + a]])
    k = np.array([ky, kx])
    assert np.pi * wavelength * k @ hessian @ k == pytest.approx(chi)
    assert astigmatism_of(hessian) == pytest.approx((c12, phi))
