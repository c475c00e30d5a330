"""Correlations and spectra come back from the checkpoint as they went in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcrec.analysis.resolution import LastPeak, crystal_resolution, directional_correlations, fourier_shell_correlation
from hpcrec.io.checkpoint import load_checkpoint, save_checkpoint
from hpcrec.run.curves import correlation_arrays, correlations, peak_arrays, peaks


def test_curves_come_back_through_a_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    halves = rng.standard_normal((16, 18, 20)) + 0.5 * rng.standard_normal((2, 16, 18, 20))
    curves = {"all": fourier_shell_correlation(*halves, (0.5,) * 3), **directional_correlations(*halves, (0.5,) * 3)}
    spectra = crystal_resolution(halves[0], (0.5,) * 3)
    arrays = {}
    for name, curve in curves.items():
        arrays |= correlation_arrays(name, curve)
    for name, peak in spectra.items():
        arrays |= peak_arrays(name, peak)
    save_checkpoint(tmp_path / "analysis_000001.h5", arrays, {})
    back = load_checkpoint(tmp_path / "analysis_000001.h5").arrays
    found = correlations(back, nyquist=1.0)
    assert set(found) == set(curves) == {"all", "z", "y", "x"}
    for name, curve in curves.items():
        assert found[name].nyquist == curve.nyquist
        for field in ("frequency", "correlation", "n_independent"):
            np.testing.assert_array_equal(getattr(found[name], field), getattr(curve, field))
        assert found[name].crossing("half_bit") == curve.crossing("half_bit")
    assert set(peaks(back)) == set(spectra)
    for name, peak in spectra.items():
        check_peak(peaks(back)[name], peak)


def check_peak(found: LastPeak, peak: LastPeak) -> None:
    assert (found.frequency, found.resolution, found.axes, found.near) == (
        peak.frequency,
        peak.resolution,
        peak.axes,
        peak.near,
    )
    # Kept in single precision, for pictures
    np.testing.assert_allclose(found.spectrum, peak.spectrum, rtol=1e-6)
    assert len(found.frequencies) == len(peak.frequencies)
    for a, b in zip(found.frequencies, peak.frequencies):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("near", [None, 0, 1])
def test_a_spectrum_without_a_peak_has_no_resolution(near: int | None) -> None:
    peak = LastPeak(
        frequency=None,
        resolution=None,
        axes=(0,),
        spectrum=np.ones((3, 4), np.float32),
        frequencies=(np.arange(3.0), np.arange(4.0)),
        near=near,
    )
    found = peaks(peak_arrays("axial", peak))
    assert list(found) == ["axial"]
    check_peak(found["axial"], peak)


def test_nothing_kept_gives_nothing() -> None:
    assert correlations({}, 1.0) == {}
    assert peaks({}) == {}
