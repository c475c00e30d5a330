"""Refinement of scan positions from their gradient."""

from __future__ import annotations

import numpy as np

from hpcrec.backend.array import FloatArray

_DAMPING = 0.1


def position_change(
    gradient: FloatArray, weight: FloatArray, sampling: tuple[float, float], *, step: float, max_step_pixels: float
) -> FloatArray:
    """Return the change (position, 2) in Å of all positions of a tilt; zero where ``weight`` is zero.

    ``gradient`` (position, 2) is ∂L/∂R of Σ(√I − √I₀)² in 1/Å and ``weight`` Σ|P ∂O|² in counts/Å²: the least-squares
    shift of the exit wave is −gradient / (2 weight) (Guizar-Sicairos and Fienup, Opt. Express 16, 7264 (2008);
    Odstrčil et al., Opt. Express 26, 3108 (2018), eq. 25). The weight is raised by a tenth of its mean over the touched
    positions, since a window without structure cannot tell where it is. Taken ``step`` times, at most
    ``max_step_pixels`` along each axis.
    """
    touched = weight.sum(axis=1) > 0
    change = np.zeros_like(gradient)
    if touched.any():
        damped = weight[touched] + _DAMPING * weight[touched].mean(axis=0)
        # An object that is flat along one axis in all windows gives no weight, and no gradient either
        found = np.divide(-gradient[touched], 2 * damped, out=np.zeros_like(damped), where=damped > 0)
        limit = max_step_pixels * np.array(sampling)
        change[touched] = np.clip(step * found, -limit, limit)
    return change


def limit_moves(positions: FloatArray, start: FloatArray, max_move: float | None) -> FloatArray:
    """Return ``positions`` (position, 2) held within ``max_move`` Å of ``start`` along each axis; None: no bound."""
    if max_move is None:
        return positions
    return start + np.clip(positions - start, -max_move, max_move)


def without_drift(positions: FloatArray, start: FloatArray) -> FloatArray:
    """Return ``positions`` less the mean of their moves from ``start``: the object could follow any common shift."""
    drift: FloatArray = np.mean(positions - start, axis=0)
    return positions - drift
