"""First-order answers to a change of object and probe from kept waves, compiled: in real space, without the far field.

The plain twin with the equations is ``add_responses`` of :mod:`hpcrec.models.multislice`. The far field is a unitary
map, so that products of far fields are those of exit waves: a pattern of one slice takes one transform, the probe's
shift, instead of five.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hpcrec.backend.kernels.ptychography import _cross, _illuminate
from hpcrec.backend.kernels.waves import transmit, vary

_compile: Any = njit(fastmath=True, error_model="numpy", nogil=True, cache=True)


@_compile
def _add_products(
    terms: Any, a: Any, b: Any, wave: Any, g: Any, obj: Any, change: Any, corner: Any, factors: Any, more: bool,
    with_probe: bool,
) -> None:  # fmt: skip
    """Add the products of A = O a + D ψ and B = O b with one another and with g to ``terms`` (5,).

    a counts only with ``more``, b only ``with_probe``. ``obj`` O and ``change`` D (y, 2x), from pixels ``corner``: y
    and x of O, y and x of D, ny, nx; factors of the products with one another, and with g.
    """
    y, x, yc, xc, ny, nx = corner
    squares, mixed = factors
    for i in range(ny):
        o, d = obj[y + i, 2 * x : 2 * (x + nx)], change[yc + i, 2 * xc : 2 * (xc + nx)]
        row = slice(2 * i * nx, 2 * (i + 1) * nx)
        p, q, u, v = wave[row], g[row], a[row], b[row]
        # A zero of double precision would keep the loop scalar
        zero = np.float32(0)
        aa, ab, bb, ag, bg = zero, zero, zero, zero, zero
        for k in range(nx):
            re, im = 2 * k, 2 * k + 1
            ar = d[re] * p[re] - d[im] * p[im]
            ai = d[re] * p[im] + d[im] * p[re]
            if more:
                ar += o[re] * u[re] - o[im] * u[im]
                ai += o[re] * u[im] + o[im] * u[re]
            aa += ar * ar + ai * ai
            ag += ar * q[re] + ai * q[im]
            if with_probe:
                br = o[re] * v[re] - o[im] * v[im]
                bi = o[re] * v[im] + o[im] * v[re]
                ab += ar * br + ai * bi
                bb += br * br + bi * bi
                bg += br * q[re] + bi * q[im]
        terms[0] += squares * aa
        terms[1] += squares * ab
        terms[2] += squares * bb
        terms[3] += mixed * ag
        terms[4] += mixed * bg


@_compile
def _transmit_change(a: Any, wave: Any, obj: Any, change: Any, corner: Any) -> None:
    """A = O a + D ψ; arguments as in :func:`_add_products`."""
    y, x, yc, xc, ny, nx = corner
    for i in range(ny):
        o, d = obj[y + i, 2 * x : 2 * (x + nx)], change[yc + i, 2 * xc : 2 * (xc + nx)]
        u, p = a[2 * i * nx : 2 * (i + 1) * nx], wave[2 * i * nx : 2 * (i + 1) * nx]
        for k in range(nx):
            re, im = 2 * k, 2 * k + 1
            ur, ui = u[re], u[im]
            u[re] = o[re] * ur - o[im] * ui + d[re] * p[re] - d[im] * p[im]
            u[im] = o[re] * ui + o[im] * ur + d[re] * p[im] + d[im] * p[re]


@_compile
def kept_responses(
    plan: Any, waves: Any, scales: Any, minus_inverse_curvature: Any, origin: Any, change: Any, spectrum_change: Any,
    with_probe: bool, kept: Any, room: Any, modes: Any, terms: Any,
) -> None:  # fmt: skip
    """Add to ``terms`` (n, 5) the answers to ``change`` (state, slice, y, 2x) and ``spectrum_change`` (mode, 2·ny·nx).

    kept: ``entering`` and ``leaving`` as :func:`hpcrec.backend.kernels.ptychography.gradients` left them; ``room``
    (2, …) and ``modes`` (mode, …) to work in; scales (n,). For a far-field detector. Rest as there.
    """
    obj, corners, spectrum, variation, coefficients, ramps, gaps, _, entry = waves
    entering, leaving = kept
    n_modes, n_states, n_parts, last = len(spectrum), len(obj), entering.shape[1], obj.shape[1] - 1
    ny, nx = ramps[0].shape[2] // 2, ramps[1].shape[2] // 2
    pixels, straight, a = ny * nx, entry[0] and entry[1] == np.float32(1), room[0]
    for m in range(n_modes):
        modes[m, : 2 * pixels] = spectrum[m]
    for j in range(len(corners)):
        if straight and len(variation):
            vary(modes[0], spectrum[0], variation, coefficients[j], pixels)
        for c in range(n_parts):
            f, state, m = c // (n_states * n_modes), c // n_modes % n_states, c % n_modes
            y, x = corners[j, f, 0], corners[j, f, 1]
            yc, xc = y - origin[0], x - origin[1]
            b = spectrum_change[m] if straight else room[1]
            if with_probe and not straight:
                _illuminate(b, spectrum_change[m], ramps[0][j, f], ramps[1][j, f], entry, plan)
            wave = modes[m] if straight else entering[j, c, 0]
            for s in range(last):
                if s:
                    _transmit_change(a, wave, obj[state, s], change[state, s], (y, x, yc, xc, ny, nx))
                else:
                    transmit(a, wave, change[state, s], yc, xc, ny, nx, False)
                _cross(a, gaps, s, j, False, plan)
                if with_probe:
                    transmit(room[1], b, obj[state, s], y, x, ny, nx, False)
                    b = room[1]
                    _cross(b, gaps, s, j, False, plan)
                wave = entering[j, c, s + 1]
            _add_products(
                terms[j], a, b, wave, leaving[j, c], obj[state, last], change[state, last], (y, x, yc, xc, ny, nx),
                (scales[j], minus_inverse_curvature), last > 0, with_probe,
            )  # fmt: skip
