"""Chains and counts to take gradients of, on the host in double precision and on a device, and what takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu.bench import Case
from hpcrec.models import fused, launched, multislice, striped
from hpcrec.models.chain import Chain, ChainSums, Detector, part_of
from hpcrec.physics.propagation import fresnel_factor, propagation_rate

SAMPLING, WAVELENGTH, THICKNESS = (0.2, 0.2), 0.0197, 20.0
# What array code takes at a time, as hpcrec.models.ptychography cuts its batches
ARRAY_PIXELS = 1 << 26
Gradients = Callable[[Chain, Any, Any, ChainSums], None]


def make_chain(case: Case, n_patterns: int, margin: int = 0, seed: int = 0) -> Chain:
    """Return a chain in numbers that single precision holds, on the host: windows a pixel apart in a serpentine.

    ``margin`` : pixels of the object beyond the windows
    """
    n, n_slices, n_modes, shifted = case
    rng, side = np.random.default_rng(seed), round(n_patterns**0.5) + 1
    y, x = np.meshgrid(np.arange(n) - n // 2, np.arange(n) - n // 2, indexing="ij")
    probe = np.exp(-(y**2 + x**2) / (2 * (n / 8) ** 2) + 0.01j * (y**2 + 0.7 * x**2)) * 8
    modes = np.stack([probe * (4 * x / n) ** m / (1 + m) for m in range(n_modes)]).astype(np.complex64)
    phase = rng.standard_normal((1, n_slices, n + side + margin, n + side + margin), np.float32)
    at = np.arange(n_patterns)
    corners = np.stack([at // side, np.where(at // side % 2, side - 1 - at % side, at % side)], axis=1)
    gap = fresnel_factor((n, n), SAMPLING, WAVELENGTH, THICKNESS, 2 / 3).astype(np.complex64)
    spectrum = np.fft.fft2(modes, norm="ortho") if shifted else modes
    return Chain(
        obj=np.exp(np.complex64(0.5j) * phase),
        corners=corners[:, None],
        shifts=rng.uniform(-0.5, 0.5, (n_patterns, 1, 2)) if shifted else np.zeros((n_patterns, 1, 2)),
        spectrum=spectrum.astype(np.complex64),
        propagators=np.repeat(gap[None], n_slices - 1, axis=0),
        rate=propagation_rate((n, n), SAMPLING, WAVELENGTH),
        detector=Detector(),
        whole=not shifted,
    )


def in_double(chain: Chain) -> Chain:
    """Return the same chain in double precision."""
    return dataclasses.replace(
        chain, **{name: getattr(chain, name).astype(complex) for name in ("obj", "spectrum", "propagators")}
    )


def on_device(cupy: Any, chain: Chain) -> Chain:
    """Return a chain whose large arrays are on the device, in single precision."""
    moved = {name: cupy.asarray(getattr(chain, name)) for name in ("obj", "spectrum", "propagators")}
    return dataclasses.replace(chain, **moved, rate=cupy.asarray(chain.rate.astype(np.float32)))


def sums_for(xp: Any, chain: Chain, *, slopes: bool = False) -> ChainSums:
    """Return sums of zeros over the whole object and of the probe; ``slopes``: of shifts too, where there are any."""
    wanted = slopes and not chain.whole
    return ChainSums(
        origin=(0, 0),
        obj=xp.zeros(chain.obj.shape, chain.obj.dtype),
        illumination=xp.zeros(chain.obj.shape, chain.obj.real.dtype),
        totals=np.zeros(3),
        spectrum=xp.zeros(chain.spectrum.shape, chain.spectrum.dtype),
        shifts=np.zeros(chain.shifts.shape) if wanted else None,
    )


def counts_for(chain: Chain, seed: int) -> Any:
    """Return uint8 counts of another pattern's place, so that the gradient is not small."""
    found = multislice.chain_intensities(chain)[:, ::-1]
    return np.random.default_rng(seed).poisson(found).clip(0, 255).astype(np.uint8)


def runners(chain: Chain, counts: Any, sums: ChainSums) -> dict[str, Gradients]:
    """Return what can take a chain, by name: the fused kernel, the striped ones, array code."""
    found: dict[str, Gradients] = {}
    if fused.fault(chain, counts, sums) is None:
        found["fused"] = launched.add_gradients
    if striped.fault(chain, counts, sums) is None:
        found["striped"] = add_by_stripes
    found["array"] = multislice.add_gradients
    return found


def add_by_stripes(chain: Chain, counts: Any, good: Any, sums: ChainSums, chunk: int = 0) -> None:
    """Add gradients by the striped kernels, ``chunk`` patterns at a time, 0: as many as they choose."""
    n_modes, n, _ = chain.spectrum.shape
    # As hpcrec.models.striped counts: the waves in front of the slices, and one that moves on
    room = {"chunk_bytes": chunk * (chain.obj.shape[1] + 1) * n_modes * n * n * 8} if chunk else {}
    striped.add_gradients(chain, counts, good, sums, launched.launch, **room)


def share_for(name: str, chain: Chain, counts: Any) -> tuple[Chain, Any]:
    """Return what one call takes of a chain and its counts: array code as much as a model gives it, kernels all."""
    n_modes, n, _ = chain.spectrum.shape
    most = max(ARRAY_PIXELS // (n * n * n_modes), 1) if name == "array" else len(counts)
    return part_of(chain, slice(0, most)), counts[:most]


def call(run: Gradients, chain: Chain, counts: Any, sums: ChainSums) -> Callable[[], None]:
    """Return one call of a runner, without arguments."""
    return partial(run, chain, counts, None, sums)
