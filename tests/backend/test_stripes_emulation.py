"""The striped kernels' source, run on the CPU thread by thread, against the plain chain in double precision."""

import ctypes
import dataclasses
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from kernel_chains import (
    KERNELS,
    N_PATTERNS,
    SAMPLING,
    TOLERANCE,
    WAVELENGTH,
    answer,
    compiled,
    empty_sums,
    errors,
    in_single,
    make_chain,
    make_counts,
    make_good,
    plain,
)
from kernel_checks import (
    check_events,
    check_events_go_wrong,
    check_gradients_of_a_device,
    model_and_state,
    sparse_cases,
    write_without_barrier,
)

from hpcrec.backend import cuda, stripes
from hpcrec.errors import ConfigError
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models import launched, striped
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import ChainSums, Detector
from hpcrec.models.events import Events, dense, events_of
from hpcrec.models.placement import state_on
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.physics.probe import aberrated_probe, orthogonal_start_modes

pytestmark = pytest.mark.emulation

WHICH = {("forward", None): 0, ("detect", None): 1, ("back", "false"): 2, ("back", "true"): 3}
COUNTS = [*cuda.COUNTS.values(), *cuda.EVENTS.values()]
NAME = r"stripe_(\w+)<(\d+), (true|false)(?:, (true|false), (true|false))?(?:, (\w+), ([\w <>]+))?>"


class Told(ctypes.Structure):
    """What the host's program is told beside a kernel's arguments."""

    _fields_ = [(name, ctypes.c_int) for name in ("kernel", "n_items", "loss", "counts", "fixed")]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    return compiled("stripes_host.cpp", KERNELS, tmp_path_factory.mktemp("stripes"))


def launcher(kernel):
    """What starts kernels of the shared library by their C++ names."""

    def launch(name, blocks, threads, shared, arguments):
        which, n, along_y, slopes, fixed, loss, counts = re.fullmatch(NAME, name).groups()
        layout = stripes.Stripes(int(n))
        assert blocks[0] == int(n) // stripes.WIDTH
        assert threads == layout.threads
        assert shared == layout.shared_bytes(along_y == "true") == kernel.shared_bytes(int(n), along_y == "true")
        kind = 0 if counts is None else COUNTS.index(counts)
        told = Told(WHICH[which, slopes], blocks[1], loss == "POISSON", kind, fixed == "true")
        pointer = ctypes.c_void_p(arguments.ctypes.data)
        assert kernel.run_pass(pointer, int(n), along_y == "true", ctypes.byref(told)) == 0

    return launch


def emulated(kernel, chain, patterns, good, *, chunk=2, deterministic=False):
    """The answer of the kernels, a few patterns at a time."""
    n, n_slices = chain.spectrum.shape[-1], chain.obj.shape[1]
    chain = in_single(chain)
    sums = empty_sums(chain)
    assert striped.fault(chain, patterns, sums) is None
    chunk_bytes = chunk * (n_slices + 1) * len(chain.spectrum) * n * n * 8
    more = {"deterministic": deterministic}
    striped.add_gradients(chain, patterns, good, sums, launcher(kernel), chunk_bytes, **more)
    return answer(chain, sums)


def compare(kernel, n, n_slices, loss, dtype, masks, n_modes, shifted):
    same = {"n_modes": n_modes, "shifted": shifted}
    chain = make_chain(n, n_slices, loss, seed=n + n_slices, **same)
    patterns = make_counts(make_chain(n, n_slices, loss, seed=1, **same), dtype, seed=2)
    good = make_good(masks, n)
    return errors(plain(chain, patterns, good), emulated(kernel, chain, patterns, good))


@pytest.mark.parametrize("n", stripes.SIZES)
@pytest.mark.parametrize(
    ("n_slices", "n_modes", "shifted", "loss", "dtype", "masks"),
    [
        (1, 1, False, "amplitude", np.uint8, 0),
        (1, 2, True, "poisson", np.uint16, 1),
        (2, 1, True, "amplitude", np.uint16, N_PATTERNS),
        (2, 3, False, "poisson", np.uint8, 0),
        (5, 1, False, "anscombe", np.uint8, N_PATTERNS),
        (4, 2, True, "amplitude", np.uint8, 1),
    ],
)
def test_gradients_agree(kernel, n, n_slices, n_modes, shifted, loss, dtype, masks):
    found = compare(kernel, n, n_slices, loss, dtype, masks, n_modes, shifted)
    assert all(value <= TOLERANCE for value in found.values()), found


@pytest.mark.parametrize("n", stripes.SIZES)
@sparse_cases
def test_events_are_counts(kernel, n, n_slices, n_modes, shifted, loss, masks, crowded):
    """Gradients by events are those by dense counts to the last bit; in fixed point, which no order of sums changes.

    A crowded pattern has more electrons than 16 bits count.
    """
    check_events(partial(emulated, kernel), n, n_slices, n_modes, shifted, loss, masks, crowded)


@pytest.mark.parametrize(
    ("n", "wanted", "taken_by"), [(192, "probe", "striped"), (192, "thickness", "array"), (128, "probe", "fused")]
)
def test_events_reach_the_kernels_of_a_device(cupy, kernel, monkeypatch, n, wanted, taken_by):
    """As events where kernels take them, as an array to array code."""
    launches, taken, launch = [], {"array": [], "fused": []}, launcher(kernel)
    monkeypatch.setattr(launched, "launch", lambda *told: (launches.append(told[0]), launch(*told)))
    for name, module in (("array", launched.multislice), ("fused", launched.fused)):
        note = lambda chain, counts, *_, name=name, **flags: taken[name].append(counts)  # noqa: E731
        monkeypatch.setattr(module, "add_gradients", note)
    monkeypatch.setattr(launched, "resident_blocks", lambda of_multiprocessor, shared: of_multiprocessor)
    monkeypatch.setattr(launched, "shared_room", lambda: 232448)
    shape, positions, rng = (n, n), np.array([[0.0, 0.0], [0.9, 0.3]]), np.random.default_rng(3)
    grid = object_grid(positions, shape, SAMPLING)
    counts = rng.poisson(0.05, (2, *shape)).astype(np.uint8)
    probe = aberrated_probe(shape, SAMPLING, WAVELENGTH, 0.022, {"C10": -150.0})[None]
    model = PtychographyModel(shape, SAMPLING, WAVELENGTH, 20.0, kernel="launched")
    state = PtychographyState(
        obj=np.ones((2, *grid.shape), np.complex64),
        probe=(70 * probe).astype(np.complex64),
        positions=positions,
        grid=grid,
        box=Box(0, grid.shape[0], 0, grid.shape[1]),
    )
    found = model.gradients(state_on(cupy, state), Batch(np.arange(2), events_of(counts), n_global=2), (wanted,))
    by_events = "stripe_detect<192, false, AMPLITUDE, Events<unsigned short>>"
    assert (by_events in launches) == (taken_by == "striped")
    assert found.counts == (counts.sum() if taken_by == "striped" else 0)
    for name, seen in taken.items():
        assert len(seen) == (taken_by == name)
        for given in seen:
            assert isinstance(given, Events) == (name == "fused")
            np.testing.assert_array_equal(dense(given).get(), counts)


@pytest.mark.parametrize("which", range(4))
def test_a_missing_barrier_around_events_shows(tmp_path, which):
    """A proof of the stand-in: of the barriers between exchange, zeros, events and use none can be spared."""
    write_without_barrier(tmp_path, "stripes.cuh", "struct Counted<Events", "INLINE float at_pixel", which)
    broken = compiled("stripes_host.cpp", tmp_path, tmp_path, "-DONLY_128")
    check_events_go_wrong(partial(emulated, broken), 128)


@pytest.mark.parametrize("wanted", [("probe", "positions"), ("probe", "thickness")])
def test_a_model_on_a_device_takes_what_they_know(cupy, kernel, monkeypatch, wanted):
    """Two slices, two modes, shifted probes, bad pixels; gradients by thickness are left to array code."""
    launches, launch, rng = [], launcher(kernel), np.random.default_rng(8)
    monkeypatch.setattr(launched, "launch", lambda *told: (launches.append(told[0]), launch(*told)))
    shape, mask = (192, 192), rng.random((192, 192)) > 0.05
    positions = rng.uniform(0, 2, (4, 2))
    grid = object_grid(positions, shape, SAMPLING)
    probe = aberrated_probe(shape, SAMPLING, WAVELENGTH, 0.022, {"C10": -150.0})
    obj, modes = np.exp(0.3j * rng.normal(size=(2, *grid.shape))), 100 * orthogonal_start_modes(probe, 2, share=0.2)
    detector = Detector(loss="poisson", mask=mask)
    model, state = model_and_state("array", positions, obj, modes, detector=detector)
    counts = rng.poisson(model.simulate(state, np.arange(4))[:, ::-1]).clip(0, 255).astype(np.uint8)
    batch = Batch(np.arange(4), counts, step=0, n_global=4)
    host = model.gradients(state, batch, wanted)
    model, state = model_and_state("launched", positions, obj, modes, detector=detector)
    device = model.gradients(state_on(cupy, state), batch, wanted)
    assert len(launches) == (0 if "thickness" in wanted else len(stripes.passes(2, shifted=True)))
    check_gradients_of_a_device(device, host)


def test_kernels_of_a_device_need_one():
    model = PtychographyModel((32, 32), SAMPLING, WAVELENGTH, kernel="launched")
    with pytest.raises(ConfigError, match="'launched' cannot be used where the object lives, on the processor"):
        model.code(SimpleNamespace(obj=np.zeros((1, 40, 40), np.complex64)))


def test_a_missing_barrier_shows(tmp_path):
    """A proof of the stand-in: lines along y, spread over the block, come out wrong without their barriers."""
    for path in KERNELS.glob("*.cuh"):
        text = path.read_text(encoding="utf-8")
        if path.name == "lanes.cuh":
            assert text.count("    else barrier();\n") == 1
            text = text.replace("    else barrier();\n", "")
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    broken = compiled("stripes_host.cpp", tmp_path, tmp_path, "-DONLY_128")
    found = compare(broken, 128, 2, "amplitude", np.uint8, 0, 1, False)
    assert not found["obj"] <= 1e-2


def test_arguments_are_laid_out_as_the_kernels_read_them(kernel):
    assert kernel.size_of_arguments() == stripes.ARGUMENTS.itemsize


def test_passes_go_there_and_back():
    """Each gap is crossed half by half, along x and along y, by passes that follow each other."""
    for n_slices in (1, 2, 5):
        for shifted in (False, True):
            found = stripes.passes(n_slices, shifted=shifted)
            there = found[: len(found) // 2]
            assert found[len(there)].kernel == "detect"
            assert len(found) == 2 * len(there) + 1 == 2 * (n_slices + shifted) + 1
            for one, following in zip(found, found[1:]):
                assert one.along_y != following.along_y
            for one, following in zip(there, there[1:]):
                assert one.after is not None
                assert one.after == following.before
            assert there[0].before is None
            assert there[-1].after is None
            assert [one.i_slice for one in found[len(there) + 1 :]] == [one.i_slice for one in reversed(there)]


def test_what_the_kernels_do_not_know_is_said():
    assert stripes.layout_fault((256, 256), np.uint8, "amplitude") is None
    assert "windows" in stripes.layout_fault((64, 64), np.uint8, "amplitude")
    assert "windows" in stripes.layout_fault((256, 192), np.uint8, "amplitude")
    assert "float32" in stripes.layout_fault((256, 256), np.float32, "amplitude")
    assert "gaussian" in stripes.layout_fault((256, 256), np.uint8, "gaussian")


def test_what_chains_the_kernels_do_not_know_is_said():
    chain = make_chain(128, 2, "amplitude", 1)
    single = {name: getattr(chain, name).astype(np.complex64) for name in ("obj", "spectrum", "propagators")}
    known = dataclasses.replace(chain, **single)
    sums = ChainSums(origin=(0, 0), obj=known.obj, illumination=known.obj.real, totals=np.zeros(3))
    counts = np.zeros((3, 128, 128), np.uint8)
    assert striped.fault(known, counts, sums) is None
    assert "double" in striped.fault(chain, counts, sums)
    whole = dataclasses.replace(sums, shifts=np.zeros((3, 1, 2)))
    assert "positions" in striped.fault(known, counts, whole)
    changes = {
        "intensities": {"scale": np.ones(3)},
        "states": {"obj": np.repeat(known.obj, 2, axis=0)},
        "near": {"detector": Detector(propagator=known.propagators[0])},
        "gap 0": {"propagators": known.propagators * np.tri(128, dtype=np.complex64)},
    }
    for word, change in changes.items():
        assert word in striped.fault(dataclasses.replace(known, **change), counts, sums)


def test_the_source_holds_all_variants():
    text = cuda.source("stripes")
    assert "#include" not in text
    chosen = stripes.passes(2, shifted=False)
    names = [stripes.kernel_name(192, one, "poisson", "uint8") for one in chosen]
    assert names == [
        "stripe_forward<192, false>", "stripe_forward<192, true>", "stripe_detect<192, false, POISSON, unsigned char>",
        "stripe_back<192, true, false, false>", "stripe_back<192, false, false, false>",
    ]  # fmt: skip
    for name in names:
        assert f"{name.partition('<')[0]}(const __grid_constant__" in text
