"""Gradients, engines and a whole job on one GPU, correctness first: ``python -m benchmarks.gpu [--seconds 460]``.

Every kernel is first compared with the plain chain in double precision on the processor; of what is off by more than
1e-5 of the largest value no speed is measured. Every engine runs ten iterations on either device. Then: transforms of
cuFFT, sums of overlapping patches, and patterns a second of gradients by object and probe (uint8 counts, amplitude
loss, the window's corners a pixel apart in a serpentine) by each kernel, beside what a roofline of the kernels
predicted for an H200, beside cuFFT with fused element-wise passes, the same gradient written for PyTorch, eager and
compiled, and, where they are installed, PtyRAD and Pty-Chi. Last the simulated nanocube from patterns to atoms
($HPCREC_DATA), and both kernels under compute-sanitizer. Medians of repeated calls, by the device's own clock; "kernels
alone": without what arranges arrays for them. What the time does not suffice for is left out and named. Figures are
written as JSON after each row. Exit code 1: something is wrong or ended in an error.

``--rehearse`` runs the same on the smallest sizes with CuPy's stand-in and emulated kernels, without a GPU; g++ is
needed, and no figure of it is a speed.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu import correctness, engines, kernels, library, nanocube, peers, sanitized, sanitizer
from benchmarks.gpu.bench import FULL, REHEARSAL, REHEARSED, Bench
from benchmarks.limits import machine
from benchmarks.table import RESULTS, print_table
from hpcrec.backend import device

PARTS: Final = (
    "correctness", "correctness of PyTorch", "engines", "transforms by cuFFT", "sums of patches", "gradients",
    "striped kernels by chunk", "PyTorch", "peers", "nanocube", "compute-sanitizer", "kernels for compute-sanitizer",
)  # fmt: skip
# What is wanted of an H200: of whom, over whom, at which window and slices, and how much
GOALS: Final = (
    ("fused", None, (128, 5), 0.78e6),
    ("striped", None, (256, 5), 140e3),
    ("fused", "cuFFT passes", (128, 5), 3.0),
    ("striped", "cuFFT passes", (256, 5), 3.0),
    ("fused", "PyTorch eager, 1024", (128, 5), 8.0),
    ("striped", "PyTorch eager, 1024", (256, 5), 8.0),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=460.0, help="nothing begins after so many")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, on emulated kernels: no speeds")
    parser.add_argument("--json", type=Path, help="write the figures to this file, after each part")
    parser.add_argument("--parts", nargs="+", default=[], choices=PARTS, help="only these, and the gradients' check")
    parser.add_argument("--atoms", type=Path, help="atoms.xyz of jobs/nanocube.toml on a processor, run before")
    return parser.parse_args()


def without_git() -> dict[str, object]:
    """Return when and where a run is made, of a tree whose commit is not known."""
    return {"cpu": platform.processor(), "commit": "unknown", "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def prepared(chosen: argparse.Namespace) -> Bench:
    """Return the run on the GPU, or its rehearsal; exits with a sentence where there is none."""
    if chosen.rehearse:
        from benchmarks.gpu.rehearsal import pretended_cupy

        pretended_cupy()
    try:
        here = device.use_device("gpu")
    except device.DeviceError as error:
        sys.exit(f"{error}; or rehearse without a GPU: --rehearse")
    # The name of the commit is git's to tell, which a borrowed machine may lack
    about = (machine() if shutil.which("git") else without_git()) | {"gpu": device.describe()}
    name = f"gpu-{'rehearsal-' if chosen.rehearse else ''}{str(about['time']).replace(':', '')[:17]}.json"
    return Bench(
        cupy=here.module,
        sizes=REHEARSAL if chosen.rehearse else FULL,
        about=about,
        seconds=chosen.seconds,
        path=chosen.json or RESULTS / name,
        parts=("correctness", "goals", *chosen.parts) if chosen.parts else (),
        rehearsal=chosen.rehearse,
    )


def correct(bench: Bench) -> list[str]:
    """Compare all with the processor; return in words what is wrong."""
    bench.part("correctness", correctness.rows)
    bench.part("correctness of PyTorch", correctness.torch_rows)
    bench.part("engines", engines.rows)
    return correctness.wrong(bench.tables.get("correctness", [])) + engines.wrong(bench.tables.get("engines", []))


def fast(bench: Bench) -> None:
    """Measure speeds of what was found right, what matters most first."""
    right = correctness.found_right(bench.tables.get("correctness", []))
    bench.part("transforms by cuFFT", library.transforms)
    told = bench.tables.get("transforms by cuFFT", [])
    ffts = {int(str(row["n"])): float(str(row["transforms/s"])) for row in told if row["transforms/s"]}
    bench.part("sums of patches", library.reductions)
    bench.part("gradients", lambda bench: kernels.rows(bench, right, ffts))
    bench.part("striped kernels by chunk", lambda bench: kernels.chunks(bench, right))
    bench.part("PyTorch", kernels.torch_rows)
    bench.part("peers", peers.rows)


def sanitize(bench: Bench) -> list[str]:
    """Let compute-sanitizer look at the kernels, or in a rehearsal run what it would look at."""
    if bench.rehearsal:
        bench.part("kernels for compute-sanitizer", lambda bench: sanitized.losses())
    elif sanitizer.program() is None:
        bench.left.append("compute-sanitizer: not installed")
    else:
        bench.part("compute-sanitizer", sanitizer.rows, 30.0)
    return sanitizer.wrong(bench.tables.get("compute-sanitizer", []))


def whole_job(bench: Bench, atoms: Path | None) -> list[str]:
    """Reconstruct the nanocube on the GPU and compare its atoms with the processor's."""
    fault = "it takes minutes without a GPU" if bench.rehearsal else nanocube.data_fault()
    if fault:
        bench.left.append(f"nanocube: {fault}")
    else:
        bench.part("nanocube", lambda bench: nanocube.rows(bench, atoms), 20.0)
    return nanocube.wrong(bench.tables.get("nanocube", []))


def rate_of(rows: Sequence[Mapping[str, Any]], name: str, n: int, n_slices: int) -> float | None:
    """Return the patterns a second of one mode on whole pixels, None where they were not measured."""
    case = {"kernel": name, "n": n, "n_slices": n_slices, "n_modes": 1, "shifted": False}
    return next((row["patterns/s"] for row in rows if row.items() >= case.items()), None)


def goals(bench: Bench) -> list[dict[str, object]]:
    """Return what was wanted beside what was measured."""
    rows = [*bench.tables.get("gradients", []), *bench.tables.get("PyTorch", [])]
    found: list[dict[str, object]] = []
    for name, over, (n, n_slices), wanted in GOALS:
        rate, other = rate_of(rows, name, n, n_slices), rate_of(rows, over, n, n_slices) if over else 1.0
        measured = rate / other if rate and other else None
        what = f"{name} {n}², {n_slices} slices, " + (f"over {over}" if over else "patterns/s")
        met = None if measured is None else "yes" if measured >= wanted else "no"
        found.append({"goal": what, "wanted": wanted, "measured": measured or "not measured", "met": met})
    return found


def main() -> None:
    chosen = arguments()
    if chosen.rehearse:
        print(f"\n{REHEARSED.upper()}\n")
    bench = prepared(chosen)
    print(bench.about["gpu"])
    said = correct(bench)
    fast(bench)
    said += whole_job(bench, chosen.atoms)
    said += sanitize(bench)
    if not bench.rehearsal:
        bench.part("goals", goals)
    print(f"figures: {bench.path}")
    if bench.left:
        print_table([{"left out": what} for what in bench.left])
    if said or bench.failed:
        sys.exit("\n".join(["WRONG:", *said, *(f"{name}: {why}" for name, why in bench.failed.items())]))
    if chosen.rehearse:
        print(f"\n{REHEARSED.upper()}\n")


if __name__ == "__main__":
    main()
