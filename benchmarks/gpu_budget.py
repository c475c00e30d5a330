"""Registers, spills and shared memory of each variant of the fused GPU kernel, as nvcc's assembler reports them.

No GPU is needed: ``python -m benchmarks.gpu_budget`` compiles the sources for several architectures. Blocks of a
multiprocessor are what registers and shared memory leave room for, by the limits of the CUDA C++ Programming Guide's
table of compute capabilities.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

from hpcrec.backend import cuda

# Registers and bytes of shared memory of a multiprocessor, of the latter for one block, and threads
LIMITS = {
    "sm_80": (65536, 164 * 1024, 163 * 1024, 2048),
    "sm_90": (65536, 228 * 1024, 227 * 1024, 2048),
    "sm_100": (65536, 228 * 1024, 227 * 1024, 2048),
}
# Shared memory that the system keeps of each block
RESERVED = 1024
OPTIONS = {"-default-device": "--expt-relaxed-constexpr"}


def assembler_report(nvcc: str, name: str, architecture: str, folder: Path) -> str:
    """Compile one variant and return what the assembler says of it."""
    text = f"{cuda.source()}\ntemplate __global__ void {name}(const __grid_constant__ Arguments);\n"
    (folder / "variant.cu").write_text(text, encoding="utf-8")
    options = [OPTIONS.get(option, option) for option in cuda.compile_options()]
    command = [nvcc, *options, f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-o", "variant.cubin", "variant.cu"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stderr


def budget(report: str) -> tuple[int, int, int]:
    """Return registers of a thread, and bytes of spill stores and loads."""
    found = [
        re.search(pattern, report) for pattern in (r"Used (\d+) reg", r"(\d+) bytes spill st", r"(\d+) bytes spill lo")
    ]
    if None in found:
        raise ValueError(f"the assembler's report holds no budget:\n{report}")
    registers, stores, loads = (int(match[1]) for match in found if match)
    return registers, stores, loads


def blocks(architecture: str, registers: int, shared: int, threads: int) -> int:
    """Return how many blocks a multiprocessor holds at a time."""
    all_registers, all_shared, one_block, all_threads = LIMITS[architecture]
    if shared > one_block:
        return 0
    # Registers are given out to warps by 256
    of_block = -(-registers * 32 // 256) * 256 * threads // 32
    return min(all_registers // of_block, all_shared // (shared + RESERVED), all_threads // threads)


def main() -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        sys.exit("nvcc is not on the path: it compiles the kernels whose budget is asked for")
    print("| N | loss | counts | architecture | registers | spill st/ld B | shared KB | blocks (warps) |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for n, loss, counts, architecture in product(cuda.SIZES, ("amplitude", "poisson"), cuda.COUNTS, LIMITS):
            name, layout = cuda.kernel_name(n, loss, counts), cuda.Layout(n)
            registers, stores, loads = budget(assembler_report(nvcc, name, architecture, Path(folder)))
            shared = layout.shared_bytes(n_factors=1)
            held = blocks(architecture, registers, shared, layout.threads)
            warps = held * layout.threads // 32
            print(
                f"| {n} | {loss} | {counts} | {architecture} | {registers} | {stores}/{loads} "
                f"| {shared / 1024:.1f} | {held} ({warps}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
