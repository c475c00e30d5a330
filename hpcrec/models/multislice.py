"""The multislice chain in plain NumPy: waves through the slices, and gradients back. It defines the truth for kernels.

ψ_1 = P(r − δ); exit waves φ_s = ψ_s O_s; ψ_{s+1} = F⁻¹ H F φ_s; far field Ψ = F φ_S; intensity I = Σ_modes |Ψ|².
With w = ∂L/∂I the way back starts from g = F⁻¹ wΨ; at slice s: ∂L/∂O_s* += ψ_s* g, g ← O_s* g, then g ← F⁻¹ H* F g.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray, IntArray, real_dtype
from hpcrec.backend.fft import aligned_empty, fft2_inplace, ifft2_inplace
from hpcrec.objectives.losses import LOSSES, amplitude_error
from hpcrec.operators.patches import add_patches, cut_patches
from hpcrec.operators.propagate import shift_ramps

# Bytes of the waves of one chunk in one slice: with the slices of a chain they stay in a second-level cache
_CHUNK_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class Chain:
    """What a share of patterns is computed from.

    obj : (slice, y, x) complex; corners : (n, 2) first pixels of the windows in ``obj``'s own numbering
    spectrum : (mode, ky, kx) F of the probe; shifts : (n, 2) sub-pixel shifts δ of the probe in pixels
    propagator : (ky, kx) H between two slices; mask : (ky, kx) True = good, or None; loss : name in LOSSES
    """

    obj: ComplexArray
    corners: IntArray
    spectrum: ComplexArray
    shifts: FloatArray
    propagator: ComplexArray
    mask: BoolArray | None
    loss: str


@dataclass(frozen=True, slots=True)
class ChainSums:
    """Where gradients are added.

    obj : (slice, y, x) ∂L/∂O*; illumination : (slice, y, x) Σ|ψ_s|²; from pixel ``origin`` of the chain's object
    spectrum : (mode, ky, kx) gradient by the probe's spectrum; shifts : (n, 2) ∂L/∂δ per pixel, float64
    totals : (3,) float64: loss, Σ(√I − √I₀)², ΣI₀
    """

    origin: tuple[int, int]
    obj: ComplexArray
    illumination: FloatArray
    spectrum: ComplexArray
    shifts: FloatArray
    totals: FloatArray


def chain_intensities(chain: Chain) -> FloatArray:
    """Return the modelled intensities (n, ky, kx)."""
    ny, nx = chain.spectrum.shape[-2:]
    out = np.empty((len(chain.corners), ny, nx), real_dtype(chain.obj.dtype))
    for part in _chunks(chain):
        out[part] = _power(_forward(chain, part).far)
    return out


def add_gradients(chain: Chain, patterns: Array, sums: ChainSums, *, probe: bool, shifts: bool) -> None:
    """Add the gradients of ``patterns`` (n, ky, kx) to ``sums``; ``probe``, ``shifts``: whether theirs are due."""
    for part in _chunks(chain):
        waves = _forward(chain, part)
        weight = _weigh(chain, waves.far, patterns[part], sums.totals)
        waves.far *= weight[:, None]
        _backward(chain, part, waves, sums, entry=probe or shifts)
        if probe or shifts:
            _add_entry_gradients(chain, part, waves, sums, probe=probe, shifts=shifts)


def add_responses(
    chain: Chain,
    patterns: Array,
    obj: ComplexArray,
    origin: tuple[int, int],
    spectrum: ComplexArray,
    totals: FloatArray,
) -> FloatArray:
    """Return how the far fields answer to a change of object and probe: (n, 5) float64.

    ``obj`` (slice, y, x), from pixel ``origin`` of the chain's object, and ``spectrum`` (mode, ky, kx) are the
    directions; A and B the changes of the far field Ψ to first order along each, χ = −wΨ/curvature the change wanted.
    Columns: Σ|A|², Re Σ A B*, Σ|B|², Re Σ A* χ, Re Σ B* χ. ``totals`` as in :class:`ChainSums`.
    """
    out = np.empty((len(chain.corners), 5))
    for part in _chunks(chain):
        waves = _forward(chain, part)
        a, b = _tangents(chain, part, waves, obj, origin, spectrum)
        weight = _weigh(chain, waves.far, patterns[part], totals) / -LOSSES[chain.loss].curvature
        chi = waves.far * weight[:, None]
        products = ((a, a), (a, b), (b, b), (a, chi), (b, chi))
        for column, (u, v) in enumerate(products):
            out[part, column] = _inner(u, v)
    return out


@dataclass(slots=True)
class _Waves:
    """Waves (position, mode, y, x) of one chunk: ``incoming`` in front of each slice, ``far``; ``ramps`` of shifts."""

    ramps: ComplexArray
    incoming: list[ComplexArray]
    patches: ComplexArray
    far: ComplexArray


def _chunks(chain: Chain) -> Iterator[slice]:
    step = max(1, _CHUNK_BYTES // chain.spectrum.nbytes)
    for start in range(0, len(chain.corners), step):
        yield slice(start, min(start + step, len(chain.corners)))


def _forward(chain: Chain, part: slice) -> _Waves:
    n_modes, ny, nx = chain.spectrum.shape
    ramp_y, ramp_x = shift_ramps(chain.shifts[part], (ny, nx), chain.spectrum.dtype)
    ramps = (ramp_y[:, :, None] * ramp_x[:, None, :])[:, None]
    patches = cut_patches(chain.obj, chain.corners[part], (ny, nx))
    shape = (len(ramps), n_modes, ny, nx)
    wave = ifft2_inplace(np.multiply(ramps, chain.spectrum, out=aligned_empty(shape, chain.spectrum.dtype)))
    incoming = [wave]
    for i_slice in range(len(chain.obj) - 1):
        wave = np.multiply(wave, patches[i_slice][:, None], out=aligned_empty(shape, wave.dtype))
        incoming.append(_propagate(wave, chain.propagator))
        wave = incoming[-1]
    far = fft2_inplace(np.multiply(wave, patches[-1][:, None], out=aligned_empty(shape, wave.dtype)))
    return _Waves(ramps, incoming, patches, far)


def _propagate(wave: ComplexArray, factor: ComplexArray) -> ComplexArray:
    fft2_inplace(wave)
    wave *= factor
    return ifft2_inplace(wave)


def _power(far: ComplexArray) -> FloatArray:
    return np.sum(far.real**2 + far.imag**2, axis=1)  # type: ignore[no-any-return]


def _inner(u: ComplexArray, v: ComplexArray) -> FloatArray:
    """Return Re Σ u* v of each position, summed in float64."""
    return np.sum(u.real * v.real + u.imag * v.imag, axis=(1, 2, 3), dtype=np.float64)  # type: ignore[no-any-return]


def _weigh(chain: Chain, far: ComplexArray, patterns: Array, totals: FloatArray) -> FloatArray:
    """Return w (position, ky, kx) and add loss, error and counts to ``totals``."""
    modelled = _power(far)
    measured = np.asarray(patterns, modelled.dtype)
    loss, weight = LOSSES[chain.loss].evaluate(modelled, measured, chain.mask)
    error, counts = amplitude_error(modelled, measured, chain.mask)
    totals += (loss, error, counts)
    return weight


def _backward(chain: Chain, part: slice, waves: _Waves, sums: ChainSums, *, entry: bool) -> None:
    """Add object gradients and illumination; with ``entry`` leave F of the gradient by the shifted probe in ``far``."""
    corners = chain.corners[part] - sums.origin
    g = ifft2_inplace(waves.far)
    conjugate = chain.propagator.conj()
    for i_slice in reversed(range(len(chain.obj))):
        wave = waves.incoming[i_slice]
        add_patches(sums.obj[i_slice : i_slice + 1], np.sum(wave.conj() * g, axis=1)[None], corners)
        add_patches(sums.illumination[i_slice : i_slice + 1], _power(wave)[None], corners)
        if i_slice or entry:
            g *= waves.patches[i_slice].conj()[:, None]
        if i_slice:
            _propagate(g, conjugate)
    if entry:
        fft2_inplace(g)


def _add_entry_gradients(
    chain: Chain, part: slice, waves: _Waves, sums: ChainSums, *, probe: bool, shifts: bool
) -> None:
    """Add ∂L/∂(FP)* = Σ exp(+2πi q·δ) G and ∂L/∂δ = 2 Re Σ G* (−2πi q) exp(−2πi q·δ) FP."""
    if probe:
        sums.spectrum[...] += np.sum(waves.ramps.conj() * waves.far, axis=0)
    if shifts:
        density = np.sum(waves.far.conj() * (waves.ramps * chain.spectrum), axis=1).imag
        for axis, n in enumerate(density.shape[1:]):
            along = density.sum(axis=2 - axis, dtype=np.float64)
            sums.shifts[part, axis] += 4 * np.pi * along @ np.fft.fftfreq(n)


def _tangents(
    chain: Chain, part: slice, waves: _Waves, obj: ComplexArray, origin: tuple[int, int], spectrum: ComplexArray
) -> tuple[ComplexArray, ComplexArray]:
    """Return the changes of the far field along the object's and along the probe's direction."""
    ny, nx = spectrum.shape[-2:]
    changes = cut_patches(obj, chain.corners[part] - origin, (ny, nx))
    shape = waves.far.shape
    a = aligned_empty(shape, waves.far.dtype)
    b = ifft2_inplace(np.multiply(waves.ramps, spectrum, out=aligned_empty(shape, waves.far.dtype)))
    a[...] = 0
    for i_slice, wave in enumerate(waves.incoming):
        patch = waves.patches[i_slice][:, None]
        if i_slice:
            _propagate(a, chain.propagator)
            _propagate(b, chain.propagator)
        a *= patch
        a += changes[i_slice][:, None] * wave
        b *= patch
    return fft2_inplace(a), fft2_inplace(b)
