"""Which tilt, and which of its positions, stand for the whole in trials, previews and calibrations."""

from __future__ import annotations

import numpy as np

from hpcrec.backend.array import FloatArray, IntArray
from hpcrec.data.dataset import TiltSeries
from hpcrec.errors import ConfigError


def tilt_index(series: TiltSeries, number: int | None = None) -> int:
    """Return where in the series the tilt with a number in the input file is, or the one nearest to 0°."""
    numbers = series.tilt_numbers
    if number is None:
        return int(np.argmin(np.abs(series.tilt_angles)))
    if number not in numbers:
        raise ConfigError(f"--tilt {number}: the job has the tilts {numbers.tolist()}")
    return int(np.flatnonzero(numbers == number)[0])


def compact_subset(positions: FloatArray, count: int) -> IntArray:
    """Return the ``count`` positions (position, 2) nearest to the middle of the scan, sorted: a square block."""
    middle = (positions.min(axis=0) + positions.max(axis=0)) / 2
    distance = np.abs(positions - middle).max(axis=1)
    return np.sort(np.argsort(distance, kind="stable")[:count])
