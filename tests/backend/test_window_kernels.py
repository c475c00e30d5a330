"""The kernels that cut and add windows, run on the CPU item by item in random order, against the plain forms."""

import ctypes
import dataclasses
import re

import numpy as np
import pytest
from kernel_chains import KERNELS, N_PATTERNS, ORIGIN, compiled, errors, make_chain, make_counts, plain

from hpcrec.backend import cuda, windows
from hpcrec.models import cuts, detector, multislice, served
from hpcrec.models.chain import ChainSums, Detector
from hpcrec.models.cuts import LaunchedCuts, PlainCuts, add_products
from hpcrec.models.detector import weighs_waves
from hpcrec.objectives.losses import FLOORS, LOSSES, amplitude_error

pytestmark = pytest.mark.emulation

SHAPE, WINDOW, N_STATES, N_SLICES, N_MODES, N_POSITIONS, N_FLIGHT = (41, 37), (12, 16), 2, 3, 3, 9, 2
TOLERANCE = {"complex64": 1e-6, "complex128": 1e-14}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    return compiled("windows_host.cpp", KERNELS, tmp_path_factory.mktemp("windows"))


def launcher(kernel):
    """What starts kernels of the shared library by their C++ names."""

    def launch(name, blocks, threads, shared, arguments):
        if name.startswith("window_weigh"):
            loss, kind = re.fullmatch(r"window_weigh<(\w+), ([\w ]+)>", name).groups()
            assert (threads, shared, arguments.dtype) == (256, 0, windows.WEIGH)
            kinds = list(windows.WEIGHED.values())
            address = ctypes.c_void_p(arguments.ctypes.data)
            assert kernel.run_weigh(address, blocks[1], loss == "POISSON", kinds.index(kind)) == 0
            return
        which, kind = re.fullmatch(r"window_(times|products)<(float|double)2>", name).groups()
        assert shared == 0
        assert blocks[0] * threads > 0
        bytes_of_number = 8 if kind == "float" else 16
        assert kernel.run_windows(ctypes.c_void_p(arguments.ctypes.data), which == "products", bytes_of_number) == 0

    return launch


@pytest.fixture
def launched(kernel, monkeypatch):
    """Let the kernels' stand-in run whatever is asked of a device, and arrays of the host count as such."""
    names, start = [], launcher(kernel)

    def launch(name, *told):
        names.append(name)
        start(name, *told)

    monkeypatch.setattr(windows.times, "__kwdefaults__", windows.times.__kwdefaults__ | {"launch": launch})
    monkeypatch.setattr(windows.add_products, "__kwdefaults__", {"launch": launch})
    monkeypatch.setattr(windows.weigh, "__kwdefaults__", {"launch": launch})
    return names


def numbers(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)


def case(dtype):
    """An object, waves, and corners of windows that reach its edges and lie on one another."""
    corners = np.random.default_rng(4).integers(0, np.subtract(SHAPE, WINDOW) + 1, (N_POSITIONS, N_FLIGHT, 2))
    corners[0], corners[1] = 0, np.subtract(SHAPE, WINDOW)
    corners[3] = corners[2]
    waves = (N_POSITIONS, N_FLIGHT, N_STATES, N_MODES, *WINDOW)
    return numbers((N_STATES, N_SLICES, *SHAPE), dtype, 1), numbers(waves, dtype, 2), numbers(waves, dtype, 3), corners


@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
@pytest.mark.parametrize("conjugate", [False, True])
def test_products_with_windows(launched, dtype, conjugate):
    obj, wave, _, corners = case(dtype)
    plain, own = PlainCuts(obj, corners, WINDOW), LaunchedCuts(obj, corners, WINDOW)
    for i_slice in range(N_SLICES):
        wanted = plain.times(i_slice, wave, np.empty_like(wave), conjugate=conjugate)
        found = own.times(i_slice, wave.copy(), np.full_like(wave, np.nan), conjugate=conjugate)
        assert np.abs(found - wanted).max() <= TOLERANCE[dtype] * np.abs(wanted).max()
        in_place = wave.copy()
        assert own.times(i_slice, in_place, in_place, conjugate=conjugate) is in_place
        np.testing.assert_array_equal(in_place, found)
        np.testing.assert_array_equal(own.seen(i_slice), plain.seen(i_slice))
    assert len(launched) == 3 * N_SLICES


@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
def test_sums_over_windows(launched, monkeypatch, dtype):
    _, wave, gradient, corners = case(dtype)
    sums = [numbers((N_STATES, N_SLICES, *SHAPE), dtype, 5) for _ in range(2)]
    light = [np.ones((N_STATES, N_SLICES, *SHAPE), sums[0].real.dtype) for _ in range(2)]
    add_products(sums[0][:, 1], light[0][:, 1], wave, gradient, corners)
    monkeypatch.setattr(cuts, "served", lambda obj: True)
    add_products(sums[1][:, 1], light[1][:, 1], wave, gradient, corners)
    assert launched == [f"window_products<{windows._TYPES[dtype]}>"]
    for wanted, found in (sums, light):
        assert np.abs(found - wanted).max() <= TOLERANCE[dtype] * np.abs(wanted).max()
        # What no window and no other slice holds stays as it was
        np.testing.assert_array_equal(found[:, [0, 2]], wanted[:, [0, 2]])
    assert light[0][:, 1].max() > 1


@pytest.mark.parametrize("loss", ["amplitude", "anscombe", "poisson"])
@pytest.mark.parametrize("dtype", sorted(windows.WEIGHED))
@pytest.mark.parametrize("masks", [0, 1, 5])
def test_weighing_at_the_detector(launched, loss, dtype, masks):
    """Five patterns of three parts, wider than a block's threads; a dark one too."""
    far = numbers((5, 3, 23, 31), "complex64", 6)
    far[2] *= 1e-4
    counts = np.random.default_rng(7).poisson(4, (5, 23, 31)).astype(dtype)
    good = None if masks == 0 else np.random.default_rng(3).random((masks, 23, 31)) > 0.2
    wide = far.astype(complex)
    modelled, measured = (np.abs(wide) ** 2).sum(axis=1), counts.astype(float)
    mask = None if good is None else np.broadcast_to(good, counts.shape)
    told, weight = LOSSES[loss].evaluate(modelled, measured, mask)
    wanted = [told, *amplitude_error(modelled, measured, mask)]
    totals = windows.weigh(far, counts, good, loss, FLOORS[loss])
    np.testing.assert_allclose(totals, np.asarray(wanted, float), rtol=1e-5)
    assert np.abs(far - weight[:, None] * wide).max() <= 1e-6 * np.abs(weight[:, None] * wide).max()
    assert launched == [f"window_weigh<{cuda.LOSSES[loss]}, {windows.WEIGHED[dtype]}>"]


@pytest.mark.parametrize("precision", ["single", "double"])
def test_array_code_weighs_by_it_where_it_knows_how(cupy, launched, monkeypatch, precision):
    chain = make_chain(32, 1, "poisson", 1)
    dtype = np.complex64 if precision == "single" else complex
    moved = {name: cupy.asarray(getattr(chain, name).astype(dtype)) for name in ("obj", "spectrum", "propagators")}
    chain = dataclasses.replace(chain, **moved, rate=cupy.asarray(chain.rate.astype(np.zeros(0, dtype).real.dtype)))
    sums = ChainSums(origin=(0, 0), obj=chain.obj, illumination=chain.obj.real, totals=np.zeros(3))
    counts = cupy.asarray(np.ones((N_PATTERNS, 32, 32), np.uint8))
    assert not weighs_waves(chain, counts, sums)
    monkeypatch.setattr(detector, "served", lambda obj: True)
    assert weighs_waves(chain, counts, sums) == (precision == "single")
    for change in ({"scale": np.ones(3)}, {"detector": Detector(loss="gaussian")}, {"detector": Detector(binning=2)}):
        assert not weighs_waves(dataclasses.replace(chain, **change), counts, sums)


@pytest.mark.parametrize("wrong", [False, True])
def test_kernels_serve_after_a_look(cupy, launched, monkeypatch, caplog, wrong):
    asked = cupy.zeros(1)
    assert not served.served(asked)
    monkeypatch.setattr(served, "compiles", lambda a: True)
    monkeypatch.setattr(served, "device_number", lambda: 0)
    monkeypatch.setattr(served, "_verdicts", {})
    if wrong:
        monkeypatch.setattr(windows, "weigh", lambda *told: np.full(3, np.nan))
    for _ in range(2):
        assert served.served(asked) == (not wrong)
    assert len(launched) == (2 if wrong else 3)
    assert [record.getMessage().split(" ")[0] for record in caplog.records] == ["kernels"] * wrong


def test_no_window_changes_nothing(launched):
    obj = numbers((1, *SHAPE), "complex64", 0)
    nothing = np.empty((0, 1, 1, *WINDOW), np.complex64)
    before = obj.copy()
    windows.add_products(obj, obj.real.copy(), nothing, nothing, np.empty((0, 2), int))
    np.testing.assert_array_equal(obj, before)
    assert launched == []


def test_the_array_path_by_them_is_that_of_the_host(cupy, launched, monkeypatch):
    """Gradients of three slices and two shifted modes, pattern after pattern, by object, probe and positions."""
    monkeypatch.setattr(cuts, "served", lambda obj: isinstance(obj, cupy.ndarray))
    monkeypatch.setattr(multislice, "_DEVICE_CHUNK_BYTES", 1)
    chain = make_chain(32, 3, "poisson", 1, n_modes=2, shifted=True)
    counts = make_counts(chain, np.uint16, 2)
    wanted = plain(chain, counts, None)
    moved = {name: cupy.asarray(getattr(chain, name)) for name in ("obj", "spectrum", "propagators", "rate")}
    shape = wanted["obj"].shape
    sums = ChainSums(
        origin=ORIGIN,
        obj=cupy.zeros((1, *shape), complex),
        illumination=cupy.zeros((1, *shape)),
        totals=np.zeros(3),
        spectrum=cupy.zeros(chain.spectrum.shape, complex),
        shifts=np.zeros((N_PATTERNS, 1, 2)),
    )
    multislice.add_gradients(dataclasses.replace(chain, **moved), cupy.asarray(counts), None, sums)
    found = {
        "obj": sums.obj[0].get(),
        "illumination": sums.illumination[0].get(),
        "totals": sums.totals,
        "probe": np.fft.ifft2(sums.spectrum.get(), norm="ortho"),
        "shifts": sums.shifts,
    }
    assert all(value <= 1e-12 for value in errors(wanted, found).values())
    # Three slices there, three back with a sum each, of three patterns
    assert [name.partition("<")[0] for name in launched].count("window_times") == 6 * N_PATTERNS
    assert [name.partition("<")[0] for name in launched].count("window_products") == 3 * N_PATTERNS


def test_arguments_are_laid_out_as_the_kernels_read_them(kernel):
    assert kernel.size_of_arguments() == windows.ARGUMENTS.itemsize
    assert kernel.size_of_weigh() == windows.WEIGH.itemsize
