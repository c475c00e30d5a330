"""Rasters found among positions, whatever their order, and refused where there are none."""

import numpy as np
import pytest

from hpcrec.direct.raster import find_raster
from hpcrec.errors import ConfigError
from hpcrec.geometry.scan import raster_positions


def turned(positions, angle_deg):
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    return positions @ np.array([[c, s], [-s, c]]).T


@pytest.mark.parametrize("angle", [0.0, 20.0, -30.0])
@pytest.mark.parametrize("kind", ["rows", "to and fro", "columns", "backwards"])
def test_every_order_of_a_raster_is_found(kind, angle):
    grid = np.arange(35).reshape(5, 7)
    order = {"rows": grid, "columns": grid.T, "backwards": grid[::-1, ::-1]}.get(kind)
    if order is None:
        order = np.where(np.arange(5)[:, None] % 2, grid[:, ::-1], grid)
    positions = turned(raster_positions((5, 7), (0.6, 0.9)), angle)
    found = find_raster(positions[order.ravel()])
    assert found.shape == (5, 7)
    assert np.allclose(positions[order.ravel()][found.order], positions)
    assert np.allclose(np.linalg.norm(found.vectors, axis=1), (0.6, 0.9))
    # A plane wave of the raster's own frequency is a single line of the transform
    q = found.frequencies()[2, 3]
    wave = np.exp(2j * np.pi * positions @ q).reshape(5, 7)
    spectrum = np.abs(np.fft.fft2(wave))
    assert spectrum[2, 3] == pytest.approx(35)
    assert np.sum(spectrum) == pytest.approx(35)


def test_jitter_is_borne_up_to_a_bound():
    rng = np.random.default_rng(1)
    positions = raster_positions((9, 9), (1.0, 1.0))
    found = find_raster(positions + 0.05 * rng.standard_normal(positions.shape))
    assert found.shape == (9, 9)
    assert found.residual == pytest.approx(0.07, rel=0.2)
    with pytest.raises(ConfigError, match="use the parallax method"):
        find_raster(positions + 0.25 * rng.standard_normal(positions.shape))


@pytest.mark.parametrize(
    "positions",
    [
        np.random.default_rng(0).uniform(0, 9, (50, 2)),
        raster_positions((6, 6), (1.0, 1.0))[:-1],
        raster_positions((1, 20), (1.0, 1.0)),
        np.zeros((9, 2)),
    ],
    ids=["scattered", "one missing", "a line", "one point"],
)
def test_what_is_no_raster_is_refused(positions):
    with pytest.raises(ConfigError, match="raster"):
        find_raster(positions)
