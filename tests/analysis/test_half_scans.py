"""Ring correlation of half scans: what ptychography leaves free is taken off, what noise adds is measured."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from hpcrec.analysis.half_scans import common_window, half_scan_correlation, projection_of, registered
from hpcrec.analysis.resolution import fourier_shell_correlation
from hpcrec.errors import DataError

SHAPE = (90, 100)
SAMPLING = (0.3, 0.3)


def smooth_object(seed=0, width=1.5):
    """A phase object of 0.3 rad (rms), periodic so that Fourier shifts are exact."""
    phase = gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE), width, mode="wrap")
    return np.exp(0.3j * phase / phase.std())


def lit():
    """The illumination of a scan: flat inside, falling towards the border."""
    inside = np.zeros(SHAPE)
    inside[15:-15, 15:-15] = 1
    return gaussian_filter(inside, 4)


def freed(obj, shift, ramp, phase):
    """Return an object shifted by pixels, with a ramp in periods across the field and a constant phase."""
    ky, kx = np.fft.fftfreq(SHAPE[0])[:, None], np.fft.fftfreq(SHAPE[1])[None]
    moved = np.fft.ifft2(np.fft.fft2(obj) * np.exp(-2j * np.pi * (ky * shift[0] + kx * shift[1])))
    y, x = np.arange(SHAPE[0])[:, None] / SHAPE[0], np.arange(SHAPE[1])[None] / SHAPE[1]
    return 1.3 * moved * np.exp(2j * np.pi * (ramp[0] * y + ramp[1] * x) + 1j * phase)


@pytest.mark.parametrize(("shift", "ramp"), [((0, 0), (0, 0)), ((1.37, -2.21), (0.3, -1.6)), ((-4.5, 3.3), (2.2, 2.9))])
def test_shift_ramp_and_constant_are_taken_off(shift, ramp):
    """Noise-free halves that differ by these only: they correlate to the last ring with signal."""
    obj = smooth_object()
    moved = freed(obj, shift, ramp, 0.7)
    window = common_window(lit(), lit())
    found = registered(moved, obj, window)
    scale = np.vdot(found * window, obj * window) / np.vdot(found * window, found * window)
    # A shift of 0.01 pixel at the object's 0.1 cycles a pixel is a phase of 0.006 of its contrast of 0.3
    assert np.abs((scale * found - obj) * window).max() < 0.01
    curve = half_scan_correlation((obj, moved), (lit(), lit()), SAMPLING)
    signal = (curve.frequency > 0.1) & (curve.frequency < 0.5)
    # What the border brings in when the crop is shifted costs up to 0.012
    assert curve.correlation[signal].min() > 0.98


def test_without_registration_the_correlation_would_be_lost():
    obj = smooth_object()
    moved = freed(obj, (1.37, -2.21), (0.3, -1.6), 0.7)
    raw = fourier_shell_correlation(obj, moved, SAMPLING, common_window(lit(), lit()))
    assert raw.correlation[(raw.frequency > 0.1) & (raw.frequency < 0.5)].min() < 0.5


def test_the_crossing_is_where_noise_overcomes_the_signal():
    """Signal to 0.6 1/Å, strong white noise beyond: the half-bit resolution lies at the edge of the signal."""
    rng = np.random.default_rng(2)
    q = np.hypot(np.fft.fftfreq(SHAPE[0], 0.3)[:, None], np.fft.fftfreq(SHAPE[1], 0.3)[None])
    signal = np.fft.ifft2(np.fft.fft2(rng.standard_normal(SHAPE)) * (q < 0.6)).real
    halves = [np.exp(0.2j * signal) + 0.05 * (rng.standard_normal((2, *SHAPE)).T @ [1, 1j]).T for _ in range(2)]
    curve = half_scan_correlation((halves[0], freed(halves[1], (0.6, 0.2), (0.5, 0.1), 1.0)), (lit(), lit()), SAMPLING)
    crossing = curve.crossing("half_bit")
    assert not crossing.at_nyquist
    assert crossing.frequency == pytest.approx(0.6, abs=0.06)


def test_complex_noise_has_no_resolution():
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((2, *SHAPE)) + 1j * rng.standard_normal((2, *SHAPE))
    curve = fourier_shell_correlation(a, b, SAMPLING)
    assert curve.crossing("half_bit").frequency < 0.3
    # All pixels of a complex image count, half of those of a real one
    real = fourier_shell_correlation(a.real, b.real, SAMPLING)
    np.testing.assert_allclose(curve.n_independent, 2 * real.n_independent)


def test_a_real_image_is_a_complex_one():
    a, b = np.random.default_rng(5).standard_normal((2, 30, 33))
    real, full = (fourier_shell_correlation(*pair, SAMPLING) for pair in ((a, b), (a + 0j, b + 0j)))
    np.testing.assert_allclose(full.correlation, real.correlation, atol=1e-12)


def test_the_window_is_soft_and_only_where_both_have_seen():
    left, right = lit(), lit()
    left[:, :40] = 0
    window = common_window(left, right)
    assert window.max() == pytest.approx(1, abs=0.02)
    assert (window[:, :40] == 0).all()
    assert np.abs(np.diff(window, axis=0)).max() < 0.5


def test_halves_without_common_region():
    left, right = lit(), lit()
    left[:, :45], right[:, 55:] = 0, 0
    with pytest.raises(DataError, match="too little in common"):
        half_scan_correlation((smooth_object(), smooth_object()), (left, right), SAMPLING)


def test_projection_multiplies_slices_and_averages_states():
    obj = np.exp(1j * np.arange(4)).reshape(4, 1, 1) * np.ones((4, 2, 2))
    np.testing.assert_allclose(projection_of(obj)[0, 0], np.exp(6j))
    np.testing.assert_allclose(projection_of(obj, 2)[0, 0], 0.5 * (np.exp(1j) + np.exp(5j)))
