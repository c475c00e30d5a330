"""Constraints on the probe, against their formulas."""

import numpy as np
import pytest

from hpcrec.objectives.constraints import Surroundings, constraint_class
from hpcrec.objectives.illumination import soft_disc
from hpcrec.physics.probe import aberrated_probe

SHAPE, SAMPLING, WAVELENGTH = (24, 30), (0.4, 0.3), 0.025
AROUND = Surroundings(sampling=SAMPLING, wavelength=WAVELENGTH, gaps=np.zeros(0), power=50.0)


def build(name, **options):
    cls = constraint_class(name)
    return cls(cls.Options(**options))


def noise(dtype=np.complex64):
    rng = np.random.default_rng(1)
    return (rng.standard_normal((2, *SHAPE)) + 1j * rng.standard_normal((2, *SHAPE))).astype(dtype)


@pytest.mark.parametrize(
    ("name", "options"),
    [("probe_support", {"radius_angstrom": 3.0}), ("probe_aperture", {"semiangle_mrad": 15.0}), ("probe_power", {})],
)
def test_projections(name, options):
    constraint, waves = build(name, **options), noise()
    once = constraint.apply(waves, AROUND)
    assert once.dtype == waves.dtype
    np.testing.assert_allclose(constraint.apply(once, AROUND), once, atol=1e-5)
    # The nearest wave that obeys: what was taken away is orthogonal to what is left (the power scales instead)
    if name != "probe_power":
        assert abs(np.vdot(waves - once, once)) < 1e-4 * np.vdot(waves, waves).real


def test_the_support_is_a_disc_in_the_middle():
    found = build("probe_support", radius_angstrom=3.0, edge_angstrom=1.0).apply(np.ones((1, *SHAPE), complex), AROUND)[
        0
    ]
    y, x = (np.indices(SHAPE).T - (12, 15)).T
    distance = np.hypot(0.4 * y, 0.3 * x)
    assert (found[distance <= 2.5] == 1).all()
    assert (found[distance >= 3.5] == 0).all()
    assert found[12, 15 + 10].real == pytest.approx(0.5)
    assert ((found.real >= 0) & (found.real <= 1)).all()


def test_the_aperture_leaves_a_probe_inside_alone():
    probe = aberrated_probe(SHAPE, SAMPLING, WAVELENGTH, 0.015, {"C10": -80.0})[None]
    wide = build("probe_aperture", semiangle_mrad=19.0)
    np.testing.assert_allclose(wide.apply(probe, AROUND), probe, atol=1e-12)
    tight = build("probe_aperture", semiangle_mrad=10.0, edge_mrad=2.0).apply(probe, AROUND)
    ky, kx = np.fft.fftfreq(24, 0.4)[:, None], np.fft.fftfreq(30, 0.3)
    mask = soft_disc(WAVELENGTH * np.hypot(ky, kx), 0.010, 0.002)
    np.testing.assert_allclose(np.fft.fft2(tight[0]), np.fft.fft2(probe[0]) * mask, atol=1e-12)


def test_power_is_the_measured_one():
    for options, wanted in (({}, 50.0), ({"counts": 7.0}, 7.0)):
        found = build("probe_power", **options).apply(noise(), AROUND)
        # Single precision
        assert np.sum(abs(found) ** 2, dtype=float) == pytest.approx(wanted, rel=1e-5)
    assert not build("probe_power").apply(np.zeros((1, *SHAPE), complex), AROUND).any()
