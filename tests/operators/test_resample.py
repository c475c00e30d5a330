"""Coarser and finer pixels: nothing inside the band is lost, centres stay, values and powers are kept."""

import numpy as np
import pytest

from hpcrec.operators.resample import cut_frequencies, double_object, pad_frequencies, probe_like, resample_probe
from hpcrec.physics.probe import aberrated_probe, orthogonal_start_modes


@pytest.mark.parametrize(("shape", "wide"), [((4, 6), (8, 12)), ((5, 6), (9, 8)), ((4, 4), (4, 4))])
def test_cutting_undoes_padding(shape, wide):
    rng = np.random.default_rng(0)
    spectrum = rng.standard_normal((2, *shape)) + 1j * rng.standard_normal((2, *shape))
    padded = pad_frequencies(spectrum, wide)
    np.testing.assert_array_equal(cut_frequencies(padded, shape), spectrum)
    assert np.count_nonzero(padded) == spectrum.size


def test_frequencies_keep_their_place():
    frequencies = np.fft.fftfreq(12, 1 / 12)[None, :] * np.ones((12, 1))
    np.testing.assert_array_equal(cut_frequencies(frequencies, (6, 6))[0], [0, 1, 2, -3, -2, -1])
    np.testing.assert_array_equal(cut_frequencies(frequencies, (6, 7))[0], [0, 1, 2, 3, -3, -2, -1])


def test_a_probe_is_the_same_on_any_pixels_of_its_window():
    """An aperture within half of the detector: computed on coarse pixels or cut from fine ones, and padded again."""
    optics = (0.025, 0.018, {"C10": -80.0, "C12": 15.0})
    fine = aberrated_probe((48, 64), (0.3, 0.3), *optics)
    coarse = aberrated_probe((24, 32), (0.6, 0.6), *optics)
    np.testing.assert_allclose(resample_probe(fine, (24, 32)), coarse, atol=1e-12)
    np.testing.assert_allclose(resample_probe(coarse, (48, 64)), fine, atol=1e-12)
    modes = orthogonal_start_modes(coarse, 2)
    like = (7 * orthogonal_start_modes(fine, 2)).astype(np.complex64)
    found = probe_like(modes, like)
    assert found.dtype == np.complex64
    np.testing.assert_allclose(found, like, atol=1e-5)


def test_a_doubled_object_goes_through_its_pixels():
    y, x = np.mgrid[:16, :20]
    obj = np.exp(1j * (np.sin(2 * np.pi * y / 16) + np.cos(4 * np.pi * x / 20)))[None]
    found = double_object(obj)
    assert found.shape == (1, 32, 40)
    np.testing.assert_allclose(found[:, ::2, ::2], obj, atol=1e-12)
    y, x = np.mgrid[:32, :40] / 2
    smooth = np.exp(1j * (np.sin(2 * np.pi * y / 16) + np.cos(4 * np.pi * x / 20)))
    # exp(i sin) has a long tail: harmonics above 5 carry J₅(1) = 2e-4
    np.testing.assert_allclose(found[0], smooth, atol=1e-3)
