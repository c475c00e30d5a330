"""Resolution: Fourier shell correlation of two halves, along directions too, and the last peak of a crystal.

FSC(q) = Re Σ F₁F₂* / √(Σ|F₁|² Σ|F₂|²) over a shell, Harauz & van Heel, Optik 73, 146 (1986). The thresholds are those
of van Heel & Schatz, J. Struct. Biol. 151, 250 (2005), with n the *independent* voxels of the shell: Friedel pairs
counted once, scaled by the share of the volume that the mask fills. Constraints common to both halves, such as
positivity, can carry correlation beyond the band that was measured; the voxel's Nyquist limit is always reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy import ndimage

from hpcrec.backend.array import Array, BoolArray, FloatArray
from hpcrec.errors import DataError

Threshold = Literal["half_bit", "one_bit", "0.143", "three_sigma"]
Direction = Literal["z", "y", "x"]

CONE_HALF_ANGLE: Final = np.deg2rad(20.0)
_PERSISTENCE = 3
_FEW_VOXELS = 10
_PEAK_MADS = 5.0
_NOISE_SAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where a correlation falls under a threshold for good.

    ``frequency`` 1/Å and ``resolution`` = 1/frequency in Å; ``at_nyquist`` when the curve never falls below, so that
    the true value is at least this good.
    """

    frequency: float
    resolution: float
    at_nyquist: bool


@dataclass(frozen=True, kw_only=True)
class ShellCorrelation:
    """A Fourier shell (or ring) correlation.

    ``frequency`` (shell,) 1/Å, the shell's centre; ``correlation`` (shell,) in [−1, 1]; ``n_independent`` (shell,)
    independent voxels per shell; ``nyquist`` 1/Å. Shells without signal or voxels have correlation 0.
    """

    frequency: FloatArray
    correlation: FloatArray
    n_independent: FloatArray
    nyquist: float

    def threshold(self, name: Threshold) -> FloatArray:
        """Return the threshold curve (shell,).

        half_bit: two halves of one data set; one_bit: two full data sets; 0.143: Rosenthal & Henderson, J. Mol. Biol.
        333, 721 (2003); three_sigma: 3/√n, where correlated noise ends.
        """
        root = np.sqrt(np.maximum(self.n_independent, 1.0))
        if name == "half_bit":
            return np.minimum((0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root), 1.0)
        if name == "one_bit":
            return np.minimum((0.5 + 2.4142 / root) / (1.5 + 1.4142 / root), 1.0)
        if name == "three_sigma":
            return np.minimum(3.0 / root, 1.0)
        return np.full(root.shape, 0.143)

    def crossing(self, name: Threshold = "half_bit") -> Crossing:
        """Return the first crossing after which the curve stays below the threshold for three shells.

        The position is interpolated linearly between the two shells about the crossing. Shells of fewer than ten
        independent voxels, near zero frequency, are passed over: no correlation could clear their threshold.
        """
        above = self.correlation - self.threshold(name)
        below = above < 0
        start = max(int(np.argmax(self.n_independent >= _FEW_VOXELS)), 1)
        for i in range(start, len(below)):
            if below[i : i + _PERSISTENCE].all():
                q = float(self.frequency[i])
                if i > start:
                    share = above[i - 1] / (above[i - 1] - above[i])
                    q = float(self.frequency[i - 1] + share * (self.frequency[i] - self.frequency[i - 1]))
                return Crossing(frequency=q, resolution=1.0 / q, at_nyquist=False)
        return Crossing(frequency=self.nyquist, resolution=1.0 / self.nyquist, at_nyquist=True)

    def signal_to_noise(self) -> FloatArray:
        """Return the spectral signal-to-noise ratio 2·FSC/(1 − FSC) of the two halves together, (shell,)."""
        correlation = np.clip(self.correlation, 0.0, 1.0 - 1e-9)
        return 2.0 * correlation / (1.0 - correlation)


@dataclass(frozen=True, kw_only=True)
class LastPeak:
    """The outermost peak of a power spectrum; valid for crystals only (see :attr:`warning`).

    ``frequency`` 1/Å and ``resolution`` Å, None where no peak stands out; ``axes`` those summed over;
    ``spectrum`` the summed power, zero frequency centred, and ``frequencies`` 1/Å of each remaining axis; ``near``
    the one of these within 20° of which the peak was sought, None for all directions.
    """

    frequency: float | None
    resolution: float | None
    axes: tuple[int, ...]
    spectrum: FloatArray
    frequencies: tuple[FloatArray, ...]
    near: int | None = None
    warning: str = (
        "The last peak of the power spectrum measures resolution for crystals only, and denoising or sparsity "
        "constraints can fake it; read it beside the Fourier shell correlation."
    )


def fourier_shell_correlation(
    a: Array, b: Array, voxel: tuple[float, ...], mask: Array | None = None, direction: Direction | None = None
) -> ShellCorrelation:
    """Return the FSC of two volumes (z, y, x), or the ring correlation of two images (y, x), real or complex.

    All Fourier voxels of complex images are independent, half of those of real ones.
    ``voxel`` Å along each axis; ``mask`` a soft weight in [0, 1] of the same shape, applied to both; ``direction``
    keeps the frequencies within 20° of one axis only (conical FSC). Raises DataError on unequal shapes, values that
    are not finite, or an empty mask.
    """
    _check_pair(a, b, voxel, mask)
    full = np.iscomplexobj(a) or np.iscomplexobj(b)
    fa, fb = ((np.fft.fftn if full else np.fft.rfftn)(_masked(v, mask)) for v in (a, b))
    radius, once, part = _shell_geometry(np.shape(a), voxel, direction, full)
    nyquist = 0.5 / max(voxel)
    width = 1.0 / max(n * v for n, v in zip(np.shape(a), voxel))
    n_shells = int(nyquist / width + 1e-6) + 1  # the quotient is a whole number but for round-off
    shell = np.rint(radius / width).astype(np.int64)
    use = part & (shell < n_shells)

    def shell_sum(values: Array) -> FloatArray:
        return np.bincount(shell[use], weights=(values * once)[use], minlength=n_shells).astype(np.float64)

    power = np.sqrt(shell_sum(np.abs(fa) ** 2) * shell_sum(np.abs(fb) ** 2))
    cross = shell_sum((fa * fb.conj()).real)
    correlation = np.divide(cross, power, out=np.zeros_like(cross), where=power > 0)
    return ShellCorrelation(
        frequency=np.arange(n_shells) * width,
        correlation=correlation,
        n_independent=shell_sum(np.ones_like(radius)) * _fill(mask),
        nyquist=nyquist,
    )


def directional_correlations(
    a: Array, b: Array, voxel: tuple[float, float, float], mask: Array | None = None
) -> dict[str, ShellCorrelation]:
    """Return the conical FSC along z (beam at zero tilt), y and x; arguments as :func:`fourier_shell_correlation`."""
    names: tuple[Direction, ...] = ("z", "y", "x")
    return {name: fourier_shell_correlation(a, b, voxel, mask, name) for name in names}


def soft_mask(volume: Array, sigma: float = 8.0, edge: float = 8.0) -> FloatArray:
    """Return a soft mask of the particle: smoothed by ``sigma`` voxels, above a third of its 99th percentile, blurred.

    ``edge`` is the width in voxels of the blur. ``sigma`` must be wide enough to melt the atoms into one body: a mask
    that follows single atoms would itself correlate the halves at high frequency.
    """
    smooth = ndimage.gaussian_filter(np.asarray(volume, np.float64), sigma)
    inside = ndimage.binary_dilation(smooth > np.percentile(smooth, 99) / 3, iterations=max(int(edge), 1))
    return np.asarray(np.clip(ndimage.gaussian_filter(inside.astype(np.float64), edge / 2), 0.0, 1.0), np.float64)


def last_peak(volume: Array, voxel: tuple[float, ...], axes: tuple[int, ...], near: int | None = None) -> LastPeak:
    """Return the last peak of the power spectrum summed over ``axes``: one or two of a volume, none or one of an image.

    Romanov et al., J. Phys. Mater. 8, 015005 (2025): |F|² of the apodised data is summed; a running median is
    subtracted; local maxima more than 5 robust deviations above it count, and the outermost gives d = 1/q. With one
    axis left the peak is sought along it; with two left in their plane, and only within 20° of the first (``near`` = 0)
    or second (1) of the two where ``near`` is given. Peaks above 0.95 of the Nyquist frequency do not count.
    """
    data = np.asarray(volume, np.float64)
    if len(voxel) != data.ndim or not 1 <= data.ndim - len(set(axes)) <= 2:
        raise DataError(f"cannot sum a spectrum of {data.ndim} axes over axes {axes} and leave one or two")
    spectrum = np.fft.fftshift(np.abs(np.fft.fftn((data - data.mean()) * _apodisation(data.shape))) ** 2).sum(axis=axes)
    left = [i for i in range(data.ndim) if i not in axes]
    frequencies = tuple(np.fft.fftshift(np.fft.fftfreq(data.shape[i], voxel[i])) for i in left)
    return _outermost(spectrum, frequencies, axes, near)


def crystal_resolution(volume: Array, voxel: tuple[float, float, float]) -> dict[str, LastPeak]:
    """Return the last peaks near the beam (``axial``, z), the tilt axis (``along``, y) and across both (``across``, x).

    A crystal need not stand along the axes, so the spectrum is summed over *one* axis and the outermost peak within
    20° of the direction counts, the better of the two sums that hold the direction; for crystals only.
    """
    found = {}
    for axis, name in enumerate(("axial", "along", "across")):
        others = [i for i in range(3) if i != axis]
        trials = [last_peak(volume, voxel, (over,), near=int(axis > min({0, 1, 2} - {over}))) for over in others]
        found[name] = max(trials, key=lambda peak: peak.frequency or 0.0)
    return found


def _check_pair(a: Array, b: Array, voxel: tuple[float, ...], mask: Array | None) -> None:
    if np.shape(a) != np.shape(b) or (mask is not None and np.shape(mask) != np.shape(a)) or len(voxel) != np.ndim(a):
        raise DataError(f"the halves and the mask must have one shape, got {np.shape(a)}, {np.shape(b)}, {voxel}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError("a half holds values that are not finite; rerun its reconstruction")
    if mask is not None and not np.any(mask):
        raise DataError("the mask of the shell correlation is empty")


def _masked(values: Array, mask: Array | None) -> Array:
    """Take the mean off under the mask, so that the mask's own spectrum does not leak into the correlation."""
    values = np.asarray(values, np.complex128 if np.iscomplexobj(values) else np.float64)
    if mask is None:
        return np.asarray(values - values.mean())
    return np.asarray((values - np.average(values, weights=mask)) * mask)


def _fill(mask: Array | None) -> float:
    """Return the share of independent voxels under a mask: (Σm²)² / (N Σm⁴), the filled share of a binary one."""
    if mask is None:
        return 1.0
    square = np.asarray(mask, np.float64) ** 2
    return float(square.sum() ** 2 / (square.size * (square**2).sum()))


def _shell_geometry(
    shape: tuple[int, ...], voxel: tuple[float, ...], direction: Direction | None, full: bool
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Return |q|, the count of each voxel in Friedel-unique units, and whether it lies in the cone.

    The voxels are those of the half spectrum of real data, or of the ``full`` one of complex data.
    """
    axes = [np.fft.fftfreq(n, v) for n, v in zip(shape[:-1], voxel[:-1])]
    axes.append((np.fft.fftfreq if full else np.fft.rfftfreq)(shape[-1], voxel[-1]))
    q = np.meshgrid(*axes, indexing="ij", sparse=True)
    radius = np.sqrt(sum(component**2 for component in q))
    once = np.ones(radius.shape)
    if not full:
        once[..., 0] = 0.5  # the planes kx = 0 and kx = Nyquist hold both members of each Friedel pair
        if shape[-1] % 2 == 0:
            once[..., -1] = 0.5
    if direction is None:
        return radius, once, np.ones(radius.shape, np.bool_)
    along = np.abs(q[{"z": -3, "y": -2, "x": -1}[direction]])
    return radius, once, np.asarray(along >= np.cos(CONE_HALF_ANGLE) * radius)


def _apodisation(shape: tuple[int, ...]) -> FloatArray:
    """Return a Hann window over all axes, which keeps the box's edges out of the spectrum."""
    window = np.ones(())
    for n in shape:
        window = np.multiply.outer(window, np.hanning(n + 2)[1:-1])
    return np.asarray(window, np.float64)


def _outermost(
    spectrum: FloatArray, frequencies: tuple[FloatArray, ...], axes: tuple[int, ...], near: int | None
) -> LastPeak:
    q = np.meshgrid(*frequencies, indexing="ij")
    radius = np.sqrt(sum(k**2 for k in q))
    rim = 0.95 * min(float(-k.min()) for k in frequencies)
    peaks = (
        _peaks(spectrum, radius > rim) & (radius > 3.0 * max(float(k[1] - k[0]) for k in frequencies)) & (radius < rim)
    )
    if near is not None:
        peaks &= np.abs(q[near]) >= np.cos(CONE_HALF_ANGLE) * radius
    best = float(radius[peaks].max()) if peaks.any() else None
    return LastPeak(
        frequency=best,
        resolution=None if best is None else 1.0 / best,
        axes=axes,
        spectrum=spectrum,
        frequencies=frequencies,
        near=near,
    )


def _peaks(spectrum: FloatArray, noise: BoolArray) -> BoolArray:
    """Return local maxima that stand more than 5 robust deviations of ``noise`` above a running median of the log.

    The deviation is taken where no signal can be (beyond the rim): among the reflections of a small crystal, whose
    peaks are broad, the spectrum itself is no measure of noise.
    """
    log = np.log(spectrum + 1e-12 * spectrum.max() + 1e-300)
    size = [max(9, n // 12) | 1 for n in spectrum.shape]
    height = log - ndimage.median_filter(log, size=size)
    floor = height[noise] if noise.sum() >= _NOISE_SAMPLES else height
    spread = 1.4826 * float(np.median(np.abs(floor - np.median(floor))))
    tops = log >= ndimage.maximum_filter(log, size=5)
    return np.asarray(tops & (height > _PEAK_MADS * max(spread, 1e-6)), np.bool_)
