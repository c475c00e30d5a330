"""The fused kernel's sums in fixed point, which no order of threads and blocks changes, and its counts as events."""

import ctypes
from functools import partial

import numpy as np
import pytest
from fused_kernels import FusedKernels, emulated, on_a_device
from kernel_chains import (
    N_PATTERNS,
    make_chain,
    make_counts,
)
from kernel_checks import (
    DENSE,
    SPARSE,
    check_deterministic_model,
    check_events,
    check_events_go_wrong,
    check_fixed_sums,
    check_sums_of_floats,
    dense_cases,
    sparse_cases,
    write_without_barrier,
)

from hpcrec.backend import cuda
from hpcrec.models import launched

pytestmark = pytest.mark.emulation

# Seeds of the order, blocks
ORDERS = [(1, 1), (2, 2), (3, 3), (7, 3)]


def kernel_names():
    """The variants that the cases ask for."""
    asked = [(loss, np.dtype(dtype).name, m, shifted) for _, m, shifted, loss, dtype, _ in DENSE]
    for _, m, shifted, loss, _, crowded in SPARSE:
        asked += [(loss, kind, m, shifted) for kind in ("uint16", f"events of uint{32 if crowded else 16}")]
    return {
        cuda.kernel_name(n, loss, kind, several=m > 1, shifted=shifted, slopes=shifted, fixed=fixed)
        for n in cuda.SIZES
        for loss, kind, m, shifted in asked
        for fixed in (False, True)
    }


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return FusedKernels(tmp_path_factory.mktemp("order"), sorted(kernel_names()))


@pytest.fixture(scope="module")
def in_orders(kernels):
    def run(*given, deterministic):
        found = []
        for seed, n_blocks in ORDERS:
            kernels.begin_order(seed)
            found.append(emulated(kernels, *given, n_blocks=n_blocks, deterministic=deterministic))
        return found

    return run


@pytest.mark.parametrize("n", cuda.SIZES)
@dense_cases
def test_sums_are_the_same_to_the_last_bit(in_orders, n, n_slices, n_modes, shifted, loss, dtype, masks):
    check_fixed_sums(in_orders, n, n_slices, n_modes, shifted, loss, dtype, masks)


@dense_cases
def test_sums_of_floats_are_not(in_orders, n_slices, n_modes, shifted, loss, dtype, masks):
    """A proof of the stand-in: the orders that it tries do matter, to all that blocks share."""
    check_sums_of_floats(in_orders, 64, n_slices, n_modes, shifted, loss, dtype, masks)


@pytest.mark.parametrize("n", cuda.SIZES)
@sparse_cases
def test_events_are_counts(kernels, n, n_slices, n_modes, shifted, loss, masks, crowded):
    """Gradients by events are those by dense counts to the last bit; in fixed point, which no order of sums changes."""
    check_events(partial(emulated, kernels), n, n_slices, n_modes, shifted, loss, masks, crowded)


@pytest.mark.parametrize("which", range(4))
def test_a_missing_barrier_around_events_shows(tmp_path, which):
    """A proof of the stand-in: of the barriers between exchange, zeros, events and use none can be spared."""
    write_without_barrier(tmp_path, "fused.cuh", "struct Counted<L, Events", "INLINE float of_element", which)
    broken = FusedKernels(tmp_path, [cuda.kernel_name(64, "amplitude", "events of uint16")], tmp_path)
    check_events_go_wrong(partial(emulated, broken), 64)


def test_integers_pass_on_what_is_not_a_number(kernels):
    """Waves that hold one leave it in the totals, here of the last pattern; integers would hide it."""

    class Spoiled:
        @staticmethod
        def launch(name, blocks, threads, shared, arguments):
            kernels.launch(name, blocks, threads, shared, arguments)
            first = ctypes.cast(int(arguments["totals"]), ctypes.POINTER(ctypes.c_double))
            first[N_PATTERNS * threads // 32 * 3 - 1] = np.nan

    chain = make_chain(64, 2, "poisson", seed=9, n_modes=2, shifted=True)
    patterns = make_counts(chain, np.uint16, seed=2)
    found = emulated(Spoiled, chain, patterns, None, deterministic=True)
    for name in ("obj", "illumination", "probe"):
        assert np.isnan(found[name]).all(), name


@pytest.mark.parametrize("as_events", [False, True])
def test_a_model_on_a_device_is_deterministic_if_asked(cupy, kernels, monkeypatch, as_events):
    launches = on_a_device(monkeypatch, launched, kernels)
    check_deterministic_model(cupy, kernels.begin_order, 64, 80.0, as_events=as_events)
    kind = "events of uint16" if as_events else "uint16"
    assert launches == 2 * [cuda.kernel_name(64, "amplitude", kind, fixed=True)]
