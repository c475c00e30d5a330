"""Comparison with a known model: atoms after a rigid registration, alignments after removing what cannot be known.

For tests and simulated data only: nothing here feeds back into a reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from hpcrec.backend.array import Array, FloatArray, IntArray
from hpcrec.errors import DataError
from hpcrec.geometry.pose import angles_from_rotation, rotation_from_angles

_VOTE_BIN: Final = 0.4
_STARTS: Final = 6
_GROWTH: Final = (10.0, 20.0, 40.0, np.inf)
_ROUNDS: Final = 12


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A rigid motion found → model: r' = ``rotation`` · r + ``shift``, components (z, y, x), Å.

    ``matched`` is the share of the model's atoms with an atom within the tolerance after it.
    """

    rotation: FloatArray
    shift: FloatArray
    matched: float

    @property
    def angle(self) -> float:
        """Return the angle of the rotation in rad."""
        return float(np.linalg.norm(Rotation.from_matrix(self.rotation).as_rotvec()))

    def apply(self, positions: Array) -> FloatArray:
        """Move positions (n, 3) into the model's frame."""
        return np.asarray(np.asarray(positions, np.float64) @ self.rotation.T + self.shift, np.float64)


@dataclass(frozen=True, kw_only=True)
class SpeciesScore:
    """What became of one species of the model.

    ``n_true`` atoms of the model: ``found`` under their name, ``wrong_species`` found under another, ``missing`` not
    found; ``n_false`` atoms given this name that match no atom of the model.
    """

    n_true: int
    found: int
    wrong_species: int
    missing: int
    n_false: int

    @property
    def found_share(self) -> float:
        """Return found / true, NaN for a species that the model does not have."""
        return self.found / self.n_true if self.n_true else float("nan")

    @property
    def false_share(self) -> float:
        """Return false / (all atoms given this name that are right or false), 0 without any."""
        return self.n_false / max(self.found + self.n_false, 1)


@dataclass(frozen=True, kw_only=True)
class AtomComparison:
    """Traced atoms against a model.

    ``species`` a score for each name; ``rms`` Å of the matched atoms, ``rms_axes`` the same per axis (z, y, x);
    ``pairs`` (n, 2) indices (found, model); ``registration`` the motion that was taken out; ``tolerance`` Å.
    """

    species: dict[str, SpeciesScore]
    rms: float
    rms_axes: tuple[float, float, float]
    pairs: IntArray
    registration: Registration
    tolerance: float

    @property
    def false_share(self) -> float:
        """Return the share of all traced atoms that match no atom of the model."""
        false = sum(score.n_false for score in self.species.values())
        return false / max(false + len(self.pairs), 1)


@dataclass(frozen=True, kw_only=True)
class AlignmentComparison:
    """Errors of an alignment after removing the global shift and rotation that no measurement can tell.

    ``shift_errors`` (tilt, 2) Å (dy, dx); ``angle_errors`` (tilt, 3) rad (in_plane, tilt, out_of_plane); ``shift_rms``
    Å per component and ``angle_rms`` rad per angle; ``translation`` (3,) Å (x, y, z) and ``rotation`` 3×3 removed.
    """

    shift_errors: FloatArray
    angle_errors: FloatArray
    shift_rms: tuple[float, float]
    angle_rms: tuple[float, float, float]
    translation: FloatArray
    rotation: FloatArray


def compare_atoms(
    positions: Array,
    species: Sequence[str] | Array,
    true_positions: Array,
    true_species: Sequence[str] | Array,
    *,
    tolerance: float = 0.5,
    max_shift: float = 3.0,
) -> AtomComparison:
    """Register traced atoms to a model and match them one to one within ``tolerance`` Å.

    Positions (n, 3) Å in (z, y, x). A shift up to ``max_shift`` Å and a rotation of a few degrees are found. Pairs are
    made by distance, nearest first, whatever the species; names are compared afterwards.
    """
    found, model = np.asarray(positions, np.float64), np.asarray(true_positions, np.float64)
    names, true_names = np.asarray(species), np.asarray(true_species)
    if (
        found.ndim != 2
        or model.ndim != 2
        or len(found) != len(names)
        or len(model) != len(true_names)
        or not len(model)
    ):
        raise DataError("a comparison needs positions (n, 3) with one species each, and a model that is not empty")
    registration = register(found, names, model, true_names, tolerance=tolerance, max_shift=max_shift)
    moved = registration.apply(found)
    pairs = match_pairs(moved, model, tolerance)
    difference = moved[pairs[:, 0]] - model[pairs[:, 1]]
    axes = np.sqrt((difference**2).mean(axis=0)) if len(pairs) else np.full(3, np.nan)
    scores = {
        str(name): _score(str(name), names, true_names, pairs)
        for name in np.unique(np.concatenate([names, true_names]))
    }
    return AtomComparison(
        species=scores,
        rms=float(np.sqrt((axes**2).sum())),
        rms_axes=(float(axes[0]), float(axes[1]), float(axes[2])),
        pairs=pairs,
        registration=registration,
        tolerance=tolerance,
    )


def register(
    found: FloatArray, names: Array, model: FloatArray, true_names: Array, *, tolerance: float, max_shift: float
) -> Registration:
    """Find the rigid motion that brings most atoms of ``found`` (n, 3) within ``tolerance`` of ``model`` (m, 3).

    Differences between atoms of one species near the centre vote for the shift; the best few are refined by iterated
    closest points (Besl & McKay, IEEE PAMI 14, 239 (1992)) in a region that grows from the centre, where a small
    rotation moves nothing far; the motion that matches most atoms wins.
    """
    best = Registration(rotation=np.eye(3), shift=np.zeros(3), matched=0.0)
    for shift in _shift_votes(found, names, model, true_names, max_shift):
        rotation, moved_by = _closest_points(found, model, shift, tolerance)
        trial = Registration(rotation=rotation, shift=moved_by, matched=0.0)
        matched = len(match_pairs(trial.apply(found), model, tolerance)) / len(model)
        if matched > best.matched:
            best = Registration(rotation=rotation, shift=moved_by, matched=matched)
    return best


def match_pairs(a: FloatArray, b: FloatArray, tolerance: float) -> IntArray:
    """Return one-to-one pairs (n, 2) of indices into ``a`` and ``b`` (n, 3), nearest first, within ``tolerance``."""
    if len(a) == 0 or len(b) == 0:
        return np.zeros((0, 2), np.int64)
    near = cKDTree(a).sparse_distance_matrix(cKDTree(b), tolerance, output_type="coo_matrix")
    free_a, free_b = np.ones(len(a), np.bool_), np.ones(len(b), np.bool_)
    pairs = []
    for k in np.argsort(near.data, kind="stable"):
        i, j = int(near.row[k]), int(near.col[k])
        if free_a[i] and free_b[j]:
            free_a[i] = free_b[j] = False
            pairs.append((i, j))
    return np.array(pairs, np.int64).reshape(-1, 2)


def compare_alignment(
    shifts: Array, angles: Array, true_shifts: Array, true_angles: Array, rounds: int = 10
) -> AlignmentComparison:
    """Compare an alignment with the truth, gauge removed.

    ``shifts`` (tilt, 2) Å (dy, dx) and ``angles`` (tilt, 3) rad (in_plane, tilt, out_of_plane), likewise the truth.
    A rotation G of the sample turns R_k into R_k G, a translation T of it adds the first two components of R_k T to
    the shifts: both are fitted by least squares and taken out before the errors are formed.
    """
    shifts, true_shifts = np.asarray(shifts, np.float64), np.asarray(true_shifts, np.float64)
    angles, true_angles = np.asarray(angles, np.float64), np.asarray(true_angles, np.float64)
    if shifts.shape != true_shifts.shape or angles.shape != true_angles.shape or len(shifts) != len(angles):
        raise DataError(f"alignment and truth differ in shape: {shifts.shape}, {angles.shape}, {true_shifts.shape}")
    found = np.array([rotation_from_angles(*a) for a in angles])
    truth = np.array([rotation_from_angles(*a) for a in true_angles])
    gauge = np.eye(3)
    for _ in range(rounds):
        # R_true ≈ R_found G: each tilt votes for G = R_foundᵀ R_true, averaged as rotation vectors about the last G
        votes = np.einsum("kji,kjl->kil", found @ gauge, truth)
        gauge = gauge @ Rotation.from_rotvec(Rotation.from_matrix(votes).as_rotvec().mean(axis=0)).as_matrix()
    turned = found @ gauge
    angle_errors = np.array([angles_from_rotation(r) for r in turned]) - true_angles
    design = truth[:, [1, 0], :].reshape(-1, 3)
    translation, *_ = np.linalg.lstsq(design, (shifts - true_shifts).ravel(), rcond=None)
    shift_errors = shifts - true_shifts - (design @ translation).reshape(-1, 2)
    shift_rms, angle_rms = (np.sqrt((e**2).mean(axis=0)) for e in (shift_errors, angle_errors))
    return AlignmentComparison(
        shift_errors=shift_errors,
        angle_errors=angle_errors,
        shift_rms=(float(shift_rms[0]), float(shift_rms[1])),
        angle_rms=(float(angle_rms[0]), float(angle_rms[1]), float(angle_rms[2])),
        translation=translation,
        rotation=gauge,
    )


def _score(name: str, names: Array, true_names: Array, pairs: IntArray) -> SpeciesScore:
    of_model = true_names[pairs[:, 1]] == name
    right = of_model & (names[pairs[:, 0]] == name)
    unmatched = np.ones(len(names), np.bool_)
    unmatched[pairs[:, 0]] = False
    n_true = int((true_names == name).sum())
    return SpeciesScore(
        n_true=n_true,
        found=int(right.sum()),
        wrong_species=int((of_model & ~right).sum()),
        missing=n_true - int(of_model.sum()),
        n_false=int((unmatched & (names == name)).sum()),
    )


def _shift_votes(
    found: FloatArray, names: Array, model: FloatArray, true_names: Array, max_shift: float
) -> list[FloatArray]:
    """Return likely shifts (3,) found → model, best first, from a histogram of differences near the centre."""
    if len(found) == 0:
        return []
    n_bins = 2 * int(np.ceil((max_shift + 0.5) / _VOTE_BIN)) + 1
    edges = (np.arange(n_bins + 1) - n_bins / 2) * _VOTE_BIN
    votes = np.zeros((n_bins,) * 3)
    centre = np.median(found, axis=0)
    for name in np.intersect1d(names, true_names):
        inner = found[(names == name) & (np.linalg.norm(found - centre, axis=1) < _GROWTH[1])]
        target = model[true_names == name]
        near = cKDTree(inner).query_ball_tree(cKDTree(target), edges[-1] * np.sqrt(3)) if len(inner) else []
        pairs = np.array([(i, j) for i, row in enumerate(near) for j in row], np.int64).reshape(-1, 2)
        votes += np.histogramdd(target[pairs[:, 1]] - inner[pairs[:, 0]], bins=(edges,) * 3)[0]
    smooth = ndimage.gaussian_filter(votes, 1.0)
    tops = np.argwhere((smooth == ndimage.maximum_filter(smooth, 3)) & (smooth > 0))
    order = np.argsort(-smooth[tuple(tops.T)], kind="stable")[:_STARTS]
    middle = 0.5 * (edges[1:] + edges[:-1])
    return [middle[top] for top in tops[order]]


def _closest_points(
    found: FloatArray, model: FloatArray, shift: FloatArray, tolerance: float
) -> tuple[FloatArray, FloatArray]:
    """Refine a start by iterated closest points in a growing region: return rotation 3×3 and shift (3,)."""
    tree = cKDTree(model)
    distance_to_centre = np.linalg.norm(found - np.median(found, axis=0), axis=1)
    rotation: FloatArray = np.eye(3)
    for reach in _GROWTH:
        inner = found[distance_to_centre < reach]
        for limit in np.linspace(1.2, tolerance, _ROUNDS):
            distance, index = tree.query(inner @ rotation.T + shift, distance_upper_bound=max(limit, tolerance))
            near = np.isfinite(distance)
            if near.sum() < 4:
                break
            rotation, shift = _rigid_fit(inner[near], model[index[near]])
    return rotation, shift


def _rigid_fit(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the rotation and shift with b ≈ R a + t (Kabsch, Acta Cryst. A 32, 922 (1976))."""
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    u, _, vt = np.linalg.svd((b - mean_b).T @ (a - mean_a))
    turn = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ turn @ vt
    return rotation, mean_b - rotation @ mean_a
