"""What is refined beside the object: the chain's sums in Å and radians, and the weight (curvature) of each gradient.

Weights are those of least squares, dL ≈ curvature · Σ |dΨ|² with dΨ the change of the exit waves that the object cannot
follow; the loss's own factor (:data:`hpcrec.objectives.losses.LOSSES`) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, FloatArray, IntArray, array_module, to_host
from hpcrec.backend.kernels.windows import add_position_weights, add_window_powers
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import PtychographyState
from hpcrec.models.chain import Chain, ChainSums
from hpcrec.models.spectra import waves_of
from hpcrec.operators.patches import cut_patches, window_chunks


@dataclass(frozen=True, slots=True)
class RefinedGradients:
    """Gradients and weights by name; ``of_patterns`` (n, …) float64 of a share's patterns, ``added`` over them."""

    of_patterns: dict[str, FloatArray] = field(default_factory=dict)
    added: dict[str, Array] = field(default_factory=dict)


def probe_gradient(chain: Chain, sums: ChainSums) -> ComplexArray:
    """Return the gradient by the probe's waves (mode, y, x), zeros where it was not wanted."""
    if sums.spectrum is None:
        return np.zeros_like(chain.spectrum)
    return sums.spectrum if chain.whole else waves_of(sums.spectrum)


def refined_gradients(
    state: PtychographyState,
    chain: Chain,
    box: Box,
    sums: ChainSums,
    sampling: tuple[float, float],
    distances: FloatArray,
) -> RefinedGradients:
    """Return what ``sums`` holds beside object and probe; ``sampling`` and the gaps' ``distances`` in Å."""
    found = RefinedGradients()
    mine, added = found.of_patterns, found.added
    # A pattern's factor scales the power of its waves, and so both gradient and weight
    scale = 1.0 if chain.scale is None else chain.scale[:, None]
    if sums.shifts is not None:
        mine["positions"] = sums.shifts.sum(axis=1) / sampling
    if sums.shifts is not None or sums.moments is not None:
        mine["positions_weight"] = scale * position_weight(state, chain, box, sampling)
    if sums.moments is not None:
        _add_gaps(chain, sums.moments, sampling, distances, found)
    if sums.variation is not None and sums.coefficients is not None:
        assert chain.variation is not None
        assert chain.coefficients is not None
        mine["coefficients"] = sums.coefficients
        mine["coefficients_weight"] = scale * coefficient_weight(chain)
        added["variation"] = sums.variation if chain.whole else waves_of(sums.variation)
        added["variation_weight"] = np.sum(chain.coefficients**2, axis=0)
    if sums.scale is not None:
        mine["intensity"], mine["intensity_weight"] = sums.scale.T
    if sums.background is not None:
        added["background"], added["background_weight"] = sums.background
    return found


def _add_gaps(
    chain: Chain, moments: FloatArray, sampling: tuple[float, float], distances: FloatArray, found: RefinedGradients
) -> None:
    """Add the gradients of the gaps, H = exp(i Δz (r + 2π k·tan θ)): ∂L/∂p = −2 Σ (∂ phase/∂p) Im(G* X)."""
    along = 2 * np.pi * moments[:, :, 1:] / sampling
    found.of_patterns["tilt"] = -2 * np.sum(along * distances[:, None], axis=1)
    tangents = np.zeros_like(along) if chain.tangents is None else chain.tangents[:, None]
    found.added["thickness"] = -2 * np.sum(moments[:, :, 0] + np.sum(along * tangents, axis=2), axis=0)
    # Slice s moves by (z_s − z̄) dtan θ, since a common move is one of the position; the slices share the structure
    n_slices = len(distances) + 1
    depths = np.concatenate([[0.0], np.cumsum(distances)])
    lever = float(np.mean(np.abs(depths - depths.mean()))) if n_slices > 1 else 0.0
    found.of_patterns["tilt_weight"] = lever**2 * found.of_patterns["positions_weight"]


def object_weight(chain: Chain) -> FloatArray:
    """Return Σ|O_1|² (y, x) over the windows, the mean over flight points and states."""
    if array_module(chain.obj) is not np:
        return plain_object_weight(chain)
    weight = np.zeros(chain.spectrum.shape[-2:], chain.rate.dtype)
    scale = weight.dtype.type(chain.share**2)
    for obj in chain.obj[:, 0]:
        add_window_powers(obj.view(weight.dtype), chain.corners.reshape(-1, 2), scale, weight)
    return weight


def plain_object_weight(chain: Chain) -> FloatArray:
    """Return the same as :func:`object_weight`."""
    window, corners = chain.spectrum.shape[-2:], chain.corners.reshape(-1, 2)
    weight: FloatArray = array_module(chain.obj).zeros(window, chain.rate.dtype)
    for obj in chain.obj[:, 0]:
        for _, powers in _window_powers(obj, corners, window):
            weight += powers.sum(axis=0)
    weight *= weight.dtype.type(chain.share**2)
    return weight


def coefficient_weight(chain: Chain) -> FloatArray:
    """Return Σ|U O_1|² (n, m) of each pattern and mode of the variation."""
    assert chain.variation is not None
    power = np.abs(chain.variation if chain.whole else waves_of(chain.variation)) ** 2
    corners = chain.corners[:, chain.corners.shape[1] // 2]
    weight = array_module(power).zeros((len(corners), len(power)))
    for obj in chain.obj[:, 0]:
        for part, powers in _window_powers(obj, corners, power.shape[1:]):
            weight[part] += np.tensordot(powers, power, axes=((1, 2), (1, 2)))
    return to_host(weight) / len(chain.obj)


def _window_powers(obj: ComplexArray, corners: IntArray, window: tuple[int, int]) -> Iterator[tuple[slice, FloatArray]]:
    """Yield which of the windows of ``obj`` (y, x) at ``corners`` (n, 2), and their |O|² (n, y, x)."""
    for part in window_chunks(obj, len(corners), window):
        patches = cut_patches(obj[None], corners[part], window)[0]
        yield part, patches.real**2 + patches.imag**2


def position_weight(state: PtychographyState, chain: Chain, box: Box, sampling: tuple[float, float]) -> FloatArray:
    """Return Σ|P ∂O|² (n, 2) along y and x, with O the product of all slices and P the probe in front of them.

    Differences of neighbours that both lie in the window, so that the weight of a position is its own, whatever
    else is in the batch; the mean over flight points and object states.
    """
    if array_module(chain.obj) is not np or chain.obj.dtype != np.complex64:
        return plain_position_weight(state, chain, box, sampling)
    power = np.ascontiguousarray(np.sum(np.abs(state.probe) ** 2, axis=0), np.float32)
    weight = np.zeros((len(chain.corners), 2))
    obj = np.ascontiguousarray(chain.obj).view(np.float32)
    room = np.empty((power.shape[0], 2 * power.shape[1]), np.float32)
    add_position_weights(obj, chain.corners, power, room, 1 / len(chain.obj), weight)
    return weight / np.square(sampling)  # type: ignore[no-any-return]


def plain_position_weight(
    state: PtychographyState, chain: Chain, box: Box, sampling: tuple[float, float]
) -> FloatArray:
    """Return the same as :func:`position_weight`."""
    power = np.sum(np.abs(state.probe) ** 2, axis=0)
    corners = chain.corners + (state.box.y0 - box.y0, state.box.x0 - box.x0)
    found = []
    for slices in chain.obj:
        product = np.prod(slices[(slice(None), *box.slices(state.box))], axis=0)
        for axis in range(2):
            squared = np.abs(np.diff(product, axis=axis) / sampling[axis]) ** 2
            between = np.moveaxis(power, axis, 0)
            between = np.moveaxis(0.5 * (between[1:] + between[:-1]), 0, axis)
            found.append(_weighted(squared, between, corners.reshape(-1, 2)))
    weights = to_host(array_module(power).stack(found)).reshape(len(chain.obj), 2, *corners.shape[:2])
    return weights.mean(axis=(0, 3)).T  # type: ignore[no-any-return]


def _weighted(values: FloatArray, weights: FloatArray, corners: IntArray) -> FloatArray:
    """Return Σ v(r_j + r) w(r) (n,) float64 of the windows of ``values`` (y, x) at ``corners`` (n, 2)."""
    found: FloatArray = array_module(values).zeros(len(corners))
    weights = weights.astype(values.dtype, copy=False)
    for part in window_chunks(values, len(corners), weights.shape):
        patches = cut_patches(values[None], corners[part], weights.shape)[0]
        found[part] = np.tensordot(patches, weights, axes=2)
    return found
