"""Probes: aberrated apertures, start modes of a partially coherent probe, and the fit of a probe into its window."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from hpcrec.backend.array import ComplexArray, FloatArray
from hpcrec.backend.fft import fft2, ifft2
from hpcrec.errors import ConfigError
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.tiles import Box
from hpcrec.physics.propagation import fresnel_factor

_NAME = re.compile(r"(C|phi)([0-9])([0-9])")
_TERM = re.compile(r"C([0-9])([0-9])([ab]?)")
_BORDER_POWER = 0.05


def aberration_function(
    ky: FloatArray, kx: FloatArray, wavelength: float, aberrations: Mapping[str, float]
) -> FloatArray:
    """Return χ(k) in rad: χ = (2π/λ) Σ C_nm (λk)^(n+1) cos(m(φ − φ_nm)) / (n+1).

    ``ky``, ``kx`` in 1/Å (broadcast together); ``aberrations`` maps "C10", "C12", "C30", … to Å and "phi12", … to rad.
    Raises ConfigError for a name that is no aberration (n + m must be odd, m ≤ n + 1).
    """
    angle = wavelength * np.hypot(ky, kx)
    azimuth = np.arctan2(ky, kx)
    chi = np.zeros(np.broadcast_shapes(ky.shape, kx.shape))
    for name, value in aberrations.items():
        kind, n, m = _parse(name)
        if kind == "phi" or value == 0.0:
            continue
        direction = azimuth - aberrations.get(f"phi{n}{m}", 0.0)
        chi += value * angle ** (n + 1) * np.cos(m * direction) / (n + 1)
    return 2 * np.pi / wavelength * chi


def _parse(name: str) -> tuple[str, int, int]:
    match = _NAME.fullmatch(name)
    n, m = (int(match[2]), int(match[3])) if match else (0, 0)
    if match is None or not _exists(n, m) or (match[1] == "phi" and m == 0):
        raise ConfigError(f"aberrations: {name!r} is not an aberration; expected names such as C10, C12, phi12, C30")
    return match[1], n, m


def _exists(n: int, m: int) -> bool:
    return (n + m) % 2 == 1 and m <= n + 1


def aberration_basis(
    shape: tuple[int, int], sampling: tuple[float, float], wavelength: float, names: Sequence[str]
) -> FloatArray:
    """Return ∂χ/∂C (name, ky, kx) in rad/Å, zero frequency at [0, 0], of "C10", "C12a" (cos 2φ), "C12b" (sin 2φ), …

    Round aberrations have no letter. Raises ConfigError for a name that is no aberration.
    """
    ky, kx = Grid(shape=shape, sampling=sampling).frequencies()
    found = []
    for name in names:
        match = _TERM.fullmatch(name)
        n, m = (int(match[1]), int(match[2])) if match else (0, 0)
        if match is None or not _exists(n, m) or bool(m) != bool(match[3]):
            raise ConfigError(
                f"aberrations: {name!r} is not an aberration; expected names such as C10, C12a, C12b, C30"
            )
        direction = {f"phi{n}{m}": np.pi / (2 * m)} if name.endswith("b") else {}
        found.append(aberration_function(ky, kx, wavelength, {f"C{n}{m}": 1.0} | direction))
    return np.stack(found)


def aberrated_probe(
    shape: tuple[int, int],
    sampling: tuple[float, float],
    wavelength: float,
    semiangle: float,
    aberrations: Mapping[str, float] | None = None,
    *,
    soft_edge: bool = True,
) -> ComplexArray:
    """Return the probe ψ (y, x) of a round aperture, complex128, centred at n//2, unit total intensity.

    ψ(k) = A(k) exp(−iχ(k)), see :func:`aberration_function`. ``sampling`` (dy, dx) and ``wavelength`` in Å,
    ``semiangle`` in rad. With ``soft_edge`` the aperture falls over one reciprocal pixel, which makes the probe
    independent of how the edge meets the pixels. Raises ConfigError if the aperture covers no pixel.
    """
    grid = Grid(shape=shape, sampling=sampling)
    ky, kx = grid.frequencies()
    distance = semiangle / wavelength - np.hypot(ky, kx)
    pixel = max(1 / (n * d) for n, d in zip(shape, sampling))
    aperture = np.clip(distance / pixel + 0.5, 0, 1) if soft_edge else (distance >= 0).astype(float)
    power = np.sum(aperture**2)
    if power == 0:
        raise ConfigError(f"semiangle: an aperture of {semiangle:g} rad covers no pixel of the {shape} window")
    chi = aberration_function(ky, kx, wavelength, aberrations or {})
    return np.fft.fftshift(ifft2(aperture * np.exp(-1j * chi) / np.sqrt(power)))


def orthogonal_start_modes(probe: ComplexArray, n_modes: int, share: float = 0.02) -> ComplexArray:
    """Return orthogonal start modes (mode, y, x) of a partially coherent probe with the total power of ``probe``.

    Mode 0 is the probe (y, x); the others are its spectrum times 1, ky, kx, ky², … (the derivatives that a source of
    finite size mixes in; they stay inside the aperture), orthogonalised, each with ``share`` of the total power.
    Raises ConfigError unless 0 < share·(n_modes − 1) < 1.
    """
    if n_modes == 1:
        return probe[None].copy()
    if n_modes < 1 or not 0 < share * (n_modes - 1) < 1:
        raise ConfigError(f"n_modes: {n_modes} modes with a share of {share:g} each leave no power for the first mode")
    spectrum = fft2(probe)
    ky, kx = np.meshgrid(np.fft.fftfreq(probe.shape[0]), np.fft.fftfreq(probe.shape[1]), indexing="ij")
    degrees = [(d - i, i) for d in range(n_modes) for i in range(d + 1)][:n_modes]
    columns = np.stack([(spectrum * ky**a * kx**b).ravel() for a, b in degrees], axis=1)
    # Scaled to one norm so that the orthogonalisation is well conditioned
    basis, triangle = np.linalg.qr(columns / np.linalg.norm(columns, axis=0))
    basis *= np.exp(1j * np.angle(np.diag(triangle)))
    powers = np.full(n_modes, share)
    powers[0] = 1 - share * (n_modes - 1)
    modes = np.sqrt(powers) * basis * np.linalg.norm(probe)
    return ifft2(modes.T.reshape(n_modes, *probe.shape)).astype(probe.dtype, copy=False)


def coherent_mode_shares(
    wavelength: float, semiangle: float, source_sigma: float, focal_spread: float = 0.0, n_pixels: int = 24
) -> FloatArray:
    """Return the shares of the power in the coherent modes of a partially coherent probe, largest first.

    A Gaussian source of standard deviation ``source_sigma`` (Å, each direction, at the sample) and a Gaussian spread
    of focus of ``focal_spread`` Δ (Å) mix shifted and defocused probes, with the coherence between two points of the
    aperture ρ(k, k') ∝ exp(−2π²σ²|k − k'|² − π²λ²Δ²(k² − k'²)²/2) times phases of the aberrations, which do not change
    its eigenvalues, the shares (coherent modes: Whitehead et al., Phys. Rev. Lett. 103, 243902 (2009)). Computed on
    ``n_pixels`` across the aperture of ``semiangle`` (rad).
    """
    k = ((np.arange(n_pixels) + 0.5) / n_pixels * 2 - 1) * semiangle / wavelength
    ky, kx = np.meshgrid(k, k, indexing="ij")
    points = np.stack([ky, kx], axis=-1)[np.hypot(ky, kx) <= semiangle / wavelength]
    squared = np.sum(points**2, axis=1)
    distance = squared[:, None] + squared - 2 * points @ points.T
    of_focus = wavelength * focal_spread * (squared[:, None] - squared)
    coherence = np.exp(-2 * (np.pi * source_sigma) ** 2 * distance - 0.5 * (np.pi * of_focus) ** 2)
    found: FloatArray = np.maximum(np.linalg.eigvalsh(coherence)[::-1] / len(points), 0)
    return found


def probe_reach(modes: ComplexArray, sampling: tuple[float, float], wavelength: float, depth: float, cut: float) -> Box:
    """Return the box of window pixels where the modes (mode, y, x) are above ``cut`` times their largest amplitude.

    The amplitude is (Σ|mode|²)^½, here and, ``depth`` Å of free space downstream, relative to the largest there. One
    pixel more on each side is for shifts by parts of a pixel. All of the window where a wave vanishes altogether.
    """
    window = Box(0, modes.shape[-2], 0, modes.shape[-1])
    found = window.intersect(_above(modes, cut).grow(1))
    if depth:
        step = fresnel_factor(window.shape, sampling, wavelength, depth, dtype=np.complex128)
        found = found.union(window.intersect(_above(ifft2(fft2(modes.astype(np.complex128)) * step), cut).grow(1)))
    return found


def _above(modes: ComplexArray, cut: float) -> Box:
    amplitude = np.sqrt(np.sum(np.abs(modes) ** 2, axis=0, dtype=np.float64))
    rows, columns = np.nonzero(amplitude >= cut * amplitude.max())
    return Box(int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1)


def probe_window_fault(
    probe: ComplexArray, sampling: tuple[float, float], wavelength: float, semiangle: float
) -> str | None:
    """Say in one sentence why a probe (…, y, x) does not fit its window, or return None if it does.

    Faults: the aperture reaches beyond the Nyquist frequency; the outer border (1/16 of the window on each side)
    holds more than 5 % of the power, so that the probe wraps around.
    """
    for axis, d in zip("yx", sampling):
        if semiangle / wavelength > 0.5 / d:
            return (
                f"the aperture of {semiangle * 1e3:.3g} mrad reaches beyond the detector along {axis}: "
                f"{semiangle / wavelength:.3g} 1/Å is more than the Nyquist frequency of {0.5 / d:.3g} 1/Å"
            )
    power = np.abs(probe) ** 2
    by, bx = (max(n // 16, 1) for n in probe.shape[-2:])
    outside = 1 - float(power[..., by:-by, bx:-bx].sum() / power.sum())
    if outside > _BORDER_POWER:
        size = " × ".join(f"{n * d:.3g}" for n, d in zip(probe.shape[-2:], sampling))
        return (
            f"the probe is larger than its window of {size} Å: {outside:.0%} of its power lies in the outer border; "
            "use less defocus or a finer detector sampling (a larger window)"
        )
    return None
