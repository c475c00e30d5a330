"""The gradients by cuFFT with fused element-wise kernels between the transforms, and sums of patches alone.

The kernels are in ``passes.cu``, compiled at run time by CuPy; whole pixels, the amplitude loss, uint8 counts.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcrec.models.chain import Chain, ChainSums
from hpcrec.objectives.losses import AMPLITUDE_FLOOR

SOURCE: Final = Path(__file__).with_name("passes.cu")
OPTIONS: Final = ("--std=c++17",)
KERNELS: Final = ("enter", "filter", "transmit", "weigh", "leave", "gather", "add_patches")
_THREADS, _COPIES = 256, 8
# Of the waves of a chunk
_CHUNK_BYTES = 1 << 32


@lru_cache(maxsize=1)
def _module() -> Any:
    return import_module("cupy").RawModule(code=SOURCE.read_text(encoding="utf-8"), options=OPTIONS)


@lru_cache(maxsize=16)
def kernel(name: str) -> Any:
    """Return a kernel of ``passes.cu``."""
    return _module().get_function(name)


class CufftPasses:
    """Gradients of a chain on the device, chunk by chunk; the plan and room for waves are made once."""

    def __init__(self, cupy: Any, chain: Chain) -> None:
        if not chain.whole:
            raise ValueError("these passes take whole pixels alone")
        self._cupy, self._chain = cupy, chain
        (self._n_modes, self._n, _), self._n_slices = chain.spectrum.shape, chain.obj.shape[1]
        of_pattern = self._n_slices * self._n_modes * self._n**2 * 8
        self.chunk = max(min(_CHUNK_BYTES // of_pattern, len(chain.corners)), 1)
        shape = (self.chunk * self._n_modes, self._n, self._n)
        self._waves = cupy.empty(shape, np.complex64)
        self._saved = cupy.empty((max(self._n_slices - 1, 1), *shape), np.complex64)
        self._corners = cupy.asarray(np.ascontiguousarray(chain.corners[:, 0], np.int32))
        self._plans: dict[int, Any] = {}

    def __call__(self, chain: Chain, counts: Any, good: Any, sums: ChainSums) -> None:
        """Add the gradients of the chain that this was made for to ``sums``, all of whose pixels count."""
        cupy, modes = self._cupy, self._n_modes
        loss = cupy.zeros(1, np.float64)
        gradient = cupy.zeros((_COPIES, modes, self._n, self._n), np.complex64)
        for first in range(0, len(counts), self.chunk):
            held = min(self.chunk, len(counts) - first)
            self._chunk(counts[first : first + held], self._corners[first : first + held], sums, loss)
            self._run("gather", held, self._waves, gradient, *self._sizes(_COPIES))
        sums.spectrum[...] += gradient.sum(axis=0)
        sums.totals[0] += float(loss[0])

    def _chunk(self, counts: Any, corners: Any, sums: ChainSums, loss: Any) -> None:
        """Run the patterns of one chunk from the probe to the loss and back, but for the probe's gradient."""
        chain, waves, held = self._chain, self._waves, len(counts)
        width, pixels = np.int32(chain.obj.shape[-1]), self._n_modes * self._n**2
        self._run("enter", held, waves, chain.spectrum, chain.obj[0, 0], corners, *self._sizes(), width)
        for s in range(1, self._n_slices):
            self._cross(held, chain.propagators[s - 1], 0)
            saved = self._saved[s - 1]
            self._run("transmit", held, waves, saved, chain.obj[0, s], corners, *self._sizes(), width)
        self._transform(held, forward=True)
        self._run("weigh", held, waves, counts, loss, *self._sizes(), np.float32(AMPLITUDE_FLOOR))
        self._transform(held, forward=False)
        for s in reversed(range(self._n_slices)):
            # In front of the first slice the probe is that of all patterns
            saved, step = (self._saved[s - 1], pixels) if s else (chain.spectrum, 0)
            arrays = chain.obj[0, s], sums.obj[0, s], sums.illumination[0, s], corners
            self._run("leave", held, waves, saved, np.int64(step), *arrays, *self._sizes(), width)
            if s:
                self._cross(held, chain.propagators[s - 1], 1)

    def _cross(self, held: int, factor: Any, conjugate: int) -> None:
        self._transform(held, forward=True)
        self._run("filter", held, self._waves, factor, *self._sizes(conjugate))
        self._transform(held, forward=False)

    def _sizes(self, *more: int) -> tuple[np.int32, ...]:
        return tuple(np.int32(value) for value in (self._n, self._n_modes, *more))

    def _run(self, name: str, held: int, *arguments: Any) -> None:
        pixels = self._n**2 * (1 if name == "weigh" else self._n_modes)
        kernel(name)((-(-pixels // _THREADS), held), (_THREADS,), arguments)

    def _transform(self, held: int, *, forward: bool) -> None:
        cufft, waves = self._cupy.cuda.cufft, self._waves[: held * self._n_modes]
        if held not in self._plans:
            plan = import_module("cupyx.scipy.fftpack").get_fft_plan
            self._plans[held] = plan(waves, axes=(1, 2))
        self._plans[held].fft(waves, waves, cufft.CUFFT_FORWARD if forward else cufft.CUFFT_INVERSE)


def add_patches(cupy: Any, sums: Any, corners: Any, n: int) -> None:
    """Add a patch of n² ones (both parts of complex numbers) to sums (y, x) at each of the corners (patch, 2)."""
    kernel("add_patches")((len(corners),), (_THREADS,), (sums, corners, np.int32(n), np.int32(sums.shape[1])))
