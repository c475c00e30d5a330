"""Multislice 4D-STEM of a tilted specimen: from atoms to electron counts.

Independent atoms, frozen phonons or Debye-Waller blur, a partially coherent probe as orthogonal modes, Poisson counts.
The physics is finer than a reconstruction's model: thin slices, a wider band, atoms that are not on pixels.
Cowley & Moodie, Acta Cryst. 10 (1957) 609; Kirkland, Advanced Computing in Electron Microscopy (2010), chapter 6.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.fft import next_fast_len

from hpcrec.backend.array import Array, ComplexArray, FloatArray, IntArray
from hpcrec.backend.fft import fft2, ifft2
from hpcrec.conventions import TRANSMISSION_SIGN
from hpcrec.data.experiment import (
    SimulationOptions,
    TiltTruth,
    check_experiment,
    nominal_positions,
    nominal_tilts,
    tilt_truth,
)
from hpcrec.data.specimen import Specimen, posed
from hpcrec.errors import ConfigError
from hpcrec.geometry.grid import Grid, object_grid
from hpcrec.physics.beam import Beam, electron_beam
from hpcrec.physics.probe import aberrated_probe, probe_window_fault
from hpcrec.physics.propagation import fresnel_factor
from hpcrec.physics.scattering import projected_potential

logger = logging.getLogger(__name__)

_BAND_LIMIT = (
    2 / 3
)  # of Nyquist: the product of two waves inside it does not alias back into it (Kirkland, section 6.6)
_PATTERNS_AT_ONCE = 8  # waves of 72² in complex64 then stay in a 1 MB cache
_POTENTIAL_REACH = 4.0  # Å; beyond it the projected potential of any atom is below 0.6 V·Å, a phase of 0.5 mrad
_MODE_POWER = 1e-2  # of the probe's power may be lost by leaving out weak modes


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedTilt:
    """One simulated tilt.

    patterns : (position, ky, kx) uint16 electron counts, zero frequency at [0, 0]
    positions : (position, 2) float64 Å, the nominal positions (y, x)
    nominal_tilt : rad
    truth : what really happened
    """

    patterns: IntArray
    positions: FloatArray
    nominal_tilt: float
    truth: TiltTruth


def window_sampling(chosen: SimulationOptions) -> tuple[float, float]:
    """Return the pixel (dy, dx) in Å of the computed window: window side over ``grid_pixels``."""
    d = 1 / (chosen.detector.pixel_inverse_angstrom * chosen.multislice.grid_pixels)
    return d, d


def source_modes(spectrum: ComplexArray, grid: Grid, beam: Beam, source: float, focal_spread: float) -> ComplexArray:
    """Return the spectra (mode, ky, kx) of orthogonal modes whose intensities add up like a blurred source's.

    ``spectrum`` (ky, kx) of the coherent probe ψ; ``source`` σ and ``focal_spread`` δ, standard deviations in Å of
    Gaussian spreads of the probe's position and focus. Averaging ψ over both gives the density matrix
    ρ(k, k') = ψ(k) ψ*(k') exp(−2π²σ²|k − k'|²) exp(−½(πλδ)²(k² − k'²)²);
    the modes are its eigenvectors, the strongest ones that hold 99 % of the power.
    Thibault & Menzel, Nature 494 (2013) 68; Frank, Optik 38 (1973) 519.
    """
    if source == 0 and focal_spread == 0:
        return spectrum[None]
    # Round-off has filled the dark pixels; an edge pixel is far above it.
    inside = np.abs(spectrum) > 1e-6 * np.abs(spectrum).max()
    ky, kx = (np.broadcast_to(k, grid.shape)[inside] for k in grid.frequencies())
    k2 = ky**2 + kx**2
    exponent = -2 * (np.pi * source) ** 2 * (np.subtract.outer(ky, ky) ** 2 + np.subtract.outer(kx, kx) ** 2)
    exponent -= (np.pi * beam.wavelength * focal_spread * np.subtract.outer(k2, k2)) ** 2 / 2
    powers, vectors = np.linalg.eigh(np.exp(exponent) * np.outer(spectrum[inside], spectrum[inside].conj()))
    powers, vectors = np.maximum(powers[::-1], 0), vectors[:, ::-1]
    n_modes = int(np.searchsorted(np.cumsum(powers) / powers.sum(), 1 - _MODE_POWER)) + 1
    # The power left out goes back in proportion, so that the dose stays what was asked for.
    scale = np.sqrt(powers[:n_modes] * powers.sum() / powers[:n_modes].sum())
    modes = np.zeros((n_modes, *grid.shape), np.complex128)
    modes[:, inside] = (vectors[:, :n_modes] * scale).T
    return modes


def probe_spectra(chosen: SimulationOptions, beam: Beam, defocus: float, z: float) -> ComplexArray:
    """Return the spectra (mode, ky, kx) of the probe at depth ``z`` Å from the tilt axis, its centre at the origin.

    ``defocus`` in Å at the tilt axis, positive underfocus. :class:`ConfigError` if the probe is larger than its window.
    """
    shape, sampling = (chosen.multislice.grid_pixels,) * 2, window_sampling(chosen)
    semiangle = chosen.optics.semiangle_mrad * 1e-3
    aberrations = {**chosen.optics.aberrations_angstrom, "C10": z - defocus}
    soft = chosen.optics.soft_aperture
    probe = aberrated_probe(shape, sampling, beam.wavelength, semiangle, aberrations, soft_edge=soft)
    detector_pixel = 1 / (chosen.detector.pixels * chosen.detector.pixel_inverse_angstrom)
    beyond = semiangle / beam.wavelength > 0.5 / detector_pixel
    fault = "the aperture is larger than the detector" if beyond else None
    fault = fault or probe_window_fault(probe, sampling, beam.wavelength, semiangle)
    if fault:
        raise ConfigError(f"optics and detector do not fit at {defocus - z:.0f} Å of defocus: {fault}")
    grid = Grid(shape=shape, sampling=sampling)
    return source_modes(
        fft2(np.fft.ifftshift(probe)),
        grid,
        beam,
        chosen.optics.source_sigma_angstrom,
        chosen.optics.focal_spread_angstrom,
    )


def field_grid(positions: FloatArray, chosen: SimulationOptions) -> Grid:
    """Return the grid of the potential: every window, a margin for the atoms' tails, sides with fast transforms."""
    sampling, n = window_sampling(chosen), chosen.multislice.grid_pixels
    grid = object_grid(positions, (n, n), sampling, margin=int(np.ceil(_POTENTIAL_REACH / sampling[0])))
    return replace(grid, shape=(next_fast_len(grid.shape[0]), next_fast_len(grid.shape[1])))


def in_view(specimen: Specimen, grid: Grid) -> Specimen:
    """Return the atoms that stand over ``grid``."""
    pixels = grid.to_pixels(specimen.positions[:, 1:])
    kept = ((pixels >= 0) & (pixels <= np.array(grid.shape) - 1)).all(axis=1)
    return Specimen(
        numbers=specimen.numbers[kept], positions=specimen.positions[kept], b_factors=specimen.b_factors[kept]
    )


def slice_planes(specimen: Specimen, thickness: float) -> FloatArray:
    """Return the depths z (slice,) in Å of planes ``thickness`` apart for all atoms; one at 0 if there are none."""
    if specimen.n_atoms == 0:
        return np.zeros(1)
    low, high = specimen.positions[:, 0].min(), specimen.positions[:, 0].max()
    n_slices = max(int(np.ceil((high - low) / thickness)), 1)
    planes: FloatArray = (low + high) / 2 + thickness * (np.arange(n_slices) - (n_slices - 1) / 2)
    return planes


def transmissions(specimen: Specimen, planes: FloatArray, thickness: float, grid: Grid, beam: Beam) -> ComplexArray:
    """Return exp(iσV) of every slice, (slice, y, x) complex64, band limited; atoms go to their nearest plane."""
    nearest = np.clip(np.round((specimen.positions[:, 0] - planes[0]) / thickness), 0, len(planes) - 1).astype(int)
    limit = fresnel_factor(grid.shape, grid.sampling, beam.wavelength, 0.0, _BAND_LIMIT)
    result = np.empty((len(planes), *grid.shape), np.complex64)
    for i_slice in range(len(planes)):
        chosen = nearest == i_slice
        potential = projected_potential(
            specimen.numbers[chosen], specimen.positions[chosen, 1:], grid, specimen.b_factors[chosen]
        )
        wave = np.exp(1j * np.float32(TRANSMISSION_SIGN * (beam.interaction or 0.0)) * potential)
        result[i_slice] = ifft2(fft2(wave) * limit)
    return result


def _configurations(specimen: Specimen, n_phonons: int, rng: np.random.Generator) -> Iterator[Specimen]:
    """Yield the specimen with frozen thermal displacements, B = 8π²⟨u²⟩; the blurred one if ``n_phonons`` is 0."""
    if n_phonons == 0:
        yield specimen
    amplitude = np.sqrt(specimen.b_factors / (8 * np.pi**2))[:, None]
    for _ in range(n_phonons):
        moved = specimen.positions + amplitude * rng.standard_normal(specimen.positions.shape)
        yield replace(specimen, positions=moved, b_factors=np.zeros(specimen.n_atoms))


def diffract(
    obj: ComplexArray, grid: Grid, positions: FloatArray, modes: ComplexArray, step: ComplexArray, n_pixels: int
) -> FloatArray:
    """Return the mean patterns (position, ky, kx) float32 of unit incident power, zero frequency at [0, 0].

    ``obj`` (slice, y, x) transmissions on ``grid``; ``positions`` (position, 2) Å; ``modes`` (mode, ky, kx) spectra at
    the first slice; ``step`` (ky, kx) propagator between slices; the ``n_pixels`` lowest frequencies are kept.
    """
    n = modes.shape[-1]
    window = Grid(shape=(n, n), sampling=grid.sampling)
    ky, kx = window.frequencies()
    pixels = grid.to_pixels(positions)
    corners = np.round(pixels).astype(int) - n // 2
    # Moves the origin from the probe's centre to the window's first pixel, and by what rounding has left.
    offset = (n // 2 + pixels - np.round(pixels)) * grid.sampling
    kept = np.fft.ifftshift(np.arange(n_pixels) - n_pixels // 2) % n
    result = np.zeros((len(positions), n_pixels, n_pixels), np.float32)
    for first in range(0, len(positions), _PATTERNS_AT_ONCE):
        part = slice(first, first + _PATTERNS_AT_ONCE)
        y, x = offset[part].T[..., None, None]
        ramp = (np.exp(-2j * np.pi * ky * y) * np.exp(-2j * np.pi * kx * x)).astype(np.complex64)
        for mode in modes.astype(np.complex64):
            spectrum = _through(obj, corners[part], mode * ramp, step)
            result[part] += np.abs(spectrum[:, kept[:, None], kept]) ** 2
    return result


def _through(obj: ComplexArray, corners: IntArray, spectrum: ComplexArray, step: ComplexArray) -> ComplexArray:
    """Return the far field (position, ky, kx) of incident waves given by their spectra (position, ky, kx)."""
    n = spectrum.shape[-1]
    for i_slice, layer in enumerate(obj):
        wave = ifft2(spectrum if i_slice == 0 else spectrum * step)
        for one, (y, x) in zip(wave, corners):
            one *= layer[y : y + n, x : x + n]
        spectrum = fft2(wave)
    return spectrum


def expected_patterns(
    chosen: SimulationOptions, specimen: Specimen, truth: TiltTruth, seed: Array | int = 0
) -> FloatArray:
    """Return the mean pattern of every position for one incident electron, (position, ky, kx) float32.

    Zero frequency at [0, 0]. ``seed`` draws the thermal displacements. :class:`ConfigError` if the probe is larger than
    its window at the specimen's first slice.
    """
    m, beam = chosen.multislice, electron_beam(chosen.optics.energy_ev)
    positions = nominal_positions(chosen.scan) + truth.jitter
    grid = field_grid(positions, chosen)
    standing = in_view(posed(specimen, truth.pose), grid)
    planes = slice_planes(standing, m.slice_thickness_angstrom)
    modes = probe_spectra(chosen, beam, truth.defocus, float(planes[0]))
    step = fresnel_factor((m.grid_pixels,) * 2, grid.sampling, beam.wavelength, m.slice_thickness_angstrom, _BAND_LIMIT)
    total = np.zeros((len(positions), chosen.detector.pixels, chosen.detector.pixels), np.float32)
    for one in _configurations(standing, m.n_phonons, np.random.default_rng(seed)):
        obj = transmissions(one, planes, m.slice_thickness_angstrom, grid, beam)
        total += diffract(obj, grid, positions, modes, step, chosen.detector.pixels)
    return total / max(m.n_phonons, 1)


def simulate_tilt(chosen: SimulationOptions, specimen: Specimen, i_tilt: int) -> SimulatedTilt:
    """Simulate tilt ``i_tilt``: counts, nominal geometry and truth; the same whichever tilts ran before.

    A pattern expects dose · step² electrons, less those scattered beyond the detector (a few per cent).
    :class:`ConfigError` if a pixel would count more than uint16 holds.
    """
    truth = tilt_truth(chosen, i_tilt)
    seeds = np.random.SeedSequence([chosen.multislice.phonon_seed, i_tilt]).generate_state(4)
    electrons = chosen.dose_electrons_per_angstrom2 * chosen.scan.step_angstrom**2
    mean = electrons * expected_patterns(chosen, specimen, truth, seeds).astype(np.float64)
    counts = np.random.default_rng([chosen.noise_seed, i_tilt]).poisson(mean)
    if counts.max() > np.iinfo(np.uint16).max:
        raise ConfigError(
            f"a pixel counts {counts.max()} electrons, uint16 holds 65535: lower dose_electrons_per_angstrom2"
        )
    return SimulatedTilt(
        patterns=counts.astype(np.uint16),
        positions=nominal_positions(chosen.scan),
        nominal_tilt=float(nominal_tilts(chosen.tilt)[i_tilt]),
        truth=truth,
    )


def simulate_tilt_series(
    chosen: SimulationOptions,
    specimen: Specimen,
    write_tilt: Callable[[int, SimulatedTilt], None],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Simulate all tilts in order; ``write_tilt(i_tilt, tilt)`` takes each, ``progress(n_done, n_tilts)`` hears of it.

    :class:`ConfigError` lists every choice that cannot be simulated before the first tilt begins.
    """
    check_experiment(chosen)
    for i_tilt in range(chosen.tilt.n_tilts):
        write_tilt(i_tilt, simulate_tilt(chosen, specimen, i_tilt))
        logger.info("simulated tilt %d of %d", i_tilt + 1, chosen.tilt.n_tilts)
        if progress is not None:
            progress(i_tilt + 1, chosen.tilt.n_tilts)
