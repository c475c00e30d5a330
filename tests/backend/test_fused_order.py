"""The fused kernel's sums in fixed point, which no order of threads and blocks changes, and its counts as events."""

import ctypes
import re

import numpy as np
import pytest
from fused_kernels import FusedKernels, emulated, on_a_device
from kernel_chains import (
    KERNELS,
    N_PATTERNS,
    SAMPLING,
    TOLERANCE,
    WAVELENGTH,
    dimmed,
    errors,
    make_chain,
    make_counts,
    make_good,
    make_sparse_counts,
    plain,
)

from hpcrec.backend import cuda
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models import launched
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.events import events_of
from hpcrec.models.placement import state_on
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.physics.probe import aberrated_probe

pytestmark = pytest.mark.emulation

# Seeds of the order, blocks
ORDERS = [(1, 1), (2, 2), (3, 3), (7, 3)]
DENSE = [
    (1, 1, False, "amplitude", np.uint8, 0),
    (2, 2, True, "poisson", np.uint16, 1),
    (5, 1, True, "anscombe", np.uint8, N_PATTERNS),
]
# The crowded ones have a pattern of more electrons than 16 bits count
SPARSE = [
    (1, 1, False, "amplitude", 0, False),
    (2, 1, False, "poisson", 1, False),
    (1, 2, True, "poisson", N_PATTERNS, True),
    (2, 2, True, "anscombe", N_PATTERNS, True),
]


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


def in_orders(kernels, chain, patterns, good, *, deterministic):
    found = []
    for seed, n_blocks in ORDERS:
        kernels.begin_order(seed)
        found.append(emulated(kernels, chain, patterns, good, n_blocks=n_blocks, deterministic=deterministic))
    return found


@pytest.mark.parametrize("n", cuda.SIZES)
@pytest.mark.parametrize(("n_slices", "n_modes", "shifted", "loss", "dtype", "masks"), DENSE)
def test_sums_are_the_same_to_the_last_bit(kernels, n, n_slices, n_modes, shifted, loss, dtype, masks):
    chain = make_chain(n, n_slices, loss, seed=9, n_modes=n_modes, shifted=shifted)
    patterns, good = make_counts(chain, dtype, seed=2), make_good(masks, n)
    first, *others = in_orders(kernels, chain, patterns, good, deterministic=True)
    measured = errors(plain(chain, patterns, good), first)
    assert all(value <= TOLERANCE for value in measured.values()), measured
    for other in others:
        for name, values in first.items():
            np.testing.assert_array_equal(other[name], values, err_msg=name)


@pytest.mark.parametrize(("n_slices", "n_modes", "shifted", "loss", "dtype", "masks"), DENSE)
def test_sums_of_floats_are_not(kernels, n_slices, n_modes, shifted, loss, dtype, masks):
    """A proof of the stand-in: the orders that it tries do matter, to all that blocks share."""
    chain = make_chain(64, n_slices, loss, seed=9, n_modes=n_modes, shifted=shifted)
    patterns, good = make_counts(chain, dtype, seed=2), make_good(masks, 64)
    first, *others = in_orders(kernels, chain, patterns, good, deterministic=False)
    for name in ("obj", "illumination", "probe"):
        assert any(np.any(other[name] != first[name]) for other in others), name
    # What each warp has for its own is the same anyway
    for name in first.keys() - {"obj", "illumination", "probe"}:
        assert all(np.array_equal(other[name], first[name]) for other in others), name


@pytest.mark.parametrize("n", cuda.SIZES)
@pytest.mark.parametrize(("n_slices", "n_modes", "shifted", "loss", "masks", "crowded"), SPARSE)
def test_events_are_counts(kernels, n, n_slices, n_modes, shifted, loss, masks, crowded):
    """Gradients by events are those by dense counts to the last bit; in fixed point, which no order of sums changes."""
    chain = dimmed(make_chain(n, n_slices, loss, seed=n + n_slices, n_modes=n_modes, shifted=shifted))
    patterns, good = make_sparse_counts(chain, seed=5), make_good(masks, n)
    if crowded:
        patterns[2, 40, 7], patterns[2, 41, 7] = 60000, 6000
    # Of more patterns, in another order
    events = events_of(np.concatenate([patterns[::-1], patterns[:1]]))[[2, 1, 0]]
    assert events.edges.dtype == (np.uint32 if crowded else np.uint16)
    measured = errors(plain(chain, patterns, good), emulated(kernels, chain, events, good))
    assert all(value <= TOLERANCE for value in measured.values()), measured
    dense, sparse = (emulated(kernels, chain, p, good, deterministic=True) for p in (patterns, events))
    measured = errors(plain(chain, patterns, good), dense)
    assert all(value <= TOLERANCE for value in measured.values()), measured
    for name, values in dense.items():
        np.testing.assert_array_equal(sparse[name], values, err_msg=name)


@pytest.mark.parametrize("which", range(4))
def test_a_missing_barrier_around_events_shows(tmp_path, which):
    """A proof of the stand-in: of the barriers between exchange, zeros, events and use none can be spared."""
    for path in KERNELS.glob("*.cuh"):
        text = path.read_text(encoding="utf-8")
        if path.name == "fused.cuh":
            begin = text.index("struct Counted<L, Events")
            end = text.index("INLINE float of_element", begin)
            before, *parts = re.split(r"barrier\(\);", text[begin:end])
            assert len(parts) == 4
            kept = "".join(("" if i == which else "barrier();") + part for i, part in enumerate(parts))
            text = text[:begin] + before + kept + text[end:]
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    broken = FusedKernels(tmp_path, [cuda.kernel_name(64, "amplitude", "events of uint16")], tmp_path)
    chain = dimmed(make_chain(64, 2, "amplitude", seed=1))
    patterns = make_sparse_counts(chain, seed=5)
    found = errors(plain(chain, patterns, None), emulated(broken, chain, events_of(patterns), None))
    assert not found["obj"] <= 1e-3, found


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
    shape, rng = (64, 64), np.random.default_rng(8)
    positions = rng.uniform(0, 2, (4, 2))
    grid = object_grid(positions, shape, SAMPLING)
    probe = aberrated_probe(shape, SAMPLING, WAVELENGTH, 0.022, {"C10": -80.0})[None]
    obj = np.exp(0.3j * rng.normal(size=(2, *grid.shape)))
    counts = rng.poisson(0.2, (4, *shape)).astype(np.uint16)
    batch = Batch(np.arange(4), events_of(counts) if as_events else counts, n_global=4)
    found = {}
    for which, seed in (("array", 0), ("launched", 1), ("launched", 2)):
        precision = "double" if which == "array" else "single"
        model = PtychographyModel(
            shape, SAMPLING, WAVELENGTH, 20.0, kernel=which, precision=precision, deterministic=True
        )
        state = PtychographyState(
            obj=obj.astype(model.dtype),
            probe=(60 * probe).astype(model.dtype),
            positions=positions,
            grid=grid,
            box=Box(0, grid.shape[0], 0, grid.shape[1]),
            whole_pixels=True,
        )
        kernels.begin_order(seed)
        there = state if which == "array" else state_on(cupy, state)
        found[which, seed] = model.gradients(there, batch, ("probe",))
    kind = "events of uint16" if as_events else "uint16"
    assert launches == 2 * [cuda.kernel_name(64, "amplitude", kind, fixed=True)]
    host, *device = found.values()
    for name in ("obj", "illumination", "probe"):
        wanted, (one, other) = getattr(host, name), (getattr(d, name).get() for d in device)
        np.testing.assert_array_equal(one, other)
        assert np.abs(one - wanted).max() <= TOLERANCE * np.abs(wanted).max(), name
    assert device[0].loss == device[1].loss == pytest.approx(host.loss, rel=TOLERANCE)
