"""The GPU kernels on a GPU: against the plain chain, against array code beside them, and under compute-sanitizer."""

import itertools
from functools import partial

import numpy as np
import pytest

from benchmarks.gpu import correctness, sanitizer
from benchmarks.gpu.bench import Case
from benchmarks.gpu.chains import counts_for, in_double, make_chain, on_device, runners, sums_for
from benchmarks.gpu.passes import CufftPasses, add_patches
from hpcrec.backend import cuda, stripes
from hpcrec.models import launched, multislice, striped
from hpcrec.models.events import events_of

N_PATTERNS = 5
SIZES = sorted({*cuda.SIZES, *stripes.SIZES})
KINDS = [(1, 1, False), (5, 1, False), (2, 3, False), (1, 2, True), (3, 1, True)]
CASES = [Case(n, *kind) for n, kind in itertools.product(SIZES, KINDS)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_are_the_array_path(gpu, case):
    """Both in single precision on the GPU."""
    chain = on_device(gpu, make_chain(case, N_PATTERNS))
    counts = gpu.asarray(counts_for(in_double(make_chain(case, N_PATTERNS)), 1))
    ways, found = runners(chain, counts, sums_for(gpu, chain, slopes=True)), {}
    assert len(ways) > 1
    for name, run in ways.items():
        found[name] = sums_for(gpu, chain, slopes=True)
        run(chain, counts, None, found[name])
    wanted = found.pop("array")
    for part in ("obj", "illumination", "spectrum"):
        expected = getattr(wanted, part).get()
        for name, sums in found.items():
            assert correctness.relative(getattr(sums, part), expected) <= 1e-5, (name, part)
    for name, sums in found.items():
        assert sums.totals[0] == pytest.approx(wanted.totals[0], rel=1e-5), name
        if wanted.shifts is not None:
            assert correctness.relative(sums.shifts, wanted.shifts) <= 1e-5, name


@pytest.mark.parametrize("case", [case for case in CASES if case.n_slices > 1], ids=str)
def test_kernels_are_the_plain_chain(gpu, case):
    for row in correctness.errors_of(gpu, case, N_PATTERNS):
        assert correctness.worst(row) <= correctness.TOLERANCE, row


@pytest.mark.parametrize("case", [Case(n, *kind) for n in SIZES for kind in ((2, 1, False), (3, 2, True))], ids=str)
def test_sums_in_fixed_point_are_the_same_in_each_run_and_by_events(gpu, case):
    chain = on_device(gpu, make_chain(case, N_PATTERNS))
    counts = gpu.asarray(counts_for(in_double(make_chain(case, N_PATTERNS)), 1))
    wanted, ways = sums_for(gpu, chain, slopes=True), {}
    multislice.add_gradients(chain, counts, None, wanted)
    if case.n in cuda.SIZES:
        ways["fused"] = launched.add_gradients
    if case.n in stripes.SIZES:
        ways["striped"] = partial(striped.add_gradients, launch=launched.launch)
    for name, run in ways.items():
        found = []
        for patterns in (counts, counts, events_of(counts)):
            found.append(sums_for(gpu, chain, slopes=True))
            run(chain, patterns, None, found[-1], deterministic=True)
        for part in ("obj", "illumination", "spectrum"):
            first, *others = (getattr(sums, part).get() for sums in found)
            assert correctness.relative(first, getattr(wanted, part).get()) <= 1e-5, (name, part)
            for other in others:
                np.testing.assert_array_equal(other, first, err_msg=f"{name}: {part}")
        for sums in found[1:]:
            np.testing.assert_array_equal(sums.totals, found[0].totals)
            if sums.shifts is not None:
                np.testing.assert_array_equal(sums.shifts, found[0].shifts)


@pytest.mark.parametrize("step", [1, 16])
def test_patches_add_up(gpu, step):
    corners = (step * np.arange(8))[:, None] * np.ones(2, np.int32)
    sums = gpu.zeros((256, 256), np.complex64)
    add_patches(gpu, sums, gpu.asarray(corners.astype(np.int32)), 128)
    wanted = np.zeros((256, 256), np.complex64)
    for y, x in corners.astype(int):
        wanted[y : y + 128, x : x + 128] += 1 + 1j
    np.testing.assert_array_equal(sums.get(), wanted)


def test_cufft_passes_take_chunks(gpu, monkeypatch):
    """The last chunk is smaller."""
    case = Case(64, 3, 2, False)
    chain = on_device(gpu, make_chain(case, 5))
    counts = gpu.asarray(counts_for(in_double(make_chain(case, 5)), 1))
    monkeypatch.setattr("benchmarks.gpu.passes._CHUNK_BYTES", 2 * 3 * 2 * 64**2 * 8)
    passes, found, wanted = CufftPasses(gpu, chain), sums_for(gpu, chain), sums_for(gpu, chain)
    assert passes.chunk == 2
    passes(chain, counts, None, found)
    multislice.add_gradients(chain, counts, None, wanted)
    for part in ("obj", "illumination", "spectrum"):
        assert correctness.relative(getattr(found, part), getattr(wanted, part).get()) <= 1e-5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tool", sanitizer.TOOLS)
def test_a_sanitizer_finds_the_kernels_clean(gpu, tool):
    if sanitizer.program() is None:
        pytest.skip("compute-sanitizer is not installed: it comes with the CUDA toolkit")
    outcome, said = sanitizer.check(tool, 600.0)
    assert outcome == "clean", said[-3000:]
