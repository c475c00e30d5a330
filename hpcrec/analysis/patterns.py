"""How well a model explains measured patterns: figures of each pattern, and sums over many.

The figures of a pattern stand in a table (pattern, column), float64, whose rows ranks may add into their places; the
columns are those of :data:`COLUMNS`, over the good pixels, with I measured and Î modelled counts:

    error           Σ(√Î − √I)²
    difference      Σ|√Î − √I|
    amplitude       Σ√I
    counts          ΣI
    deviance        2 Σ Î − I + (I+ε) ln((I+ε)/(Î+ε)), twice the Poisson loss (ε = 0.01 counts)
    pixels          number of good pixels
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray, IntArray
from hpcrec.backend.kernels.figures import fill_figures
from hpcrec.backend.kernels.waves import COUNTS
from hpcrec.objectives.losses import POISSON_FLOOR

COLUMNS: Final = ("error", "difference", "amplitude", "counts", "deviance", "pixels")


@dataclass(frozen=True, kw_only=True)
class PatternQuality:
    """How well some patterns are explained.

    data_error : Σ(√Î − √I)² / ΣI
    r_factor : Σ|√I − √Î| / Σ√I
    deviance : Poisson deviance per good pixel; about 1 for the true model where pixels have several counts, and less
        where most pixels are empty
    log_likelihood : ln p(I | Î) − ln p(I | I) of Poisson counts over all pixels, minus half the summed deviance
    """

    n_patterns: int
    data_error: float
    r_factor: float
    deviance: float
    log_likelihood: float


def pattern_figures(modelled: FloatArray, measured: Array, good: BoolArray | None) -> FloatArray:
    """Return the table (n, column) of patterns (n, ky, kx); ``good`` broadcasts to them, True = good, or is None.

    Compiled for counts modelled in single precision; else, and in tests beside it, by :func:`plain_figures`.
    """
    if modelled.dtype != np.float32:
        return plain_figures(modelled, measured, good)
    n, pixels = len(modelled), math.prod(modelled.shape[1:])
    known = measured if measured.dtype.type in COUNTS else measured.astype(np.float32)
    masks = np.ones((1, pixels), np.uint8) if good is None else np.ascontiguousarray(good).reshape(-1, pixels)
    table = np.empty((n, len(COLUMNS)))
    fill_figures(
        np.ascontiguousarray(modelled).reshape(n, pixels),
        np.ascontiguousarray(known).reshape(n, pixels),
        masks.view(np.uint8),
        np.float32(POISSON_FLOOR),
        np.empty((3, pixels), np.float32),
        table,
    )
    return table


def plain_figures(modelled: FloatArray, measured: Array, good: BoolArray | None) -> FloatArray:
    """Return the same as :func:`pattern_figures`, in plain NumPy and the precision of ``modelled``."""
    wanted = measured.astype(modelled.dtype, copy=False)
    wanted = wanted if good is None else np.where(good, wanted, 0)
    root = np.sqrt(wanted)
    difference = np.sqrt(modelled) - root
    ratio = (wanted + POISSON_FLOOR) / (modelled + POISSON_FLOOR)
    deviance = 2 * (modelled - wanted + (wanted + POISSON_FLOOR) * np.log(ratio))
    columns = (difference**2, np.abs(difference), root, wanted, deviance, np.ones_like(root))
    kept = columns if good is None else [np.where(good, c, 0) for c in columns]
    return np.stack([np.sum(c, axis=(1, 2), dtype=np.float64) for c in kept], axis=1)


def pattern_quality(table: FloatArray, chosen: IntArray | None = None) -> PatternQuality:
    """Return the figures of the ``chosen`` rows of a table (n, column), or of all."""
    rows = table if chosen is None else table[chosen]
    error, difference, amplitude, counts, deviance, pixels = rows.sum(axis=0).tolist()
    return PatternQuality(
        n_patterns=len(rows),
        data_error=error / (counts or 1.0),
        r_factor=difference / (amplitude or 1.0),
        deviance=deviance / (pixels or 1.0),
        log_likelihood=-0.5 * deviance,
    )


def residuals(table: FloatArray) -> FloatArray:
    """Return the data error of each pattern (n,), Σ(√Î − √I)² / ΣI; a pattern without counts is divided by one."""
    counts = table[:, COLUMNS.index("counts")]
    found: FloatArray = table[:, COLUMNS.index("error")] / np.where(counts > 0, counts, 1.0)
    return found


def mode_powers(probe: ComplexArray) -> FloatArray:
    """Return the share of the power in each mode of a probe (mode, y, x)."""
    powers = np.sum(np.abs(probe) ** 2, axis=(1, 2), dtype=np.float64)
    found: FloatArray = powers / powers.sum()
    return found


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far refined positions lie from the given ones, in Å.

    rms, largest : of the length of the moves; mean_yx : their mean; worst : the position that moved furthest;
    affine_rms : what an affine change of the scan leaves of the rms: much less than ``rms`` tells of a wrong scale,
    shear or rotation, the same of jitter
    """

    rms: float
    largest: float
    mean_yx: tuple[float, float]
    worst: int
    affine_rms: float


def position_drift(positions: FloatArray, start: FloatArray) -> Drift:
    """Return the figures of the moves from ``start`` to ``positions``, both (position, 2) in Å."""
    moves = np.asarray(positions - start, np.float64)
    lengths = np.hypot(*moves.T)
    terms = np.column_stack([start - start.mean(axis=0), np.ones(len(start))])
    rest = moves - terms @ np.linalg.lstsq(terms, moves, rcond=None)[0]
    return Drift(
        rms=float(np.sqrt(np.mean(lengths**2))),
        largest=float(lengths.max()),
        mean_yx=(float(moves[:, 0].mean()), float(moves[:, 1].mean())),
        worst=int(lengths.argmax()),
        affine_rms=float(np.sqrt(np.mean(np.sum(rest**2, axis=1)))),
    )
