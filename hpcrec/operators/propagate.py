"""Maps of waves: sub-pixel shift, step through free space, far field."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, FloatArray, array_module
from hpcrec.backend.fft import fft2, ifft2
from hpcrec.operators.base import LinearOperator
from hpcrec.physics.propagation import fresnel_factor


def shift_ramps(
    shifts: FloatArray, shape: tuple[int, int], dtype: Any, xp: ModuleType = np
) -> tuple[ComplexArray, ComplexArray]:
    """Return the spectrum's factors exp(−2πi q δ) of shifts δ (n, 2) in pixels: along y (n, ny) and along x (n, nx).

    ``shifts`` are on the host, the factors are moved to where the arrays of ``xp`` live.
    """
    y, x = (np.exp(-2j * np.pi * shifts[:, i, None] * np.fft.fftfreq(n)).astype(dtype) for i, n in enumerate(shape))
    return xp.asarray(y), xp.asarray(x)


class _SpectrumFactor(LinearOperator):
    """Multiplies the spectrum of waves (…, y, x) by a factor."""

    def __init__(self, shape: tuple[int, ...], factor: ComplexArray) -> None:
        self.domain = self.range = shape
        self.dtype = factor.dtype
        self._factor = factor

    def apply(self, a: Array) -> Array:
        """Return F⁻¹ H F a."""
        return ifft2(self._beside(a) * fft2(a))

    def adjoint(self, b: Array) -> Array:
        """Return F⁻¹ H* F b."""
        return ifft2(self._beside(b).conj() * fft2(b))

    def _beside(self, a: Array) -> ComplexArray:
        """Return the factor where ``a`` lives; made on the host, it moves to a device each time."""
        xp = array_module(a)
        return self._factor if array_module(self._factor) is xp else xp.asarray(self._factor)


class SubpixelShift(_SpectrumFactor):
    """Moves waves (position, y, x) by δ (position, 2) pixels: ψ(r) ↦ ψ(r − δ), periodic in the window."""

    def __init__(self, shape: tuple[int, int], shifts: FloatArray, dtype: Any = np.complex64) -> None:
        ramp_y, ramp_x = shift_ramps(shifts, shape, dtype)
        super().__init__((len(shifts), *shape), ramp_y[:, :, None] * ramp_x[:, None, :])

    @classmethod
    def example(cls) -> SubpixelShift:
        """Return a small instance for the shared tests."""
        return cls((8, 9), np.array([[0.3, -0.2], [0.0, 0.5]]), np.complex128)


class FreeSpaceStep(_SpectrumFactor):
    """Propagates waves (…, y, x) by ``distance`` Å, see :func:`hpcrec.physics.propagation.fresnel_factor`."""

    def __init__(
        self,
        shape: tuple[int, ...],
        sampling: tuple[float, float],
        wavelength: float,
        distance: float,
        band_limit: float | None = None,
        dtype: Any = np.complex64,
    ) -> None:
        super().__init__(
            shape, fresnel_factor((shape[-2], shape[-1]), sampling, wavelength, distance, band_limit, dtype)
        )

    @classmethod
    def example(cls) -> FreeSpaceStep:
        """Return a small instance for the shared tests."""
        return cls((2, 8, 9), (0.5, 0.4), 0.025, 20.0, 2 / 3, np.complex128)


class FarField(LinearOperator):
    """The unitary transform of exit waves (…, y, x) to the far field (…, ky, kx), zero frequency at [0, 0]."""

    def __init__(self, shape: tuple[int, ...], dtype: Any = np.complex64) -> None:
        self.domain = self.range = shape
        self.dtype = np.dtype(dtype)

    @classmethod
    def example(cls) -> FarField:
        """Return a small instance for the shared tests."""
        return cls((2, 8, 9), np.complex128)

    def apply(self, a: Array) -> Array:
        """Return F a."""
        return fft2(a)

    def adjoint(self, b: Array) -> Array:
        """Return F⁻¹ b."""
        return ifft2(b)
