import numpy as np
import pytest

from hpcrec.data.preprocess import DetectorFrame, bad_pixels, count_fault
from hpcrec.errors import ConfigError


def frame(stored, shape=None, **keywords):
    centre = keywords.pop("centre", (stored[0] // 2, stored[1] // 2))
    return DetectorFrame(stored=stored, centre=centre, shape=shape or stored, **keywords)


def spectrum_frames(shape, rng):
    return rng.integers(0, 100, (3, *shape)).astype(np.uint16)


@pytest.mark.parametrize("shape", [(8, 8), (7, 7), (6, 9)])
def test_centred_frames_are_shifted_like_ifftshift(shape):
    stored = spectrum_frames(shape, np.random.default_rng(0))
    np.testing.assert_array_equal(frame(shape).apply(stored), np.fft.ifftshift(stored, axes=(1, 2)))


def test_corner_frames_come_back_untouched():
    stored = spectrum_frames((8, 6), np.random.default_rng(0))
    assert frame((8, 6), corner=True).apply(stored) is stored


@pytest.mark.parametrize("n", [8, 7])
@pytest.mark.parametrize("corner", [False, True])
def test_flips_reverse_the_frequencies_about_zero(n, corner):
    stored = spectrum_frames((n, n), np.random.default_rng(1))
    spectrum = stored if corner else np.fft.ifftshift(stored, axes=(1, 2))
    flipped = frame((n, n), corner=corner, flip_y=True).apply(stored)
    np.testing.assert_array_equal(flipped, spectrum[:, -np.arange(n) % n])  # F(-ky, kx), Nyquist on itself
    flipped = frame((n, n), corner=corner, flip_x=True).apply(stored)
    np.testing.assert_array_equal(flipped, spectrum[:, :, -np.arange(n) % n])


def test_transpose_comes_before_the_flips():
    stored = spectrum_frames((7, 9), np.random.default_rng(2))
    expected = np.fft.ifftshift(stored.swapaxes(1, 2)[:, ::-1], axes=(1, 2))
    np.testing.assert_array_equal(frame((7, 9), (9, 7), transpose=True, flip_y=True).apply(stored), expected)


def test_a_window_keeps_the_lowest_frequencies():
    stored = spectrum_frames((9, 9), np.random.default_rng(3))
    expected = np.fft.ifftshift(stored[:, 2:6, 2:6], axes=(1, 2))
    np.testing.assert_array_equal(frame((9, 9), (4, 4)).apply(stored), expected)


def test_an_off_centre_beam_is_brought_to_zero_and_what_is_not_measured_is_masked():
    stored = np.zeros((1, 8, 8), np.int32)
    stored[0, 2, 5] = 7
    made = frame((8, 8), centre=(2, 5))
    assert made.apply(stored)[0, 0, 0] == 7
    mask = np.fft.fftshift(made.apply_mask(None))
    assert mask.sum() == 6 * 7  # frequencies -2…3 of -4…3 and -4…2 of -4…3 lie on the detector
    assert not mask[:2].any()
    assert not mask[:, 7].any()


def test_padding_extends_by_unmeasured_pixels():
    stored = spectrum_frames((4, 4), np.random.default_rng(4))
    made = frame((4, 4), (8, 8))
    np.testing.assert_array_equal(np.fft.fftshift(made.apply(stored), axes=(1, 2))[:, 2:6, 2:6], stored)
    assert made.apply(stored).sum() == stored.sum()
    assert made.apply_mask(None).sum() == 16


@pytest.mark.parametrize("binning", [2, 3])
def test_binning_keeps_counts_and_never_overflows(binning):
    n = 6 * binning
    stored = np.full((2, n, n), 60000, np.uint16)
    made = frame((n, n), (4, 4), binning=binning)
    patterns = made.apply(stored)
    assert patterns.dtype == made.result_dtype(stored.dtype) == np.uint32
    assert (patterns == 60000 * binning**2).all()


def test_odd_binning_is_centred_on_the_zero_frequency():
    stored = np.zeros((1, 12, 12), np.uint8)
    stored[0, 5:8, 5:8] = 1
    assert frame((12, 12), (3, 3), binning=3).apply(stored)[0, 0, 0] == 9


def test_mask_follows_the_patterns_and_a_binned_pixel_needs_all_its_pixels():
    good = np.ones((8, 8), bool)
    good[1, 6] = False
    for made in (frame((8, 8), flip_x=True, transpose=True), frame((8, 8), corner=True)):
        marked = made.apply((~good)[None].astype(np.uint8))[0]
        np.testing.assert_array_equal(made.apply_mask(good), marked == 0)
    assert (~frame((8, 8), (4, 4), binning=2).apply_mask(good)).sum() == 1
    assert frame((8, 8)).apply_mask(np.ones((8, 8), bool)) is None


def test_clean_zeroes_bad_pixels_and_clips_when_asked():
    frames = np.array([[[np.nan, -1.0], [2.0, 3.0]]], np.float32)
    good = np.array([[False, True], [True, True]])
    np.testing.assert_array_equal(frame((2, 2)).clean(frames.copy(), good)[0], [[0, -1], [2, 3]])
    np.testing.assert_array_equal(frame((2, 2), clip_negative=True).clean(frames.copy(), good)[0], [[0, 0], [2, 3]])


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "not finite"), (np.inf, "not finite"), (-2.0, "negative"), (-np.inf, "negative")]
)
def test_count_fault_finds_the_first_impossible_frame(value, words):
    frames = np.zeros((4, 3, 3), np.float32)
    frames[2, 1, 1] = value
    i_frame, text = count_fault(frames)
    assert i_frame == 2
    assert words in text


def test_count_fault_accepts_counts():
    assert count_fault(np.ones((2, 3, 3), np.float32)) is None
    assert count_fault(np.full((2, 3, 3), 255, np.uint8)) is None
    assert count_fault(np.array([[[-1]]], np.int16)) == (0, "negative counts (down to -1)")


def test_hot_and_dead_pixels_are_found_and_a_disc_edge_is_not():
    y, x = np.mgrid[-16:16, -16:16]
    total = np.random.default_rng(5).poisson(np.where(np.hypot(y, x) < 10, 1000.0, 20.0)).astype(float)
    assert not bad_pixels(total).any()
    total[3, 4], total[0, 0], total[16, 14] = 500.0, 900.0, 3.0
    assert set(map(tuple, np.argwhere(bad_pixels(total)).tolist())) == {(3, 4), (0, 0), (16, 14)}
    with pytest.raises(ConfigError):
        bad_pixels(total, factor=1.0)
