"""Grids: conversions invert each other, frequencies are FFT's, the object grid holds every window."""

import numpy as np
import pytest

from hpcrec.geometry.grid import Grid, object_grid
from hpcrec.geometry.tiles import Box, bounding_box, window_corners


def test_pixels_and_lengths_invert_each_other():
    grid = Grid(shape=(10, 20), sampling=(0.3, 0.7), origin=(-4.0, 11.0))
    positions = np.random.default_rng(0).normal(size=(6, 2))
    np.testing.assert_allclose(grid.to_length(grid.to_pixels(positions)), positions, atol=1e-13)  # float64 round-off
    np.testing.assert_allclose(grid.to_pixels(np.array([-4.0, 11.7])), [0.0, 1.0], atol=1e-13)
    assert grid.to_pixels(positions.astype(np.float32)).dtype == np.float64


def test_frequencies_start_at_zero_and_turn_a_wave_into_one_pixel():
    grid = Grid(shape=(8, 12), sampling=(0.5, 0.25))
    ky, kx = grid.frequencies()
    assert ky.shape == (8, 1)
    assert kx.shape == (1, 12)
    assert ky[0, 0] == kx[0, 0] == 0.0
    y, x = np.arange(8)[:, None] * 0.5, np.arange(12)[None, :] * 0.25
    spectrum = np.fft.fft2(np.exp(2j * np.pi * (ky[2, 0] * y + kx[0, 3] * x)))  # plane wave exp(+2πi k·r)
    assert np.unravel_index(np.abs(spectrum).argmax(), spectrum.shape) == (2, 3)


@pytest.mark.parametrize("window", [(8, 8), (7, 10)])
def test_object_grid_holds_all_windows_with_the_margin(window):
    positions = np.random.default_rng(1).uniform(-30.0, 50.0, (40, 2))
    grid = object_grid(positions, window, (0.4, 0.6), margin=4)
    touched = bounding_box(window_corners(positions, grid, window), window)
    assert Box(0, grid.shape[0], 0, grid.shape[1]).contains(touched.grow(3))  # rounding may take one of the 4 pixels


def test_object_grids_of_two_tilts_differ_by_whole_pixels():
    rng = np.random.default_rng(2)
    a, b = (object_grid(rng.uniform(-9.0, 9.0, (5, 2)), (8, 8), (0.41, 0.57)) for _ in range(2))
    shift = (np.array(a.origin) - b.origin) / a.sampling
    np.testing.assert_allclose(shift, np.rint(shift), atol=1e-10)
