"""Gauges: what the patterns leave open between object and probe is fixed without changing any pattern.

All hold for patterns in the far field. Modes of the probe and their variations change alike. On a device all passes
over pixels are done there; sums of rows and columns come to the host.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from hpcrec.backend.array import ComplexArray, FloatArray, array_module, to_host
from hpcrec.backend.fft import fft2, ifft2
from hpcrec.geometry.grid import Grid
from hpcrec.objectives.constraints import ConstraintOptions, Gauge, Surroundings

_N_FITS = 3


class Centre(Gauge):
    """The centre of mass of Σ|P|² comes to the middle of the window; the object moves alike.

    P(r) ← P(r + d), O(r) ← O(r + d) by Fourier shifts, which join the edges of window and grid: exact where product and
    factors have no frequencies beyond the grid's.
    """

    Options = ConstraintOptions

    def __init__(self, options: ConstraintOptions) -> None:
        """There is nothing to choose."""

    def apply(self, obj: ComplexArray, waves: ComplexArray, around: Surroundings) -> tuple[ComplexArray, ComplexArray]:
        """Return object and waves with the probe in the middle."""
        offset = centre_of_mass(np.sum(np.abs(waves[: around.n_modes]) ** 2, axis=0, dtype=np.float64))
        away = (-offset[0] * around.sampling[0], -offset[1] * around.sampling[1])
        return shifted(obj, away, around.sampling), shifted(waves, away, around.sampling)


class Ramp(Gauge):
    """Linear phase ramps of the slices go to the probe, P ← P exp(2πi G·r).

    A slice's ramp g is the weighted least-squares plane through its phase where light was; several object states share
    the mean of theirs. From slice s on, the wave is tilted by what is taken out of slices s, s+1 …, G_s = Σ g_t, and
    so moves by λ Δz G on its way to the next slice, which moves alike: O_s(r) ← (O_s exp(−2πi g_s·r))(r − D_s),
    D_s = Σ_{t<s} λ Δz_t G_{t+1} (paraxial). The phase at the middle of the light and the whole slice 1 stay in place.
    """

    Options = ConstraintOptions

    def __init__(self, options: ConstraintOptions) -> None:
        """There is nothing to choose."""

    def apply(self, obj: ComplexArray, waves: ComplexArray, around: Surroundings) -> tuple[ComplexArray, ComplexArray]:
        """Return object and waves with the ramps in the waves."""
        assert around.light is not None
        light, sampling, xp = around.light, around.sampling, array_module(obj)
        if not light.any():
            return obj, waves
        middle = centre_of_mass(light)
        of_slices = np.stack(
            [np.mean([ramp(o, light, sampling) for o in obj[:, s]], axis=0) for s in range(len(obj[0]))]
        )
        carried: FloatArray = np.cumsum(of_slices[::-1], axis=0)[::-1]
        drift: FloatArray = np.zeros(2)
        found = np.empty_like(obj)
        for s, slope in enumerate(of_slices):
            flat = obj[:, s] * tilt(obj.shape[-2:], -slope, sampling, middle, xp).astype(obj.dtype)
            if s > 0:
                drift = drift + around.wavelength * around.gaps[s - 1] * carried[s]
                flat = shifted(flat, (float(drift[0]), float(drift[1])), sampling)
            found[:, s] = flat
        return found, waves * tilt(waves.shape[-2:], carried[0], sampling, xp=xp).astype(waves.dtype)


class Scale(Gauge):
    """The mean of |O| over the light becomes 1 in each slice; the probe takes the factors up."""

    Options = ConstraintOptions

    def __init__(self, options: ConstraintOptions) -> None:
        """There is nothing to choose."""

    def apply(self, obj: ComplexArray, waves: ComplexArray, around: Surroundings) -> tuple[ComplexArray, ComplexArray]:
        """Return object and waves with the factors in the waves."""
        assert around.light is not None
        sizes = to_host(np.sum(np.abs(obj).mean(axis=0) * around.light, axis=(1, 2), dtype=np.float64))
        if not (sizes > 0).all():
            return obj, waves
        means = (sizes / float(np.sum(around.light, dtype=np.float64))).astype(obj.real.dtype)
        real = waves.real.dtype.type
        return obj / array_module(obj).asarray(means)[:, None, None], waves * real(np.prod(means))


def centre_of_mass(weight: FloatArray) -> FloatArray:
    """Return the centre of mass (2,) of ``weight`` (y, x) in pixels from n//2; zero where there is none."""
    rows, columns = _profiles(weight)
    if not rows.sum() > 0:
        return np.zeros(2)
    y, x = (np.arange(n) - n // 2 for n in weight.shape)
    return np.array([rows @ y, columns @ x]) / rows.sum()  # type: ignore[no-any-return]


def _profiles(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the sums (y,) of the rows and (x,) of the columns, float64, on the host: from a device in one copy."""
    sums = [values.sum(axis=axis, dtype=np.float64) for axis in (1, 0)]
    both = to_host(array_module(values).concatenate(sums))
    return both[: len(values)], both[len(values) :]


def shifted(values: ComplexArray, way: tuple[float, float], sampling: tuple[float, float]) -> ComplexArray:
    """Return f(r − way) of values (…, y, x) on a periodic grid, ``way`` (y, x) and ``sampling`` in Å."""
    xp, grid = array_module(values), Grid(shape=(values.shape[-2], values.shape[-1]), sampling=sampling)
    ky, kx = (xp.asarray(k) for k in grid.frequencies())
    turn = xp.exp(-2j * np.pi * (ky * way[0] + kx * way[1]))
    return ifft2(fft2(values) * turn.astype(values.dtype))


def tilt(
    shape: tuple[int, ...],
    slope: FloatArray,
    sampling: tuple[float, float],
    middle: FloatArray | tuple[float, float] = (0.0, 0.0),
    xp: ModuleType = np,
) -> ComplexArray:
    """Return exp(2πi g·(r − r_0)) (y, x) complex128 of ``xp``, g (2,) in 1/Å, r_0 in pixels from n//2."""
    arms = ((np.arange(n) - n // 2 - m) * d for n, m, d in zip(shape[-2:], middle, sampling))
    y, x = (xp.asarray(np.exp(2j * np.pi * g * arm)) for g, arm in zip(slope, arms))
    found: ComplexArray = y[:, None] * x
    return found


def ramp(obj: ComplexArray, weight: FloatArray, sampling: tuple[float, float]) -> FloatArray:
    """Return the slope (2,) in 1/Å of the weighted least-squares plane through the phase of ``obj`` (y, x).

    Starts from the mean direction of neighbours, which sees no wraps, and fits planes to what is left (Guizar-Sicairos
    et al., Opt. Express 19, 21345 (2011) use the like).
    """
    middle, xp = centre_of_mass(weight), array_module(obj)
    y, x = ((np.arange(n) - n // 2 - m) * d for n, m, d in zip(weight.shape, middle, sampling))
    slope = _mean_slope(obj, weight, sampling)
    weight = weight.astype(np.float64) / np.sum(weight, dtype=np.float64)
    rows, columns = _profiles(weight)
    cross = y @ to_host(weight @ xp.asarray(x))
    matrix = np.array([[rows @ y**2, cross], [cross, columns @ x**2]])
    if np.linalg.det(matrix) <= 1e-12 * np.trace(matrix) ** 2:
        return slope
    for _ in range(_N_FITS):
        flat = obj * tilt(obj.shape, -slope, sampling, middle, xp)
        mean = np.sum(flat * weight)
        rows, columns = _profiles(xp.angle(flat * mean.conj()) * weight)
        slope += np.linalg.solve(matrix, np.array([rows @ y, columns @ x])) / (2 * np.pi)
    return slope


def _mean_slope(obj: ComplexArray, weight: FloatArray, sampling: tuple[float, float]) -> FloatArray:
    """Return the direction of Σ w O*(r) O(r + 1) along y and x, in 1/Å."""
    found = np.zeros(2)
    for axis in range(2):
        values, light = np.moveaxis(obj, axis, 0), np.moveaxis(weight, axis, 0)
        pairs = np.sum(np.sqrt(light[1:] * light[:-1]) * values[1:] * values[:-1].conj(), dtype=np.complex128)
        found[axis] = np.angle(complex(pairs)) / (2 * np.pi * sampling[axis])
    return found
