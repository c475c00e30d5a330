"""What both families of gradient kernels must do.

``run(chain, patterns, good, deterministic=False)`` gives the gradients of the kernels in question, ``in_orders`` of the
same arguments those of several orders of threads and blocks.
"""

import re

import numpy as np
import pytest
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

from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.events import events_of
from hpcrec.models.placement import state_on
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.physics.probe import aberrated_probe

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
dense_cases = pytest.mark.parametrize(("n_slices", "n_modes", "shifted", "loss", "dtype", "masks"), DENSE)
sparse_cases = pytest.mark.parametrize(("n_slices", "n_modes", "shifted", "loss", "masks", "crowded"), SPARSE)
# Sums to which all blocks add; what each warp has for its own is the same in any order
SHARED = ("obj", "illumination", "probe")


def check_agreement(chain, patterns, good, found):
    measured = errors(plain(chain, patterns, good), found)
    assert all(value <= TOLERANCE for value in measured.values()), measured


def check_same(found, wanted):
    """To the last bit."""
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def _dense(n, n_slices, n_modes, shifted, loss, dtype, masks):
    chain = make_chain(n, n_slices, loss, seed=9, n_modes=n_modes, shifted=shifted)
    return chain, make_counts(chain, dtype, seed=2), make_good(masks, n)


def check_fixed_sums(in_orders, *case):
    given = _dense(*case)
    first, *others = in_orders(*given, deterministic=True)
    check_agreement(*given, first)
    for other in others:
        check_same(other, first)


def check_sums_of_floats(in_orders, *case):
    first, *others = in_orders(*_dense(*case), deterministic=False)
    for name in SHARED:
        assert any(np.any(other[name] != first[name]) for other in others), name
    for name in first.keys() - set(SHARED):
        assert all(np.array_equal(other[name], first[name]) for other in others), name


def check_events(run, n, n_slices, n_modes, shifted, loss, masks, crowded):
    chain = dimmed(make_chain(n, n_slices, loss, seed=n + n_slices, n_modes=n_modes, shifted=shifted))
    patterns, good = make_sparse_counts(chain, seed=5), make_good(masks, n)
    assert (n_modes == 1) != crowded
    if crowded:
        patterns[2, 40, 7], patterns[2, 41, 7] = 60000, 6000
    # Of more patterns, in another order
    events = events_of(np.concatenate([patterns[::-1], patterns[:1]]))[[2, 1, 0]]
    assert events.edges.dtype == (np.uint32 if crowded else np.uint16)
    check_agreement(chain, patterns, good, run(chain, events, good))
    dense, sparse = (run(chain, p, good, deterministic=True) for p in (patterns, events))
    check_agreement(chain, patterns, good, dense)
    check_same(sparse, dense)


def write_without_barrier(folder, source, begin, end, which):
    """Copy the kernels, of ``source`` between two texts without one of its four barriers."""
    for path in KERNELS.glob("*.cuh"):
        text = path.read_text(encoding="utf-8")
        if path.name == source:
            first = text.index(begin)
            last = text.index(end, first)
            before, *parts = re.split(r"barrier\(\);", text[first:last])
            assert len(parts) == 4
            kept = "".join(("" if i == which else "barrier();") + part for i, part in enumerate(parts))
            text = text[:first] + before + kept + text[last:]
        (folder / path.name).write_text(text, encoding="utf-8")


def check_events_go_wrong(run, n):
    """By kernels that are broken."""
    chain = dimmed(make_chain(n, 2, "amplitude", seed=1))
    patterns = make_sparse_counts(chain, seed=5)
    found = errors(plain(chain, patterns, None), run(chain, events_of(patterns), None))
    assert not found["obj"] <= 1e-3, found


def model_and_state(kernel, positions, obj, probe, *, whole_pixels=False, **options):
    """A model by array code in double precision, or by launched kernels in single, and a state for it."""
    shape = probe.shape[-2:]
    precision = "double" if kernel == "array" else "single"
    model = PtychographyModel(shape, SAMPLING, WAVELENGTH, 20.0, kernel=kernel, precision=precision, **options)
    grid = object_grid(positions, shape, SAMPLING)
    state = PtychographyState(
        obj=obj.astype(model.dtype),
        probe=probe.astype(model.dtype),
        positions=positions,
        grid=grid,
        box=Box(0, grid.shape[0], 0, grid.shape[1]),
        whole_pixels=whole_pixels,
    )
    return model, state


def check_gradients_of_a_device(device, host):
    for name in ("loss", "error", "counts"):
        assert getattr(device, name) == pytest.approx(getattr(host, name), rel=TOLERANCE)
    for name in SHARED:
        expected = getattr(host, name)
        assert np.abs(getattr(device, name).get() - expected).max() <= TOLERANCE * np.abs(expected).max(), name


def check_deterministic_model(cupy, begin_order, n, defocus, *, as_events=True):
    """One mode on whole pixels of a model that is asked for sums in fixed point, in two orders of threads."""
    shape, rng = (n, n), np.random.default_rng(8)
    positions = rng.uniform(0, 2, (4, 2))
    probe = 60 * aberrated_probe(shape, SAMPLING, WAVELENGTH, 0.022, {"C10": -defocus})[None]
    obj = np.exp(0.3j * rng.normal(size=(2, *object_grid(positions, shape, SAMPLING).shape)))
    counts = rng.poisson(0.2, (4, *shape)).astype(np.uint16)
    batch = Batch(np.arange(4), events_of(counts) if as_events else counts, n_global=4)

    def gradients(kernel):
        model, state = model_and_state(kernel, positions, obj, probe, whole_pixels=True, deterministic=True)
        return model.gradients(state if kernel == "array" else state_on(cupy, state), batch, ("probe",))

    host, device = gradients("array"), []
    for seed in (1, 2):
        begin_order(seed)
        device.append(gradients("launched"))
        check_gradients_of_a_device(device[-1], host)
    assert device[0].loss == device[1].loss
    for name in SHARED:
        np.testing.assert_array_equal(getattr(device[0], name).get(), getattr(device[1], name).get())
