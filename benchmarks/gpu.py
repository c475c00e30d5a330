"""Gradients on one GPU, correctness first: ``python -m benchmarks.gpu [--seconds 420]``.

Every kernel is first compared with the plain chain in double precision on the processor; what is off by more than 1e-5
of the largest value ends the run. Then patterns a second of gradients by object and probe (uint8 counts, amplitude
loss, the window's corners a pixel apart in a serpentine), beside what a roofline of the kernels predicted for an H200,
beside the time of the transforms alone (cuFFT, batched), and beside the same gradient written for PyTorch, eager and
compiled, where that is installed. Medians of repeated calls, by the device's own clock. What the time does not suffice
for is left out and named.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Final

import numpy as np

from benchmarks.limits import machine
from benchmarks.table import add_json_option, report
from benchmarks.torch_gradient import torch_gradient
from hpcrec.backend import device
from hpcrec.models import fused, launched, multislice, striped
from hpcrec.models.chain import Chain, ChainSums, Detector
from hpcrec.physics.propagation import fresnel_factor, propagation_rate

SAMPLING, WAVELENGTH, THICKNESS = (0.2, 0.2), 0.0197, 20.0
TOLERANCE: Final = 1e-5
# Patterns a second on an H200 that the design's roofline predicts, one mode: (window, slices)
PREDICTED: Final = {
    "fused": {(64, 1): 19e6, (64, 5): 4.5e6, (64, 20): 1.07e6, (128, 1): 4.8e6, (128, 5): 1.04e6, (128, 20): 248e3},
    "striped": {(256, 1): 932e3, (256, 5): 186e3, (256, 20): 47e3},
}
# Window, slices, modes, shifted
CHECKED: Final = [
    (64, 3, 1, False), (96, 2, 1, False), (128, 5, 1, False), (128, 2, 3, True), (192, 2, 1, True), (256, 3, 2, True),
    (384, 2, 1, False), (512, 2, 1, True),
]  # fmt: skip
CASES: Final = [(n, s, m) for n in (64, 128, 256) for s in (1, 5, 20) for m in (1, 4)]


def make_chain(n: int, n_slices: int, n_modes: int, n_patterns: int, shifted: bool, seed: int = 0) -> Chain:
    """Return a chain in double precision, of numbers that single precision holds, on the host."""
    rng, side = np.random.default_rng(seed), round(n_patterns**0.5) + 1
    y, x = np.meshgrid(np.arange(n) - n // 2, np.arange(n) - n // 2, indexing="ij")
    probe = np.exp(-(y**2 + x**2) / (2 * (n / 8) ** 2) + 0.01j * (y**2 + 0.7 * x**2)) * 8
    modes = np.stack([probe * (4 * x / n) ** m / (1 + m) for m in range(n_modes)]).astype(np.complex64)
    phase = rng.normal(size=(1, n_slices, n + side, n + side)).astype(np.float32)
    at = np.arange(n_patterns)
    corners = np.stack([at // side, np.where(at // side % 2, side - 1 - at % side, at % side)], axis=1)
    gap = fresnel_factor((n, n), SAMPLING, WAVELENGTH, THICKNESS, 2 / 3).astype(np.complex64)
    spectrum = np.fft.fft2(modes, norm="ortho") if shifted else modes
    return Chain(
        obj=np.exp(0.5j * phase).astype(np.complex64).astype(complex),
        corners=corners[:, None],
        shifts=rng.uniform(-0.5, 0.5, (n_patterns, 1, 2)) if shifted else np.zeros((n_patterns, 1, 2)),
        spectrum=spectrum.astype(np.complex64).astype(complex),
        propagators=np.repeat(gap[None], n_slices - 1, axis=0).astype(complex),
        rate=propagation_rate((n, n), SAMPLING, WAVELENGTH),
        detector=Detector(),
        whole=not shifted,
    )


def on_device(cupy: Any, chain: Chain) -> Chain:
    """Return a chain whose large arrays are on the device, in single precision."""
    moved = {
        name: cupy.asarray(getattr(chain, name).astype(np.complex64)) for name in ("obj", "spectrum", "propagators")
    }
    return dataclasses.replace(chain, **moved, rate=cupy.asarray(chain.rate.astype(np.float32)))


def sums_for(xp: Any, chain: Chain) -> ChainSums:
    """Return sums of zeros over the whole object, and those of the probe."""
    return ChainSums(
        origin=(0, 0),
        obj=xp.zeros(chain.obj.shape, chain.obj.dtype),
        illumination=xp.zeros(chain.obj.shape, chain.obj.real.dtype),
        totals=np.zeros(3),
        spectrum=xp.zeros(chain.spectrum.shape, chain.spectrum.dtype),
    )


def counts_for(chain: Chain, seed: int) -> Any:
    """Return uint8 counts of another pattern's place, so that the gradient is not small."""
    found = multislice.chain_intensities(chain)[:, ::-1]
    return np.random.default_rng(seed).poisson(found).clip(0, 255).astype(np.uint8)


def kernels_for(chain: Chain, counts: Any, sums: ChainSums) -> dict[str, Callable[..., None]]:
    """Return what can take a chain, by name: the fused kernel, the striped ones, array code."""
    found: dict[str, Callable[..., None]] = {}
    if fused.fault(chain, counts, sums) is None:
        found["fused"] = launched.add_gradients
    if striped.fault(chain, counts, sums) is None:
        found["striped"] = partial(striped.add_gradients, launch=launched.launch)
    found["array"] = multislice.add_gradients
    return found


def errors(cupy: Any) -> list[dict[str, object]]:
    """Return the largest error of each kernel's gradients over their largest value, of few patterns."""
    rows: list[dict[str, object]] = []
    for n, n_slices, n_modes, shifted in CHECKED:
        chain = make_chain(n, n_slices, n_modes, 6, shifted)
        counts, wanted = counts_for(chain, 1), sums_for(np, chain)
        multislice.add_gradients(chain, counts, None, wanted)
        there, patterns = on_device(cupy, chain), cupy.asarray(counts)
        for name, run in kernels_for(there, patterns, sums_for(cupy, there)).items():
            found = sums_for(cupy, there)
            run(there, patterns, None, found)
            row: dict[str, object] = {"N": n, "slices": n_slices, "modes": n_modes, "shifted": shifted, "kernel": name}
            for part in ("obj", "illumination", "spectrum"):
                expected = getattr(wanted, part)
                row[part] = float(np.abs(getattr(found, part).get() - expected).max() / np.abs(expected).max())
            row["loss"] = float(abs(found.totals[0] / wanted.totals[0] - 1))
            rows.append(row)
    return rows


def seconds_of(cupy: Any, work: Callable[[], None], n_repeats: int = 5) -> float:
    """Return the median time of a call by the device's clock, after two that are not counted."""
    times = []
    for i in range(n_repeats + 2):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        work()
        end.record()
        end.synchronize()
        if i > 1:
            times.append(cupy.cuda.get_elapsed_time(start, end) / 1e3)
    return statistics.median(times)


def transforms_rate(cupy: Any, n: int) -> float:
    """Return two-dimensional transforms a second, in place and batched, of a gigabyte of waves."""
    waves = cupy.zeros((2**30 // (8 * n * n), n, n), np.complex64)
    plan = import_module("cupyx.scipy.fftpack").get_fft_plan(waves, axes=(1, 2))
    forward = import_module("cupy.cuda.cufft").CUFFT_FORWARD

    def work() -> None:
        plan.fft(waves, waves, forward)

    return len(waves) / seconds_of(cupy, work)


def rates(cupy: Any, n: int, n_slices: int, n_modes: int, shifted: bool, ffts: float) -> list[dict[str, object]]:
    """Return a row for each kernel that can take the case, and for PyTorch."""
    n_patterns = max(min(2**29 // (n * n * n_modes * n_slices), 8192), 64)
    there = on_device(cupy, make_chain(n, n_slices, n_modes, n_patterns, shifted))
    # Speed does not depend on what was counted
    patterns = cupy.asarray(np.random.default_rng(2).poisson(1.0, (64, n, n)).astype(np.uint8))
    patterns = cupy.ascontiguousarray(cupy.tile(patterns, (-(-n_patterns // 64), 1, 1))[:n_patterns])
    rows: list[dict[str, object]] = []
    case = {"N": n, "slices": n_slices, "modes": n_modes, "shifted": shifted}
    per_pattern = n_modes * (4 * n_slices - 2 + 2 * shifted)

    def add(name: str, seconds: float, patterns_done: int) -> None:
        rate = patterns_done / seconds
        row: dict[str, object] = {**case, "kernel": name, "patterns/s": rate}
        predicted = PREDICTED.get(name, {}).get((n, n_slices))
        row["predicted"] = predicted / n_modes if predicted and not shifted else None
        rows.append(row | {"of transforms alone": rate * per_pattern / ffts})

    sums = sums_for(cupy, there)
    for name, run in kernels_for(there, patterns, sums).items():
        add(name, seconds_of(cupy, partial(run, there, patterns, None, sums)), n_patterns)
    if not shifted:
        for compiled in (False, True):
            for size in (64, min(1024, n_patterns)):
                work = torch_gradient(there, patterns[:size], compiled=compiled)
                if work is not None:
                    name = f"PyTorch {'compiled' if compiled else 'eager'}, {size}"
                    add(name, seconds_of(cupy, work, 3), size)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=420.0, help="no case begins after so many")
    add_json_option(parser)
    chosen, began = parser.parse_args(), time.monotonic()
    here = device.use_device("gpu")
    cupy, about = here.module, machine() | {"gpu": device.describe()}
    print(about["gpu"])
    checked = errors(cupy)
    report("gpu_errors", about, checked)
    worst = max(float(str(row[part])) for row in checked for part in ("obj", "illumination", "spectrum", "loss"))
    if not worst <= TOLERANCE:
        sys.exit(f"a gradient is off by {worst:.1e}, more than {TOLERANCE:.0e}: no speed is measured of what is wrong")
    ffts, rows, left = {n: transforms_rate(cupy, n) for n in (64, 128, 256)}, [], []
    print({n: f"{rate:.3g} transforms/s" for n, rate in ffts.items()})
    for shifted in (False, True):
        for n, n_slices, n_modes in CASES:
            if time.monotonic() - began > chosen.seconds:
                left.append((n, n_slices, n_modes, shifted))
                continue
            rows += rates(cupy, n, n_slices, n_modes, shifted, ffts[n])
    report("gpu", about, rows, chosen.json)
    if left:
        print(f"no time was left for (N, slices, modes, shifted): {left}")


if __name__ == "__main__":
    main()
