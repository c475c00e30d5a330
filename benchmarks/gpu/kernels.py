"""Patterns a second of gradients by each kernel, beside what the design predicted and beside other ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from functools import partial
from itertools import product
from typing import Any, Final

import numpy as np

from benchmarks.gpu.bench import Bench, Case
from benchmarks.gpu.chains import add_by_stripes, call, make_chain, on_device, runners, share_for, sums_for
from benchmarks.gpu.passes import CufftPasses
from benchmarks.gpu.torch_gradient import torch_fault, torch_gradient
from hpcrec.models.chain import Chain, part_of

# Patterns a second on an H200 that the design's roofline predicts for whole pixels: (window, slices) of one mode
PREDICTED: Final[Mapping[str, Mapping[tuple[int, int], float]]] = {
    "fused": {(64, 1): 19e6, (64, 5): 4.5e6, (64, 20): 1.07e6, (128, 1): 4.8e6, (128, 5): 1.04e6, (128, 20): 248e3},
    "striped": {(256, 1): 932e3, (256, 5): 186e3, (256, 20): 47e3},
    "cuFFT passes": {
        (64, 1): 6.97e6, (64, 5): 930e3, (64, 20): 219e3, (128, 1): 1.74e6, (128, 5): 232e3, (128, 20): 55e3,
        (256, 1): 436e3, (256, 5): 58e3, (256, 20): 14e3,
    },
    "PyTorch eager, 64": {
        (64, 1): 186e3, (64, 5): 79e3, (64, 20): 25e3, (128, 1): 186e3, (128, 5): 79e3, (128, 20): 22e3,
        (256, 1): 81e3, (256, 5): 21e3, (256, 20): 5.6e3,
    },
    "PyTorch eager, 1024": {(128, 5): 84e3},
    "PyTorch compiled, 1024": {(128, 5): 130e3},
}  # fmt: skip
# Compiled anew for each shape, for half a minute: window, slices, modes, patterns
_COMPILED: Final = {(128, 5, 1, 64), (128, 5, 1, 1024), (256, 5, 1, 1024)}
Right = Set[tuple[str, int]]
"""Kernels and windows that were found right."""
# Waves' numbers of a timed call, over all patterns, modes and slices
_POINTS: Final = 1 << 30


def timed_chain(bench: Bench, case: Case) -> tuple[Chain, Any]:
    """Return a chain on the device and its counts, as many patterns as the case's waves leave room for."""
    room = _POINTS // (case.n**2 * case.n_modes * case.n_slices)
    n_patterns = min(max(room, 64), bench.sizes.n_patterns)
    chain = on_device(bench.cupy, make_chain(case, n_patterns, bench.sizes.object_pixels))
    # Speed does not depend on what was counted
    counts = np.random.default_rng(2).poisson(1.0, (64, case.n, case.n)).astype(np.uint8)
    return chain, bench.cupy.asarray(np.resize(counts, (n_patterns, case.n, case.n)))


def predicted(bench: Bench, name: str, case: Case) -> float | None:
    """Return what was predicted for a kernel's case; modes share the work of a pattern evenly."""
    found = PREDICTED.get(name, {}).get((case.n, case.n_slices))
    return bench.predicted(found / case.n_modes if found and not case.shifted else None)


def row(
    bench: Bench, name: str, case: Case, count: int, work: Callable[[], object], ffts: float | None = None
) -> dict[str, object]:
    """Time one way to take a case's gradients; ``ffts``: transforms a second of cuFFT."""
    seconds = bench.seconds_of(work)
    alone = bench.seconds_in(work)
    rate = bench.rate(count, seconds)
    transforms = case.n_modes * (4 * case.n_slices - 2 + 2 * case.shifted)
    return {
        **case._asdict(),
        "kernel": name,
        "at a time": count,
        "patterns/s": rate,
        "kernels alone/s": None if alone is None else bench.rate(count, alone),
        "predicted": predicted(bench, name, case),
        "over its transforms": rate * transforms / ffts if rate and ffts else None,
    }


def rows_of(bench: Bench, case: Case, right: Right, ffts: float | None) -> Iterator[dict[str, object]]:
    """Yield a row for each way that can take a case and was found right."""
    chain, counts = timed_chain(bench, case)
    sums = sums_for(bench.cupy, chain)
    for name, run in runners(chain, counts, sums).items():
        if (name, case.n) in right:
            with bench.guarded(f"speed of {name} on {case}"):
                some, patterns = share_for(name, chain, counts)
                yield row(bench, name, case, len(patterns), call(run, some, patterns, sums), ffts)
    if chain.whole and ("cuFFT passes", case.n) in right:
        with bench.guarded(f"speed of cuFFT passes on {case}"):
            passes = CufftPasses(bench.cupy, chain)
            yield row(bench, "cuFFT passes", case, len(counts), call(passes, chain, counts, sums), ffts)


def rows(bench: Bench, right: Right, ffts: Mapping[int, float]) -> Iterator[dict[str, object]]:
    """Yield the table of all cases that there is time for."""
    for case in bench.sizes.timed:
        if bench.has_time(f"speed of {case}", 5.0):
            with bench.guarded(f"speed of {case}"):
                yield from rows_of(bench, case, right, ffts.get(case.n))


def chunks(bench: Bench, right: Right) -> Iterator[dict[str, object]]:
    """Yield the speed of the striped kernels by how many patterns they take at a time."""
    case = bench.sizes.chunked
    if ("striped", case.n) not in right:
        return
    chain, counts = timed_chain(bench, case)
    sums = sums_for(bench.cupy, chain)
    for chunk in bench.sizes.chunks:
        work = partial(add_by_stripes, chain, counts, None, sums, chunk)
        yield row(bench, "striped", case, len(counts), work) | {"chunk": chunk}


def torch_rows(bench: Bench) -> Iterator[dict[str, object]]:
    """Yield the speed of PyTorch on whole pixels, eager and compiled, where it is installed."""
    place = "cpu" if bench.rehearsal else "cuda"
    fault = torch_fault(place)
    if fault:
        bench.left.append(f"PyTorch: {fault}")
        return
    for case in bench.sizes.timed:
        for compiled, size in product((False, True), bench.sizes.batches):
            if compiled and (*case[:3], size) not in _COMPILED:
                continue
            name = f"PyTorch {'compiled' if compiled else 'eager'}, {size}"
            if not case.shifted and bench.has_time(f"{name} on {case}", 30.0 if compiled else 5.0):
                with bench.guarded(f"speed of {name} on {case}"):
                    yield _torch_row(bench, name, case, size, place, compiled=compiled)


def _torch_row(bench: Bench, name: str, case: Case, size: int, place: str, *, compiled: bool) -> dict[str, object]:
    chain, counts = timed_chain(bench, case)
    size = min(size, len(counts))
    work = torch_gradient(part_of(chain, slice(0, size)), counts[:size], place, compiled=compiled)
    return row(bench, name, case, size, work)
