"""Gauges: what the patterns leave open between object and probe is fixed without changing any pattern.

All hold for patterns in the far field. Modes of the probe and their variations change alike. On a device all passes
over pixels are done there; sums of rows and columns come to the host.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, FloatArray, array_module, to_host
from hpcrec.geometry.tiles import Box
from hpcrec.objectives.constraints import ConstraintOptions, Gauge, Surroundings
from hpcrec.objectives.region import Region, all_at_hand, shifted_along

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
        region = around.region or all_at_hand(obj.shape)
        offset = centre_of_mass(np.sum(np.abs(waves[: around.n_modes]) ** 2, axis=0, dtype=np.float64))
        moved = shifted_along(waves, np.full(len(waves), -offset[1]), -1)
        moved = shifted_along(moved, np.full(len(waves), -offset[0]), -2)
        return region.shifted(obj, np.tile(-offset, (obj.shape[-3], 1))), moved


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
        region = around.region or all_at_hand(obj.shape)
        middle, total = centre_of_light(light, region)
        if not total > 0:
            return obj, waves
        of_slices = np.stack(
            [np.mean([ramp(o, light, sampling, region) for o in obj[:, s]], axis=0) for s in range(len(obj[0]))]
        )
        carried: FloatArray = np.cumsum(of_slices[::-1], axis=0)[::-1]
        drifts: FloatArray = np.zeros((len(of_slices), 2))
        drifts[1:] = np.cumsum(around.wavelength * around.gaps[:, None] * carried[1:], axis=0) / sampling
        found = np.empty_like(obj)
        for s, slope in enumerate(of_slices):
            flat = tilt(region.shape, -slope, sampling, middle, xp, region.held)
            found[:, s] = obj[:, s] * flat.astype(obj.dtype)
        if len(of_slices) > 1:
            found[:, 1:] = region.shifted(found[:, 1:], drifts[1:])
        return found, waves * tilt(waves.shape[-2:], carried[0], sampling, xp=xp).astype(waves.dtype)


class Scale(Gauge):
    """The mean of |O| over the light becomes 1 in each slice; the probe takes the factors up."""

    Options = ConstraintOptions

    def __init__(self, options: ConstraintOptions) -> None:
        """There is nothing to choose."""

    def apply(self, obj: ComplexArray, waves: ComplexArray, around: Surroundings) -> tuple[ComplexArray, ComplexArray]:
        """Return object and waves with the factors in the waves."""
        assert around.light is not None
        region = around.region or all_at_hand(obj.shape)
        own, light = region.own(obj), region.own(around.light)
        sums = [np.sum(np.abs(own[:, s]).mean(axis=0) * light, dtype=np.float64) for s in range(obj.shape[-3])]
        sizes = region.total(np.array([float(s) for s in (*sums, np.sum(light, dtype=np.float64))]))
        if not (sizes[:-1] > 0).all():
            return obj, waves
        means = (sizes[:-1] / sizes[-1]).astype(obj.real.dtype)
        real = waves.real.dtype.type
        return obj / array_module(obj).asarray(means)[:, None, None], waves * real(np.prod(means))


def centre_of_mass(weight: FloatArray) -> FloatArray:
    """Return the centre of mass (2,) of ``weight`` (y, x) in pixels from n//2; zero where there is none."""
    return centre_of_light(weight, all_at_hand(weight.shape))[0]


def centre_of_light(light: FloatArray, region: Region) -> tuple[FloatArray, float]:
    """Return the centre of mass (2,) of ``light`` (y, x), which is at hand in parts, in pixels from n//2, and its sum.

    The centre is zero where there is no light.
    """
    rows, columns = _profiles(region.own(light))
    y, x = region.pixels(region.core)
    total, *moments = region.total(np.array([rows.sum(), rows @ y, columns @ x]))
    return (np.array(moments) / total if total > 0 else np.zeros(2)), float(total)


def _profiles(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the sums (y,) of the rows and (x,) of the columns, float64, on the host: from a device in one copy."""
    sums = [values.sum(axis=axis, dtype=np.float64) for axis in (1, 0)]
    both = to_host(array_module(values).concatenate(sums))
    return both[: len(values)], both[len(values) :]


def tilt(
    shape: tuple[int, ...],
    slope: FloatArray,
    sampling: tuple[float, float],
    middle: FloatArray | tuple[float, float] = (0.0, 0.0),
    xp: ModuleType = np,
    box: Box | None = None,
) -> ComplexArray:
    """Return exp(2πi g·(r − r_0)) (y, x) complex128 of ``xp``, g (2,) in 1/Å, r_0 in pixels from n//2.

    ``box`` : the pixels of a grid of ``shape`` that are wanted, default all
    """
    box = box or Box(0, shape[-2], 0, shape[-1])
    pixels = (np.arange(box.y0, box.y1) - shape[-2] // 2, np.arange(box.x0, box.x1) - shape[-1] // 2)
    arms = ((r - m) * d for r, m, d in zip(pixels, middle, sampling))
    y, x = (xp.asarray(np.exp(2j * np.pi * g * arm)) for g, arm in zip(slope, arms))
    found: ComplexArray = y[:, None] * x
    return found


def ramp(
    obj: ComplexArray, weight: FloatArray, sampling: tuple[float, float], region: Region | None = None
) -> FloatArray:
    """Return the slope (2,) in 1/Å of the weighted least-squares plane through the phase of ``obj`` (y, x).

    Starts from the mean direction of neighbours, which sees no wraps, and fits planes to what is left (Guizar-Sicairos
    et al., Opt. Express 19, 21345 (2011) use the like). ``region`` : what of object and weight is at hand, default all
    """
    region, xp = region or all_at_hand(obj.shape), array_module(obj)
    middle, total = centre_of_light(weight, region)
    slope = _mean_slope(obj, weight, sampling, region)
    obj, weight = region.own(obj), region.own(weight).astype(np.float64) / total
    y, x = ((r - m) * d for r, m, d in zip(region.pixels(region.core), middle, sampling))
    rows, columns = _profiles(weight)
    yy, cross, xx = region.total(np.array([rows @ y**2, y @ to_host(weight @ xp.asarray(x)), columns @ x**2]))
    matrix = np.array([[yy, cross], [cross, xx]])
    if np.linalg.det(matrix) <= 1e-12 * np.trace(matrix) ** 2:
        return slope
    for _ in range(_N_FITS):
        flat = obj * tilt(region.shape, -slope, sampling, middle, xp, region.core)
        mean = complex(region.total(np.array([complex(np.sum(flat * weight))]))[0])
        rows, columns = _profiles(xp.angle(flat * mean.conjugate()) * weight)
        slope += np.linalg.solve(matrix, region.total(np.array([rows @ y, columns @ x]))) / (2 * np.pi)
    return slope


def _mean_slope(obj: ComplexArray, weight: FloatArray, sampling: tuple[float, float], region: Region) -> FloatArray:
    """Return the direction of Σ w O*(r) O(r + 1) along y and x, in 1/Å: each pair with the rank that owns r."""
    obj, weight = (_next_to(region.own(a), region.with_next(a[None])[0]) for a in (obj, weight))
    ny, nx = region.core.shape
    pairs = []
    for axis in range(2):
        # A wider box has one more row and one more column, but for those at the end of the grid
        values, light = (np.moveaxis(a[:, :nx] if axis == 0 else a[:ny], axis, 0) for a in (obj, weight))
        terms = np.sqrt(light[1:] * light[:-1]) * values[1:] * values[:-1].conj()
        pairs.append(complex(np.sum(terms, dtype=np.complex128)))
    return np.angle(region.total(np.array(pairs))) / (2 * np.pi * np.array(sampling))  # type: ignore[no-any-return]


def _next_to(like: Array, values: Array) -> Array:
    """Return an array where ``like`` lives."""
    return array_module(like).asarray(values)  # type: ignore[no-any-return]
