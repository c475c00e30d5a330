"""The multislice chain through the striped GPU kernels: gradients as :func:`hpcrec.models.multislice.add_gradients`.

Arrays may live on a device or, for the kernels' stand-in on the CPU, on the host. Chunks of patterns go through all
passes one after the other; the device does nothing else in between.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from hpcrec.backend import cuda, stripes
from hpcrec.backend.array import Array, BoolArray, ComplexArray, array_module, to_host
from hpcrec.backend.fft import fft2, ifft2
from hpcrec.backend.launch import Launch
from hpcrec.models.chain import Chain, ChainSums
from hpcrec.objectives.losses import AMPLITUDE_FLOOR, ANSCOMBE_FLOOR, POISSON_FLOOR

FLOORS: Final = {"amplitude": AMPLITUDE_FLOOR, "anscombe": ANSCOMBE_FLOOR, "poisson": POISSON_FLOOR}
"""ε of the losses that the kernels know."""
# Copies of the probe's gradient: blocks that add to one seldom meet; estimated, not measured
_COPIES: Final = 8
# Of the waves of a chunk: enough patterns that a launch is long, of a GPU's memory a small part
CHUNK_BYTES: Final = 1 << 31


def chain_fault(chain: Chain, sums: ChainSums) -> str | None:
    """Say what of a chain or the wanted sums neither kernel knows, or return None."""
    detector = chain.detector
    unknown = {
        "several object states": len(chain.obj) > 1,
        "flight points": chain.corners.shape[1] > 1,
        "a near-field detector": detector.propagator is not None,
        "a point spread or binning of the detector": detector.blur is not None or detector.binning != 1,
        "a varying probe": chain.variation is not None,
        "tilts of single patterns": chain.tilts is not None,
        "intensities or a background": chain.scale is not None or chain.background is not None,
        "gradients by tilts or thickness": sums.moments is not None,
        "gradients by positions on whole pixels": chain.whole and sums.shifts is not None,
        "double precision": chain.obj.dtype != np.complex64,
    }
    named = [name for name, asked in unknown.items() if asked]
    return f"the kernels of a GPU do not know {', '.join(named)}" if named else cuda.gaps_of(chain.propagators).fault


def fault(chain: Chain, patterns: Array, sums: ChainSums) -> str | None:
    """Say what of a chain, its patterns or the wanted sums the striped kernels do not know, or return None."""
    found = stripes.layout_fault(chain.spectrum.shape[-2:], patterns.dtype, chain.detector.loss)
    return found or chain_fault(chain, sums)


def add_gradients(
    chain: Chain,
    patterns: Array,
    good: BoolArray | None,
    sums: ChainSums,
    launch: Launch,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Add the gradients of ``patterns`` (n, ky, kx) over their ``good`` pixels to ``sums``; :func:`fault` is None."""
    xp, (n_modes, n, _) = array_module(chain.obj), chain.spectrum.shape
    n_patterns, n_slices, layout, shifted = len(chain.corners), chain.obj.shape[1], stripes.Stripes(n), not chain.whole
    if n_patterns == 0:
        return
    slopes = sums.shifts is not None
    chunk = min(max(chunk_bytes // ((n_slices + 1) * n_modes * n * n * 8), 1), n_patterns)
    gaps = cuda.gaps_of(chain.propagators)
    modes = ifft2(chain.spectrum) if shifted else chain.spectrum
    masks = xp.ones((1, n, n), np.uint8) if good is None else good.view(np.uint8)
    arrays = {
        "probe": xp.ascontiguousarray(modes, np.complex64),
        "object": xp.ascontiguousarray(chain.obj[0]),
        "object_gradient": sums.obj[0],
        "illumination": sums.illumination[0],
        "probe_gradient": xp.zeros((_COPIES, n_modes, n, n), np.complex64),
        "waves": xp.empty((chunk, n_modes, n, n), np.complex64),
        "saved": xp.empty((n_slices, chunk, n_modes, n, n), np.complex64),
        "counts": xp.ascontiguousarray(patterns),
        "good": xp.ascontiguousarray(masks),
        "corners": xp.asarray(np.ascontiguousarray(chain.corners[:, 0], np.int32)),
        "twiddles": xp.asarray(layout.twiddles()),
        "totals": xp.zeros(layout.totals_shape(chunk), np.float64),
        "slopes": xp.zeros(layout.slopes_shape(n_patterns if slopes else 0, n_modes), np.float64),
    }
    ramps = xp.asarray(_ramps(chain, n))
    common = np.zeros((), stripes.ARGUMENTS)
    for name, values in arrays.items():
        common[name] = cuda.address(values)
    common["of_object"] = cuda.sheet(chain.obj.shape[-2:], (0, 0))
    common["of_gradient"] = cuda.sheet(sums.obj.shape[-2:], sums.origin)
    numbers = {"n_slices": n_slices, "n_modes": n_modes, "n_copies": _COPIES, "chunk": chunk}
    for name, number in (numbers | {"good_step": n * n if len(masks) > 1 else 0}).items():
        common[name] = number
    common["floor"] = FLOORS[chain.detector.loss]
    plan, factors = stripes.passes(n_slices, shifted=shifted, slopes=slopes), cuda.address(gaps.factors)
    for first in range(0, n_patterns, chunk):
        held = min(chunk, n_patterns - first)
        for one in plan:
            arguments = stripes.pass_arguments(common, one, n, factors, gaps.of_gap, cuda.address(ramps), first)
            kernel = stripes.kernel_name(n, one, chain.detector.loss, patterns.dtype.name)
            items = held if one.kernel == "detect" else held * n_modes
            blocks = n // stripes.WIDTH, items
            launch(kernel, blocks, layout.threads, layout.shared_bytes(one.along_y), arguments)
    sums.totals[...] += to_host(arrays["totals"]).sum(axis=(0, 1, 2))
    if sums.shifts is not None:
        sums.shifts[:, 0] += 4 * np.pi * to_host(arrays["slopes"]).sum(axis=(1, 2, 3))
    if sums.spectrum is not None:
        gradient = arrays["probe_gradient"].sum(axis=0)
        sums.spectrum[...] += fft2(gradient) if shifted else gradient


def _ramps(chain: Chain, n: int) -> ComplexArray:
    """Return exp(−2πi q δ)/N of the shifts (pattern, 2, N), along y and x."""
    turns = chain.shifts[:, 0, :, None] * np.fft.fftfreq(n)
    return (np.exp(-2j * np.pi * turns) / n).astype(np.complex64)  # type: ignore[no-any-return]
