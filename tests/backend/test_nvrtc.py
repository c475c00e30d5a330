"""NVRTC takes the kernels' sources as CuPy hands them on, and the budgets hold that their launches count on; no GPU."""

from itertools import groupby

import pytest

from benchmarks import gpu_budget, gpu_compilers
from benchmarks.gpu import passes
from hpcrec.backend import cuda, stripes

FAULT = gpu_compilers.fault("nvrtc")
pytestmark = [pytest.mark.emulation, pytest.mark.skipif(FAULT is not None, reason=f"{FAULT}")]

KINDS = [
    list(found)
    for _, found in groupby(gpu_budget.variants((64, 96, 128, 256)), lambda one: (one.n, one.name.partition("<")[0]))
]
# The plainest of each kernel, and of the fused one what takes most: events, modes, slopes, fixed point
CHOSEN = [found[0] for found in KINDS] + [found[-1] for found in KINDS if found[0].kernels == "fused"]
# Warps of a multiprocessor, among four schedulers: two each at least
LEAST_WARPS = 8
# Bytes a thread may spill, by the kernel's windows; 0: what serves array code and the tomography
MOST_SPILLED = {0: 0, 64: 400, 96: 700, 128: 400, 256: 64}


@pytest.fixture(scope="module")
def budgets():
    """Registers and spills of a variant for an architecture, compiled once."""
    found = {}

    def budget(variant, architecture):
        if (variant, architecture) not in found:
            found[variant, architecture] = gpu_budget.budget(gpu_budget.compiled("nvrtc", variant, architecture))
        return found[variant, architecture]

    return budget


def names(variant):
    return variant.name.replace(" ", "")


@pytest.mark.parametrize("architecture", gpu_budget.LIMITS)
@pytest.mark.parametrize("variant", CHOSEN, ids=names)
def test_a_variant_compiles_within_its_budget(budgets, variant, architecture):
    registers, stores, loads = budgets(variant, architecture)
    held = gpu_budget.blocks(architecture, registers, variant.shared, variant.threads)
    assert max(stores, loads) <= MOST_SPILLED[variant.n]
    assert held * variant.threads >= 32 * LEAST_WARPS
    if variant.kernels == "fused":
        # As many as hpcrec.backend.launch starts, but where an architecture has less shared memory
        _, all_shared, _, _ = gpu_budget.LIMITS[architecture]
        assert held == min(cuda.Layout(variant.n).blocks, all_shared // (variant.shared + gpu_budget.RESERVED))


@pytest.mark.parametrize("architecture", gpu_budget.LIMITS)
@pytest.mark.parametrize("variant", list(gpu_budget.other_variants()), ids=names)
def test_what_serves_array_code_and_the_tomography_spills_nothing(budgets, variant, architecture):
    registers, stores, loads = budgets(variant, architecture)
    assert max(stores, loads) <= MOST_SPILLED[variant.n]
    assert gpu_budget.blocks(architecture, registers, variant.shared, variant.threads) * variant.threads >= 512


@pytest.mark.parametrize("n", cuda.SIZES)
def test_a_recent_multiprocessor_holds_the_blocks_that_are_started(n):
    """With the factors of two different gaps."""
    shared = cuda.Layout(n).shared_bytes(2)
    for architecture in ("sm_90", "sm_100"):
        assert gpu_budget.blocks(architecture, 64, shared, cuda.Layout(n).threads) >= cuda.Layout(n).blocks


@pytest.mark.parametrize("architecture", gpu_budget.LIMITS)
@pytest.mark.parametrize("name", passes.KERNELS)
def test_the_passes_of_the_benchmark_compile(name, architecture):
    source = passes.SOURCE.read_text(encoding="utf-8")
    told = gpu_compilers.assembler_report("nvrtc", source, passes.OPTIONS, name, "", architecture)
    assert gpu_budget.budget(told)[1:] == (0, 0)


def test_every_kernel_is_among_the_compiled():
    kernels = {one.name.partition("<")[0] for one in CHOSEN}
    assert kernels == {"add_gradients", "stripe_forward", "stripe_detect", "stripe_back"}
    assert {one.n for one in gpu_budget.variants((*cuda.SIZES, *stripes.SIZES))} == {*cuda.SIZES, *stripes.SIZES}


def test_a_source_that_is_wrong_is_refused_with_the_compilers_words():
    with pytest.raises(gpu_compilers.CompilerError, match='identifier "missing" is undefined'):
        gpu_compilers.assembler_report(
            "nvrtc", "template <int N> __global__ void k(float) { missing(); }", (), "k<1>", "float", "sm_90"
        )
