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
from hpcrec.models.events import Events, kind_of
from hpcrec.models.fixed import Scales, as_numbers, room_for, scales_of
from hpcrec.objectives.losses import FLOORS

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


def fault(chain: Chain, patterns: Array | Events, sums: ChainSums) -> str | None:
    """Say what of a chain, its patterns or the wanted sums the striped kernels do not know, or return None."""
    found = stripes.layout_fault(chain.spectrum.shape[-2:], kind_of(patterns), chain.detector.loss)
    return found or chain_fault(chain, sums)


def add_gradients(
    chain: Chain,
    patterns: Array | Events,
    good: BoolArray | None,
    sums: ChainSums,
    launch: Launch,
    chunk_bytes: int = CHUNK_BYTES,
    *,
    deterministic: bool = False,
) -> None:
    """Add the gradients of ``patterns`` (n, ky, kx) over their ``good`` pixels to ``sums``; :func:`fault` is None.

    ``deterministic`` : sums in fixed point, see :mod:`hpcrec.models.fixed`, which says what it raises; the same to the
    last bit from run to run and with any ``chunk_bytes``.
    """
    n_patterns, (n_modes, n, _), n_slices = len(chain.corners), chain.spectrum.shape, chain.obj.shape[1]
    if n_patterns == 0:
        return
    layout, gaps, shifted = stripes.Stripes(n), cuda.gaps_of(chain.propagators), not chain.whole
    chunk = min(max(chunk_bytes // ((n_slices + 1) * n_modes * n * n * 8), 1), n_patterns)
    scales = scales_of(chain, patterns, gaps.factors) if deterministic else None
    arrays = _entering(chain, patterns, good) | _room(chain, chunk) | _sums(chain, sums, scales)
    ramps = array_module(chain.obj).asarray(_ramps(chain, n))
    common = _common_arguments(chain, sums, arrays, chunk, scales)
    plan = stripes.passes(n_slices, shifted=shifted, slopes=sums.shifts is not None)
    for first in range(0, n_patterns, chunk):
        held = min(chunk, n_patterns - first)
        for one in plan:
            addresses = cuda.address(gaps.factors), gaps.of_gap, cuda.address(ramps)
            arguments = stripes.pass_arguments(common, one, n, *addresses, first)
            kernel = stripes.kernel_name(n, one, chain.detector.loss, kind_of(patterns), fixed=deterministic)
            blocks = n // stripes.WIDTH, held if one.kernel == "detect" else held * n_modes
            launch(kernel, blocks, layout.threads, layout.shared_bytes(one.along_y), arguments)
    _add_sums(arrays, scales, sums, shifted=shifted)


def _entering(chain: Chain, patterns: Array | Events, good: BoolArray | None) -> dict[str, Array]:
    """Return the arrays that kernels read."""
    xp, n = array_module(chain.obj), chain.spectrum.shape[-1]
    modes = chain.spectrum if chain.whole else ifft2(chain.spectrum)
    masks = xp.ones((1, n, n), np.uint8) if good is None else good.view(np.uint8)
    found = {
        "probe": xp.ascontiguousarray(modes, np.complex64),
        "object": xp.ascontiguousarray(chain.obj[0]),
        "good": xp.ascontiguousarray(masks),
        "corners": xp.asarray(np.ascontiguousarray(chain.corners[:, 0], np.int32)),
        "twiddles": xp.asarray(stripes.Stripes(n).twiddles()),
    }
    if not isinstance(patterns, Events):
        return found | {"counts": xp.ascontiguousarray(patterns)}
    events = {"counts": patterns.places, "edges": patterns.edges, "starts": patterns.starts}
    return found | {name: xp.ascontiguousarray(a) for name, a in events.items()}


def _room(chain: Chain, chunk: int) -> dict[str, Array]:
    """Return empty arrays for the waves of a chunk of patterns."""
    xp, n_slices = array_module(chain.obj), chain.obj.shape[1]
    return {
        "waves": xp.empty((chunk, *chain.spectrum.shape), np.complex64),
        "saved": xp.empty((n_slices, chunk, *chain.spectrum.shape), np.complex64),
    }


def _sums(chain: Chain, sums: ChainSums, scales: Scales | None) -> dict[str, Array]:
    """Return where kernels add: what is on the object goes to ``sums`` itself if it is not in fixed point."""
    xp, n_patterns, (n_modes, n, _) = array_module(chain.obj), len(chain.corners), chain.spectrum.shape
    layout, n_sloped = stripes.Stripes(n), 0 if sums.shifts is None else n_patterns
    found = {
        "totals": xp.zeros(layout.totals_shape(n_patterns), np.float64),
        "slopes": xp.zeros(layout.slopes_shape(n_sloped, n_modes), np.float64),
    }
    of_probe = _COPIES, n_modes, n, n
    if scales is None:
        of_object = {"object_gradient": sums.obj[0], "illumination": sums.illumination[0]}
        return found | of_object | {"probe_gradient": xp.zeros(of_probe, np.complex64)}
    shape = sums.obj.shape[1:]
    return found | room_for(xp, {"object_gradient": shape, "illumination": shape, "probe_gradient": of_probe})


def _common_arguments(
    chain: Chain, sums: ChainSums, arrays: dict[str, Array], chunk: int, scales: Scales | None
) -> Array:
    """Return the arguments that all passes share; addresses of what is not among ``arrays`` are null."""
    n_modes, n, _ = chain.spectrum.shape
    found = np.zeros((), stripes.ARGUMENTS)
    for name, values in arrays.items():
        found[name] = cuda.address(values)
    found["of_object"] = cuda.sheet(chain.obj.shape[-2:], (0, 0))
    found["of_gradient"] = cuda.sheet(sums.obj.shape[-2:], sums.origin)
    numbers = {"n_slices": chain.obj.shape[1], "n_modes": n_modes, "n_copies": _COPIES, "chunk": chunk}
    for name, number in (numbers | {"good_step": n * n if len(arrays["good"]) > 1 else 0}).items():
        found[name] = number
    found["floor"] = FLOORS[chain.detector.loss]
    if scales is not None:
        for name in cuda.SCALES:
            found[name] = getattr(scales, name.removesuffix("_scale"))
    return found


def _add_sums(arrays: dict[str, Array], scales: Scales | None, sums: ChainSums, *, shifted: bool) -> None:
    """Add what the kernels left in ``arrays`` to ``sums``."""
    totals = to_host(arrays["totals"].sum(axis=(1, 2))).sum(axis=0)
    sums.totals[...] += totals
    if sums.shifts is not None:
        sums.shifts[:, 0] += 4 * np.pi * to_host(arrays["slopes"].sum(axis=(1, 2, 3)))
    gradient = arrays["probe_gradient"].sum(axis=0)
    if scales is not None:
        found = as_numbers(arrays | {"probe_gradient": gradient}, scales, totals)
        sums.obj[0] += found["object_gradient"]
        sums.illumination[0] += found["illumination"]
        gradient = found["probe_gradient"]
    if sums.spectrum is not None:
        sums.spectrum[...] += fft2(gradient) if shifted else gradient


def _ramps(chain: Chain, n: int) -> ComplexArray:
    """Return exp(−2πi q δ)/N of the shifts (pattern, 2, N), along y and x."""
    turns = chain.shifts[:, 0, :, None] * np.fft.fftfreq(n)
    return (np.exp(-2j * np.pi * turns) / n).astype(np.complex64)  # type: ignore[no-any-return]
