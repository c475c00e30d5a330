"""The multislice chain through the fused GPU kernel: gradients as :func:`hpcrec.models.multislice.add_gradients`.

Windows of at most 128 pixels, probe modes, shifted or not. Arrays may live on a device or, for the kernel's stand-in on
the CPU, on the host.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from hpcrec.backend import cuda
from hpcrec.backend.array import Array, BoolArray, ComplexArray, array_module, to_host
from hpcrec.backend.launch import Launch
from hpcrec.models.chain import Chain, ChainSums
from hpcrec.models.events import Events, kind_of
from hpcrec.models.fixed import Scales, as_numbers, room_for, scales_of
from hpcrec.models.striped import chain_fault
from hpcrec.objectives.losses import FLOORS
from hpcrec.operators.propagate import shift_ramps

# Of the waves that all blocks save: of a GPU's memory a small part, and seldom reached
ROOM_BYTES: Final = 1 << 32


def fault(chain: Chain, patterns: Array | Events, sums: ChainSums) -> str | None:
    """Say what of a chain, its patterns or the wanted sums the fused kernel does not know, or return None."""
    found = cuda.layout_fault(chain.spectrum.shape[-2:], kind_of(patterns), chain.detector.loss)
    return found or chain_fault(chain, sums)


def add_gradients(
    chain: Chain,
    patterns: Array | Events,
    good: BoolArray | None,
    sums: ChainSums,
    launch: Launch,
    n_blocks: int,
    room_bytes: int = ROOM_BYTES,
    *,
    deterministic: bool = False,
) -> None:
    """Add the gradients of ``patterns`` (n, ky, kx) over their ``good`` pixels to ``sums``; :func:`fault` is None.

    ``n_blocks``: as many as the device runs at a time; each takes its share of the patterns. There are fewer where
    the waves that they save would take more than ``room_bytes``. ``deterministic`` : sums in fixed point, see
    :mod:`hpcrec.models.fixed`, which says what it raises; the same to the last bit from run to run and with any number
    of blocks.
    """
    if len(chain.corners) == 0:
        return
    layout, n_modes, loss = cuda.Layout(chain.spectrum.shape[-1]), len(chain.spectrum), chain.detector.loss
    of_block = max(8 * layout.n**2 * n_modes * _slots(chain), 1)
    n_blocks = max(min(n_blocks, len(chain.corners), room_bytes // of_block), 1)
    read = _read(chain, patterns, good)
    scales = scales_of(chain, patterns, read["factors"]) if deterministic else None
    written = _written(chain, sums, n_blocks, scales)
    flags = {"several": n_modes > 1, "shifted": not chain.whole, "slopes": sums.shifts is not None}
    kernel = cuda.kernel_name(layout.n, loss, kind_of(patterns), **flags, fixed=deterministic)
    shared = layout.shared_bytes(len(read["factors"]))
    launch(kernel, (n_blocks, 1), layout.threads, shared, _arguments(chain, sums, read | written, scales))
    _add(chain, written, scales, sums)


def _slots(chain: Chain) -> int:
    """Return how many waves of a mode a block saves: in front of slices, and of several modes their far fields.

    In front of the first slice a probe on whole pixels is the same for all patterns.
    """
    n_slices: int = chain.obj.shape[1]
    return n_slices - int(chain.whole) + int(len(chain.spectrum) > 1)


def _read(chain: Chain, patterns: Array | Events, good: BoolArray | None) -> dict[str, Array]:
    """Return what the kernel reads, as it is laid out there."""
    xp, n_slices, layout = array_module(chain.obj), chain.obj.shape[1], cuda.Layout(chain.spectrum.shape[-1])
    gaps, masks = cuda.gaps_of(chain.propagators), xp.ones((1, layout.n, layout.n), bool) if good is None else good
    found = {
        "probe": cuda.pack_waves(chain.spectrum, spectra=not chain.whole),
        "object": cuda.pack_slices(chain.obj[0], layout),
        "good": cuda.pack_good(masks, n_slices),
        "corners": xp.asarray(np.ascontiguousarray(chain.corners[:, 0], np.int32)),
        "factors": gaps.factors,
        "factor_of_gap": xp.asarray(gaps.of_gap),
        "twiddles": xp.asarray(layout.twiddles()),
        "ramps": xp.asarray(_ramps(chain)),
    }
    if not isinstance(patterns, Events):
        return found | {"counts": cuda.pack_patterns(patterns, n_slices)}
    events = {"counts": patterns.places, "edges": patterns.edges, "starts": patterns.starts}
    return found | {name: xp.ascontiguousarray(a) for name, a in events.items()}


def _written(chain: Chain, sums: ChainSums, n_blocks: int, scales: Scales | None) -> dict[str, Array]:
    """Return room for what the kernel writes, and zeros where it adds."""
    xp, (n_modes, n, _), n_patterns = array_module(chain.obj), chain.spectrum.shape, len(chain.corners)
    warps, points = cuda.Layout(n).threads // 32, (chain.obj.shape[1], sums.obj[0, 0].size)
    shapes = {"object_gradient": points, "illumination": points, "probe_gradient": (n_blocks, n_modes, n * n)}
    types = {name: np.float32 if name == "illumination" else np.complex64 for name in shapes}
    added = {name: xp.zeros(shape, types[name]) for name, shape in shapes.items()}
    return (added if scales is None else room_for(xp, shapes)) | {
        "saved": xp.empty((n_blocks, n_modes, _slots(chain), n * n), np.complex64),
        "weights": xp.empty((n_blocks if n_modes > 1 else 0, n * n), np.float32),
        "totals": xp.zeros((n_patterns, warps, 3), np.float64),
        "slopes": xp.zeros((0 if sums.shifts is None else n_patterns, warps, 2), np.float64),
    }


def _arguments(chain: Chain, sums: ChainSums, arrays: dict[str, Array], scales: Scales | None) -> Array:
    """Return the kernel's argument; the arrays must outlive its use. Addresses of what is not among them are null."""
    arguments = np.zeros((), cuda.ARGUMENTS)
    for name, values in arrays.items():
        arguments[name] = cuda.address(values)
    arguments["of_object"] = cuda.sheet(chain.obj.shape[-2:], (0, 0))
    arguments["of_gradient"] = cuda.sheet(sums.obj.shape[-2:], sums.origin)
    arguments["n_slices"], arguments["n_modes"] = chain.obj.shape[1], len(chain.spectrum)
    arguments["n_patterns"], arguments["n_factors"] = len(chain.corners), len(arrays["factors"])
    # One mask for all, or each its own
    arguments["good_step"] = arrays["good"].shape[1] if len(arrays["good"]) > 1 else 0
    arguments["floor"] = FLOORS[chain.detector.loss]
    if scales is not None:
        for name in cuda.SCALES:
            arguments[name] = getattr(scales, name.removesuffix("_scale"))
    return arguments


def _ramps(chain: Chain) -> ComplexArray:
    """Return the factors of the shifts (pattern, 2, N), along y and x; of whole pixels none.

    Each is over √N: a transform there and one back, not normalised, are then unitary.
    """
    n = chain.spectrum.shape[-1]
    shifts = chain.shifts[:0, 0] if chain.whole else chain.shifts[:, 0]
    ramps: ComplexArray = np.stack(shift_ramps(shifts, (n, n), complex), axis=1) / n**0.5
    return ramps.astype(np.complex64)


def _add(chain: Chain, written: dict[str, Array], scales: Scales | None, sums: ChainSums) -> None:
    """Add what the kernel wrote."""
    layout, shape = cuda.Layout(chain.spectrum.shape[-1]), sums.obj.shape[-2:]
    totals = to_host(written["totals"].sum(axis=1)).sum(axis=0)
    found = written | {"probe_gradient": written["probe_gradient"].sum(axis=0)}
    if scales is not None:
        found |= as_numbers(found, scales, totals)
    sums.totals[...] += totals
    sums.obj[0] += cuda.unpack_slices(found["object_gradient"], shape, layout)
    sums.illumination[0] += cuda.unpack_slices(found["illumination"], shape, layout)
    if sums.shifts is not None:
        sums.shifts[:, 0] += 4 * np.pi * to_host(written["slopes"].sum(axis=1))
    if sums.spectrum is not None:
        sums.spectrum[...] += cuda.unpack_waves(found["probe_gradient"], spectra=not chain.whole)
