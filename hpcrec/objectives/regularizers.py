"""Proximal maps of the penalties that the volume solvers use."""

from __future__ import annotations

import numpy as np

from hpcrec.backend.array import FloatArray


def shrink_positive(values: FloatArray, threshold: float) -> FloatArray:
    """Return max(v − τ, 0): the proximal map of τ Σ v on v ≥ 0 (positivity, with sparsity for τ > 0)."""
    return np.maximum(values - np.asarray(threshold, values.dtype), 0)


def shrink(values: FloatArray, threshold: float) -> FloatArray:
    """Return sign(v) max(|v| − τ, 0): the proximal map of τ Σ |v| (Donoho, IEEE TIT 41 (1995) 613)."""
    tau = np.asarray(threshold, values.dtype)
    return np.asarray(np.sign(values) * np.maximum(np.abs(values) - tau, 0))
