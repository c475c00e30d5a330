"""The starting point of one tilt: model, grid, probe, empty object. Pure functions of the job and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpcrec.backend.array import BoolArray, ComplexArray, FloatArray, complex_dtype
from hpcrec.backend.fft import fft2, ifft2
from hpcrec.data.dataset import TiltScan, TiltSeries
from hpcrec.errors import ConfigError, DataError
from hpcrec.geometry.grid import Grid, object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import PtychographyState
from hpcrec.physics.probe import aberrated_probe, orthogonal_start_modes, probe_window_fault
from hpcrec.physics.propagation import propagation_rate
from hpcrec.run.build import near_field_factor
from hpcrec.run.job import Job
from hpcrec.run.optics import beam_of, mode_count, slice_count, slice_thickness

N_POWER_SAMPLES = 64
GRID_MARGIN = 4
FEW_COUNTS = 50.0
STATE_PHASE = 0.05


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


def common_grid(job: Job, series: TiltSeries) -> Grid:
    """Return the object grid that holds the windows of all tilts, and room for refined positions to move."""
    positions = np.concatenate([p[[p.argmin(0), p.argmax(0)]].reshape(-1, 2) for p in series.facts.positions])
    return object_grid(positions, probe_window(job, series), series.sampling, GRID_MARGIN + moving_margin(job, series))


def probe_window(job: Job, series: TiltSeries) -> tuple[int, int]:
    """Return the shape (ny, nx) of the probe's window: that of a pattern, times the detector's upsampling."""
    ny, nx = series.pattern_shape
    return ny * job.detector.upsampling, nx * job.detector.upsampling


def moving_margin(job: Job, series: TiltSeries) -> int:
    """Return the pixels by which windows may leave those of the given positions: refined positions, flight."""
    moves = job.refine.positions is not None or job.refine.annealing is not None
    reach = job.parallel.halo_margin_angstrom if moves else 0.0
    if job.detector.flight_points > 1:
        reach += 0.5 * max(abs(d) for d in job.detector.flight_angstrom)
    return math.ceil(reach / min(series.sampling))


def starting_probe(job: Job, series: TiltSeries, n_slices: int) -> ComplexArray:
    """Return the probe modes (mode, y, x) in front of the first slice, unit total power.

    Raises
    ------
    ConfigError : the probe does not fit its window, or the file has none.
    """
    probe, n_modes = job.probe, mode_count(job)
    if probe.source == "file":
        if series.probe is None:
            raise ConfigError(
                "probe.source: 'file', but the data file has no probe; name its dataset, or use 'aperture'"
            )
        modes: ComplexArray = np.asarray(series.probe, np.complex128)
        if modes.shape[-2:] != probe_window(job, series):
            raise DataError(
                f"{series.identity.path}: the probe is {modes.shape[-2:]} pixels, "
                f"its window is {probe_window(job, series)}; cut or pad one of them"
            )
        if len(modes) < n_modes:
            modes = orthogonal_start_modes(modes[0], n_modes, probe.mode_share)
        modes = modes[:n_modes]
        return np.asarray(modes / np.sqrt((np.abs(modes) ** 2).sum()))
    if probe.source == "patterns":
        return orthogonal_start_modes(_carried_back(job, series), n_modes, probe.mode_share)
    beam = beam_of(job)
    assert beam is not None
    assert probe.semiangle_mrad is not None
    depth = 0.5 * (n_slices - 1) * slice_thickness(job)
    aberrations = {
        "C10": -probe.defocus_angstrom - depth,
        "C12": probe.astigmatism_angstrom,
        "phi12": math.radians(probe.astigmatism_angle_deg),
        "C30": probe.spherical_mm * 1e7,
    }
    wave = aberrated_probe(
        probe_window(job, series), series.sampling, beam.wavelength, probe.semiangle_mrad * 1e-3, aberrations
    )
    fault = probe_window_fault(wave, series.sampling, beam.wavelength, probe.semiangle_mrad * 1e-3)
    if fault:
        raise ConfigError(f"impossible geometry: {fault}")
    return orthogonal_start_modes(wave, n_modes, probe.mode_share)


def _carried_back(job: Job, series: TiltSeries) -> ComplexArray:
    """Return the probe (y, x) of unit power whose intensity at the detector is the mean pattern's."""
    window, beam = probe_window(job, series), beam_of(job)
    amplitude = np.sqrt(mean_pattern(series.tilt(series.n_tilts // 2)))
    if job.detector.field == "near":
        assert beam is not None
        factor = near_field_factor(job, window, series.sampling, beam.wavelength)
        wave = ifft2(fft2(amplitude.astype(np.complex128)) * factor.conj())
    else:
        pad = [(0, n - m) for n, m in zip(window, amplitude.shape)]
        spectrum = np.pad(np.fft.fftshift(amplitude), pad)
        centred = np.roll(spectrum, [n // 2 - m // 2 for n, m in zip(window, amplitude.shape)], (0, 1))
        wavelength = beam.wavelength if beam else 1.0
        rate = propagation_rate(window, series.sampling, wavelength)
        # Underfocus: the focus lies behind the sample, so the wave there is carried upstream
        wave = np.fft.fftshift(ifft2(np.fft.ifftshift(centred) * np.exp(-1j * rate * job.probe.defocus_angstrom)))
    return np.asarray(wave / np.sqrt((np.abs(wave) ** 2).sum()))


def tilt_setup(job: Job, series: TiltSeries, i_tilt: int, grid: Grid) -> TiltSetup:
    """Return the setup of one tilt; it reads a few patterns, so call it on one rank and hand the answer on."""
    scan = series.tilt(i_tilt)
    n_slices = slice_count(job, scan.number, scan.angle)
    beam = beam_of(job)
    probe = starting_probe(job, series, n_slices) * math.sqrt(mean_power(scan))
    return TiltSetup(
        i_tilt=i_tilt,
        number=scan.number,
        angle=scan.angle,
        grid=grid,
        window=probe_window(job, series),
        sampling=series.sampling,
        positions=scan.positions,
        n_slices=n_slices,
        slice_thickness=slice_thickness(job),
        wavelength=beam.wavelength if beam else 1.0,
        mask=scan.mask,
        probe=probe.astype(complex_dtype(job.ptychography.precision)),
    )


def start_state(job: Job, setup: TiltSetup, held: Box) -> PtychographyState:
    """Return an empty object on the pixels ``held`` under the starting probe.

    Several object states begin with faint random phases, the same for any ranks: alike, they would stay alike.
    """
    n_states, dtype = job.ptychography.object_states, complex_dtype(job.ptychography.precision)
    obj = np.ones((n_states * setup.n_slices, *held.shape), dtype)
    if n_states > 1:
        whole = (len(obj), *setup.grid.shape)
        phase = STATE_PHASE * np.random.default_rng((job.ptychography.seed, setup.number)).standard_normal(whole)
        obj *= np.exp(1j * phase[(slice(None), *held.slices(Box(0, whole[1], 0, whole[2])))]).astype(dtype)
    return PtychographyState(
        obj=obj,
        probe=setup.probe.copy(),
        positions=setup.positions.copy(),
        grid=setup.grid,
        box=held,
        n_states=n_states,
    )


def mean_pattern(scan: TiltScan) -> FloatArray:
    """Return the mean (ky, kx) of up to 64 patterns spread over the scan, float64."""
    picks = np.unique(np.linspace(0, scan.n_positions - 1, min(scan.n_positions, N_POWER_SAMPLES)).astype(np.int64))
    return scan.read(picks).mean(axis=0, dtype=np.float64)  # type: ignore[no-any-return]


def mean_power(scan: TiltScan) -> float:
    """Return the mean counts of a pattern, from up to 64 patterns spread over the scan."""
    power = float(mean_pattern(scan).sum())
    if power <= 0:
        raise DataError(f"tilt {scan.number}: the patterns hold no counts; drop this tilt (data.drop_tilts)")
    return power
