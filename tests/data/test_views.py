"""Parts of a series show the patterns of the series they are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcrec.data.views import half_resolution, single_tilt, with_positions
from hpcrec.errors import ConfigError
from hpcrec.io.base import open_series
from hpcrec.io.numpy_files import NumpyOptions
from hpcrec.run.config import load_job

CHOSEN = np.array([3, 8, 20])


def test_chosen_positions_of_one_tilt(tiny_job: Path) -> None:
    with open_series(load_job(tiny_job)[0].data) as series:
        view = with_positions(series, 1, CHOSEN)
        assert view.n_tilts == 3
        assert [view.tilt(i).n_positions for i in range(3)] == [36, 3, 36]
        np.testing.assert_array_equal(view.tilt(1).positions, series.tilt(1).positions[CHOSEN])
        np.testing.assert_array_equal(view.tilt(1).read(np.array([2, 0])), series.tilt(1).read(np.array([20, 3])))
        np.testing.assert_array_equal(view.tilt(2).read(np.array([7])), series.tilt(2).read(np.array([7])))
        view.close()
        assert series.tilt(1).read(np.array([0])).any(), "the series itself stays open"


def test_masks_of_frames_follow_their_positions(tiny_job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_series(load_job(tiny_job)[0].data) as series:
        monkeypatch.setattr(
            series,
            "read_frame_masks",
            lambda _, indices: np.ones((len(indices), 32, 32), bool) * (indices % 2 == 0)[:, None, None],
        )
        good = with_positions(series, 1, CHOSEN).tilt(1).read_good(np.arange(3))
        assert good is not None
        assert good.all(axis=(1, 2)).tolist() == [False, True, True]


def test_one_tilt_alone(tiny_job: Path) -> None:
    with open_series(load_job(tiny_job)[0].data) as series:
        view = single_tilt(series, 2, CHOSEN)
        assert (view.n_tilts, view.tilt(0).number, view.tilt(0).angle) == (1, 2, series.tilt_angles[2])
        np.testing.assert_array_equal(view.tilt(0).read(np.arange(3)), series.tilt(2).read(CHOSEN))
        assert view.facts.identity == series.facts.identity


def test_half_resolution_is_the_middle_of_the_detector(tiny_job: Path) -> None:
    with open_series(load_job(tiny_job)[0].data) as series:
        view = half_resolution(series)
        assert view.pattern_shape == (16, 16)
        assert view.sampling == (2 * series.sampling[0], 2 * series.sampling[1])
        assert view.detector_sampling == series.detector_sampling
        fine = series.tilt(0).read(CHOSEN)
        middle = np.fft.ifftshift(np.fft.fftshift(fine, axes=(1, 2))[:, 8:24, 8:24], axes=(1, 2))
        np.testing.assert_array_equal(view.tilt(0).read(CHOSEN), middle)


def test_half_of_an_odd_detector_is_refused(tiny_job: Path) -> None:
    with (
        open_series(load_job(tiny_job, ["data.window=31"])[0].data) as series,
        pytest.raises(ConfigError, match=r"even number of pixels .* got 31 × 31"),
    ):
        half_resolution(series)


def test_the_mask_at_half_resolution_is_that_of_the_pixels_measured(tmp_path: Path) -> None:
    """The beam hits the second row: of ±2 the small window takes the one that the detector has."""
    np.save(tmp_path / "frames.npy", np.ones((4, 8, 8), np.uint8))
    np.save(tmp_path / "scan.npy", np.zeros((4, 2)))
    given = NumpyOptions(
        path=tmp_path / "frames.npy", positions="scan.npy", pixel_size_angstrom=0.2, centre_pixel=(1, 4)
    )
    with open_series(given) as series:
        view = half_resolution(series)
        measured = view.tilt(0).read(np.array([0]))[0] > 0
        np.testing.assert_array_equal(np.ones((4, 4), bool) if view.mask is None else view.mask, measured)
