"""Classes of a one-dimensional set of intensities: the species of atoms, and the maxima that are no atoms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from hpcrec.backend.array import Array, FloatArray, IntArray

_ROUNDS: Final = 200
_SEPARATION: Final = 2.5
_ALIKE: Final = 1.3
_FAINT: Final = 0.6
_DARK: Final = 0.05
_BINS: Final = 256


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Gaussians on a line, ascending in ``mean``: ``weight``, ``mean``, ``sigma``, each (class,)."""

    weight: FloatArray
    mean: FloatArray
    sigma: FloatArray


def classify_intensities(intensity: Array, n_species: int) -> tuple[IntArray, FloatArray]:
    """Sort intensities (n,) into ``n_species`` species, brightest = 0, and class ``n_species`` of non-atoms.

    Returns the class (n,) and its probability (n,). A Gaussian mixture is fitted to the square roots, which makes
    the classes' widths alike; values below 1/400 of the brightest are non-atoms from the start. The fit begins at the
    optimal k-means partition with one class more than species (Yang et al., Nature 592, 60 (2021)). The extra class is
    dropped, and every maximum is an atom, when it only splits the faintest species: Ashman's separation D < 2.5 and a
    mean above 0.6 of that species' (Ashman, Bird & Zepf, Astron. J. 108, 2348 (1994)).
    """
    root = np.sqrt(np.maximum(np.asarray(intensity, np.float64), 0.0))
    bright = root >= _DARK * root.max()
    classes, confidence = np.full(len(root), n_species), np.ones(len(root))
    classes[bright], confidence[bright] = _classify(root[bright], n_species)
    return classes, confidence


def _classify(root: FloatArray, n_species: int) -> tuple[IntArray, FloatArray]:
    if len(np.unique(root)) <= n_species + 1:
        ranks = np.searchsorted(np.unique(root), root)
        return np.minimum(ranks.max() - ranks, n_species), np.ones(len(root))
    mixture = fit_mixture(root, n_species + 1, n_species)
    if _splits_a_species(mixture):
        classes, confidence = _assign(root, fit_mixture(root, n_species, n_species))
        return n_species - 1 - classes, confidence
    classes, confidence = _assign(root, _with_tail(mixture, root))
    return n_species - classes, confidence


def fit_mixture(values: Array, n_classes: int, n_alike: int = 0) -> Mixture:
    """Fit ``n_classes`` Gaussians to ``values`` (n,) by expectation maximisation from the optimal partition.

    Dempster, Laird & Rubin, J. R. Stat. Soc. B 39, 1 (1977); widths are kept above 1/100 of the values' range. The
    ``n_alike`` uppermost classes are roots of intensities with the same additive noise: the product of mean and width
    of the others is kept below 1.3 times that of the uppermost, so that a faint species cannot swallow the side lobes.
    """
    values = np.asarray(values, np.float64)
    labels = partition(values, n_classes)
    floor = 0.01 * max(float(np.ptp(values)), 1e-300)
    share = np.eye(n_classes)[labels]
    mixture = _moments(values, share, floor)
    for _ in range(_ROUNDS):
        logs = _log_density(values, mixture)
        share = np.exp(logs - np.logaddexp.reduce(logs, axis=1, keepdims=True))
        previous, mixture = mixture, _capped(_moments(values, share, floor), n_alike)
        if np.abs(mixture.mean - previous.mean).max() < 1e-4 * floor:
            break
    order = np.argsort(mixture.mean)
    return Mixture(weight=mixture.weight[order], mean=mixture.mean[order], sigma=mixture.sigma[order])


def partition(values: Array, n_classes: int) -> IntArray:
    """Return the labels (n,), ascending, of the k-means partition of a line, exact on a histogram of 256 bins.

    Dynamic programming over the bins (Fisher, J. Am. Stat. Assoc. 53, 789 (1958)), so no start is guessed.
    """
    counts, edges = np.histogram(values, bins=_BINS)
    centres = 0.5 * (edges[1:] + edges[:-1])
    sums = [np.concatenate([[0.0], np.cumsum(counts * centres**power)]) for power in (0, 1, 2)]
    first, last = np.triu_indices(_BINS + 1, 1)
    number, total, square = (s[last] - s[first] for s in sums)
    cost = np.full((_BINS + 1, _BINS + 1), np.inf)
    cost[first, last] = square - total**2 / np.maximum(number, 1.0)
    best = cost[0]
    cuts = []
    for _ in range(n_classes - 1):
        through = best[:, None] + cost
        cuts.append(np.argmin(through, axis=0))
        best = through.min(axis=0)
    bounds = [_BINS]
    for cut in reversed(cuts):
        bounds.append(int(cut[bounds[-1]]))
    thresholds = edges[np.array(bounds[1:][::-1], np.int64)]
    return np.searchsorted(thresholds, values, side="right").astype(np.int64)


def _moments(values: FloatArray, share: FloatArray, floor: float) -> Mixture:
    total = share.sum(axis=0) + 1e-9
    mean = (share * values[:, None]).sum(axis=0) / total
    variance = (share * (values[:, None] - mean) ** 2).sum(axis=0) / total
    return Mixture(weight=total / total.sum(), mean=mean, sigma=np.sqrt(np.maximum(variance, floor**2)))


def _capped(mixture: Mixture, n_alike: int) -> Mixture:
    if n_alike < 2:
        return mixture
    order = np.argsort(mixture.mean)[::-1][:n_alike]
    top = _ALIKE * mixture.sigma[order[0]] * mixture.mean[order[0]]
    sigma = mixture.sigma.copy()
    sigma[order[1:]] = np.minimum(sigma[order[1:]], top / np.maximum(mixture.mean[order[1:]], 1e-300))
    return Mixture(weight=mixture.weight, mean=mixture.mean, sigma=sigma)


def _log_density(values: FloatArray, mixture: Mixture) -> FloatArray:
    scaled = (values[:, None] - mixture.mean) / mixture.sigma
    return np.asarray(np.log(mixture.weight / mixture.sigma) - 0.5 * scaled**2, np.float64)


def _splits_a_species(mixture: Mixture) -> bool:
    """Whether the faintest class is a part of the next one rather than a class of its own."""
    distance = mixture.mean[1] - mixture.mean[0]
    separation = np.sqrt(2.0) * distance / np.hypot(mixture.sigma[0], mixture.sigma[1])
    return bool(separation < _SEPARATION and mixture.mean[0] ** 2 > _FAINT * mixture.mean[1] ** 2)


def _with_tail(mixture: Mixture, values: FloatArray) -> Mixture:
    """Widen the class of non-atoms to the 95th percentile of its members: side lobes have a heavy upper tail."""
    members = values[values < 0.5 * (mixture.mean[0] + mixture.mean[1])]
    reach = (float(np.percentile(members, 95)) - mixture.mean[0]) / 1.645 if len(members) else 0.0
    sigma = mixture.sigma.copy()
    sigma[0] = max(sigma[0], reach)
    return Mixture(weight=mixture.weight, mean=mixture.mean, sigma=sigma)


def _assign(values: FloatArray, mixture: Mixture) -> tuple[IntArray, FloatArray]:
    """Return class and probability; only the two classes whose means lie on either side of a value compete."""
    logs = _log_density(values, mixture)
    lower = np.clip(np.searchsorted(mixture.mean, values) - 1, 0, len(mixture.mean) - 1)
    upper = np.minimum(np.searchsorted(mixture.mean, values), len(mixture.mean) - 1)
    rows = np.arange(len(values))
    difference = np.clip(logs[rows, upper] - logs[rows, lower], -500.0, 500.0)
    up = np.where(upper == lower, 1.0, 1.0 / (1.0 + np.exp(-difference)))
    classes = np.where(up >= 0.5, upper, lower)
    return classes, np.asarray(np.maximum(up, 1.0 - up), np.float64)
