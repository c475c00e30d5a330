"""Parts of a series that look like a series: some positions of a tilt, one tilt alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hpcrec.backend.array import Array, IntArray
from hpcrec.data.dataset import SeriesFacts, TiltSeries


class SeriesView(TiltSeries):
    """A series with other facts, whose frames come from ``series``; closing it leaves that open.

    ``picks`` : for tilts (number in the file) with fewer positions, the index (position,) of each in ``series``
    """

    def __init__(self, series: TiltSeries, facts: SeriesFacts, picks: Mapping[int, IntArray]) -> None:
        super().__init__(facts)
        self._series, self._picks = series, dict(picks)

    def read_frames(self, tilt_number: int, indices: IntArray) -> Array:
        """Return the patterns (n, rows, columns) exactly as stored, in the order of ``indices``."""
        picks = self._picks.get(tilt_number)
        return self._series.read_frames(tilt_number, indices if picks is None else picks[indices])

    def close(self) -> None:
        """Leave the series open: it belongs to somebody else."""


def with_positions(series: TiltSeries, i_tilt: int, chosen: IntArray) -> TiltSeries:
    """Return the series with only the ``chosen`` positions (n,) of tilt ``i_tilt``; the other tilts are whole."""
    positions = list(series.facts.positions)
    positions[i_tilt] = positions[i_tilt][chosen]
    facts = replace(series.facts, positions=tuple(positions))
    return SeriesView(series, facts, {int(series.tilt_numbers[i_tilt]): chosen})


def single_tilt(series: TiltSeries, i_tilt: int, chosen: IntArray) -> TiltSeries:
    """Return the ``chosen`` positions (n,) of tilt ``i_tilt`` as a series of this tilt alone."""
    facts = series.facts
    part = replace(
        facts,
        tilt_angles=facts.tilt_angles[[i_tilt]],
        tilt_numbers=facts.tilt_numbers[[i_tilt]],
        positions=(facts.positions[i_tilt][chosen],),
    )
    return SeriesView(series, part, {int(facts.tilt_numbers[i_tilt]): chosen})
