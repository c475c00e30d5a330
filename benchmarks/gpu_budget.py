"""What each variant of hpcrec's GPU kernels takes of a multiprocessor; no GPU is needed.

``python -m benchmarks.gpu_budget [--sizes 64 256] [--architectures sm_90] [--compiler nvcc]`` compiles them, by NVRTC
as CuPy does (``pip install hpcrec[nvrtc]``) or else by nvcc, and prints registers and spills as the assembler reports
them, shared memory, and the blocks of a multiprocessor for which these leave room, by the limits of the CUDA C++
Programming Guide's table of compute capabilities. Beside them how often a warp's exchange goes to shared memory, 2
being least for 32 numbers of 8 bytes in 32 banks of 4, and the seconds of the compiler.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import signature
from itertools import chain, product
from typing import NamedTuple, get_args

from benchmarks.gpu_compilers import CompilerError, CompilerName, assembler_report, fault, version
from benchmarks.limits import machine
from benchmarks.table import add_json_option, report
from hpcrec.backend import cuda, projector, stripes, windows

# Registers and bytes of shared memory of a multiprocessor, of the latter for one block, and threads
LIMITS = {
    "sm_80": (65536, 164 * 1024, 163 * 1024, 2048),
    "sm_90": (65536, 228 * 1024, 227 * 1024, 2048),
    "sm_100": (65536, 228 * 1024, 227 * 1024, 2048),
}
# Shared memory that the system keeps of each block
RESERVED = 1024
WARP, BANKS = 32, 16  # banks of pairs
# The fused kernel for one mode and for several: on whole pixels, shifted, with slopes by positions; and in fixed point
FUSED = [
    {"several": several, **shift, "fixed": fixed}
    for fixed in (False, True)
    for several in (False, True)
    for shift in ({}, {"shifted": True}, {"shifted": True, "slopes": True})
]


class Variant(NamedTuple):
    """A kernel, its C++ name, argument, threads and bytes of shared memory of a block, and its exchange.

    ``n``: pixels of its windows, 0 where these are not its own; ``exchange`` 0: none
    """

    kernels: cuda.Kernels
    n: int
    name: str
    argument: str
    threads: int
    shared: int
    exchange: float


def wavefronts(addresses: Sequence[int]) -> int:
    """Return how often a warp goes to shared memory for numbers of 8 bytes at ``addresses`` in units of that."""
    count = 0
    for half in (addresses[: WARP // 2], addresses[WARP // 2 :]):
        banks: dict[int, set[int]] = {}
        for address in half:
            banks.setdefault(address % BANKS, set()).add(address)
        count += max(len(places) for places in banks.values())
    return count


def exchange(elements: int, lanes: int, stride: int, along_y: bool = False) -> float:
    """Return the mean wavefronts of an exchange in a line: rows by element, columns by lane, of the first warp."""
    width = stripes.WIDTH
    threads = [(t % width, t // width) if along_y else (t // lanes, t % lanes) for t in range(WARP)]
    of_rows = [[line * stride + k * (lanes + 1) + lane for line, lane in threads] for k in range(elements)]
    of_columns = [
        [line * stride + (lane + lanes * (i // lanes)) * (lanes + 1) + i % lanes for line, lane in threads]
        for i in range(elements)
    ]
    return statistics.mean(wavefronts(addresses) for addresses in of_rows + of_columns)


def detectors(kinds: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Return each loss that is compiled for itself, with each kind of counts."""
    losses = {compiled: loss for loss, compiled in reversed(cuda.LOSSES.items())}
    yield from product(losses.values(), kinds)


def flags(kernel_name: Callable[..., str]) -> Iterator[dict[str, bool]]:
    """Return each choice of the flags by which a kernel has variants: the keywords of what names it."""
    names = [name for name, one in signature(kernel_name).parameters.items() if one.kind is one.KEYWORD_ONLY]
    for chosen in product((False, True), repeat=len(names)):
        yield dict(zip(names, chosen))


def variants(sizes: Sequence[int]) -> Iterator[Variant]:
    """Return the variants of both kernels for windows of ``sizes``."""
    for n in sizes:
        if n in cuda.SIZES:
            fused = cuda.Layout(n)
            met, shared = exchange(fused.elements, fused.lanes, fused.stride), fused.shared_bytes(n_factors=1)
            for (loss, counts), chosen in product(detectors([*cuda.COUNTS, *cuda.EVENTS]), FUSED):
                name = cuda.kernel_name(n, loss, counts, **chosen)
                yield Variant("fused", n, name, "Arguments", fused.threads, shared, met)
        if n in stripes.SIZES:
            yield from striped_variants(n)


def striped_variants(n: int) -> Iterator[Variant]:
    """Return the variants of the striped kernels for windows of ``n`` pixels, each once."""
    layout = stripes.Stripes(n)
    passes = [
        one
        for count, shifted in product((1, 2), (False, True))
        for one in stripes.passes(count, shifted=shifted, slopes=shifted)
    ]
    named = {
        stripes.kernel_name(n, one, loss, counts, **chosen): one.along_y
        for one in passes
        for (loss, counts), chosen in product(detectors([*cuda.COUNTS, *cuda.EVENTS]), flags(stripes.kernel_name))
    }
    for name, along_y in named.items():
        met = exchange(layout.elements, layout.lanes, layout.stride(along_y), along_y)
        yield Variant("stripes", n, name, "StripeArguments", layout.threads, layout.shared_bytes(along_y), met)


def other_variants() -> Iterator[Variant]:
    """Return the variants of what serves array code and the tomography, whatever the sizes."""
    for name in windows.kernel_names():
        argument = "WeighArguments" if name.startswith("window_weigh") else "WindowArguments"
        yield Variant("windows", 0, name, argument, windows.THREADS, 0, 0.0)
    arguments = {"tomography_turn": "TurnArguments", "tomography_step": "StepArguments"}
    for name in projector.kernel_names():
        argument = arguments.get(name.partition("<")[0], "ProjectorArguments")
        yield Variant("projector", 0, name, argument, *projector.block_of(name), 0.0)


def compiled(compiler: CompilerName, variant: Variant, architecture: str) -> str:
    """Compile one variant as CuPy would and return what the assembler says of it."""
    source, options = cuda.source(variant.kernels), cuda.compile_options()
    return assembler_report(compiler, source, options, variant.name, variant.argument, architecture)


def budget(report_text: str) -> tuple[int, int, int]:
    """Return registers of a thread, and bytes of spill stores and loads."""
    patterns = (r"Used (\d+) reg", r"(\d+) bytes spill st", r"(\d+) bytes spill lo")
    found = [re.search(pattern, report_text) for pattern in patterns]
    if None in found:
        raise ValueError(f"the assembler's report holds no budget:\n{report_text}")
    registers, stores, loads = (int(match[1]) for match in found if match)
    return registers, stores, loads


def blocks(architecture: str, registers: int, shared: int, threads: int) -> int:
    """Return how many blocks a multiprocessor holds at a time."""
    all_registers, all_shared, one_block, all_threads = LIMITS[architecture]
    if shared > one_block:
        return 0
    # Registers are given out to warps by 256
    of_block = -(-registers * WARP // 256) * 256 * threads // WARP
    return min(all_registers // of_block, all_shared // (shared + RESERVED), all_threads // threads)


def row(compiler: CompilerName, variant: Variant, architecture: str) -> dict[str, object]:
    """Compile one variant and return its figures."""
    start = time.perf_counter()
    registers, stores, loads = budget(compiled(compiler, variant, architecture))
    held = blocks(architecture, registers, variant.shared, variant.threads)
    return {
        "kernel": variant.name,
        "architecture": architecture,
        "registers": registers,
        "spill st/ld B": f"{stores}/{loads}",
        "shared KiB": variant.shared / 1024,
        "exchange": variant.exchange,
        "blocks": held,
        "warps": held * variant.threads // WARP,
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    every = sorted({*cuda.SIZES, *stripes.SIZES})
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=every, choices=every)
    parser.add_argument("--architectures", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    parser.add_argument("--compiler", choices=get_args(CompilerName), help="NVRTC where it is found, else nvcc")
    add_json_option(parser)
    chosen, rows = parser.parse_args(), []
    faults = {name: fault(name) for name in ([chosen.compiler] if chosen.compiler else get_args(CompilerName))}
    compiler = next((name for name, why in faults.items() if why is None), None)
    if compiler is None:
        sys.exit(f"no compiler for the kernels: {'; '.join(map(str, faults.values()))}")
    try:
        for variant in chain(variants(chosen.sizes), other_variants()):
            for architecture in chosen.architectures:
                rows.append(row(compiler, variant, architecture))
                print("{kernel} {architecture}: {registers} registers".format(**rows[-1]), file=sys.stderr, flush=True)
    except CompilerError as error:
        sys.exit(str(error))
    report("gpu_budget", machine() | {"compiler": version(compiler)}, rows, chosen.json)


if __name__ == "__main__":
    main()
