"""Defocus, astigmatism and the turn between scan and detector, from the interference of the bright field.

For a weak phase object the spectra over the scan are G(q, k) = i φ̂(q) Γ(O q, k) with Γ of ``direct/ssb.py`` and O the
orthogonal matrix that turns the scan's frame into the detector's. The share of Σ|G|² that this explains, whatever φ̂,
is largest for the right O, C10 and C12. Unlike the displacements of parallax it holds near focus too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import minimize

from hpcrec.backend.array import ComplexArray, FloatArray
from hpcrec.direct.parallax import BrightField, ShiftFit, strongest_frequencies

_FLOOR: Final = 0.05  # of the largest Σ|Γ|²: frequencies that hardly interfere explain nothing
_START_DEFOCI: Final = 12
_ASTIGMATISM: Final = 2.0  # rad at the aperture's edge that any lens may have, beside half its defocus


@dataclass(frozen=True, kw_only=True, slots=True)
class LensFit:
    """The lens as the detector's stored frame sees it, and how the scan stands to that frame.

    ``turn`` O (2, 2) orthogonal, k = O q in components (y, x); ``hessian`` S (2, 2) in Å,
    [[C10 − C12a, C12b], [C12b, C10 + C12a]]; ``explained`` share of the signal's power, noise included.
    (O, S) and (−O, −S) explain the same: they belong to an object and its complex conjugate.
    """

    turn: FloatArray
    hessian: FloatArray
    explained: float

    @property
    def c10(self) -> float:
        """Mean defocus aberration in Å; positive is overfocus."""
        return float(np.trace(self.hessian)) / 2

    @property
    def astigmatism(self) -> tuple[float, float]:
        """Return (C12 ≥ 0 in Å, φ12 in rad), χ = πλ C12 k² cos(2(φ − φ12))."""
        return astigmatism_of(self.hessian)

    def conjugate(self) -> LensFit:
        """Return the other fit that explains the same data."""
        return LensFit(turn=-self.turn, hessian=-self.hessian, explained=self.explained)


def astigmatism_of(hessian: FloatArray) -> tuple[float, float]:
    """Return (C12 ≥ 0 in Å, φ12 in rad in (−π/2, π/2]) of S (2, 2) in Å."""
    a, b = (hessian[1, 1] - hessian[0, 0]) / 2, (hessian[0, 1] + hessian[1, 0]) / 2
    return float(np.hypot(a, b)), float(np.arctan2(b, a) / 2)


def fit_lens(
    positions: FloatArray,
    seen: BrightField,
    wavelength: float,
    shifts: ShiftFit,
    largest_defocus: float,
    *,
    radius: float | None = None,
) -> LensFit:
    """Return the lens and the turn that explain the bright field best, of the handedness of ``shifts``.

    ``positions`` (position, 2) and ``wavelength`` in Å; ``radius`` of the aperture in 1/Å, default the disc's. The
    matrix of ``shifts`` gives the turn to start from; defocus is tried from −``largest_defocus`` Å to its opposite.
    """
    radius = seen.radius if radius is None else radius
    q, spectrum = strongest_frequencies(positions, seen, 1.8 * radius)
    left, strengths, right = np.linalg.svd(shifts.matrix)
    # M = −λ Oᵀ S: of the two signs the one with C10 > 0 here; defoci of both signs are tried
    start_turn = -(left @ right).T
    data = _Interference(q, spectrum, seen, wavelength, radius)
    tried = np.linspace(-1, 1, 2 * _START_DEFOCI + 1) * largest_defocus
    tried = np.append(tried, strengths.mean() / wavelength * np.array([-1.0, 1.0]))
    values = [data.explained(start_turn, c * np.eye(2)) for c in tried]
    # One unit of each parameter changes the wave at the aperture's edge by about a radian
    unit = 1 / (np.pi * wavelength * radius**2)

    def lens(p: FloatArray) -> tuple[FloatArray, FloatArray]:
        return _rotation(0.1 * p[0]) @ start_turn, unit * _hessian(p[1], p[2], p[3])

    def cost(p: FloatArray) -> float:
        # A lens of astigmatism alone looks like defocus mirrored: bound, or no handedness could be told
        excess = max(float(np.hypot(p[2], p[3])) - 0.5 * abs(p[1]) - _ASTIGMATISM, 0.0)
        return float(0.1 * excess - data.explained(*lens(p)))

    found = []
    for i in np.argsort(values)[::-1][:2]:
        start = np.array([0.0, tried[i] / unit, 0.0, 0.0])
        simplex = np.concatenate([start[None], start + np.eye(4)])
        settings = {"initial_simplex": simplex, "xatol": 1e-2, "fatol": 1e-6, "maxfev": 250}
        found.append(minimize(cost, start, method="Nelder-Mead", options=settings))
    best = min(found, key=lambda fit: fit.fun)
    turn, hessian = lens(best.x)
    return LensFit(turn=turn, hessian=hessian, explained=data.explained(turn, hessian))


class _Interference:
    """The share of the signal that a lens explains, with everything that does not change prepared once."""

    def __init__(
        self, q: FloatArray, spectrum: ComplexArray, seen: BrightField, wavelength: float, radius: float
    ) -> None:
        self._q, self._k, self._radius, self._wavelength = q, seen.k, radius, wavelength
        self._spectrum = spectrum
        self._power = float(np.sum(np.abs(spectrum) ** 2))
        self._weights = np.sqrt(seen.means)  # counts over Poisson noise
        # The edge of the aperture is as soft as the groups of pixels are wide
        self._edge = float(np.sqrt(np.pi * seen.radius**2 / len(seen.k)))

    def explained(self, turn: FloatArray, hessian: FloatArray) -> float:
        """Return Σ_q |Σ_k G Γ*|² / (Σ_k|Γ|² + floor) / Σ|G|²."""
        q = (self._q @ turn.T)[:, None]
        still = self._wave(self._k[None], hessian)
        gamma = still.conj() * self._wave(self._k - q, hessian) - still * self._wave(self._k + q, hessian).conj()
        gamma *= self._weights
        weight = np.sum(np.abs(gamma) ** 2, axis=1)
        answer = np.abs(np.sum(self._spectrum * gamma.conj(), axis=1)) ** 2
        return float(np.sum(answer / (weight + _FLOOR * max(float(weight.max()), 1e-30))) / self._power)

    def _wave(self, k: FloatArray, hessian: FloatArray) -> ComplexArray:
        ky, kx = k[..., 0].astype(np.float32), k[..., 1].astype(np.float32)
        chi = hessian[0, 0] * ky * ky + 2 * hessian[0, 1] * ky * kx + hessian[1, 1] * kx * kx
        aperture = np.clip((self._radius - np.sqrt(ky * ky + kx * kx)) / self._edge + 0.5, 0, 1)
        found: ComplexArray = aperture * np.exp((-1j * np.pi * self._wavelength) * chi.astype(np.float32))
        return found


def _rotation(angle: float) -> FloatArray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])


def _hessian(c10: float, c12a: float, c12b: float) -> FloatArray:
    return np.array([[c10 - c12a, c12b], [c12b, c10 + c12a]])
