"""Which tilt and which positions are picked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcrec.errors import ConfigError
from hpcrec.io.base import open_series
from hpcrec.run.config import load_job
from hpcrec.run.picks import compact_subset, tilt_index


def test_a_tilt_keeps_its_number_when_others_are_dropped(tiny_job: Path) -> None:
    """Three tilts, at −40°, 0° and 40°."""
    with open_series(load_job(tiny_job, ["data.drop_tilts=[0]"])[0].data) as series:
        assert [tilt_index(series, n) for n in (None, 1, 2)] == [0, 0, 1]
        with pytest.raises(ConfigError, match=r"--tilt 0: the job has the tilts \[1, 2\]"):
            tilt_index(series, 0)


def test_the_middle_of_a_scan_is_a_block() -> None:
    y, x = np.divmod(np.arange(100), 10)
    chosen = compact_subset(np.stack([y, x], 1).astype(float), 36)
    np.testing.assert_array_equal(np.unique(y[chosen]), np.arange(2, 8))
    np.testing.assert_array_equal(np.unique(x[chosen]), np.arange(2, 8))
