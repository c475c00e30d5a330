"""Revised waves carried back through the slices, as 3PIE does: gradients whose way back is weighted.

By the kernel of the gradients where the model has the compiled one, else plain; a test compares the two.
"""

from __future__ import annotations

import numpy as np

from hpcrec.backend.array import ComplexArray, FloatArray, array_module, real_dtype
from hpcrec.backend.fft import fft2_inplace, ifft2, ifft2_inplace
from hpcrec.models import compiled, multislice
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import Chain, ChainSums
from hpcrec.models.cuts import add_products
from hpcrec.models.detector import weigh
from hpcrec.models.gradients import Gradients
from hpcrec.models.placement import batch_beside
from hpcrec.models.ptychography import PtychographyModel, Wanted
from hpcrec.models.refined import object_weight


def revised_gradients(
    model: PtychographyModel,
    state: PtychographyState,
    batch: Batch,
    wave_step: float,
    wave_regularity: float,
    *,
    windowed: bool = False,
) -> Gradients:
    """Return sums over a batch as ``model.gradients``, but with the waves revised slice by slice.

    Behind the last slice the difference of revised and modelled waves is D = χ c, c the loss's curvature (−∂L/∂φ*). At
    each slice, from the last one: the object's numerator takes ψ* D; the wave in front is revised by
    β O* D / ((1−γ)|O|² + γ max|O|²), the maximum over the pattern's own window, and its change goes on to the slice
    before by the adjoint of the gap (Maiden, Humphry and Rodenburg, J. Opt. Soc. Am. A 29, 1606 (2012)). The probe's
    numerator is O* D of the first slice. With β / max|O|² = 1, γ = 1 these are the exact gradients.
    """
    if model.code(state) is compiled:
        wanted: tuple[Wanted, ...] = ("probe",)
        return model.gradients(state, batch, wanted, windowed=windowed, revision=(wave_step, wave_regularity))
    chain, box = model._chain(state, batch.indices, shifted=True)
    batch, xp = batch_beside(state.obj, batch), array_module(state.obj)
    good, patterns = model.good(batch), model.clean(batch)
    shape, real = (*chain.obj.shape[:2], *box.shape), real_dtype(model.dtype)
    sums = ChainSums(
        origin=(box.y0 - state.box.y0, box.x0 - state.box.x0),
        obj=xp.zeros(shape, model.dtype),
        illumination=xp.zeros(shape, real),
        totals=np.zeros(3),
        spectrum=np.zeros_like(chain.spectrum),
    )
    for part in multislice._chunks(chain):
        waves = multislice._forward(chain, part)
        weight = weigh(chain, part, multislice._power(waves.far), patterns[part], multislice._good(good, part), sums)
        waves.far *= weight[:, None]
        _carry_back(chain, part, waves, sums, wave_step, wave_regularity)
    loss, error, counts = sums.totals.tolist()
    assert sums.spectrum is not None
    return Gradients(
        box=box,
        obj=sums.obj.reshape(len(state.obj), *box.shape),
        illumination=sums.illumination.reshape(len(state.obj), *box.shape),
        loss=loss,
        error=error,
        counts=counts,
        object_weight=object_weight(chain),
        probe=ifft2(sums.spectrum),
    )


def _carry_back(
    chain: Chain, part: slice, waves: multislice._Waves, sums: ChainSums, step: float, regularity: float
) -> None:
    g = multislice._from_detector(chain, waves.ramps, waves.far.reshape(waves.incoming[0].shape))
    corners = chain.corners[part] - sums.origin
    for s in reversed(range(len(waves.incoming))):
        wave = waves.incoming[s]
        add_products(sums.obj[:, s], sums.illumination[:, s], wave, g, corners)
        waves.cuts.times(s, g, g, conjugate=True)
        if s:
            g *= _weight(waves.cuts.seen(s), step, regularity)
            fft2_inplace(g)
            g *= multislice._gap(chain, part, s - 1).conj()
            ifft2_inplace(g)
    fft2_inplace(g)
    n_flight, n_states = waves.ramps.shape[1], len(chain.obj)
    of_modes = g.reshape(len(g), n_flight, n_states, *chain.spectrum.shape).sum(axis=2)
    assert sums.spectrum is not None
    sums.spectrum[...] += np.sum(waves.ramps.conj()[:, :, None] * of_modes, axis=(0, 1)) * g.real.dtype.type(
        chain.share
    )


def _weight(patch: ComplexArray, step: float, regularity: float) -> FloatArray:
    """Return β / ((1−γ)|O|² + γ max|O|²) of each window (…, y, x)."""
    power = patch.real**2 + patch.imag**2
    size = (1 - regularity) * power + regularity * power.max(axis=(-2, -1), keepdims=True)
    return (step / np.where(size > 0, size, 1)).astype(power.dtype)  # type: ignore[no-any-return]
