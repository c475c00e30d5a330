"""From the object slices of one tilt to one phase projection that tomography can add up.

The phase of a projection is the *sum of the slices' unwrapped phases*, φ(r) = Σ_s arg O_s(r), not the angle of the
product. Ptychography leaves a plane a + b·y + c·x undetermined (an offset, and a shift of the probe's spectrum); the
particle stands isolated in vacuum, so the plane is fitted where the projection is empty and subtracted.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import skimage
from scipy import ndimage

from hpcrec.backend.array import Array, BoolArray, FloatArray
from hpcrec.errors import DataError
from hpcrec.options import options

logger = logging.getLogger(__name__)

_PLANE_ROUNDS = 8
_RAMP_PASSES = 4


@options
class PrepareOptions:
    """How object slices become a phase projection.

    illumination_threshold : pixels with less than this share of the typical illumination count as not seen.
    edge_angstrom : width of the soft edge inside the illuminated region.
    unwrap : "reliability" (Herráez et al., Appl. Opt. 41, 7437 (2002)) or "none" for weak phase objects.
    background : what is subtracted: "plane" (offset and ramps), "offset" alone, or "none".
    smoothing_angstrom : width over which the phase is averaged to tell particle from vacuum.
    max_residue_density : residues per pixel above which a projection is reported as doubtful.
    """

    illumination_threshold: float = 0.25
    edge_angstrom: float = 2.0
    unwrap: Literal["reliability", "none"] = "reliability"
    background: Literal["plane", "offset", "none"] = "plane"
    smoothing_angstrom: float = 1.5
    max_residue_density: float = 0.002


@dataclass(frozen=True, kw_only=True)
class PreparedProjection:
    """One phase projection with what was taken from it.

    ``phase`` (y, x) float32 rad, zero where not illuminated; ``weight`` (y, x) float32 in [0, 1], the soft edge of the
    illuminated region (``phase`` is already multiplied by it); ``n_residues`` phase vortices of all slices in the
    illuminated region; ``doubtful`` whether they are too many to trust the unwrapping; ``ramp`` (y, x) rad/Å and
    ``offset`` rad in (−π, π] of the plane that was subtracted from the unwrapped sum, at the field's centre;
    ``vacuum_fraction`` share of the illuminated region taken as empty; ``mass`` Σφ·dy·dx in rad·Å², the same for
    every tilt of an isolated particle.
    """

    phase: FloatArray
    weight: FloatArray
    n_residues: int
    doubtful: bool
    ramp: tuple[float, float]
    offset: float
    vacuum_fraction: float
    mass: float


def prepare_projection(
    object_slices: Array, illumination: Array, sampling: tuple[float, float], options: PrepareOptions
) -> PreparedProjection:
    """Turn the object of one tilt into a phase projection; a pure function of its arguments.

    ``object_slices`` (slice, y, x) complex; ``illumination`` (y, x) ≥ 0, the summed probe intensity; ``sampling``
    (dy, dx) in Å. Raises DataError when shapes disagree, a value is not finite, or nothing is illuminated.
    """
    _check(object_slices, illumination)
    seen = illuminated_region(illumination, options.illumination_threshold)
    weight = _soft_edge(seen, sampling, options.edge_angstrom)
    n_residues = sum(int(np.count_nonzero(phase_residues(obj) & _whole_loops(seen))) for obj in object_slices)
    doubtful = n_residues > options.max_residue_density * seen.sum() * len(object_slices)
    if doubtful:
        logger.warning("the phase has %d residues in %d pixels: unwrapping is doubtful", n_residues, int(seen.sum()))
    phase = np.sum([_slice_phase(obj, illumination, seen, options.unwrap) for obj in object_slices], axis=0)
    plane, vacuum = _background(phase, seen, sampling, options)
    yc, xc = (n // 2 for n in phase.shape)
    flat = ((phase - _plane_values(plane, phase.shape)) * weight).astype(np.float32)
    return PreparedProjection(
        phase=flat,
        weight=weight.astype(np.float32),
        n_residues=n_residues,
        doubtful=bool(doubtful),
        ramp=(float(plane[1] / sampling[0]), float(plane[2] / sampling[1])),
        offset=float(np.angle(np.exp(1j * (plane[0] + plane[1] * yc + plane[2] * xc)))),
        vacuum_fraction=float(vacuum.sum() / seen.sum()),
        mass=float(flat.sum(dtype=np.float64) * sampling[0] * sampling[1]),
    )


def illuminated_region(illumination: Array, threshold: float) -> BoolArray:
    """Return the largest connected region (y, x) with more than ``threshold`` × typical illumination, holes filled.

    The typical illumination is the median over the pixels that carry more than a tenth of the maximum of the
    smoothed illumination, so a few hot pixels between sparse scan positions do not set the scale.
    """
    smooth = ndimage.gaussian_filter(np.asarray(illumination, np.float64), 2.0)
    bright = smooth[smooth > 0.1 * smooth.max()] if smooth.max() > 0 else smooth
    labels, count = ndimage.label(smooth > threshold * float(np.median(bright)))
    if count == 0 or smooth.max() <= 0:
        raise DataError("no pixel of the projection is illuminated; check the scan positions and the probe")
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return np.asarray(ndimage.binary_fill_holes(labels == largest), np.bool_)


def phase_residues(obj: Array) -> Array:
    """Return the phase vortices (y−1, x−1) of a complex image: −1, 0 or +1 per loop of 2×2 pixels.

    Goldstein, Zebker & Werner, Radio Sci. 23, 713 (1988): the sum of the wrapped differences round the loop over 2π.
    """
    unit = np.asarray(obj, np.complex128)
    down = np.angle(unit[1:, :] * unit[:-1, :].conj())
    right = np.angle(unit[:, 1:] * unit[:, :-1].conj())
    loop = down[:, :-1] + right[1:, :] - down[:, 1:] - right[:-1, :]
    return np.rint(loop / (2 * np.pi)).astype(np.int8)


def wrapped_ramp(obj: Array, weight: Array) -> tuple[float, float]:
    """Return the phase ramp (y, x) in rad/pixel of a complex image under ``weight`` (y, x).

    A coarse value is the peak of the Fourier transform of w·O/|O|; passes of g = Σ w Im(O* ∂O) / Σ w |O|² refine it
    (Guizar-Sicairos et al., Opt. Express 19, 21345 (2011)). Ramps of many periods per frame are found.
    """
    unit = np.exp(1j * np.angle(np.asarray(obj, np.complex128))) * weight
    spectrum = np.abs(np.fft.fft2(unit))
    peak = np.unravel_index(int(np.argmax(spectrum)), spectrum.shape)
    ramp = [2 * np.pi * float(np.fft.fftfreq(n)[i]) for n, i in zip(unit.shape, peak)]
    y, x = np.indices(unit.shape)
    for _ in range(_RAMP_PASSES):
        flat = unit * np.exp(-1j * (ramp[0] * y + ramp[1] * x))
        ramp[0] += float(np.angle(np.sum(flat[1:, :] * flat[:-1, :].conj())))
        ramp[1] += float(np.angle(np.sum(flat[:, 1:] * flat[:, :-1].conj())))
    return ramp[0], ramp[1]


def fit_plane(values: Array, weight: Array) -> FloatArray:
    """Return (a, b, c) of the weighted least-squares plane a + b·i_y + c·i_x through ``values`` (y, x), float64."""
    weight, values = np.asarray(weight, np.float64), np.asarray(values, np.float64)
    # About the middle and in units of the field the normal equations lose no digits that matter: condition < 100
    y, x = ((np.arange(n) - (n - 1) / 2) / max(n - 1, 1) for n in weight.shape)
    by_row, by_column = weight.sum(axis=1), weight.sum(axis=0)
    weighted = np.where(weight > 0, weight * values, 0.0)
    wy, wx, wyx = by_row @ y, by_column @ x, y @ weight @ x
    matrix = np.array(
        [[by_row.sum(), wy, wx], [wy, by_row @ y**2, wyx], [wx, wyx, by_column @ x**2]],
    )
    right = np.array([weighted.sum(), weighted.sum(axis=1) @ y, weighted.sum(axis=0) @ x])
    offset, *slopes = np.linalg.lstsq(matrix, right, rcond=1e-12)[0]
    by = [s / max(n - 1, 1) for s, n in zip(slopes, weight.shape)]
    return np.array([offset - sum(s * (n - 1) / 2 for s, n in zip(by, weight.shape)), *by])


def _check(object_slices: Array, illumination: Array) -> None:
    if np.ndim(object_slices) != 3 or np.shape(object_slices)[1:] != np.shape(illumination):
        raise DataError(
            f"expected object slices (slice, y, x) and an illumination (y, x), got shapes {np.shape(object_slices)} "
            f"and {np.shape(illumination)}"
        )
    if not (np.isfinite(object_slices).all() and np.isfinite(illumination).all()):
        raise DataError("the object or its illumination holds values that are not finite; rerun this tilt")


def _whole_loops(seen: BoolArray) -> BoolArray:
    """Return the 2×2 loops (y−1, x−1) whose four pixels are all in the region."""
    return seen[1:, 1:] & seen[1:, :-1] & seen[:-1, 1:] & seen[:-1, :-1]


def _soft_edge(seen: BoolArray, sampling: tuple[float, float], width: float) -> FloatArray:
    """Return a raised-cosine weight: 0 outside the region, 1 deeper than ``width`` Å inside it."""
    padded = np.pad(seen, 1)
    depth = ndimage.distance_transform_edt(padded, sampling=sampling)[1:-1, 1:-1]
    share = np.clip(depth / max(width, min(sampling)), 0.0, 1.0)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * share), np.float64)


def _slice_phase(obj: Array, illumination: Array, seen: BoolArray, unwrap: str) -> FloatArray:
    """Unwrap one slice: first take out its ramp, which would wrap many times, then add it again after unwrapping."""
    weight = np.where(seen, illumination, 0.0)
    ramp = wrapped_ramp(obj, weight)
    y, x = np.indices(obj.shape)
    plane = ramp[0] * y + ramp[1] * x
    flat = np.asarray(obj, np.complex128) * np.exp(-1j * plane)
    middle = float(np.angle(np.sum(flat * weight)))
    phase = np.angle(flat * np.exp(-1j * middle))
    if unwrap == "reliability" and _has_jumps(phase, seen):
        phase = np.ma.getdata(skimage.restoration.unwrap_phase(np.ma.masked_array(phase, ~seen)))  # type: ignore[no-untyped-call]
    return np.asarray(np.where(seen, phase, 0.0) + plane + middle, np.float64)


def _has_jumps(phase: FloatArray, seen: BoolArray) -> bool:
    """Whether neighbours inside the region differ by more than π; without jumps the phase is unwrapped already."""
    down = (np.abs(np.diff(phase, axis=0)) > np.pi) & seen[1:, :] & seen[:-1, :]
    right = (np.abs(np.diff(phase, axis=1)) > np.pi) & seen[:, 1:] & seen[:, :-1]
    return bool(down.any() or right.any())


def _background(
    phase: FloatArray, seen: BoolArray, sampling: tuple[float, float], options: PrepareOptions
) -> tuple[FloatArray, BoolArray]:
    """Return the plane through the vacuum and the vacuum region, by turns of "fit" and "tell vacuum from particle".

    The first plane hugs the lower envelope of the phase: potentials are positive, so the particle stands above it.
    """
    if options.background == "none":
        return np.zeros(3), seen
    smooth = _masked_smooth(phase, seen, [options.smoothing_angstrom / s for s in sampling])
    plane = _lower_envelope(smooth, seen)
    vacuum = seen
    for _ in range(_PLANE_ROUNDS):
        vacuum = _vacuum(smooth - _plane_values(plane, phase.shape), seen)
        plane = fit_plane(phase, vacuum)
    if options.background == "offset":
        plane = np.array([float(phase[vacuum].mean()), 0.0, 0.0])
    return plane, vacuum


def _masked_smooth(phase: FloatArray, seen: BoolArray, sigma: list[float]) -> FloatArray:
    """Average over a Gaussian inside the region only, about the region's plane so that a ramp is not bent."""
    plane = _plane_values(fit_plane(phase, seen), phase.shape)
    inside = ndimage.gaussian_filter(seen.astype(np.float64), sigma)
    summed = ndimage.gaussian_filter(np.where(seen, phase - plane, 0.0), sigma)
    return np.asarray(summed / np.maximum(inside, 1e-6) + plane, np.float64)


def _lower_envelope(values: FloatArray, seen: BoolArray) -> FloatArray:
    """Fit a plane by expectile regression: points above it weigh 0.02, points below it 1 (Newey & Powell 1987)."""
    weight = seen.astype(np.float64)
    plane = fit_plane(values, weight)
    for _ in range(4 * _PLANE_ROUNDS):
        above = values > _plane_values(plane, values.shape)
        plane = fit_plane(values, np.where(seen, np.where(above, 0.02, 1.0), 0.0))
    return plane


def _vacuum(height: FloatArray, seen: BoolArray) -> BoolArray:
    """Return the pixels whose smoothed phase lies in the lower quarter between the vacuum's and the particle's level.

    Otsu's threshold parts the two levels; the quarter keeps the particle's blurred rim out of the fit.
    """
    inside = height[seen]
    if float(np.ptp(inside)) < 1e-9:
        return seen
    split = float(skimage.filters.threshold_otsu(inside))  # type: ignore[no-untyped-call]
    low, high = float(np.median(inside[inside <= split])), float(np.median(inside[inside > split]))
    return np.asarray(seen & (height < low + 0.25 * (high - low)), np.bool_)


def _plane_values(plane: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.asarray(plane[0] + plane[1] * y + plane[2] * x, np.float64)
