"""The multislice chain in plain array code: waves through the slices, and gradients back. The truth for kernels.

ψ_1 = P(r − δ); exit waves φ_s = ψ_s O_s; ψ_{s+1} = F⁻¹ H_s F φ_s; at the detector Ψ = F φ_S, or near by F⁻¹ H_d F φ_S
moved back by δ; power Σ|Ψ|² over the incoherent parts (flight points, object states, probe modes). With w = ∂L/∂(power)
the way back starts from g = F⁻¹ wΨ; at slice s: ∂L/∂O_s* += ψ_s* g, g ← O_s* g, then g ← F⁻¹ H* F g.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray, IntArray, array_module, to_host
from hpcrec.backend.fft import empty_beside, fft2, fft2_inplace, filter_inplace, ifft2_inplace
from hpcrec.models.chain import Chain, ChainSums, cleaned
from hpcrec.models.cuts import Cuts, add_products, cuts_of
from hpcrec.models.detector import detected, weigh, weigh_waves, weighs_waves
from hpcrec.objectives.losses import LOSSES
from hpcrec.operators.propagate import shift_ramps

# Bytes of the waves of one chunk in one slice: with the slices of a chain they stay in a second-level cache
_CHUNK_BYTES = 1 << 17
# On a device: large against the launch of a kernel, small against the memory; estimated, not measured
_DEVICE_CHUNK_BYTES = 1 << 27
# Of each pattern on a device, beside two in each slice: at the detector, ramps, and on the way of an expression
WAVES_BESIDE = 6


def chain_intensities(chain: Chain) -> FloatArray:
    """Return the modelled counts (n, ky, kx)."""
    found = [detected(chain, part, _power(_forward(chain, part).far)) for part in _chunks(chain)]
    ny, nx = (n // chain.detector.binning for n in chain.spectrum.shape[-2:])
    xp = array_module(chain.obj)
    return xp.concatenate(found) if found else xp.empty((0, ny, nx), chain.rate.dtype)  # type: ignore[no-any-return]


def add_gradients(chain: Chain, patterns: Array, good: BoolArray | None, sums: ChainSums) -> None:
    """Add the gradients of ``patterns`` (n, ky, kx) over their ``good`` pixels (n or 1, ky, kx) to ``sums``."""
    patterns = cleaned(patterns, good)
    for part in _chunks(chain):
        waves = _forward(chain, part)
        if weighs_waves(chain, patterns, sums):
            weigh_waves(chain, waves.far, patterns[part], _good(good, part), sums)
        else:
            _weigh(chain, part, waves, patterns[part], _good(good, part), sums)
        _backward(chain, part, waves, sums)
        if sums.entry:
            _add_entry_gradients(chain, part, waves, sums)


def _weigh(chain: Chain, part: slice, waves: _Waves, patterns: Array, good: BoolArray | None, sums: ChainSums) -> None:
    """Multiply the waves at the detector by ∂L/∂(power); add what is wanted there to ``sums``."""
    weight = weigh(chain, part, _power(waves.far), patterns, good, sums)
    back = chain.detector.propagator is not None and sums.shifts is not None
    seen = waves.far.copy() if back else None
    waves.far *= weight[:, None]
    if seen is not None:
        _add_shifts_back(chain, part, seen, waves.far, sums)


def add_responses(
    chain: Chain,
    patterns: Array,
    good: BoolArray | None,
    obj: ComplexArray,
    origin: tuple[int, int],
    spectrum: ComplexArray,
    sums: ChainSums,
) -> FloatArray:
    """Return how the waves at the detector answer to a change of object and probe: (n, 5) float64.

    ``obj`` (state, slice, y, x), from pixel ``origin`` of the chain's object, and ``spectrum`` (mode, ky, kx) are the
    directions; A and B the changes of √c Ψ to first order along each, c the pattern's factor, χ = −w √c Ψ/curvature
    with w = ∂L/∂(c|Ψ|²) the change wanted.
    Columns: Σ|A|², Re Σ A B*, Σ|B|², Re Σ A* χ, Re Σ B* χ. Only ``sums.totals`` is added to.
    """
    out = np.empty((len(chain.corners), 5))
    patterns = cleaned(patterns, good)
    for part in _chunks(chain):
        waves = _forward(chain, part)
        a, b = _tangents(chain, part, waves, obj, origin, spectrum)
        weight = weigh(chain, part, _power(waves.far), patterns[part], _good(good, part), sums)
        chi = waves.far * (weight / -LOSSES[chain.detector.loss].curvature)[:, None]
        products = ((a, a), (a, b), (b, b), (a, chi), (b, chi))
        out[part] = to_host(array_module(a).stack([_inner(u, v) for u, v in products], axis=1))
        if chain.scale is not None:
            out[part, :3] *= chain.scale[part, None]  # the weights in χ hold it already
    return out


@dataclass(slots=True)
class _Waves:
    """Waves (position, part, y, x) of one chunk, parts = (flight, state, mode).

    ``ramps`` (position, flight, y, x) of the shifts; ``incoming`` in front of each slice; ``cuts`` the windows of the
    object; ``far`` at the detector.
    """

    ramps: ComplexArray
    incoming: list[ComplexArray]
    cuts: Cuts
    far: ComplexArray


def _chunks(chain: Chain) -> Iterator[slice]:
    size = _CHUNK_BYTES
    if array_module(chain.obj) is not np:
        size = min(_DEVICE_CHUNK_BYTES, chain.room // (2 * chain.obj.shape[1] + WAVES_BESIDE))
    step = max(1, size // (chain.spectrum[0].nbytes * chain.n_parts))
    for start in range(0, len(chain.corners), step):
        yield slice(start, min(start + step, len(chain.corners)))


def _good(good: BoolArray | None, part: slice) -> BoolArray | None:
    return good if good is None or len(good) == 1 else good[part]


def _forward(chain: Chain, part: slice) -> _Waves:
    n_states, n_slices = chain.obj.shape[:2]
    ramps = _ramps(chain, part)
    cuts = _cuts(chain, chain.obj, chain.corners[part])
    entering = ramps[:, :, None, None] * _spectra(chain, part)[:, None, None]
    shape = (len(ramps), ramps.shape[1], n_states, *entering.shape[3:])
    wave = empty_beside(entering, shape)
    wave[...] = entering
    incoming = [wave if chain.whole else ifft2_inplace(wave)]
    for s in range(n_slices - 1):
        wave = cuts.times(s, incoming[-1], empty_beside(wave, shape))
        incoming.append(_propagate(wave, _gap(chain, part, s)))
    wave = cuts.times(n_slices - 1, incoming[-1], empty_beside(wave, shape))
    return _Waves(ramps, incoming, cuts, _joined(_to_detector(chain, ramps, wave)))


def _ramps(chain: Chain, part: slice) -> ComplexArray:
    """Return the spectrum's factors (position, flight, ky, kx) of the sub-pixel shifts."""
    shifts, spectrum = chain.shifts[part], chain.spectrum
    ramp_y, ramp_x = shift_ramps(shifts.reshape(-1, 2), spectrum.shape[-2:], spectrum.dtype, array_module(spectrum))
    return (ramp_y[:, :, None] * ramp_x[:, None, :]).reshape(*shifts.shape[:2], *chain.spectrum.shape[-2:])


def _spectra(chain: Chain, part: slice) -> ComplexArray:
    """Return the probe's spectra (position or 1, mode, ky, kx), with the variation in mode 0.

    Flight points and object states share a pattern's counts: each amplitude carries ``chain.share``.
    """
    spectra = chain.spectrum[None]
    if chain.variation is not None and chain.coefficients is not None:
        spectra = np.repeat(spectra, len(chain.coefficients[part]), axis=0)
        coefficients = array_module(spectra).asarray(chain.coefficients[part].astype(spectra.real.dtype))
        spectra[:, 0] += np.tensordot(coefficients, chain.variation, axes=1)
    return spectra * spectra.real.dtype.type(chain.share)  # type: ignore[no-any-return]


def _cuts(chain: Chain, obj: ComplexArray, corners: IntArray) -> Cuts:
    """Return the windows (position, flight) at ``corners`` of an object (state, slice, y, x)."""
    ny, nx = chain.spectrum.shape[-2:]
    return cuts_of(obj, corners, (ny, nx))


def _gap(chain: Chain, part: slice, gap: int) -> ComplexArray:
    """Return the factor of a gap, broadcast against (position, flight, state, mode, ky, kx)."""
    factor: ComplexArray = chain.propagators[gap]
    if chain.tilts is not None:
        ramp_y, ramp_x = shift_ramps(chain.tilts[part, gap], factor.shape, factor.dtype, array_module(factor))
        factor = (factor * ramp_y[:, :, None] * ramp_x[:, None, :])[:, None, None, None]
    return factor


def _propagate(wave: ComplexArray, factor: ComplexArray) -> ComplexArray:
    return filter_inplace(wave, factor)


def _to_detector(chain: Chain, ramps: ComplexArray, wave: ComplexArray) -> ComplexArray:
    near = chain.detector.propagator
    return fft2_inplace(wave) if near is None else _propagate(wave, near * _back(ramps))


def _from_detector(chain: Chain, ramps: ComplexArray, wave: ComplexArray) -> ComplexArray:
    near = chain.detector.propagator
    return ifft2_inplace(wave) if near is None else _propagate(wave, (near * _back(ramps)).conj())


def _back(ramps: ComplexArray) -> ComplexArray:
    """Return the factor that undoes the probe's sub-pixel shift: a near-field image stays with the probe."""
    found: ComplexArray = ramps.conj()[:, :, None, None]
    return found


def _joined(wave: ComplexArray) -> ComplexArray:
    """Return waves (position, flight, state, mode, y, x) as (position, part, y, x), the same memory."""
    return wave.reshape(len(wave), -1, *wave.shape[-2:])


def _power(wave: ComplexArray) -> FloatArray:
    """Return Σ|ψ|² over the parts (position, part, y, x)."""
    return np.sum(wave.real**2 + wave.imag**2, axis=1)  # type: ignore[no-any-return]


def _inner(u: ComplexArray, v: ComplexArray) -> FloatArray:
    """Return Re Σ u* v of each position, summed in float64."""
    axes = tuple(range(1, u.ndim))
    return np.sum(u.real * v.real + u.imag * v.imag, axis=axes, dtype=np.float64)  # type: ignore[no-any-return]


def _backward(chain: Chain, part: slice, waves: _Waves, sums: ChainSums) -> None:
    """Add object gradients, illumination and moments; where needed leave F of the gradient by the entering wave."""
    n_slices = chain.obj.shape[1]
    g = _from_detector(chain, waves.ramps, waves.far.reshape(waves.incoming[0].shape))
    corners = chain.corners[part] - sums.origin
    for s in reversed(range(n_slices)):
        wave = waves.incoming[s]
        add_products(sums.obj[:, s], sums.illumination[:, s], wave, g, corners)
        if s or sums.entry:
            waves.cuts.times(s, g, g, conjugate=True)
        if s:
            if sums.moments is not None:
                sums.moments[part, s - 1] += _moments(chain, fft2(g), wave)
            _propagate(g, _gap(chain, part, s - 1).conj())
    if sums.entry and not chain.whole:
        fft2_inplace(g)
    waves.far = _joined(g)


def _moments(chain: Chain, g: ComplexArray, wave: ComplexArray) -> FloatArray:
    """Return Σ r Im(G* X), Σ q_y Im(G* X), Σ q_x Im(G* X) (n, 3) of spectra G and the waves behind a gap."""
    spectrum = empty_beside(wave, wave.shape)
    spectrum[...] = wave
    density = np.sum((g.conj() * fft2_inplace(spectrum)).imag, axis=(1, 2, 3), dtype=np.float64)
    qy, qx = (np.fft.fftfreq(n) for n in density.shape[1:])
    along_y, along_x = to_host(density.sum(axis=2)), to_host(density.sum(axis=1))
    return np.stack([to_host(np.sum(density * chain.rate, axis=(1, 2))), along_y @ qy, along_x @ qx], axis=1)


def _add_entry_gradients(chain: Chain, part: slice, waves: _Waves, sums: ChainSums) -> None:
    """Add the gradients by what makes the entering wave, from its own, G (in ``waves.far``).

    ∂L/∂(FP)* = Σ exp(+2πi q·δ) G, and with the spectrum of each position's mode 0 likewise those of its variation;
    ∂L/∂δ = 2 Re Σ G* (−2πi q) exp(−2πi q·δ) FP.
    """
    n_flight, n_states = waves.ramps.shape[1], len(chain.obj)
    share = chain.rate.dtype.type(chain.share)
    g = waves.far.reshape(len(waves.far), n_flight, n_states, *chain.spectrum.shape).sum(axis=2)
    unshifted = np.sum(waves.ramps.conj()[:, :, None] * g, axis=1) * share
    if sums.spectrum is not None:
        sums.spectrum[...] += unshifted.sum(axis=0)
    if sums.variation is not None and sums.coefficients is not None:
        assert chain.variation is not None
        assert chain.coefficients is not None
        coefficients = array_module(unshifted).asarray(chain.coefficients[part].astype(share.dtype))
        sums.variation[...] += np.tensordot(coefficients, unshifted[:, 0], axes=(0, 0))
        for i, mode in enumerate(chain.variation):
            slopes = np.sum((unshifted[:, 0].conj() * mode).real, axis=(1, 2), dtype=float)
            sums.coefficients[part, i] += 2 * to_host(slopes)
    if sums.shifts is not None:
        entering = waves.ramps[:, :, None] * _spectra(chain, part)[:, None]
        density = np.sum(g.conj() * entering, axis=2).imag
        for axis, n in enumerate(density.shape[-2:]):
            along = to_host(density.sum(axis=3 - axis, dtype=np.float64))
            sums.shifts[part, :, axis] += 4 * np.pi * along @ np.fft.fftfreq(n)


def _add_shifts_back(chain: Chain, part: slice, wave: ComplexArray, g: ComplexArray, sums: ChainSums) -> None:
    """Add ∂L/∂δ of the way back of a near-field image: 2 Re Σ G* (2πi q) X, with the spectra X of Ψ and G of wΨ."""
    assert sums.shifts is not None
    n_flight = chain.corners.shape[1]
    density = (fft2(g).conj() * fft2(wave)).imag.reshape(len(wave), n_flight, -1, *wave.shape[-2:]).sum(axis=2)
    for axis, n in enumerate(density.shape[-2:]):
        along = to_host(density.sum(axis=3 - axis, dtype=np.float64))
        sums.shifts[part, :, axis] -= 4 * np.pi * along @ np.fft.fftfreq(n)


def _tangents(
    chain: Chain, part: slice, waves: _Waves, obj: ComplexArray, origin: tuple[int, int], spectrum: ComplexArray
) -> tuple[ComplexArray, ComplexArray]:
    """Return the changes of the waves at the detector along the object's and along the probe's direction."""
    changes = _cuts(chain, obj, chain.corners[part] - origin)
    shape = waves.incoming[0].shape
    a, b = empty_beside(waves.far, shape), empty_beside(waves.far, shape)
    share = waves.ramps.real.dtype.type(chain.share)
    a[...] = 0
    b[...] = (waves.ramps * share)[:, :, None, None] * spectrum
    if not chain.whole:
        ifft2_inplace(b)
    for s, wave in enumerate(waves.incoming):
        if s:
            _propagate(a, _gap(chain, part, s - 1))
            _propagate(b, _gap(chain, part, s - 1))
        waves.cuts.times(s, a, a)
        a += changes.times(s, wave, empty_beside(wave, shape))
        waves.cuts.times(s, b, b)
    return _joined(_to_detector(chain, waves.ramps, a)), _joined(_to_detector(chain, waves.ramps, b))
