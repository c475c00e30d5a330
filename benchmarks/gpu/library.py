"""What the device does by itself: transforms of cuFFT, sums of overlapping patches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module

import numpy as np

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.passes import add_patches

SIZES = (64, 128, 256)
# Bytes that a transform moves in two passes over an H200's memory, 3.66 TB/s, as the design's roofline has it
_PREDICTED_BYTES = 3.66e12
_PATCH, _STEPS = 128, (1, 16)


def transforms(bench: Bench) -> Iterator[dict[str, object]]:
    """Yield two-dimensional transforms a second, in place and batched."""
    cupy = bench.cupy
    for n in SIZES:
        waves = cupy.zeros((max(bench.sizes.waves_bytes // (8 * n * n), 1), n, n), np.complex64)
        plan = import_module("cupyx.scipy.fftpack").get_fft_plan(waves, axes=(1, 2))
        # By the attribute: CuPy looks for the library then, which an import of the module by name does not
        work = partial(plan.fft, waves, waves, cupy.cuda.cufft.CUFFT_FORWARD)
        rate = bench.rate(len(waves), bench.seconds_of(work))
        yield {
            "n": n,
            "batch": len(waves),
            "transforms/s": rate,
            "predicted": bench.predicted(_PREDICTED_BYTES / (4 * 8 * n * n)),
            "TB/s in two passes": rate and rate * 4 * 8 * n * n / 1e12,
        }


def reductions(bench: Bench) -> Iterator[dict[str, object]]:
    """Yield bytes a second that patches add to an array where they overlap; raises ValueError for a wrong sum."""
    cupy, side = bench.cupy, bench.sizes.reductions
    for step in _STEPS:
        at = step * np.arange(side)
        corners = np.stack(np.meshgrid(at, at, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.int32)
        sums, there = cupy.zeros((at[-1] + _PATCH, at[-1] + _PATCH), np.complex64), cupy.asarray(corners)
        add_patches(cupy, sums, there, _PATCH)
        once = complex(sums.sum(dtype=np.complex128))
        wanted = len(corners) * _PATCH**2
        if once != complex(wanted, wanted):
            raise ValueError(f"patches of ones {step} pixels apart add up to {once}, not {wanted} twice")
        seconds = bench.seconds_of(partial(add_patches, cupy, sums, there, _PATCH))
        rate = bench.rate(8 * wanted / 1e12, seconds)
        yield {"patches": len(corners), "step": step, "TB/s": rate, "predicted, at least": bench.predicted(2.0)}
