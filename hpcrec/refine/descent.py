"""Steps for a handful of numbers whose gradient is summed over a sweep."""

from __future__ import annotations

import numpy as np

from hpcrec.backend.array import Array, FloatArray

_FASTER, _SLOWER, _LARGEST = 1.5, 0.5, 30.0


def bold_step(
    memory: dict[str, Array], name: str, gradient: FloatArray, weight: FloatArray, max_step: float
) -> FloatArray:
    """Return the change of a quantity from its ``gradient`` (…) and ``weight`` (…), an upper bound of its curvature.

    The step of least squares −g/(2w) is safe but short, since the object follows the quantity: a gain multiplies it,
    which grows by half while successive gradients agree in sign (Σ g g_before/w > 0) and halves where they do not
    (bold driver: Battiti, Neural Comput. 4, 141 (1992)). At most ``max_step`` for each number. The gain and the last
    gradient are kept in ``memory`` under ``name``.
    """
    safe = np.divide(gradient, 2 * weight, out=np.zeros_like(gradient), where=weight > 0)
    before = memory.get(f"{name}_gradient", np.zeros_like(gradient))
    agreement = float(np.sum(safe * before))
    gain = float(memory.get(f"{name}_gain", np.ones(1))[0])
    if agreement > 0:
        gain = min(gain * _FASTER, _LARGEST)
    elif agreement < 0:
        gain = max(gain * _SLOWER, 1.0)
    memory[f"{name}_gradient"], memory[f"{name}_gain"] = gradient.copy(), np.array([gain])
    return np.clip(-gain * safe, -max_step, max_step)  # type: ignore[no-any-return]


def add_to(memory: dict[str, Array], name: str, values: Array) -> None:
    """Add ``values`` to what ``memory`` keeps under ``name``."""
    memory[name] = memory[name] + values if name in memory else values.copy()
