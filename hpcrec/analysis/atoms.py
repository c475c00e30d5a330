"""From a volume to a table of atoms: local maxima, sub-voxel positions, species.

The steps are those of atomic electron tomography (Yang et al., Nature 592, 60 (2021)): brightest maxima first, a
polynomial fit for the position, a minimum distance, then classes of the integrated intensity with one class of
non-atoms. Weak atoms (oxygen beside cobalt) are told from side lobes of strong ones by distance and by the
histogram of intensities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import skimage
from scipy import ndimage
from scipy.spatial import cKDTree

from hpcrec.analysis.mixture import classify_intensities
from hpcrec.backend.array import Array, BoolArray, FloatArray, IntArray
from hpcrec.errors import ConfigError, DataError
from hpcrec.options import options

_FIT_ROUNDS = 14
_MAX_CANDIDATES = 400_000


@options
class AtomOptions:
    """How atoms are traced.

    species : names of the elements, heaviest (brightest) first.
    min_distance_angstrom : two atoms are never nearer than this; the brighter one stays.
    smoothing_angstrom : σ of the Gaussian that is applied before maxima are sought.
    fit_radius_angstrom : radius of the ball in which the polynomial for the position is fitted.
    integration_radius_angstrom : radius of the ball whose intensity is summed; below half the shortest bond.
    min_confidence : atoms whose class is less probable than this are left out.
    support : whether candidates outside the particle (from the smoothed volume) are left out.
    """

    species: tuple[str, ...] = ("X",)
    min_distance_angstrom: float = 1.4
    smoothing_angstrom: float = 0.2
    fit_radius_angstrom: float = 0.5
    integration_radius_angstrom: float = 0.6
    min_confidence: float = 0.5
    support: bool = True


@dataclass(frozen=True, kw_only=True)
class AtomTable:
    """Traced atoms, brightest first.

    ``positions`` (atom, 3) Å in (z, y, x), zero at voxel n//2 of each axis; ``species`` (atom,) strings; ``intensity``
    (atom,) integrated over the ball, in the volume's unit × Å³; ``confidence`` (atom,) probability of the species
    given the intensities of all candidates, in [0, 1]; ``n_candidates`` maxima looked at, atoms and non-atoms.
    """

    positions: FloatArray
    species: Array
    intensity: FloatArray
    confidence: FloatArray
    n_candidates: int = 0

    def __len__(self) -> int:
        """Return the number of atoms."""
        return len(self.positions)

    def counts(self) -> dict[str, int]:
        """Return the number of atoms per species."""
        names, numbers = np.unique(self.species, return_counts=True)
        return {str(name): int(number) for name, number in zip(names, numbers)}


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Local maxima with sub-voxel positions, brightest first.

    ``positions`` (n, 3) in voxels; ``intensity`` (n,) integrated over the ball, in the volume's unit × Å³.
    """

    positions: FloatArray
    intensity: FloatArray


def trace_atoms(volume: Array, voxel_size: float, options: AtomOptions) -> AtomTable:
    """Find and name the atoms of ``volume`` (z, y, x) with cubic voxels of ``voxel_size`` Å.

    Raises ConfigError for options that cannot be met at this voxel size, DataError for a volume that is not finite or
    has no candidate.
    """
    _check(volume, voxel_size, options)
    found = find_candidates(volume, voxel_size, options)
    classes, confidence = classify_intensities(found.intensity, len(options.species))
    keep = (classes < len(options.species)) & (confidence >= options.min_confidence)
    centre = np.array([n // 2 for n in volume.shape])
    return AtomTable(
        positions=(found.positions[keep] - centre) * voxel_size,
        species=np.array(options.species)[classes[keep]],
        intensity=found.intensity[keep],
        confidence=confidence[keep],
        n_candidates=len(found.intensity),
    )


def find_candidates(volume: Array, voxel_size: float, options: AtomOptions) -> Candidates:
    """Return the maxima of ``volume`` (z, y, x) that could be atoms, with sub-voxel positions and intensities."""
    volume = np.asarray(volume, np.float32)
    smooth = ndimage.gaussian_filter(volume, options.smoothing_angstrom / voxel_size)
    start = local_maxima(smooth, max(0.4 * options.min_distance_angstrom / voxel_size, 1.0))
    if options.support:
        inside = particle_support(volume, voxel_size)
        start = start[inside[tuple(start.T)]]
    start = start[keep_distant(start.astype(np.float64), 0.6 * options.min_distance_angstrom / voxel_size)]
    if len(start) == 0:
        raise DataError("no maximum in the volume looks like an atom; check the reconstruction")
    coefficients = ndimage.spline_filter(smooth, order=3, output=np.float32)
    positions, curvature = refine_maxima(coefficients, start, options.fit_radius_angstrom / voxel_size)
    good = (curvature[:, -1] < 0) & (np.abs(positions - start) <= 3.0).all(axis=1)
    positions = positions[good]
    intensity = ball_sums(volume, positions, options.integration_radius_angstrom / voxel_size) * voxel_size**3
    order = np.argsort(-intensity, kind="stable")
    order = order[keep_distant(positions[order], options.min_distance_angstrom / voxel_size)]
    return Candidates(positions=positions[order], intensity=intensity[order])


def local_maxima(smooth: Array, radius: float) -> IntArray:
    """Return the positive voxels (n, 3) that are the largest within a ball of ``radius`` voxels, brightest first."""
    ball = _ball(radius)
    footprint = np.zeros((2 * int(radius) + 1,) * 3, np.bool_)
    footprint[tuple((ball + int(radius)).T)] = True
    tops = (smooth > 0) & (smooth >= ndimage.maximum_filter(smooth, footprint=footprint))
    tops &= smooth > 1e-3 * float(smooth.max())
    border = int(np.ceil(radius))
    inside = np.zeros_like(tops)
    inside[(slice(border, -border),) * 3] = True
    voxels = np.argwhere(tops & inside)
    order = np.argsort(-smooth[tuple(voxels.T)], kind="stable")
    return voxels[order[:_MAX_CANDIDATES]]


def refine_maxima(coefficients: Array, start: IntArray, radius: float) -> tuple[FloatArray, FloatArray]:
    """Return sub-voxel positions (n, 3) and the curvatures (n, 3) there, ascending.

    Values of the cubic spline (``coefficients``, as from ``scipy.ndimage.spline_filter``) on a ball of ``radius``
    voxels about the current position are fitted by all 35 monomials of degree ≤ 4 with weights exp(−r²/radius²); a
    Newton step of at most half a voxel follows; up to 14 rounds.
    """
    offsets, inverse = _polynomial_fit(radius)
    positions = start.astype(np.float64)
    hessian: FloatArray = np.zeros((len(start), 3, 3))
    moving = np.arange(len(start))
    for _ in range(_FIT_ROUNDS):
        points = (positions[moving, None, :] + offsets[None]).reshape(-1, 3).T
        values = ndimage.map_coordinates(coefficients, points, order=3, prefilter=False, mode="nearest")
        fit = values.reshape(len(moving), -1).astype(np.float64) @ inverse.T
        gradient, hessian[moving] = fit[:, 1:4], _hessian(fit)
        step = _newton_step(gradient, hessian[moving])
        positions[moving] += step
        moving = moving[(np.abs(step) > 2e-3).any(axis=1)]
        if len(moving) == 0:
            break
    return positions, np.linalg.eigvalsh(hessian)


def ball_sums(volume: Array, positions: FloatArray, radius: float) -> FloatArray:
    """Return the volume summed (in voxels) over balls of ``radius`` voxels at fractional ``positions`` (n, 3).

    The ball is sampled on a fixed grid of half voxels about the exact centre, so the sum does not jump with the
    sub-voxel position.
    """
    offsets = _ball(2 * radius) / 2.0
    points = (positions[:, None, :] + offsets[None]).reshape(-1, 3).T
    values = ndimage.map_coordinates(np.asarray(volume, np.float32), points, order=1, mode="constant")
    return np.asarray(values.reshape(len(positions), -1).sum(axis=1, dtype=np.float64) / 8.0, np.float64)


def keep_distant(positions: FloatArray, min_distance: float) -> IntArray:
    """Return the indices of points kept when each, in the order given, removes later ones nearer than the distance."""
    removed = np.zeros(len(positions), np.bool_)
    neighbours = cKDTree(positions).query_ball_point(positions, min_distance)
    for i, near in enumerate(neighbours):
        if not removed[i]:
            removed[[j for j in near if j > i]] = True
    return np.flatnonzero(~removed)


def particle_support(volume: Array, voxel_size: float, sigma_angstrom: float = 2.0) -> BoolArray:
    """Return the region (z, y, x) of the particle: the volume averaged over ~2 Å, above the vacuum.

    Otsu's threshold parts vacuum and particle; the limit lies at 0.3 of the way between their median levels, and 2 Å
    are added all round. A volume without any density has no support.
    """
    smooth = ndimage.gaussian_filter(np.maximum(volume, 0).astype(np.float32), sigma_angstrom / voxel_size)
    if float(np.ptp(smooth)) == 0.0:
        return np.zeros(smooth.shape, np.bool_)
    split = float(skimage.filters.threshold_otsu(smooth))  # type: ignore[no-untyped-call]
    low, high = float(np.median(smooth[smooth <= split])), float(np.median(smooth[smooth > split]))
    depth = ndimage.distance_transform_edt(smooth < low + 0.3 * (high - low)) * voxel_size
    return np.asarray(depth <= 2.0, np.bool_)


def _check(volume: Array, voxel_size: float, options: AtomOptions) -> None:
    if np.ndim(volume) != 3 or not np.isfinite(volume).all():
        raise DataError(f"atoms are traced in a finite volume (z, y, x), got shape {np.shape(volume)}")
    if not options.species or len(set(options.species)) != len(options.species):
        raise ConfigError(f"species must name each element once, heaviest first, got {options.species}")
    if min(np.shape(volume)) * voxel_size < 4 * options.min_distance_angstrom:
        raise ConfigError(
            f"the volume is smaller than four times min_distance_angstrom {options.min_distance_angstrom}"
        )
    if options.min_distance_angstrom < 2 * voxel_size:
        raise ConfigError(
            f"voxels of {voxel_size} Å cannot part atoms {options.min_distance_angstrom} Å from one another; raise "
            "min_distance_angstrom or reconstruct on a finer grid"
        )


def _ball(radius: float) -> IntArray:
    """Return the integer offsets (n, 3) within ``radius``."""
    reach = int(radius)
    grid = np.stack(np.meshgrid(*(np.arange(-reach, reach + 1),) * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.asarray(grid[(grid**2).sum(axis=1) <= radius**2 + 1e-9])


def _polynomial_fit(radius: float) -> tuple[FloatArray, FloatArray]:
    """Return the sample offsets (n, 3) and the pseudo-inverse (35, n) of the weighted degree-4 fit."""
    offsets = _ball(3.0) * (max(radius, 1.5) / 3.0)
    z, y, x = offsets.T
    powers = [
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (2, 0, 0),
        (1, 1, 0),
        (1, 0, 1),
        (0, 2, 0),
        (0, 1, 1),
        (0, 0, 2),
    ]
    powers += [(i, j, k) for n in (3, 4) for i in range(n + 1) for j in range(n - i + 1) for k in [n - i - j]]
    design = np.stack([z**i * y**j * x**k for i, j, k in powers], axis=1)
    root = np.exp(-0.5 * (offsets**2).sum(axis=1) / max(radius, 1.5) ** 2)
    return offsets, np.linalg.pinv(design * root[:, None]) * root[None, :]


def _newton_step(gradient: FloatArray, hessian: FloatArray) -> FloatArray:
    """Return −H⁻¹g (n, 3) capped at half a voxel; where the curvature is not negative, a short step uphill."""
    peaked = np.linalg.eigvalsh(hessian)[:, -1] < 0
    safe = np.where(peaked[:, None, None], hessian, -np.eye(3))
    length = np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-30)
    newton = -np.linalg.solve(safe, gradient[..., None])[..., 0]
    return np.asarray(np.where(peaked[:, None], np.clip(newton, -0.5, 0.5), 0.2 * gradient / length), np.float64)


def _hessian(fit: FloatArray) -> FloatArray:
    """Return the second derivatives (n, 3, 3) at the centre from the coefficients of z², zy, zx, y², yx, x²."""
    zz, zy, zx, yy, yx, xx = fit[:, 4:10].T
    return np.stack([[2 * zz, zy, zx], [zy, 2 * yy, yx], [zx, yx, 2 * xx]]).transpose(2, 0, 1)
