"""The multislice chain through the fused GPU kernel: gradients as :func:`hpcrec.models.multislice.add_gradients`.

One probe mode on whole pixels, windows of at most 128 pixels. Arrays may live on a device or, for the kernel's stand-in
on the CPU, on the host.
"""

from __future__ import annotations

import numpy as np

from hpcrec.backend import cuda
from hpcrec.backend.array import Array, BoolArray, array_module, to_host
from hpcrec.backend.launch import Launch
from hpcrec.models.chain import Chain, ChainSums
from hpcrec.models.striped import FLOORS, chain_fault


def fault(chain: Chain, patterns: Array, sums: ChainSums) -> str | None:
    """Say what of a chain, its patterns or the wanted sums the fused kernel does not know, or return None."""
    found = cuda.layout_fault(chain.spectrum.shape[-2:], patterns.dtype, chain.detector.loss)
    if found is None and (not chain.whole or len(chain.spectrum) > 1):
        return "the fused kernel takes one probe mode on whole pixels"
    return found or chain_fault(chain, sums)


def add_gradients(
    chain: Chain, patterns: Array, good: BoolArray | None, sums: ChainSums, launch: Launch, n_blocks: int
) -> None:
    """Add the gradients of ``patterns`` (n, ky, kx) over their ``good`` pixels to ``sums``; :func:`fault` is None.

    ``n_blocks``: as many as the device runs at a time; each takes its share of the patterns.
    """
    xp, n, n_slices = array_module(chain.obj), chain.spectrum.shape[-1], chain.obj.shape[1]
    layout, gaps, shape = cuda.Layout(n), cuda.gaps_of(chain.propagators), sums.obj.shape[-2:]
    n_patterns, points = len(chain.corners), shape[0] * shape[1]
    if n_patterns == 0:
        return
    n_blocks = min(n_blocks, n_patterns)
    masks = xp.ones((1, n, n), bool) if good is None else good
    arrays = {
        "probe": cuda.pack_wave(chain.spectrum[0]),
        "object": cuda.pack_slices(chain.obj[0], layout),
        "object_gradient": xp.zeros((n_slices, points), np.complex64),
        "illumination": xp.zeros((n_slices, points), np.float32),
        "probe_gradient": xp.zeros((n_blocks, n * n), np.complex64),
        "saved": xp.empty((n_blocks, n_slices - 1, n * n), np.complex64),
        "counts": cuda.pack_patterns(patterns, n_slices),
        "good": cuda.pack_good(masks, n_slices),
        "corners": xp.asarray(np.ascontiguousarray(chain.corners[:, 0], np.int32)),
        "factors": gaps.factors,
        "factor_of_gap": xp.asarray(gaps.of_gap),
        "twiddles": xp.asarray(layout.twiddles()),
        "totals": xp.zeros((n_blocks, layout.threads // 32, 3), np.float64),
    }
    arguments = np.zeros((), cuda.ARGUMENTS)
    for name, values in arrays.items():
        arguments[name] = cuda.address(values)
    arguments["of_object"] = cuda.sheet(chain.obj.shape[-2:], (0, 0))
    arguments["of_gradient"] = cuda.sheet(shape, sums.origin)
    numbers = {"n_slices": n_slices, "n_patterns": n_patterns, "n_factors": len(gaps.factors)}
    for name, number in (numbers | {"good_step": layout.threads if len(masks) > 1 else 0}).items():
        arguments[name] = number
    arguments["floor"] = FLOORS[chain.detector.loss]
    kernel = cuda.kernel_name(n, chain.detector.loss, patterns.dtype.name)
    launch(kernel, (n_blocks, 1), layout.threads, layout.shared_bytes(len(gaps.factors)), arguments)
    sums.totals[...] += to_host(arrays["totals"]).sum(axis=(0, 1))
    sums.obj[0] += cuda.unpack_slices(arrays["object_gradient"], shape, layout)
    sums.illumination[0] += cuda.unpack_slices(arrays["illumination"], shape, layout)
    if sums.spectrum is not None:
        sums.spectrum[0] += cuda.unpack_wave(arrays["probe_gradient"].sum(axis=0))
