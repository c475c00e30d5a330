"""Parts of a series show the patterns of the series they are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpcrec.data.views import single_tilt, with_positions
from hpcrec.io.base import open_series
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


def test_one_tilt_alone(tiny_job: Path) -> None:
    with open_series(load_job(tiny_job)[0].data) as series:
        view = single_tilt(series, 2, CHOSEN)
        assert (view.n_tilts, view.tilt(0).number, view.tilt(0).angle) == (1, 2, series.tilt_angles[2])
        np.testing.assert_array_equal(view.tilt(0).read(np.arange(3)), series.tilt(2).read(CHOSEN))
        assert view.facts.identity == series.facts.identity
