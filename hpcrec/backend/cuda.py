"""The fused GPU kernel of ``kernels/fused.cuh``: its source and variants, and how its arrays are laid out.

Probe modes, shifted or not, on patterns of N × N pixels in the far field. Arrays may live on the host or on the device.
A wave "by threads" is (N²,): element pairs (E/2, thread, 2), see :class:`Layout`. Slices of an object are transposed in
turn, so that threads side by side read numbers side by side in both directions of the kernel's lines. Spectra of
shifted probes stand as a far field does whose lines run along ky.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final, Literal

import numpy as np

from hpcrec.backend.array import Array, BoolArray, ComplexArray, IntArray, array_module, to_host

SIZES: Final = (64, 96, 128)
LOSSES: Final = {"amplitude": "AMPLITUDE", "anscombe": "AMPLITUDE", "poisson": "POISSON"}
COUNTS: Final = {"uint8": "unsigned char", "uint16": "unsigned short"}
# Events, whose tiles' edges are of one type or the other
EVENTS: Final = {"events of uint16": "Events<unsigned short>", "events of uint32": "Events<unsigned int>"}
Kernels = Literal["fused", "stripes", "windows", "projector"]
# What a product of two factors may be off, in single precision, from a propagator that is one
_SEPARABLE = 1e-6
_SHARED = ("device.cuh", "lines.cuh", "lanes.cuh", "loss.cuh", "sums.cuh", "events.cuh")
_SOURCES: Final = {
    "fused": (*_SHARED, "fused.cuh", "entry.cuh"),
    "stripes": (*_SHARED, "stripes.cuh", "stripes_entry.cuh"),
    "windows": ("device.cuh", "loss.cuh", "windows.cuh", "weigh.cuh", "windows_entry.cuh"),
    "projector": ("device.cuh", "projector.cuh", "turns.cuh", "projector_entry.cuh"),
}
# The struct Sheet of lanes.cuh
SHEET: Final = [(name, np.int32) for name in ("height", "width", "top", "left")]
_ADDRESSES = (
    "probe", "object", "object_gradient", "illumination", "probe_gradient", "saved", "weights", "counts", "edges",
    "starts", "good", "corners", "factors", "factor_of_gap", "twiddles", "ramps", "totals", "slopes",
)  # fmt: skip
_NUMBERS = ("n_slices", "n_modes", "n_patterns", "n_factors", "good_step")
# Of sums in fixed point, units in one
SCALES: Final = ("gradient_scale", "illumination_scale", "probe_scale")
# The struct Arguments of fused.cuh
ARGUMENTS: Final = np.dtype(
    [(name, np.uint64) for name in _ADDRESSES]
    + [("of_object", SHEET), ("of_gradient", SHEET)]
    + [(name, np.int32) for name in _NUMBERS]
    + [(name, np.float32) for name in ("floor", *SCALES)],
    align=True,
)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a block's threads share a wave of N × N points: each line to ``lanes`` threads, ``elements`` points each."""

    n: int

    @property
    def elements(self) -> int:
        """Points of a thread E."""
        return 24 if self.n == 96 else 16

    @property
    def lanes(self) -> int:
        """Threads of a line T."""
        return self.n // self.elements

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.n * self.lanes

    @property
    def blocks(self) -> int:
        """Blocks of a multiprocessor, as the kernel's registers are shared out (``BLOCKS`` of entry.cuh)."""
        return {64: 4, 96: 2, 128: 1}[self.n]

    @property
    def stride(self) -> int:
        """Numbers from one line to the next in shared memory."""
        return 9 * self.elements + 8 if self.lanes == 8 else 5 * self.elements + 4

    @property
    def lines_adjacent(self) -> bool:
        """Whether a slice's neighbouring lines lie side by side in memory, not its neighbouring points."""
        return self.lanes < 8

    def shared_bytes(self, n_factors: int) -> int:
        """Return the shared memory of a block in bytes: exchange, twiddles, ``n_factors`` propagators."""
        return 8 * (self.stride * self.n + self.n + 2 * self.n * n_factors)

    def lines(self) -> IntArray:
        """Return the line of each thread."""
        return np.arange(self.threads) // self.lanes

    def points(self) -> IntArray:
        """Return the point in its line (element, thread), in space."""
        lane = np.arange(self.threads) % self.lanes
        return self.lanes * np.arange(self.elements)[:, None] + lane

    def frequencies(self) -> IntArray:
        """Return the frequency in its line (element, thread), after a transform."""
        i, lane = np.arange(self.elements)[:, None], np.arange(self.threads) % self.lanes
        return lane + self.lanes * (i // self.lanes) + self.elements * (i % self.lanes)

    def twiddles(self) -> ComplexArray:
        """Return exp(−2πi k l / N) (element k, lane l)."""
        turns = np.arange(self.elements)[:, None] * np.arange(self.lanes) / self.n
        return np.exp(-2j * np.pi * turns).astype(np.complex64)  # type: ignore[no-any-return]


def source(kernels: Kernels) -> str:
    """Return the source of the fused or the striped kernels, of those for windows, or of the projector's, for NVRTC."""
    folder = files("hpcrec.backend") / "kernels"
    texts = [(folder / name).read_text(encoding="utf-8") for name in _SOURCES[kernels]]
    # Each file guards itself where a compiler finds it by name; joined they are one
    return "\n".join(text.replace("#pragma once\n", "") for text in texts)


def kernel_name(
    n: int,
    loss: str,
    counts: str,
    *,
    several: bool = False,
    shifted: bool = False,
    slopes: bool = False,
    fixed: bool = False,
) -> str:
    """Return the C++ name of a variant: window, loss, and counts as :data:`COUNTS` or :data:`EVENTS` know.

    several : more than one probe mode; shifted : probes by parts of pixels; slopes : their gradients by positions;
    fixed : sums in fixed point
    """
    flags = ", ".join(str(flag).lower() for flag in (several, shifted, slopes, fixed))
    return f"add_gradients<{n}, {LOSSES[loss]}, {(COUNTS | EVENTS)[counts]}, {flags}>"


def compile_options() -> tuple[str, ...]:
    """Return the options of NVRTC.

    Not ``-use_fast_math``: its logarithm has an absolute error, which the Poisson loss, a small difference, would show.
    """
    return ("--std=c++17", "-default-device", "--ftz=true", "--prec-div=false", "--prec-sqrt=false")


def layout_fault(window: tuple[int, int], counts: Any, loss: str) -> str | None:
    """Say which window, counts (a type, or of :data:`EVENTS`) or loss the kernels do not know, or return None."""
    if window[0] != window[1] or window[0] not in SIZES:
        return f"the fused kernel takes windows of {', '.join(f'{n}×{n}' for n in SIZES)} pixels, not {window}"
    if counts not in EVENTS and np.dtype(counts).name not in COUNTS:
        return f"the fused kernel takes counts of {' or '.join(COUNTS)}, not {np.dtype(counts).name}"
    if loss not in LOSSES:
        return f"the fused kernel knows the losses {', '.join(LOSSES)}, not {loss}"
    return None


def propagator_fault(propagators: ComplexArray) -> str | None:
    """Say that a propagator (gap, ky, kx) is no product of a factor along y and one along x, or return None.

    The Fresnel factor is one, tilted or not, within a square band limit; the exact one is not.
    """
    xp = array_module(propagators)
    for gap, factor in enumerate(propagators):
        product = factor[:, :1] * (factor[:1] / factor[0, 0])
        off = float(xp.abs(product - factor).max())
        if not off <= _SEPARABLE:
            return f"the propagator of gap {gap} is no product of factors along y and x: it is off by {off:.1e}"
    return None


def pack_propagators(propagators: ComplexArray) -> tuple[ComplexArray, IntArray]:
    """Return the different ones of the propagators (gap, ky, kx) as factors (n, 2, N), each over N, and whose is whose.

    Only what :func:`propagator_fault` lets pass. The division by N makes up for transforms that are not normalised.
    """
    xp = array_module(propagators)
    n = propagators.shape[-1]
    along = xp.stack([propagators[:, :, 0], propagators[:, 0] / propagators[:, :1, 0]], axis=1)
    kept: list[int] = []
    of_gap = np.zeros(len(propagators), np.int32)
    for gap, factors in enumerate(along):
        same = [i for i, other in enumerate(kept) if bool((along[other] == factors).all())]
        of_gap[gap] = same[0] if same else len(kept)
        if not same:
            kept.append(gap)
    return xp.ascontiguousarray((along[kept] / n).astype(np.complex64)), xp.asarray(of_gap)


class Gaps(threading.local):
    """Propagators as the kernels take them: why they do not, or the different ones' factors, and whose is whose."""

    asked: ComplexArray | None = None
    fault: str | None = None
    factors: ComplexArray
    of_gap: IntArray


_last_gaps = Gaps()


def gaps_of(propagators: ComplexArray) -> Gaps:
    """Return what the kernels know of propagators (gap, ky, kx), kept while a thread asks for the same array."""
    if _last_gaps.asked is not propagators:
        _last_gaps.fault = propagator_fault(propagators)
        if _last_gaps.fault is None:
            _last_gaps.factors, of_gap = pack_propagators(propagators)
            _last_gaps.of_gap = to_host(of_gap)
        _last_gaps.asked = propagators
    return _last_gaps


def address(a: Array) -> int:
    """Return where an array begins, which must be contiguous."""
    if not a.flags.c_contiguous:
        raise ValueError("a kernel takes contiguous arrays alone")
    data: Any = a.ctypes.data if array_module(a) is np else a.data.ptr  # type: ignore[attr-defined]
    return int(data)


def pack_waves(waves: ComplexArray, *, spectra: bool = False) -> ComplexArray:
    """Return waves (mode, y, x), or spectra (mode, ky, kx), by threads: (mode, N²)."""
    xp, places = array_module(waves), _wave_places(Layout(waves.shape[-1]), spectra)
    chosen = waves.reshape(len(waves), -1)[:, xp.asarray(places)]
    return xp.ascontiguousarray(chosen.astype(np.complex64))  # type: ignore[no-any-return]


def unpack_waves(flat: ComplexArray, *, spectra: bool = False) -> ComplexArray:
    """Return the waves (mode, y, x), or spectra, of :func:`pack_waves`."""
    n, xp = round(flat.shape[-1] ** 0.5), array_module(flat)
    places = np.argsort(_wave_places(Layout(n), spectra))
    return flat[:, xp.asarray(places)].reshape(len(flat), n, n)  # type: ignore[no-any-return]


def pack_slices(slices: Array, layout: Layout) -> Array:
    """Return slices (slice, y, x) as (slice, y·x), in turn transposed."""
    xp = array_module(slices)
    flat = [(a.T if _transposed(s, layout) else a).ravel() for s, a in enumerate(slices)]
    return xp.stack(flat)  # type: ignore[no-any-return]


def unpack_slices(flat: Array, shape: tuple[int, int], layout: Layout) -> Array:
    """Return the slices (slice, y, x) of :func:`pack_slices`."""
    turned = shape[::-1]
    slices = [a.reshape(turned).T if _transposed(s, layout) else a.reshape(shape) for s, a in enumerate(flat)]
    return array_module(flat).stack(slices)  # type: ignore[no-any-return]


def pack_patterns(patterns: Array, n_slices: int) -> Array:
    """Return patterns (n, ky, kx) as (n, thread, element) in the order in which the far field of n slices stands."""
    layout, xp = Layout(patterns.shape[-1]), array_module(patterns)
    places = xp.asarray(_far_places(layout, n_slices % 2))
    return xp.ascontiguousarray(patterns.reshape(len(patterns), -1)[:, places])  # type: ignore[no-any-return]


def pack_good(good: BoolArray, n_slices: int) -> IntArray:
    """Return masks (n or 1, ky, kx), True = good, as words (n or 1, thread), bit i for element i."""
    xp = array_module(good)
    bits = xp.left_shift(np.uint32(1), xp.arange(Layout(good.shape[-1]).elements, dtype=np.uint32))
    return xp.where(pack_patterns(good, n_slices), bits, np.uint32(0)).sum(axis=-1, dtype=np.uint32)  # type: ignore[no-any-return]


def sheet(shape: tuple[int, int], origin: tuple[int, int]) -> Array:
    """Return what the kernel knows of an array (slice, y, x) of ``shape`` (y, x) whose first pixel is ``origin``."""
    return np.array((*shape, *origin), np.dtype(SHEET))


def _transposed(i_slice: int, layout: Layout) -> bool:
    return (i_slice % 2 == 0) == layout.lines_adjacent


@lru_cache(maxsize=8)
def _wave_places(layout: Layout, spectra: bool) -> IntArray:
    """Return the place in (y, x) of each number by threads: lines run along x, those of spectra along ky."""
    places = _far_places(layout, 1).T if spectra else layout.lines() * layout.n + layout.points()
    return places.reshape(-1, 2, layout.threads).transpose(0, 2, 1).ravel()


@lru_cache(maxsize=8)
def _far_places(layout: Layout, odd: int) -> IntArray:
    """Return the place in (ky, kx) of each element (thread, element) of the far field of an odd number of slices.

    Lines of the last slice run along x then, and after the transposition along ky.
    """
    line, frequency = layout.lines(), layout.frequencies()
    places = frequency * layout.n + line if odd else line * layout.n + frequency
    return np.ascontiguousarray(places.T)
