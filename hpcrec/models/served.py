"""Whether kernels serve array code on a device: after a look at what they give for a few numbers.

A driver, a compiler or an architecture that nobody tried may break a kernel; array code must not depend on it.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any, Final

import numpy as np

from hpcrec.backend import windows
from hpcrec.backend.array import Array, ComplexArray, array_module, to_host
from hpcrec.backend.launch import compiles, device_number
from hpcrec.objectives.losses import FLOORS, LOSSES

logger = logging.getLogger(__name__)

_TOLERANCE: Final = 1e-4
_verdicts: dict[int, bool] = {}


def served(a: Array) -> bool:
    """Whether the kernels of :mod:`hpcrec.backend.windows` may be used where an array lives."""
    if not compiles(a):
        return False
    number = device_number()
    if number not in _verdicts:
        error = disagreement(array_module(a))
        # Not-a-number is no agreement
        _verdicts[number] = error <= _TOLERANCE
        if not _verdicts[number]:
            logger.error(
                "kernels that serve array code are off by %.2g of the largest value on GPU %d: they are not used, "
                "which is slower; please report it with what hpcrec info prints",
                *(error, number),
            )
    return _verdicts[number]


def disagreement(xp: ModuleType) -> float:
    """Return how far the kernels are off NumPy on a few waves, of the largest value; infinite if not a number."""
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> ComplexArray:
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)

    # Windows, planes, parts; corners at the object's edges, and on one another
    corners, obj = np.array([[0, 0], [5, 9], [5, 9], [18, 11]]), numbers(2, 30, 27)
    wave, gradient = numbers(4, 2, 3, 12, 16), numbers(4, 2, 3, 12, 16)
    seen = np.stack([obj[:, y : y + 12, x : x + 16] for y, x in corners])[:, :, None]
    sums, light = np.zeros_like(obj), np.zeros(obj.shape, np.float32)
    for j, (y, x) in enumerate(corners):
        sums[:, y : y + 12, x : x + 16] += (gradient[j] * wave[j].conj()).sum(axis=1)
        light[:, y : y + 12, x : x + 16] += (np.abs(wave[j]) ** 2).sum(axis=1)
    there, waves, out = xp.asarray(obj), xp.asarray(wave), xp.zeros(wave.shape, np.complex64)
    windows.times(waves, there, corners, out, conjugate=True)
    pairs: list[tuple[Any, Any]] = [(to_host(out), wave * seen.conj())]
    found = xp.zeros(obj.shape, np.complex64), xp.zeros(obj.shape, np.float32)
    windows.add_products(*found, waves, xp.asarray(gradient), corners)
    pairs += [(to_host(found[0]), sums), (to_host(found[1]), light)]
    counts, good = rng.poisson(8, (4, 12, 16)).astype(np.uint16), rng.random((4, 12, 16)) > 0.1
    far = wave[:, 0].astype(complex)
    loss, weight = LOSSES["poisson"].evaluate((np.abs(far) ** 2).sum(axis=1), counts.astype(float), good)
    weighted = xp.asarray(np.ascontiguousarray(wave[:, 0]))
    totals = windows.weigh(weighted, xp.asarray(counts), xp.asarray(good), "poisson", FLOORS["poisson"])
    pairs += [
        (to_host(weighted), far * weight[:, None]),
        (totals[0], float(loss)),
        (totals[2], (counts * good).sum()),
    ]
    errors = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]
    return max(errors) if np.isfinite(errors).all() else float("inf")
