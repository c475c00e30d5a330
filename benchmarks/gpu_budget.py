"""What each variant of the fused and the striped GPU kernels takes of a multiprocessor; no GPU is needed.

``python -m benchmarks.gpu_budget [--sizes 64 256] [--architectures sm_90]`` compiles them and prints registers and
spills as nvcc's assembler reports them, shared memory, and the blocks of a multiprocessor for which these leave room,
by the limits of the CUDA C++ Programming Guide's table of compute capabilities. Beside them how often a warp's exchange
goes to shared memory, 2 being least for 32 numbers of 8 bytes in 32 banks of 4.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.limits import machine
from benchmarks.table import add_json_option, report
from hpcrec.backend import cuda, stripes

# Registers and bytes of shared memory of a multiprocessor, of the latter for one block, and threads
LIMITS = {
    "sm_80": (65536, 164 * 1024, 163 * 1024, 2048),
    "sm_90": (65536, 228 * 1024, 227 * 1024, 2048),
    "sm_100": (65536, 228 * 1024, 227 * 1024, 2048),
}
# Shared memory that the system keeps of each block
RESERVED = 1024
OPTIONS = {"-default-device": "--expt-relaxed-constexpr"}
WARP, BANKS = 32, 16  # banks of pairs
# The fused kernel for one mode and for several: on whole pixels, shifted, with slopes by positions
FUSED = [
    {"several": several, **shift}
    for several in (False, True)
    for shift in ({}, {"shifted": True}, {"shifted": True, "slopes": True})
]


class Variant(NamedTuple):
    """A kernel, its C++ name, argument, threads and bytes of shared memory of a block, and its exchange."""

    kernels: str
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


def variants(sizes: Sequence[int]) -> Iterator[Variant]:
    """Return the variants of both kernels for windows of ``sizes``."""
    for n in sizes:
        if n in cuda.SIZES:
            fused = cuda.Layout(n)
            met = exchange(fused.elements, fused.lanes, fused.stride)
            variants_of = [("poisson", FUSED[0]), *(("amplitude", flags) for flags in FUSED)]
            for loss, flags in variants_of:
                name = cuda.kernel_name(n, loss, "uint8", **flags)
                yield Variant("fused", n, name, "Arguments", fused.threads, fused.shared_bytes(n_factors=1), met)
        if n in stripes.SIZES:
            layout = stripes.Stripes(n)
            chosen = {
                (one.kernel, one.along_y): one for count in (1, 2) for one in stripes.passes(count, shifted=False)
            }
            for one in chosen.values():
                met = exchange(layout.elements, layout.lanes, layout.stride(one.along_y), one.along_y)
                name, shared = stripes.kernel_name(n, one, "amplitude", "uint8"), layout.shared_bytes(one.along_y)
                yield Variant("stripes", n, name, "StripeArguments", layout.threads, shared, met)


def assembler_report(nvcc: str, variant: Variant, architecture: str, folder: Path) -> str:
    """Compile one variant and return what the assembler says of it."""
    source = cuda.source("fused" if variant.kernels == "fused" else "stripes")
    text = f"{source}\ntemplate __global__ void {variant.name}(const __grid_constant__ {variant.argument});\n"
    (folder / "variant.cu").write_text(text, encoding="utf-8")
    options = [OPTIONS.get(option, option) for option in cuda.compile_options()]
    command = [nvcc, *options, f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-o", "variant.cubin", "variant.cu"]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"nvcc cannot compile {variant.name} for {architecture}:\n{done.stderr}")
    return done.stderr


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


def main() -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        sys.exit("nvcc is not on the path: it compiles the kernels whose budget is asked for")
    every = sorted({*cuda.SIZES, *stripes.SIZES})
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=every, choices=every)
    parser.add_argument("--architectures", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    add_json_option(parser)
    chosen, rows = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as folder:
        for variant in variants(chosen.sizes):
            for architecture in chosen.architectures:
                registers, stores, loads = budget(assembler_report(nvcc, variant, architecture, Path(folder)))
                held = blocks(architecture, registers, variant.shared, variant.threads)
                rows.append(
                    {
                        "kernel": variant.name,
                        "architecture": architecture,
                        "registers": registers,
                        "spill st/ld B": f"{stores}/{loads}",
                        "shared KiB": variant.shared / 1024,
                        "exchange": variant.exchange,
                        "blocks": held,
                        "warps": held * variant.threads // WARP,
                    }
                )
                print(f"{variant.name} {architecture}: {registers} registers", file=sys.stderr, flush=True)
    report("gpu_budget", machine(), rows, chosen.json)


if __name__ == "__main__":
    main()
