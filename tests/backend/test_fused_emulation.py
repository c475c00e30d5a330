"""The fused kernel's source, run on the CPU thread by thread, against the plain chain in double precision."""

import ctypes
import dataclasses
import re

import numpy as np
import pytest
from kernel_chains import (
    KERNELS,
    N_PATTERNS,
    ORIGIN,
    SAMPLING,
    TOLERANCE,
    compiled,
    errors,
    gaps,
    gradient_shape,
    make_chain,
    make_counts,
    make_good,
    plain,
)

from hpcrec.backend import cuda
from hpcrec.models import fused
from hpcrec.models.chain import ChainSums
from hpcrec.physics.propagation import propagation_rate, tilted_factor

pytestmark = pytest.mark.emulation

N_BLOCKS = 2


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    return compiled("fused_host.cpp", KERNELS, tmp_path_factory.mktemp("fused"))


def waves(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def launcher(kernel):
    """What starts the kernel of the shared library by its C++ name."""

    def launch(name, blocks, threads, shared, arguments):
        n, loss, counts = re.fullmatch(r"add_gradients<(\d+), (\w+), unsigned (char|short)>", name).groups()
        assert blocks == (N_BLOCKS, 1)
        assert threads == cuda.Layout(int(n)).threads
        assert shared == kernel.shared_bytes(int(n), int(arguments["n_factors"]))
        numbers = N_BLOCKS, int(n), loss == "POISSON", 1 if counts == "char" else 2
        assert kernel.add_gradients(ctypes.c_void_p(arguments.ctypes.data), *numbers) == 0

    return launch


def emulated(kernel, chain, patterns, good):
    single = {name: getattr(chain, name).astype(np.complex64) for name in ("obj", "spectrum", "propagators")}
    chain, shape = dataclasses.replace(chain, **single), (*chain.obj.shape[:2], *gradient_shape(patterns.shape[-1]))
    sums = ChainSums(
        origin=ORIGIN,
        obj=np.zeros(shape, np.complex64),
        illumination=np.zeros(shape, np.float32),
        totals=np.zeros(3),
        spectrum=np.zeros_like(chain.spectrum),
    )
    assert fused.fault(chain, patterns, sums) is None
    fused.add_gradients(chain, patterns, good, sums, launcher(kernel), N_BLOCKS)
    return {
        "obj": sums.obj[0], "illumination": sums.illumination[0], "probe": sums.spectrum, "totals": sums.totals
    }  # fmt: skip


def compare(kernel, n, n_slices, loss, dtype, masks):
    chain = make_chain(n, n_slices, loss, seed=n + n_slices)
    patterns = make_counts(make_chain(n, n_slices, loss, seed=1), dtype, seed=2)
    good = make_good(masks, n)
    return errors(plain(chain, patterns, good), emulated(kernel, chain, patterns, good))


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
    found = compare(kernel, n, n_slices, loss, dtype, masks)
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
    found = compare(compiled("fused_host.cpp", tmp_path, tmp_path), 64, 2, "amplitude", np.uint8, 0)
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
    text = cuda.source("fused")
    assert "#include" not in text
    assert "__global__" in text
    assert cuda.kernel_name(96, "anscombe", "uint16") == "add_gradients<96, AMPLITUDE, unsigned short>"
