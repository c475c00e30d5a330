"""The fused kernel's source, run on the CPU thread by thread, against the plain chain in double precision."""

import numpy as np
import pytest
from fused_kernels import FusedKernels, emulated, on_a_device
from kernel_chains import (
    KERNELS,
    N_PATTERNS,
    SAMPLING,
    TOLERANCE,
    WAVELENGTH,
    errors,
    gaps,
    make_chain,
    make_counts,
    make_good,
    plain,
)
from kernel_checks import check_gradients_of_a_device, model_and_state

from hpcrec.backend import cuda
from hpcrec.geometry.grid import object_grid
from hpcrec.models import launched
from hpcrec.models.base import Batch
from hpcrec.models.chain import Detector
from hpcrec.models.placement import state_on
from hpcrec.physics.probe import aberrated_probe, orthogonal_start_modes
from hpcrec.physics.propagation import propagation_rate, tilted_factor

pytestmark = pytest.mark.emulation

SINGLE = [
    ("amplitude", np.uint8, 0),
    ("amplitude", np.uint16, N_PATTERNS),
    ("poisson", np.uint8, 1),
    ("poisson", np.uint16, 0),
    ("anscombe", np.uint8, N_PATTERNS),
]
SEVERAL = [
    (1, True, True, "amplitude", np.uint8, 1),
    (1, True, False, "poisson", np.uint16, 0),
    (2, False, False, "poisson", np.uint8, N_PATTERNS),
    (3, False, False, "anscombe", np.uint16, 0),
    (2, True, False, "anscombe", np.uint8, 1),
    (2, True, True, "poisson", np.uint16, N_PATTERNS),
    (3, True, True, "amplitude", np.uint8, 0),
]


def kernel_names():
    """The variants that the cases ask for."""
    several = [(1, False, False, *case) for case in SINGLE] + SEVERAL
    return {
        cuda.kernel_name(n, loss, np.dtype(dtype).name, several=n_modes > 1, shifted=shifted, slopes=slopes)
        for n in cuda.SIZES
        for n_modes, shifted, slopes, loss, dtype, _ in several
    }


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return FusedKernels(tmp_path_factory.mktemp("fused"), sorted(kernel_names()))


def waves(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def compare(kernels, n, n_slices, loss, dtype, masks, *, n_modes=1, shifted=False, slopes=True, **room):
    same = {"n_modes": n_modes, "shifted": shifted}
    chain = make_chain(n, n_slices, loss, seed=n + n_slices, **same)
    patterns = make_counts(make_chain(n, n_slices, loss, seed=1, **same), dtype, seed=2)
    good = make_good(masks, n)
    wanted = plain(chain, patterns, good)
    found = emulated(kernels, chain, patterns, good, slopes=slopes, **room)
    assert ("shifts" in found) == (shifted and slopes)
    return errors({name: wanted[name] for name in found}, found)


@pytest.mark.parametrize("n", cuda.SIZES)
@pytest.mark.parametrize("n_slices", [1, 2, 5])
@pytest.mark.parametrize(("loss", "dtype", "masks"), SINGLE)
def test_gradients_agree(kernels, n, n_slices, loss, dtype, masks):
    found = compare(kernels, n, n_slices, loss, dtype, masks)
    assert all(value <= TOLERANCE for value in found.values()), found


@pytest.mark.parametrize("n", cuda.SIZES)
@pytest.mark.parametrize("n_slices", [1, 2, 5])
@pytest.mark.parametrize(("n_modes", "shifted", "slopes", "loss", "dtype", "masks"), SEVERAL)
def test_gradients_of_modes_and_shifts_agree(kernels, n, n_slices, n_modes, shifted, slopes, loss, dtype, masks):
    several = {"n_modes": n_modes, "shifted": shifted, "slopes": slopes}
    found = compare(kernels, n, n_slices, loss, dtype, masks, **several)
    assert all(value <= TOLERANCE for value in found.values()), found


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_barrier_shows(tmp_path, which):
    """A proof of the stand-in: without either barrier of the transposition the sums come out wrong."""
    for path in KERNELS.glob("*.cuh"):
        text = path.read_text(encoding="utf-8")
        if path.name == "fused.cuh":
            begin = text.index("void transpose(")
            end = text.index("// Both transforms", begin)
            parts = text[begin:end].split("    barrier();\n")
            assert len(parts) == 3
            parts = [parts[0] + parts[1], parts[2]] if which == 0 else [parts[0], parts[1] + parts[2]]
            text = text[:begin] + "    barrier();\n".join(parts) + text[end:]
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    broken = FusedKernels(tmp_path, [cuda.kernel_name(64, "amplitude", "uint8")], tmp_path)
    found = compare(broken, 64, 2, "amplitude", np.uint8, 0)
    assert not found["obj"] <= 1e-2


def test_little_room_is_enough(kernels):
    """Fewer blocks than the device runs at a time take all patterns, one after the other."""
    found = compare(kernels, 64, 2, "amplitude", np.uint8, 0, n_modes=2, shifted=True, room_bytes=1)
    assert all(value <= TOLERANCE for value in found.values()), found


@pytest.mark.parametrize("wanted", [("probe",), ("probe", "positions"), ("probe", "thickness")])
def test_a_model_on_a_device_takes_what_it_knows(cupy, kernels, monkeypatch, wanted):
    """Two slices, two modes, shifted probes, bad pixels; gradients by thickness are left to array code."""
    launches, rng = on_a_device(monkeypatch, launched, kernels), np.random.default_rng(8)
    shape, positions = (64, 64), rng.uniform(0, 2, (6, 2))
    grid = object_grid(positions, shape, SAMPLING)
    probe = aberrated_probe(shape, SAMPLING, WAVELENGTH, 0.022, {"C10": -80.0})
    obj, modes = np.exp(0.3j * rng.normal(size=(2, *grid.shape))), orthogonal_start_modes(probe, 2, share=0.2)
    detector = Detector(loss="poisson", mask=rng.random(shape) > 0.05)
    model, state = model_and_state("array", positions, obj, 100 * modes, detector=detector)
    counts = rng.poisson(model.simulate(state, np.arange(6))[:, ::-1]).clip(0, 255).astype(np.uint8)
    batch = Batch(np.arange(6), counts, step=0, n_global=6)
    host = model.gradients(state, batch, wanted)
    model, state = model_and_state("launched", positions, obj, 100 * modes, detector=detector)
    device = model.gradients(state_on(cupy, state), batch, wanted)
    slopes = str("positions" in wanted).lower()
    known = [f"add_gradients<64, POISSON, unsigned char, true, true, {slopes}, false>"]
    assert launches == ([] if "thickness" in wanted else known)
    check_gradients_of_a_device(device, host)
    if "positions" in wanted:
        expected = host.of_patterns["positions"]
        assert np.abs(device.of_patterns["positions"] - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_arguments_are_laid_out_as_the_kernel_reads_them(kernels):
    assert kernels.any.size_of_arguments() == cuda.ARGUMENTS.itemsize
    for n in cuda.SIZES:
        assert kernels.any.shared_bytes(n, 3) == cuda.Layout(n).shared_bytes(3)


@pytest.mark.parametrize("n", cuda.SIZES)
def test_layouts_lose_nothing(n):
    rng = np.random.default_rng(4)
    wave = waves(rng, 2, n, n).astype(np.complex64)
    for spectra in (False, True):
        packed = cuda.pack_waves(wave, spectra=spectra)
        np.testing.assert_array_equal(cuda.unpack_waves(packed, spectra=spectra), wave)
    slices, layout = waves(rng, 3, 20, 31), cuda.Layout(n)
    np.testing.assert_array_equal(cuda.unpack_slices(cuda.pack_slices(slices, layout), (20, 31), layout), slices)
    patterns = rng.permutation(n * n).reshape(1, n, n)
    for n_slices in (1, 2):
        np.testing.assert_array_equal(np.sort(cuda.pack_patterns(patterns, n_slices).ravel()), np.arange(n * n))


def test_only_products_pass_as_propagators():
    assert cuda.propagator_fault(gaps(64, 5)) is None
    factors, of_gap = cuda.pack_propagators(gaps(64, 5))
    np.testing.assert_array_equal(of_gap, [0, 0, 1, 0])
    product = 64**2 * factors[of_gap, 0][:, :, None] * factors[of_gap, 1][:, None]
    np.testing.assert_allclose(product, gaps(64, 5), atol=1e-6)
    exact = tilted_factor(propagation_rate((64, 64), SAMPLING, 0.3, "exact"), SAMPLING, 12.0, band_limit=2 / 3)
    assert "gap 0" in cuda.propagator_fault(exact[None])
    circle = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64))) < 0.3
    assert "gap 1" in cuda.propagator_fault(np.stack([gaps(64, 2)[0], gaps(64, 2)[0] * circle]))


def test_what_the_kernel_does_not_know_is_said():
    assert cuda.layout_fault((64, 64), np.uint8, "amplitude") is None
    assert "windows" in cuda.layout_fault((64, 96), np.uint8, "amplitude")
    assert "windows" in cuda.layout_fault((100, 100), np.uint8, "amplitude")
    assert "float32" in cuda.layout_fault((64, 64), np.float32, "amplitude")
    assert "gaussian" in cuda.layout_fault((64, 64), np.uint8, "gaussian")


def test_the_source_holds_all_variants():
    text = cuda.source("fused")
    assert "#include" not in text
    assert "__global__" in text
    begun = "add_gradients<96, AMPLITUDE, unsigned short"
    assert cuda.kernel_name(96, "anscombe", "uint16") == f"{begun}, false, false, false, false>"
    chosen = {"several": True, "slopes": True, "fixed": True}
    assert cuda.kernel_name(96, "anscombe", "uint16", **chosen) == f"{begun}, true, false, true, true>"
