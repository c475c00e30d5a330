"""Parts of a series that look like a series: some positions of a tilt, one tilt alone, half the resolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hpcrec.backend.array import Array, BoolArray, IntArray
from hpcrec.data.dataset import SeriesFacts, TiltSeries
from hpcrec.errors import ConfigError
from hpcrec.operators.resample import resample_probe


class SeriesView(TiltSeries):
    """A series with other facts, whose frames come from ``series``; closing it leaves that open.

    ``picks`` : for tilts (number in the file) with fewer positions, the index (position,) of each in ``series``
    """

    def __init__(self, series: TiltSeries, facts: SeriesFacts, picks: Mapping[int, IntArray]) -> None:
        super().__init__(facts)
        self._series, self._picks = series, dict(picks)

    def read_frames(self, tilt_number: int, indices: IntArray) -> Array:
        """Return the patterns (n, rows, columns) exactly as stored, in the order of ``indices``."""
        return self._series.read_frames(tilt_number, self._picked(tilt_number, indices))

    def read_frame_masks(self, tilt_number: int, indices: IntArray) -> BoolArray | None:
        """Return the masks (n, rows, columns) of the frames, True = good, as stored; None if one mask serves all."""
        return self._series.read_frame_masks(tilt_number, self._picked(tilt_number, indices))

    def _picked(self, tilt_number: int, indices: IntArray) -> IntArray:
        picks = self._picks.get(tilt_number)
        return indices if picks is None else picks[indices]

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


def half_resolution(series: TiltSeries) -> TiltSeries:
    """Return the series as the middle half of its detector sees it, along both sides: real-space pixels twice as large.

    Raises ConfigError unless the patterns have an even number of pixels along each side.
    """
    facts = series.facts
    ny, nx = series.pattern_shape
    if ny % 2 or nx % 2 or min(ny, nx) < 8:
        raise ConfigError(
            f"half the resolution needs patterns with an even number of pixels along each side, got {ny} × {nx}: "
            "set data.window to an even number, or ptychography.coarse_iterations = 0"
        )
    shape = (ny // 2, nx // 2)
    frame = replace(facts.frame, shape=shape)
    part = replace(
        facts,
        frame=frame,
        sampling=(2 * facts.sampling[0], 2 * facts.sampling[1]),
        mask=frame.apply_mask(facts.raw_mask),
        probe=None if facts.probe is None else resample_probe(facts.probe, shape),
    )
    return SeriesView(series, part, {})
