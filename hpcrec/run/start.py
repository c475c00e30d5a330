"""The starting point of one tilt: model, grid, probe, empty object. Pure functions of the job and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpcrec.backend.array import BoolArray, ComplexArray, FloatArray, complex_dtype
from hpcrec.data.dataset import TiltScan, TiltSeries
from hpcrec.errors import ConfigError, DataError
from hpcrec.geometry.grid import Grid, object_grid
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.physics.beam import Beam, electron_beam, photon_beam
from hpcrec.physics.probe import aberrated_probe, orthogonal_start_modes, probe_window_fault
from hpcrec.run.job import Job

N_POWER_SAMPLES = 64
GRID_MARGIN = 4
FEW_COUNTS = 50.0


@dataclass(frozen=True, kw_only=True)
class TiltSetup:
    """What every rank of a group must know before the first sweep of one tilt.

    ``positions`` (position, 2) Å; ``n_slices``; ``slice_thickness`` Å; ``probe`` (mode, y, x) with the power of a
    pattern; ``angle`` of the tilt in rad; ``number`` of the tilt in the input file, ``i_tilt`` in the series.
    """

    i_tilt: int
    number: int
    angle: float
    grid: Grid
    window: tuple[int, int]
    sampling: tuple[float, float]
    positions: FloatArray
    n_slices: int
    slice_thickness: float
    wavelength: float
    mask: BoolArray | None
    probe: ComplexArray


def beam_of(job: Job) -> Beam | None:
    """Return the beam of a job, None where the data have pixel units only."""
    if job.beam is None:
        return None
    return (electron_beam if job.beam.kind == "electron" else photon_beam)(job.beam.energy_ev)


def common_grid(job: Job, series: TiltSeries) -> Grid:
    """Return the object grid that holds the windows of all tilts, and room for refined positions to move."""
    positions = np.concatenate([p[[p.argmin(0), p.argmax(0)]].reshape(-1, 2) for p in series.facts.positions])
    moves = getattr(job.ptychography, job.ptychography.engine).position_start is not None
    margin = GRID_MARGIN + (math.ceil(job.parallel.halo_margin_angstrom / min(series.sampling)) if moves else 0)
    return object_grid(positions, series.pattern_shape, series.sampling, margin)


def slice_count(job: Job, i_tilt: int, angle: float) -> int:
    """Return the number of slices of one tilt; ``"auto"`` follows the sample's path length along the beam."""
    section = job.ptychography
    if isinstance(section.slices, int):
        return section.slices
    if isinstance(section.slices, list):
        if i_tilt >= len(section.slices):
            raise ConfigError(
                f"ptychography.slices: {len(section.slices)} numbers for more tilts; give one for each tilt"
            )
        return section.slices[i_tilt]
    assert section.sample_thickness_angstrom is not None
    assert section.slice_thickness_angstrom is not None
    cos, sin = math.cos(angle), abs(math.sin(angle))
    path = 1 / max(cos, 0.1) if section.sample_shape == "film" else cos + sin
    return max(1, math.ceil(section.sample_thickness_angstrom * path / section.slice_thickness_angstrom - 0.25))


def starting_probe(job: Job, series: TiltSeries, n_slices: int) -> ComplexArray:
    """Return the probe modes (mode, y, x) in front of the first slice, unit total power.

    Raises
    ------
    ConfigError : the probe does not fit its window, or the file has none.
    """
    probe = job.probe
    if probe.source == "file":
        if series.probe is None:
            raise ConfigError(
                "probe.source: 'file', but the data file has no probe; name its dataset, or use 'aperture'"
            )
        modes: ComplexArray = np.asarray(series.probe, np.complex128)
        if modes.shape[-2:] != series.pattern_shape:
            raise DataError(
                f"{series.identity.path}: the probe is {modes.shape[-2:]} pixels, "
                f"the patterns are {series.pattern_shape}; cut or pad one of them"
            )
        if len(modes) < probe.modes:
            modes = orthogonal_start_modes(modes[0], probe.modes, probe.mode_share)
        modes = modes[: probe.modes]
        return np.asarray(modes / np.sqrt((np.abs(modes) ** 2).sum()))
    beam = beam_of(job)
    assert beam is not None
    assert probe.semiangle_mrad is not None
    depth = 0.5 * (n_slices - 1) * (job.ptychography.slice_thickness_angstrom or 0.0)
    aberrations = {
        "C10": -probe.defocus_angstrom - depth,
        "C12": probe.astigmatism_angstrom,
        "phi12": math.radians(probe.astigmatism_angle_deg),
        "C30": probe.spherical_mm * 1e7,
    }
    wave = aberrated_probe(
        series.pattern_shape, series.sampling, beam.wavelength, probe.semiangle_mrad * 1e-3, aberrations
    )
    fault = probe_window_fault(wave, series.sampling, beam.wavelength, probe.semiangle_mrad * 1e-3)
    if fault:
        raise ConfigError(f"impossible geometry: {fault}")
    return orthogonal_start_modes(wave, probe.modes, probe.mode_share)


def tilt_setup(job: Job, series: TiltSeries, i_tilt: int, grid: Grid) -> TiltSetup:
    """Return the setup of one tilt; it reads a few patterns, so call it on one rank and hand the answer on."""
    scan = series.tilt(i_tilt)
    n_slices = slice_count(job, i_tilt, scan.angle)
    beam = beam_of(job)
    probe = starting_probe(job, series, n_slices) * math.sqrt(mean_power(scan))
    return TiltSetup(
        i_tilt=i_tilt,
        number=scan.number,
        angle=scan.angle,
        grid=grid,
        window=series.pattern_shape,
        sampling=series.sampling,
        positions=scan.positions,
        n_slices=n_slices,
        slice_thickness=job.ptychography.slice_thickness_angstrom or 0.0,
        wavelength=beam.wavelength if beam else 1.0,
        mask=scan.mask,
        probe=probe.astype(complex_dtype(job.ptychography.precision)),
    )


def mean_power(scan: TiltScan) -> float:
    """Return the mean counts of a pattern, from up to 64 patterns spread over the scan."""
    picks = np.unique(np.linspace(0, scan.n_positions - 1, min(scan.n_positions, N_POWER_SAMPLES)).astype(np.int64))
    power = float(scan.read(picks).sum(dtype=np.float64)) / len(picks)
    if power <= 0:
        raise DataError(f"tilt {scan.number}: the patterns hold no counts; drop this tilt (data.drop_tilts)")
    return power


def build_model(job: Job, setup: TiltSetup, loss: str) -> PtychographyModel:
    """Return the forward model of one tilt."""
    return PtychographyModel(
        setup.window,
        setup.sampling,
        setup.wavelength,
        setup.slice_thickness,
        mask=setup.mask,
        loss=loss,
        precision=job.ptychography.precision,
        kernel=job.ptychography.kernel,
    )
