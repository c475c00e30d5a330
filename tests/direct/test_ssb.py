"""Single side band against a known weak phase."""

import numpy as np
import pytest
from thin_object import SAMPLING, N, ThinObject, correlation

from hpcrec.direct.raster import find_raster
from hpcrec.direct.ssb import shifted_spectra, ssb_phase, useful_upsampling
from hpcrec.direct.wdd import wdd_object
from hpcrec.errors import ConfigError, DataError


def reconstruct(data, **kwargs):
    return ssb_phase(data.patterns, data.probe, data.raster, data.window, **kwargs)


@pytest.mark.parametrize(("defocus", "bar"), [(0.0, 0.98), (60.0, 0.996), (-60.0, 0.996)])
def test_a_weak_phase_comes_out_in_radians(defocus, bar):
    data = ThinObject(0.02, defocus)
    found = reconstruct(data, floor=1e-3)
    assert correlation(found, data.phase) > bar  # bars of the notes
    # The object has little beyond 2α, where nothing is transferred
    assert np.polyfit(data.phase.ravel(), found.ravel(), 1)[0] == pytest.approx(1, abs=0.05)


def test_the_wrong_sign_of_defocus_is_worse():
    data = ThinObject(0.02, 60.0)
    wrong = ssb_phase(data.patterns, ThinObject(0.02, -60.0).probe, data.raster, data.window)
    assert correlation(wrong, data.phase) < 0.5


def test_a_strong_phase_is_still_recognised():
    data = ThinObject(0.5, 40.0)
    assert correlation(reconstruct(data), data.phase) > 0.9


def test_counts_masks_and_order_of_the_positions():
    data = ThinObject(0.1, 60.0, counts=5000)
    mask = np.ones((N, N), bool)
    mask[1, 2] = False
    data.patterns[..., 1, 2] = 60_000
    for weighting in ("wiener", "noise"):
        assert correlation(reconstruct(data, mask=mask, weighting=weighting), data.phase) > 0.9


def test_modes_add_up():
    data = ThinObject(0.02, 60.0)
    modes = np.stack([data.probe, data.probe]) / np.sqrt(2)
    found = ssb_phase(data.patterns, modes, data.raster, data.window)
    assert np.allclose(found, reconstruct(data), atol=1e-5)


def test_shifted_spectra_move_by_whole_pixels_exactly():
    data = ThinObject(0.02, 60.0)
    pixel = 1 / (N * SAMPLING)
    spectrum = np.fft.fft2(np.fft.ifftshift(data.probe), norm="ortho")
    below, above = shifted_spectra(data.probe[None], np.array([[2 * pixel, -3 * pixel]]), data.window)
    assert np.allclose(below[0, 0], np.roll(spectrum, (2, -3), (0, 1)), atol=1e-6)
    assert np.allclose(above[0, 0], np.roll(spectrum, (-2, 3), (0, 1)), atol=1e-6)


def test_a_bright_field_without_counts_is_refused():
    data = ThinObject(0.02)
    with pytest.raises(DataError, match="no good pixel of the bright field"):
        reconstruct(data, mask=np.zeros((N, N), bool))
    data.patterns[:] = 0
    with pytest.raises(DataError, match="no good pixel of the bright field"):
        reconstruct(data)


@pytest.mark.parametrize("method", [ssb_phase, wdd_object])
def test_a_probe_of_another_window_is_refused(method):
    data = ThinObject(0.02)
    wide = np.pad(data.probe, N // 2)[None]
    with pytest.raises(ConfigError, match="set detector.upsampling to 1"):
        method(data.patterns, wide, data.raster, data.window)


@pytest.mark.parametrize("defocus", [0.0, 60.0])
def test_a_coarse_scan_still_resolves_the_object(defocus):
    """Every third position along y and x: the detector tells apart what such a scan folds together."""
    data = ThinObject(0.02, defocus)
    coarse = find_raster(data.positions.reshape(N, N, 2)[::3, ::3].reshape(-1, 2))
    found = ssb_phase(data.patterns[::3, ::3], data.probe, coarse, data.window, floor=1e-3, upsampling=3)
    assert found.shape == (N, N)
    assert correlation(found, data.phase) > 0.98
    assert np.polyfit(data.phase.ravel(), found.ravel(), 1)[0] == pytest.approx(1, abs=0.1)


def test_upsampling_changes_nothing_where_there_is_nothing_beyond_the_scan():
    data = ThinObject(0.02, 60.0)
    fine = reconstruct(data, floor=1e-4, upsampling=2)
    assert correlation(fine[::2, ::2], reconstruct(data, floor=1e-4)) > 0.9999


def test_the_useful_upsampling_reaches_twice_the_aperture():
    data = ThinObject(0.02)
    coarse = find_raster(data.positions.reshape(N, N, 2)[::4, ::4].reshape(-1, 2))
    assert useful_upsampling(data.probe, data.raster, data.window) == 1
    # Steps of 1 Å; 1/(4 k_α) is 0.28 Å
    assert useful_upsampling(data.probe, coarse, data.window) == 4
