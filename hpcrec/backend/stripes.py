"""The striped GPU kernels of ``kernels/stripes.cuh``: their variants, arguments and the order of their passes.

Probe modes, shifted or not, on patterns of N × N pixels in the far field. Waves, slices, counts and masks lie in memory
as everywhere in hpcrec; nothing is packed but the factors of gaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from hpcrec.backend.array import Array, ComplexArray, IntArray
from hpcrec.backend.cuda import COUNTS, EVENTS, LOSSES, SCALES, SHEET

SIZES: Final = (128, 192, 256, 384, 512)
_ELEMENTS: Final = {192: 24, 384: 48, 512: 32}
WIDTH: Final = 16
"""Lines of a block."""
_ADDRESSES = (
    "probe", "object", "object_gradient", "illumination", "probe_gradient", "waves", "saved", "counts", "edges",
    "starts", "good", "corners", "before", "after", "twiddles", "totals", "slopes",
)  # fmt: skip
_NUMBERS = (
    "n_slices", "n_modes", "n_copies", "chunk", "first", "slice", "good_step", "before_step", "after_step",
)  # fmt: skip
# The struct StripeArguments of stripes.cuh
ARGUMENTS: Final = np.dtype(
    [(name, np.uint64) for name in _ADDRESSES]
    + [("of_object", SHEET), ("of_gradient", SHEET)]
    + [(name, np.int32) for name in _NUMBERS]
    + [(name, np.float32) for name in ("floor", *SCALES)],
    align=True,
)


@dataclass(frozen=True, slots=True)
class Stripes:
    """How a block's threads share lines of N points: ``lanes`` threads each, ``elements`` points a thread."""

    n: int

    @property
    def elements(self) -> int:
        """Points of a thread E."""
        return _ELEMENTS.get(self.n, 16)

    @property
    def lanes(self) -> int:
        """Threads of a line T."""
        return self.n // self.elements

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WIDTH * self.lanes

    def totals_shape(self, n_patterns: int) -> tuple[int, int, int, int]:
        """Return the shape of the sums of loss, error and counts of all patterns."""
        return n_patterns, self.n // WIDTH, self.threads // 32, 3

    def slopes_shape(self, n_patterns: int, n_modes: int) -> tuple[int, int, int, int, int]:
        """Return the shape of the sums Σ q Im(G* X) along y and x of all patterns."""
        return n_patterns, n_modes, self.n // WIDTH, self.threads // 32, 2

    def stride(self, along_y: bool) -> int:
        """Return the numbers from one line to the next in shared memory."""
        entries = self.elements * (self.lanes + 1)
        if along_y:
            return entries | 1
        return -(-entries // 16) * 16 + 8 if self.lanes == 8 else entries

    def shared_bytes(self, along_y: bool) -> int:
        """Return the shared memory of a block in bytes: exchange and twiddles."""
        return 8 * (self.stride(along_y) * WIDTH + self.n)

    def twiddles(self) -> ComplexArray:
        """Return exp(−2πi k l / N) (element k, lane l)."""
        turns = np.arange(self.elements)[:, None] * np.arange(self.lanes) / self.n
        return np.exp(-2j * np.pi * turns).astype(np.complex64)  # type: ignore[no-any-return]


SHIFT: Final = -1
"""The gap in front of the first slice: the probe's shift."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One launch over a chunk of patterns.

    i_slice : what it meets; :data:`SHIFT`: nothing, the probe's shift begins (or ends, on the way back)
    before, after : gaps in front of and behind the slice, None: the probe, or the detector
    slopes : whether it adds the loss's slopes along the shift that it undoes
    """

    kernel: Literal["forward", "detect", "back"]
    along_y: bool
    i_slice: int
    before: int | None = None
    after: int | None = None
    slopes: bool = False


def passes(n_slices: int, *, shifted: bool, slopes: bool = False) -> list[Pass]:
    """Return the passes in order: each slice there, the detector, each slice back; ``slopes``: of the shifts."""
    there: list[Pass] = []
    if shifted:
        there.append(Pass("forward", True, SHIFT, None, SHIFT))
    for s in range(n_slices):
        before, after = s - 1 if s or shifted else None, s if s < n_slices - 1 else None
        there.append(Pass("forward", s % 2 == 1, s, before, after))
    back = [
        Pass("back", a.along_y, a.i_slice, a.before, a.after, slopes and SHIFT in (a.before, a.after))
        for a in reversed(there)
    ]
    return [*there, Pass("detect", n_slices % 2 == 1, n_slices), *back]


def kernel_name(n: int, chosen: Pass, loss: str, counts: str, *, fixed: bool = False) -> str:
    """Return the C++ name of a pass's variant.

    loss : as ``cuda.LOSSES`` knows; counts : as ``cuda.COUNTS`` or ``cuda.EVENTS``; fixed : sums in fixed point
    """
    variant = f"{n}, {str(chosen.along_y).lower()}"
    if chosen.kernel == "detect":
        variant += f", {LOSSES[loss]}, {(COUNTS | EVENTS)[counts]}"
    elif chosen.kernel == "back":
        variant += f", {str(chosen.slopes).lower()}, {str(fixed).lower()}"
    return f"stripe_{chosen.kernel}<{variant}>"


def layout_fault(window: tuple[int, int], counts: Any, loss: str) -> str | None:
    """Say which window, counts (a type, or of ``cuda.EVENTS``) or loss the kernels do not know, or return None."""
    if window[0] != window[1] or window[0] not in SIZES:
        return f"the striped kernels take windows of {', '.join(f'{n}×{n}' for n in SIZES)} pixels, not {window}"
    if counts not in EVENTS and np.dtype(counts).name not in COUNTS:
        return f"the striped kernels take counts of {' or '.join(COUNTS)}, not {np.dtype(counts).name}"
    if loss not in LOSSES:
        return f"the striped kernels know the losses {', '.join(LOSSES)}, not {loss}"
    return None


def pass_arguments(
    common: Array, chosen: Pass, n: int, factors: int, of_gap: IntArray, ramps: int, first: int
) -> Array:
    """Return the arguments of one pass over the chunk from pattern ``first`` on.

    common : what all passes share; factors : address of those of gaps, as ``cuda.pack_propagators`` lays them out, and
    whose is whose ``of_gap``; ramps : address of the shifts' (pattern, 2, N), along y and x, over N
    """
    found = common.copy()
    found["first"], found["slice"] = first, chosen.i_slice
    along_x = 0 if chosen.along_y else 8 * n
    for name, gap in (("before", chosen.before), ("after", chosen.after)):
        shift = gap == SHIFT
        found[f"{name}_step"] = 2 * n if shift else 0
        if gap is None:
            found[name] = 0
        else:
            found[name] = (ramps if shift else factors + 16 * n * int(of_gap[gap])) + along_x
    return found
