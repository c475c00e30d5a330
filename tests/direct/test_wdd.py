"""Wigner distribution deconvolution against known phases, weak and strong."""

import numpy as np
import pytest
from thin_object import ThinObject, correlation

from hpcrec.direct.wdd import wdd_object
from hpcrec.errors import DeviceError


@pytest.mark.parametrize(("strength", "defocus"), [(0.02, 0.0), (0.02, 60.0), (0.5, 0.0), (0.5, 60.0), (0.5, -60.0)])
def test_weak_and_strong_phases_come_out(strength, defocus):
    data = ThinObject(strength, defocus)
    found = np.angle(wdd_object(data.patterns, data.probe, data.raster, data.window, epsilon=1e-4))
    assert correlation(found, data.phase) > 0.99
    # The bound ε weakens low frequencies: slopes of 0.83, 0.94 at ε = 1e-4, 1e-6
    assert 0.75 < np.polyfit(data.phase.ravel(), found.ravel(), 1)[0] < 1.0


def test_rows_may_be_odd_and_fewer_than_columns():
    data = ThinObject(0.1, 60.0)
    raster = type(data.raster)(shape=(35, 36), vectors=data.raster.vectors, order=data.raster.order[: 35 * 36])
    found = wdd_object(data.patterns[:35], data.probe, raster, data.window)
    # The field no longer closes on itself: only its middle is right
    assert correlation(np.angle(found)[6:-6, 6:-6], data.phase[6:29, 6:-6]) > 0.9


def test_modes_add_up():
    data = ThinObject(0.1, 60.0)
    modes = np.stack([data.probe, data.probe]) / np.sqrt(2)
    one = wdd_object(data.patterns, data.probe, data.raster, data.window)
    two = wdd_object(data.patterns, modes, data.raster, data.window)
    assert np.allclose(one, two, atol=1e-4)


def test_too_large_a_spectrum_is_refused():
    data = ThinObject(0.1)
    with pytest.raises(DeviceError, match="bin the detector"):
        wdd_object(data.patterns, data.probe, data.raster, data.window, memory_limit=1000)
