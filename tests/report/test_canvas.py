"""Small decisions of the drawing board."""

import matplotlib as mpl
import numpy as np
import pytest

from hpcrec.report.canvas import complex_image, grey_range, length_text, new_figure, nice_length, scale_bar, style


@pytest.mark.parametrize(("length", "nice"), [(7.3, 5), (2.0, 2), (0.19, 0.1), (1234, 1000), (99.9, 50), (0, 1)])
def test_nice_length(length, nice):
    assert nice_length(length) == pytest.approx(nice)


def test_lengths_have_the_unit_that_suits():
    assert [length_text(x) for x in (5, 200, 20_000)] == ["5 Å", "20 nm", "2 µm"]


def test_grey_range_is_never_empty():
    assert grey_range([np.zeros((3, 3))]) == (0.0, 1.0)
    assert grey_range([np.full((3, 3), np.nan)]) == (0.0, 1.0)
    low, high = grey_range([np.arange(1000.0)])
    assert 0 < low < high < 999


def test_hue_is_the_phase():
    wave = np.array([[1.0, -1.0], [0.0, 1j]])
    colours = complex_image(wave)
    np.testing.assert_allclose(colours[0, 0], [1, 0.25, 0.25])  # phase 0: red
    np.testing.assert_allclose(colours[0, 1], [0.25, 1, 1])  # phase π: cyan
    np.testing.assert_allclose(colours[1, 0], 0)


def test_style_leaves_nothing_behind():
    before = dict(mpl.rcParams)
    with style():
        axes = new_figure(2, 2).subplots()
        scale_bar(axes, (50, 80), 0.2)
    assert dict(mpl.rcParams) == before
    assert axes.texts[0].get_text() == "2 Å"


def test_a_bar_says_what_its_pixels_are():
    axes = new_figure(2, 2).subplots()
    for pixel, unit in ((20.0, "Å"), (20.0, "px"), (None, "Å")):
        scale_bar(axes, (50, 80), pixel, unit)
    assert [text.get_text() for text in axes.texts] == ["20 nm", "200 px", "20 px"]
