"""What one tilt starts from: the probe in front of the first slice, its power, its slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcrec.backend.fft import fft2, ifft2
from hpcrec.io.base import open_series
from hpcrec.physics.beam import electron_beam
from hpcrec.physics.propagation import fresnel_factor
from hpcrec.run.config import load_job
from hpcrec.run.start import common_grid, mean_power, starting_probe, tilt_setup


def rms_radius(probe: np.ndarray, step: float) -> float:
    """Return the rms radius (Å) of a wave (y, x) carried by ``step`` Å downstream."""
    factor = fresnel_factor(probe.shape, (0.2, 0.2), electron_beam(200e3).wavelength, step, dtype=np.complex128)
    power = np.abs(ifft2(fft2(probe) * factor)) ** 2
    y, x = np.indices(probe.shape) - np.array(probe.shape).reshape(2, 1, 1) // 2
    return float(np.sqrt((power * (y**2 + x**2)).sum() / power.sum()))


def test_underfocus_comes_to_its_focus_downstream(tiny_job: Path) -> None:
    """Positive defocus in a job is underfocus: the beam is narrowest that far behind the middle of the sample."""
    job, _ = load_job(tiny_job, ["probe.defocus_angstrom=30", "ptychography.slices=1"])
    with open_series(job.data) as series:
        probe = starting_probe(job, series, 1)[0]
    radii = [rms_radius(probe, step) for step in (0.0, 30.0, 60.0)]
    assert radii[1] < 0.9 * radii[0]
    assert radii[0] == pytest.approx(radii[2], rel=0.02)


def test_the_first_slice_lies_before_the_middle(tiny_job: Path) -> None:
    """Five slices of 10 Å: the probe of the first one is that of a single slice, 20 Å upstream."""
    thick = ["ptychography.slices=5", "ptychography.slice_thickness_angstrom=10", "probe.defocus_angstrom=30"]
    job, _ = load_job(tiny_job, thick)
    with open_series(job.data) as series:
        first, middle = (starting_probe(job, series, n)[0] for n in (5, 1))
        wavelength = electron_beam(200e3).wavelength
        factor = fresnel_factor(first.shape, series.sampling, wavelength, 20.0, dtype=np.complex128)
    centre = tuple(n // 2 for n in first.shape)
    carried = np.fft.fftshift(ifft2(fft2(np.fft.ifftshift(first)) * factor))
    assert centre == (16, 16)
    np.testing.assert_allclose(carried, middle, atol=1e-12)


def test_the_probe_carries_the_counts_of_a_pattern(tiny_job: Path) -> None:
    job, _ = load_job(tiny_job, ["probe.modes=2"])
    with open_series(job.data) as series:
        scan = series.tilt(1)
        counts = scan.read(np.arange(scan.n_positions)).sum(axis=(1, 2), dtype=float)
        setup = tilt_setup(job, series, 1, common_grid(job, series))
        # All of the 36 patterns are sampled
        assert mean_power(scan) == pytest.approx(counts.mean(), rel=1e-12)
        assert (np.abs(setup.probe) ** 2).sum() == pytest.approx(counts.mean(), rel=1e-5)
