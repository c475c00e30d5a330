"""Σ|P ∂O|² of many windows, compiled: what the plain form in ``models/refined.py`` says, without arrays between."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_compile: Any = njit(fastmath=True, error_model="numpy", nogil=True, cache=True)


@_compile
def add_position_weights(obj: Any, corners: Any, power: Any, product: Any, scale: Any, out: Any) -> None:
    """Add to ``out`` (n, 2) the weights along y and x, times ``scale``, the mean over flight points.

    obj (state, slice, y, 2x) interleaved float32; corners (n, flight, 2); power (ny, nx) Σ|P|² over the modes; product
    (ny, 2nx): room to work in. Differences are of neighbouring pixels in the window, with the power between them.
    """
    ny, nx = power.shape
    factor = scale / corners.shape[1]
    for j in range(len(corners)):
        for f in range(corners.shape[1]):
            y, x = corners[j, f, 0], corners[j, f, 1]
            for state in range(len(obj)):
                for i in range(ny):
                    product[i] = obj[state, 0, y + i, 2 * x : 2 * (x + nx)]
                    for s in range(1, obj.shape[1]):
                        row, p = obj[state, s, y + i, 2 * x : 2 * (x + nx)], product[i]
                        for k in range(nx):
                            a, b = p[2 * k], p[2 * k + 1]
                            p[2 * k] = a * row[2 * k] - b * row[2 * k + 1]
                            p[2 * k + 1] = a * row[2 * k + 1] + b * row[2 * k]
                along_y, along_x = np.float64(0), np.float64(0)
                for i in range(ny):
                    p, w, total = product[i], power[i], np.float32(0)
                    for k in range(nx - 1):
                        a, b = p[2 * k + 2] - p[2 * k], p[2 * k + 3] - p[2 * k + 1]
                        total += (a * a + b * b) * (w[k] + w[k + 1])
                    along_x += total
                    if i:
                        q, v, total = product[i - 1], power[i - 1], np.float32(0)
                        for k in range(nx):
                            a, b = p[2 * k] - q[2 * k], p[2 * k + 1] - q[2 * k + 1]
                            total += (a * a + b * b) * (w[k] + v[k])
                        along_y += total
                out[j, 0] += 0.5 * factor * along_y
                out[j, 1] += 0.5 * factor * along_x
