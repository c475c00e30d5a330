"""Gradients by each kernel on the device beside the plain chain in double precision on the processor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from benchmarks.gpu.bench import Bench, Case
from benchmarks.gpu.chains import counts_for, in_double, make_chain, on_device, runners, sums_for
from benchmarks.gpu.passes import CufftPasses
from benchmarks.gpu.torch_gradient import torch_fault, torch_gradient
from hpcrec.backend.array import to_host
from hpcrec.models import multislice
from hpcrec.models.chain import ChainSums

TOLERANCE: Final = 1e-5
PARTS: Final = ("obj", "illumination", "spectrum", "shifts")


def relative(found: Any, wanted: Any) -> float:
    """Return the largest error over the largest value."""
    return float(np.abs(to_host(found) - wanted).max() / np.abs(wanted).max())


def errors_of(cupy: Any, case: Case, n_patterns: int) -> Iterator[dict[str, object]]:
    """Return the errors of each kernel's gradients of one case, of gradients over their largest value."""
    chain = make_chain(case, n_patterns)
    exact = in_double(chain)
    counts, wanted = counts_for(exact, 1), sums_for(np, exact, slopes=True)
    multislice.add_gradients(exact, counts, None, wanted)
    there, patterns = on_device(cupy, chain), cupy.asarray(counts)
    ways = dict(runners(there, patterns, sums_for(cupy, there, slopes=True)))
    if there.whole:
        ways["cuFFT passes"] = CufftPasses(cupy, there)
    for name, run in ways.items():
        found = sums_for(cupy, there, slopes=True)
        run(there, patterns, None, found)
        yield {**case._asdict(), "kernel": name, **differences(found, wanted)}


def differences(found: ChainSums, wanted: ChainSums) -> dict[str, object]:
    """Return the relative errors of sums on either device, None of what was not asked for."""
    parts: dict[str, object] = {}
    for part in PARTS:
        expected = getattr(wanted, part)
        parts[part] = None if expected is None else relative(getattr(found, part), expected)
    return parts | {"loss": float(abs(found.totals[0] / wanted.totals[0] - 1))}


def worst(row: dict[str, object]) -> float:
    """Return the largest error of a row; not-a-number is larger than all."""
    values = [float(str(row[part])) for part in (*PARTS, "loss") if row[part] is not None]
    return float("inf") if any(value != value for value in values) else max(values)


def torch_rows(bench: Bench) -> Iterator[dict[str, object]]:
    """Yield the errors of PyTorch's gradients: it is the same problem that is timed."""
    place = "cpu" if bench.rehearsal else "cuda"
    for case in [case for case in bench.sizes.checked if not case.shifted][:2]:
        if torch_fault(place):
            return
        exact = in_double(make_chain(case, bench.sizes.n_checked))
        counts, wanted = counts_for(exact, 1), sums_for(np, exact)
        multislice.add_gradients(exact, counts, None, wanted)
        there = on_device(bench.cupy, make_chain(case, bench.sizes.n_checked))
        obj, probe = torch_gradient(there, bench.cupy.asarray(counts), place, compiled=False)()
        errors = relative(obj.cpu().numpy()[None], wanted.obj), relative(probe.cpu().numpy(), wanted.spectrum)
        yield {**case._asdict(), "kernel": "PyTorch eager", "obj": errors[0], "spectrum": errors[1]}


def rows(bench: Bench) -> Iterator[dict[str, object]]:
    """Yield the errors of all cases that there is time for."""
    for case in bench.sizes.checked:
        if bench.has_time(f"correctness of {case}"):
            with bench.guarded(f"correctness of {case}"):
                yield from errors_of(bench.cupy, case, bench.sizes.n_checked)


def found_right(found: list[dict[str, object]]) -> set[tuple[str, int]]:
    """Return kernels and windows all of whose errors are within the tolerance: only of them a speed is measured."""
    return {_key(row) for row in found} - {_key(row) for row in found if not worst(row) <= TOLERANCE}


def wrong(found: list[dict[str, object]]) -> list[str]:
    """Return in words which gradients are off by more than the tolerance."""
    return [
        "gradients by {kernel} at {n}², {n_slices} slices, {n_modes} modes: off by ".format(**row) + f"{worst(row):.1e}"
        for row in found
        if not worst(row) <= TOLERANCE
    ]


def _key(row: dict[str, object]) -> tuple[str, int]:
    return str(row["kernel"]), int(str(row["n"]))
