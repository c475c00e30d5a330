"""Constraints along the beam: they tie the slices, which few patterns tell apart.

They act on the log transmission ln|O| + iφ. All but the filter in k_z take φ against the mean direction of its column
of slices, so phases may wrap as long as the slices of one column differ by less than π; the filter takes phases between
−π and π.
"""

from __future__ import annotations

from types import ModuleType
from typing import Literal

import numpy as np

from hpcrec.backend.array import ComplexArray, FloatArray, array_module, real_dtype
from hpcrec.backend.fft import fftn, ifftn
from hpcrec.geometry.tiles import Box
from hpcrec.objectives.constraints import ConstraintOptions, ObjectConstraint, StackFilter, Surroundings
from hpcrec.objectives.regularizers import flatten_variation
from hpcrec.options import options

_TINY = 1e-20
_Z = (-3,)
_FLOOR = 1e-3
_FULL_LIGHT = 0.1
_MOST_STEPS = 100
# A few rows at a time stay in the cache; a device wants many, but not five more copies of the object
_ROWS, _DEVICE_ROWS = 4, 256


@options
class KzFilterOptions(ConstraintOptions):
    """Options of the filter in k_z.

    beta : β, how much of what varies along z is taken away; 0.1 to 1 is usual
    lateral_damping_pixel2 : α of a factor exp(−αk²) in the plane; 0 leaves it out
    amplitude_share : share of |O| − 1 that is kept afterwards
    ends : "mirror" continues the slices by their mirror image, which keeps the projected phase; "vacuum" adds as many
        empty slices, "periodic" joins the last slice to the first
    """

    beta: float = 1.0
    lateral_damping_pixel2: float = 0.0
    amplitude_share: float = 1.0
    ends: Literal["mirror", "vacuum", "periodic"] = "mirror"


@options
class LayerVariationOptions(ConstraintOptions):
    """Options of the total variation along the beam.

    weight_rad : τ of the proximal map; steps of less than about that from slice to slice are levelled
    """

    weight_rad: float


@options
class DepthSmoothingOptions(ConstraintOptions):
    """Options of the smoothing along the beam.

    sigma_angstrom : standard deviation of the Gaussian; about one slice is usual
    """

    sigma_angstrom: float


@options
class IdenticalSlicesOptions(ConstraintOptions):
    """Options of slices that are alike.

    strength : share of the way to the common slice
    """

    strength: float = 1.0


class KzFilter(StackFilter):
    """Weakens what varies along z slowly in the plane, which the patterns determine worst (missing wedge).

    W = [1 − (2/π) atan((β|k_z|/√(k² + 10⁻³))²)] exp(−αk²), k_z in cycles per slice, k in cycles per pixel of the plane
    (that of PtychoShelves, Wakonig et al., J. Appl. Cryst. 53, 574 (2020)). Pixels with less than a tenth of the
    largest illumination take their share of the change only.
    """

    Options = KzFilterOptions

    def __init__(self, options: KzFilterOptions) -> None:
        self._options = options

    def start(self, obj: ComplexArray) -> ComplexArray:
        """Return ln|O| + iφ."""
        xp = array_module(obj)
        return (xp.log(xp.maximum(xp.abs(obj), _TINY)) + 1j * xp.angle(obj)).astype(obj.dtype, copy=False)  # type: ignore[no-any-return]

    def filtered(self, spectrum: ComplexArray, shape: tuple[int, int], box: Box) -> ComplexArray:
        """Return the spectrum times W, on as many slices as it has."""
        n_slices = spectrum.shape[-3]
        if n_slices == 1:
            return spectrum.copy()
        stack = fftn(self._continued(spectrum), axes=_Z)
        weights = self._weights((stack.shape[-3], *shape), box, array_module(spectrum))
        stack *= weights.astype(real_dtype(spectrum.dtype))
        return ifftn(stack, axes=_Z)[..., :n_slices, :, :]

    def finish(self, obj: ComplexArray, found: ComplexArray, light: FloatArray | None) -> ComplexArray:
        """Return the object with the change of ln|O| + iφ, by the share of the light."""
        if obj.shape[-3] == 1:
            return obj.copy()
        xp, old = array_module(obj), self.start(obj)
        change = found - old
        if light is not None:
            change *= xp.minimum(light / _FULL_LIGHT, 1).astype(change.real.dtype)
        new = xp.exp(old + change)
        if self._options.amplitude_share != 1:
            size = xp.abs(new)
            new *= (1 + self._options.amplitude_share * (size - 1)) / xp.maximum(size, _TINY)
        return new.astype(obj.dtype, copy=False)  # type: ignore[no-any-return]

    def _weights(self, shape: tuple[int, int, int], box: Box, xp: ModuleType) -> FloatArray:
        """Return W (k_z, k_y, k_x) of ``xp`` on ``box`` of a stack of ``shape``, zero frequency at [0, 0, 0]."""
        kz, ky, kx = (np.fft.fftfreq(n) for n in shape)
        kz, ky, kx = (xp.asarray(k) for k in (kz, ky[box.y0 : box.y1], kx[box.x0 : box.x1]))
        squared = ky[:, None] ** 2 + kx**2
        angle = xp.arctan((self._options.beta * kz[:, None, None]) ** 2 / (squared + _FLOOR))
        return (1 - 2 / np.pi * angle) * xp.exp(-self._options.lateral_damping_pixel2 * squared)  # type: ignore[no-any-return]

    def _continued(self, values: ComplexArray) -> ComplexArray:
        """Return the slices and what lies behind them."""
        xp, ends = array_module(values), self._options.ends
        if ends == "periodic":
            return values
        behind = xp.flip(values, -3) if ends == "mirror" else xp.zeros_like(values)
        return xp.concatenate([values, behind], axis=-3)  # type: ignore[no-any-return]


class LayerVariation(ObjectConstraint):
    """Proximal step of the total variation along z of each column, τ Σ |L_{s+1} − L_s|, L = ln|O| + iφ."""

    Options = LayerVariationOptions

    def __init__(self, options: LayerVariationOptions) -> None:
        self._weight = options.weight_rad

    def apply(self, obj: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the object with fewer and smaller steps from slice to slice."""
        found = array_module(obj).empty_like(obj)
        # The dual of a chain needs steps in proportion to its length
        n_iterations = min(10 * obj.shape[-3], _MOST_STEPS)
        n_rows = _ROWS if array_module(obj) is np else _DEVICE_ROWS
        for y in range(0, obj.shape[-2], n_rows):
            rows = np.s_[..., y : y + n_rows, :]
            logs, direction = columns(obj[rows])
            found[rows] = from_columns(flatten_variation(logs, self._weight, _Z, n_iterations), direction)
        return found  # type: ignore[no-any-return]


class DepthSmoothing(ObjectConstraint):
    """Gaussian smoothing of L = ln|O| + iφ along z, the ends mirrored, so that the projected phase stays."""

    Options = DepthSmoothingOptions

    def __init__(self, options: DepthSmoothingOptions) -> None:
        self._sigma = options.sigma_angstrom

    def apply(self, obj: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the smoothed object."""
        n_slices = obj.shape[-3]
        if n_slices == 1:
            return obj.copy()
        logs, direction = columns(obj)
        matrix = gaussian_matrix(n_slices, self._sigma / float(np.mean(around.gaps)))
        xp = array_module(obj)
        mixed = xp.tensordot(xp.asarray(matrix.astype(obj.dtype)), logs, axes=((1,), (obj.ndim - 3,)))
        return from_columns(xp.ascontiguousarray(xp.moveaxis(mixed, 0, -3)), direction)


class IdenticalSlices(ObjectConstraint):
    """All slices become their geometric mean, for a sample that is the same at all depths."""

    Options = IdenticalSlicesOptions

    def __init__(self, options: IdenticalSlicesOptions) -> None:
        self._strength = options.strength

    def apply(self, obj: ComplexArray, around: Surroundings) -> ComplexArray:
        """Return the object with slices nearer to their mean."""
        logs, direction = columns(obj)
        mean = logs.mean(axis=-3, keepdims=True)
        return from_columns(logs + self._strength * (mean - logs), direction)


def columns(obj: ComplexArray) -> tuple[ComplexArray, ComplexArray]:
    """Return ln|O| + i(φ − φ̄) (…, slice, y, x) and the mean direction exp(iφ̄) (…, 1, y, x) of each column."""
    xp = array_module(obj)
    total = obj.sum(axis=-3, keepdims=True)
    size = xp.abs(total)
    direction = xp.where(size > _TINY, total / xp.maximum(size, _TINY), 1).astype(obj.dtype, copy=False)
    logs = xp.log(xp.maximum(xp.abs(obj), _TINY)) + 1j * xp.angle(obj * direction.conj())
    return logs.astype(obj.dtype, copy=False), direction


def from_columns(logs: ComplexArray, direction: ComplexArray) -> ComplexArray:
    """Return the object of what :func:`columns` gave."""
    found: ComplexArray = array_module(logs).exp(logs) * direction
    return found.astype(direction.dtype, copy=False)


def gaussian_matrix(n: int, sigma: float) -> FloatArray:
    """Return G (n, n), the Gaussian of standard deviation ``sigma`` samples on a chain with mirrored ends.

    Rows and columns add up to one.
    """
    # Modes of a chain with mirrored ends: cos(π m (s + ½)/n), damped by the Gaussian's transform
    modes = np.cos(np.pi * np.outer(np.arange(n), np.arange(n) + 0.5) / n)
    modes /= np.linalg.norm(modes, axis=1, keepdims=True)
    damping = np.exp(-0.5 * (np.pi * np.arange(n) / n * sigma) ** 2)
    found: FloatArray = modes.T @ (damping[:, None] * modes)
    return found
