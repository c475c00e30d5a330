"""The fused kernel's source, run on the CPU thread by thread, against the plain chain in double precision."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hpcrec.backend import cuda
from hpcrec.models import multislice
from hpcrec.models.chain import Chain, ChainSums, Detector
from hpcrec.objectives.losses import AMPLITUDE_FLOOR, ANSCOMBE_FLOOR, POISSON_FLOOR
from hpcrec.physics.propagation import fresnel_factor, propagation_rate, tilted_factor

pytestmark = pytest.mark.emulation

# Sums in single precision, of the largest value
TOLERANCE = 1e-5
SAMPLING, WAVELENGTH = (0.2, 0.24), 0.0197
FLOORS = {"amplitude": AMPLITUDE_FLOOR, "anscombe": ANSCOMBE_FLOOR, "poisson": POISSON_FLOOR}
SHAPE, ORIGIN, GRADIENT_SHAPE = (150, 147), (2, 3), (146, 143)
N_PATTERNS, N_BLOCKS = 3, 2
HERE = Path(__file__).parent


KERNELS = HERE.parents[1] / "hpcrec" / "backend" / "kernels"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """The shared library of the kernel's source and the threads' stand-in."""
    return compiled(KERNELS, tmp_path_factory.mktemp("fused"))


def compiled(kernels, folder):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed: the GPU kernel's source cannot be compiled for the CPU")
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas", f"-I{kernels}"]
    subprocess.run([compiler, *options, HERE / "fused_host.cpp", "-o", folder / "fused.so"], check=True)
    return ctypes.CDLL(str(folder / "fused.so"))


def waves(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def gaps(n, n_slices):
    """Propagators of gaps, the first two alike, the third tilted, band-limited."""
    whole = fresnel_factor((n, n), SAMPLING, WAVELENGTH, 12.0, 2 / 3)
    tilted = tilted_factor(propagation_rate((n, n), SAMPLING, WAVELENGTH), SAMPLING, 9.0, (0.03, -0.02), 2 / 3)
    chosen = [whole, whole, tilted, whole][: n_slices - 1]
    return np.array(chosen, np.complex64).reshape(-1, n, n)


def make_chain(n, n_slices, loss, seed):
    """A chain in numbers that single precision holds, of a probe off the window's centre and an object that absorbs."""
    rng = np.random.default_rng(seed)
    y, x = (np.arange(n) - n // 2)[:, None] + 3, np.arange(n) - n // 2 - 5
    probe = 8 * np.exp(-(y**2 + 1.3 * x**2) / (2 * (n / 8) ** 2) + 0.01j * (y**2 + 0.7 * x**2 + x * y))
    obj = np.exp(0.6j * rng.normal(size=(1, n_slices, *SHAPE))) * rng.uniform(0.8, 1, (1, n_slices, *SHAPE))
    last = np.array(GRADIENT_SHAPE) - n
    corners = rng.integers(0, last + 1, (N_PATTERNS, 1, 2)) + ORIGIN
    return Chain(
        obj=obj.astype(np.complex64).astype(complex),
        corners=corners,
        shifts=np.zeros((N_PATTERNS, 1, 2)),
        spectrum=probe.astype(np.complex64).astype(complex)[None],
        propagators=gaps(n, n_slices).astype(complex),
        rate=propagation_rate((n, n), SAMPLING, WAVELENGTH),
        detector=Detector(loss=loss),
        whole=True,
    )


def make_counts(chain, dtype, seed):
    """Poisson counts of another object than the chain's; uint16 beyond what a byte holds."""
    rng = np.random.default_rng(seed)
    factor = 100.0 if dtype == np.uint16 else 1.0
    found = multislice.chain_intensities(chain)
    counts = rng.poisson(factor * found[:, ::-1]) if factor > 1 else rng.poisson(0.7 * found[:, ::-1] + 0.05)
    assert counts.max() > (255 if dtype == np.uint16 else 1)
    return np.minimum(counts, np.iinfo(dtype).max).astype(dtype)


def plain(chain, patterns, good):
    shape = (1, chain.obj.shape[1], *GRADIENT_SHAPE)
    sums = ChainSums(
        origin=ORIGIN,
        obj=np.zeros(shape, complex),
        illumination=np.zeros(shape),
        totals=np.zeros(3),
        spectrum=np.zeros_like(chain.spectrum),
    )
    multislice.add_gradients(chain, patterns, good, sums)
    return {
        "obj": sums.obj[0], "illumination": sums.illumination[0], "probe": sums.spectrum[0], "totals": sums.totals
    }  # fmt: skip


def emulated(kernel, chain, patterns, good):
    n, n_slices = chain.spectrum.shape[-1], chain.obj.shape[1]
    layout, points = cuda.Layout(n), np.prod(GRADIENT_SHAPE)
    good = np.ones((1, n, n), bool) if good is None else good
    factors, of_gap = cuda.pack_propagators(chain.propagators)
    arrays = {
        "probe": cuda.pack_wave(chain.spectrum[0]),
        "object": cuda.pack_slices(chain.obj[0].astype(np.complex64), layout),
        "object_gradient": np.zeros((n_slices, points), np.complex64),
        "illumination": np.zeros((n_slices, points), np.float32),
        "probe_gradient": np.zeros((N_BLOCKS, n * n), np.complex64),
        "saved": np.full((N_BLOCKS, n_slices - 1, n * n), np.nan, np.complex64),
        "counts": cuda.pack_patterns(patterns, n_slices),
        "good": cuda.pack_good(good, n_slices),
        "corners": chain.corners[:, 0].astype(np.int32),
        "factors": factors,
        "factor_of_gap": of_gap,
        "twiddles": layout.twiddles(),
        "totals": np.zeros((N_BLOCKS, layout.threads // 32, 3)),
    }
    arguments = np.zeros((), cuda.ARGUMENTS)
    for name, values in arrays.items():
        assert values.flags.c_contiguous
        arguments[name] = values.ctypes.data
    arguments["of_object"] = cuda.sheet(SHAPE, (0, 0))
    arguments["of_gradient"] = cuda.sheet(GRADIENT_SHAPE, ORIGIN)
    numbers = (n_slices, len(patterns), len(factors), layout.threads if len(good) > 1 else 0)
    for name, value in zip(("n_slices", "n_patterns", "n_factors", "good_step"), numbers):
        arguments[name] = value
    arguments["floor"] = FLOORS[chain.detector.loss]
    loss = int(cuda.LOSSES[chain.detector.loss] == "POISSON")
    address = ctypes.c_void_p(arguments.ctypes.data)
    assert kernel.add_gradients(address, N_BLOCKS, n, loss, patterns.dtype.itemsize) == 0
    return {
        "obj": cuda.unpack_slices(arrays["object_gradient"], GRADIENT_SHAPE, layout),
        "illumination": cuda.unpack_slices(arrays["illumination"], GRADIENT_SHAPE, layout),
        "probe": cuda.unpack_wave(arrays["probe_gradient"].sum(axis=0)),
        "totals": arrays["totals"].sum(axis=(0, 1)),
    }


def errors(kernel, n, n_slices, loss, dtype, masks):
    """The largest errors of the gradients over their largest values, and those of the totals."""
    chain = make_chain(n, n_slices, loss, seed=n + n_slices)
    patterns = make_counts(make_chain(n, n_slices, loss, seed=1), dtype, seed=2)
    good = None if masks == 0 else np.random.default_rng(3).random((masks, n, n)) > 0.1
    wanted, found = plain(chain, patterns, good), emulated(kernel, chain, patterns, good)
    result = dict(zip(("loss", "error", "counts"), np.abs(found["totals"] / wanted["totals"] - 1)))
    for name in ("obj", "illumination", "probe"):
        scale = np.abs(wanted[name]).max()
        assert scale > 0
        result[name] = np.abs(found[name] - wanted[name]).max() / scale
    return result


@pytest.mark.parametrize("n", cuda.SIZES)
@pytest.mark.parametrize("n_slices", [1, 2, 5])
@pytest.mark.parametrize(
    ("loss", "dtype", "masks"),
    [
        ("amplitude", np.uint8, 0),
        ("amplitude", np.uint16, N_PATTERNS),
        ("poisson", np.uint8, 1),
        ("poisson", np.uint16, 0),
        ("anscombe", np.uint8, N_PATTERNS),
    ],
)
def test_gradients_agree(kernel, n, n_slices, loss, dtype, masks):
    found = errors(kernel, n, n_slices, loss, dtype, masks)
    assert all(value <= TOLERANCE for value in found.values()), found


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_barrier_shows(tmp_path, which):
    """A proof of the stand-in: without either barrier of the transposition the sums come out wrong."""
    for path in KERNELS.glob("*.cuh"):
        parts = path.read_text(encoding="utf-8").split("    barrier();\n")
        if path.name == "fused.cuh":
            assert len(parts) == 3
            parts = [parts[0] + parts[1], parts[2]] if which == 0 else [parts[0], parts[1] + parts[2]]
        (tmp_path / path.name).write_text("    barrier();\n".join(parts), encoding="utf-8")
    found = errors(compiled(tmp_path, tmp_path), 64, 2, "amplitude", np.uint8, 0)
    assert not found["obj"] <= 1e-2


def test_arguments_are_laid_out_as_the_kernel_reads_them(kernel):
    assert kernel.size_of_arguments() == cuda.ARGUMENTS.itemsize
    for n in cuda.SIZES:
        assert kernel.shared_bytes(n, 3) == cuda.Layout(n).shared_bytes(3)


@pytest.mark.parametrize("n", cuda.SIZES)
def test_layouts_lose_nothing(n):
    rng = np.random.default_rng(4)
    wave = waves(rng, n, n).astype(np.complex64)
    np.testing.assert_array_equal(cuda.unpack_wave(cuda.pack_wave(wave)), wave)
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
    text = cuda.source()
    assert "#include" not in text
    assert "__global__" in text
    assert cuda.kernel_name(96, "anscombe", "uint16") == "add_gradients<96, AMPLITUDE, unsigned short>"
