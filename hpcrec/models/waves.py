"""Exit waves of single patterns: what projections need beside gradients. Objects of one slice.

Waves are arrays (n, part, y, x), parts = (flight, object state, probe mode), in front of the detector's propagation;
they live where the object does. A model with the compiled kernel runs that of :mod:`hpcrec.models.exits` on the host;
else, and as what defines it, plain array code with the chunks of patterns of :mod:`hpcrec.models.multislice`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, FloatArray, IntArray, array_module, real_dtype
from hpcrec.backend.fft import empty_beside, fft2, ifft2, ifft2_inplace
from hpcrec.models import compiled, exits, multislice
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import Chain, ChainSums, good_pixels
from hpcrec.models.cuts import add_products
from hpcrec.models.detector import detected, pattern_factors, weigh
from hpcrec.models.events import dense
from hpcrec.models.partial import Field
from hpcrec.models.placement import batch_beside
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.models.refined import object_weight


def exit_waves(model: PtychographyModel, state: PtychographyState, indices: IntArray) -> ComplexArray:
    """Return the modelled exit waves P_j O of the positions ``indices`` (n,)."""
    chain, _ = model._chain(state, indices, shifted=True)
    if model.code(state) is compiled:
        return exits.exit_waves(chain, model.threads)
    out: ComplexArray = array_module(chain.obj).empty((len(indices), chain.n_parts, *model.shape), model.dtype)
    for part, _, incoming, patches in _entering(chain):
        out[part] = multislice._joined(incoming * patches)
    return out


def with_measured_moduli(
    model: PtychographyModel, state: PtychographyState, batch: Batch, waves: ComplexArray, noise_share: float = 0.0
) -> ComplexArray:
    """Return the waves with their far fields scaled to the measured counts: Ψ ← Ψ √((I₀+ε)/(Î+ε)) on good pixels.

    ε is the floor of the amplitude loss. The power bound (Giewekemeyer et al., Proc. Natl. Acad. Sci. 107, 529 (2010))
    is p = ``noise_share`` · Σ min(I₀, ¼), the error that Poisson noise of the pattern leaves: where e = Σ(√Î − √I₀)²
    over the good pixels is below p, the waves stay as they are; others take the share 1 − √(p/e) of the way.
    """
    chain, _ = model._chain(state, batch.indices, shifted=True)
    chain = replace(chain, detector=replace(chain.detector, loss="amplitude"))
    batch = batch_beside(state.obj, batch)
    good, patterns = good_pixels(chain.detector, batch.patterns, batch.good), model.clean(batch)
    unused = ChainSums(origin=(0, 0), obj=waves[:0], illumination=waves[:0].real, totals=np.zeros(3))
    out = np.empty_like(waves)
    for part in multislice._chunks(chain):
        ramps, n = multislice._ramps(chain, part), len(waves[part])
        shape = (n, chain.corners.shape[1], len(chain.obj), *chain.spectrum.shape)
        far = multislice._joined(multislice._to_detector(chain, ramps, _aligned(waves[part]).reshape(shape)))
        power = multislice._power(far)
        of_part = multislice._good(good, part)
        weight = weigh(chain, part, power, patterns[part], of_part, unused)
        if chain.scale is not None:
            weight /= pattern_factors(chain.scale[part], weight)  # ∂L/∂Î, the scaling of moduli
        if noise_share > 0:
            modelled = detected(chain, part, power)
            weight *= _share_of_way(modelled, patterns[part], of_part, noise_share)[:, None, None]
        far -= weight[:, None] * far
        out[part] = multislice._joined(multislice._from_detector(chain, ramps, far.reshape(shape)))
    return out


def stepped_waves(
    model: PtychographyModel,
    state: PtychographyState,
    batch: Batch,
    waves: ComplexArray,
    numbers: tuple[float, float, float],
    noise_share: float,
) -> ComplexArray:
    """Return b A(c Q + (1−c) ψ) + a Q + (1−a−b) ψ of waves ψ, A = :func:`with_measured_moduli` and Q the exit waves.

    ``numbers`` : a, b, c.
    """
    a, b, c = numbers
    if model.code(state) is compiled:
        chain, _ = model._chain(state, batch.indices, shifted=True)
        return exits.step(chain, dense(batch.patterns), model.good(batch), waves, numbers, noise_share, model.threads)
    overlap = exit_waves(model, state, batch.indices)
    mixed = c * overlap + (1 - c) * waves
    new: ComplexArray = b * with_measured_moduli(model, state, batch, mixed, noise_share)
    new += a * overlap
    new += (1 - a - b) * waves
    return new


def overlap_object(
    model: PtychographyModel, state: PtychographyState, indices: IntArray, waves: ComplexArray
) -> tuple[Field, Field]:
    """Return Σ P_j* (P_j O − ψ_j) and Σ|P_j|² on object pixels (state, y, x), for the waves ψ of ``indices``."""
    chain, box = model._chain(state, indices, shifted=True)
    shape, origin = (len(chain.obj), *box.shape), (box.y0 - state.box.y0, box.x0 - state.box.x0)
    xp = array_module(chain.obj)
    found, weight = xp.zeros(shape, model.dtype), xp.zeros(shape, real_dtype(model.dtype))
    if model.code(state) is compiled:
        exits.overlap_object(chain, waves, origin, found[:, None], weight[:, None])
        return Field(box, found), Field(box, weight)
    for part, _, incoming, patches in _entering(chain):
        left = incoming * patches - waves[part].reshape(incoming.shape)
        add_products(found, weight, incoming, left, chain.corners[part] - origin)
    return Field(box, found), Field(box, weight)


def overlap_probe(
    model: PtychographyModel, state: PtychographyState, indices: IntArray, waves: ComplexArray
) -> tuple[ComplexArray, FloatArray]:
    """Return Σ O* (P_j O − ψ_j), the sub-pixel shifts undone (mode, y, x), and Σ|O|² (y, x) over the windows."""
    chain, _ = model._chain(state, indices, shifted=True)
    found = np.zeros_like(chain.spectrum)
    if model.code(state) is compiled:
        exits.overlap_probe(chain, waves, found)
        return ifft2(found), object_weight(chain)
    weight: FloatArray = array_module(chain.obj).zeros(model.shape, real_dtype(model.dtype))
    share = weight.dtype.type(chain.share)
    for part, ramps, incoming, patches in _entering(chain):
        left = incoming * patches - waves[part].reshape(incoming.shape)
        spectra = fft2(np.sum(patches.conj() * left, axis=2))
        found += share * np.sum(ramps.conj()[:, :, None] * spectra, axis=(0, 1))
        weight += share**2 * np.sum(np.abs(patches) ** 2, axis=(0, 1, 2, 3))
    return ifft2(found), weight


def _entering(chain: Chain) -> Iterator[tuple[slice, ComplexArray, ComplexArray, ComplexArray]]:
    """Yield chunks: ramps (n, flight, y, x), incoming waves (n, flight, state, mode, y, x), windows (…, 1, y, x)."""
    for part in multislice._chunks(chain):
        ramps = multislice._ramps(chain, part)
        patches = multislice._cuts(chain, chain.obj, chain.corners[part]).seen(0)
        shape = (*patches.shape[:3], *chain.spectrum.shape)
        wave = empty_beside(chain.spectrum, shape)
        wave[...] = ramps[:, :, None, None] * multislice._spectra(chain, part)[:, None, None]
        yield part, ramps, ifft2_inplace(wave), patches


def _aligned(waves: ComplexArray) -> ComplexArray:
    copy = empty_beside(waves, waves.shape)
    copy[...] = waves
    return copy


def _share_of_way(modelled: FloatArray, patterns: Array, good: BoolArray | None, noise_share: float) -> FloatArray:
    """Return 1 − √(p/e) of each pattern (n,), 0 where e ≤ p."""
    measured = patterns.astype(modelled.dtype, copy=False)
    squares, noise = (np.sqrt(modelled) - np.sqrt(measured)) ** 2, np.minimum(measured, 0.25)
    error, bound = (np.sum(v if good is None else v * good, axis=(1, 2), dtype=np.float64) for v in (squares, noise))
    ratio = noise_share * bound / np.maximum(error, 1e-30)
    return (1 - np.sqrt(np.minimum(ratio, 1))).astype(modelled.dtype)  # type: ignore[no-any-return]
