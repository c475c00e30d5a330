"""Every line of ``hpcrec/conventions.py`` that numbers can show."""

from __future__ import annotations

import numpy as np
import pytest

from hpcrec.backend.fft import fft2, ifft2
from hpcrec.geometry.grid import Grid, object_grid
from hpcrec.geometry.pose import Pose, angles_from_rotation, rotation_about, rotation_from_angles, tilt_rotation
from hpcrec.operators.projection import Projector
from hpcrec.physics.beam import electron_beam
from hpcrec.physics.probe import aberrated_probe
from hpcrec.physics.propagation import fresnel_factor

SHAPE, SAMPLING = (64, 64), (0.2, 0.2)


def test_the_forward_transform_is_unitary_with_a_minus_sign() -> None:
    n, k = 16, 3
    wave = np.exp(2j * np.pi * k * np.arange(n) / n)[None, :] * np.ones((n, 1))
    spectrum = fft2(wave)
    assert abs(spectrum[0, k]) == pytest.approx(n)
    assert np.sum(abs(spectrum) ** 2) == pytest.approx(np.sum(abs(wave) ** 2))
    np.testing.assert_allclose(ifft2(spectrum), wave, atol=1e-12)


def test_a_plane_wave_drifts_along_its_wave_vector() -> None:
    """A step Δz multiplies by exp(−iπλΔz k²), so the packet at k moves by +λkΔz."""
    wavelength, distance, k = electron_beam(200e3).wavelength, 100.0, 1.25
    grid = Grid(shape=SHAPE, sampling=SAMPLING)
    x = (np.arange(64) - 32) * 0.2
    packet = np.exp(-(x[None, :] ** 2 + x[:, None] ** 2) / 2) * np.exp(2j * np.pi * k * x[None, :])
    moved = ifft2(fft2(packet) * fresnel_factor(SHAPE, SAMPLING, wavelength, distance))
    power = abs(moved) ** 2
    assert (power.sum(axis=0) @ x) / power.sum() == pytest.approx(wavelength * k * distance, rel=1e-3)
    ky, kx = grid.frequencies()
    assert ky[0, 0] == kx[0, 0] == 0


def test_positive_c10_is_the_focused_probe_propagated_downstream() -> None:
    wavelength = electron_beam(200e3).wavelength
    focused, over = (aberrated_probe(SHAPE, SAMPLING, wavelength, 0.02, {"C10": c}) for c in (0.0, 80.0))
    moved = ifft2(fft2(focused) * fresnel_factor(SHAPE, SAMPLING, wavelength, 80.0, dtype=np.complex128))
    np.testing.assert_allclose(moved, over, atol=1e-6)


def test_the_electron_wavelength_and_interaction_are_those_of_the_tables() -> None:
    """200 keV: λ = 0.025079 Å, σ = 7.288e-4 rad/(V·Å) (Kirkland, Advanced Computing in Electron Microscopy)."""
    beam = electron_beam(200e3)
    assert beam.wavelength == pytest.approx(0.025079, rel=1e-4)
    assert beam.interaction == pytest.approx(7.288e-4, rel=1e-3)


def test_rotations_are_active_and_right_handed() -> None:
    x, y, z = np.eye(3)
    np.testing.assert_allclose(rotation_about("z", np.pi / 2) @ x, y, atol=1e-15)
    np.testing.assert_allclose(rotation_about("x", np.pi / 2) @ y, z, atol=1e-15)
    np.testing.assert_allclose(rotation_about("y", np.pi / 2) @ z, x, atol=1e-15)
    axis = np.array([-np.sin(0.2), np.cos(0.2), 0])
    np.testing.assert_allclose(tilt_rotation(0.3, 0.2) @ axis, axis, atol=1e-15)
    assert angles_from_rotation(rotation_from_angles(0.1, -0.4, 0.2)) == pytest.approx((0.1, -0.4, 0.2))


def test_a_tilt_about_y_brings_depth_to_x_and_shifts_follow_on_the_detector() -> None:
    """A blob 8 Å downstream: x = +8·sin 30° = 4 Å at a tilt of 30°, then (dy, dx) = (2, −1) Å."""
    volume = np.zeros((33, 33, 33), np.float32)
    volume[16 + 8, 16, 16] = 1
    pose = Pose(rotation=tilt_rotation(np.deg2rad(30)), shift=(2.0, -1.0))
    image = Projector(volume.shape, 1.0, (33, 33), [pose]).forward(volume)[0]
    rows, columns = image.sum(axis=1), image.sum(axis=0)
    centre = np.arange(33) - 16
    assert rows @ centre / rows.sum() == pytest.approx(2.0, abs=1e-4)
    assert columns @ centre / columns.sum() == pytest.approx(4.0 - 1.0, abs=1e-4)


def test_grids_name_the_centre_of_their_first_pixel() -> None:
    positions = np.array([[0.0, 0.0], [3.0, 5.0]])
    grid = object_grid(positions, (8, 8), (0.5, 0.5))
    assert grid.to_pixels(np.array(grid.origin)) == pytest.approx([0, 0])
    np.testing.assert_allclose(grid.to_length(grid.to_pixels(positions)), positions)
    assert (grid.to_pixels(positions) >= 4).all()
