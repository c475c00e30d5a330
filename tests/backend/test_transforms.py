"""The transforms of compiled kernels against NumPy's in double precision."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hpcrec.backend.fft import aligned_empty
from hpcrec.backend.kernels import transforms
from hpcrec.backend.kernels.transforms import filter_factors, filter_wave, known_size, transform, transform_plan

# Two and three radices; rows as a whole and by roles of lanes; sizes that only FFTW knows
SHAPES = [(16, 16), (32, 48), (64, 64), (96, 80), (128, 128), (128, 96), (256, 160), (400, 512), (100, 64), (30, 27)]


def random_wave(shape, seed=3):
    parts = np.random.default_rng(seed).standard_normal((2, *shape))
    wave = aligned_empty(shape, np.complex64)
    wave[...] = parts[0] + 1j * parts[1]
    return wave


def transformed(wave, forward, place=0):
    found = aligned_empty(wave.shape, np.complex64)
    found[...] = wave
    transform(transform_plan(*wave.shape, place), found.view(np.float32).ravel(), forward)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("forward", [True, False])
def test_transforms_are_those_of_numpy(shape, forward):
    wave = random_wave(shape)
    plain = wave.astype(complex)
    wanted = np.fft.fft2(plain) if forward else np.fft.ifft2(plain, norm="forward")
    error = np.linalg.norm(transformed(wave, forward) - wanted) / np.linalg.norm(wanted)
    # Round-off of single precision, as FFTW's own
    assert error < 3e-7


@pytest.mark.parametrize("shape", SHAPES)
def test_backward_is_the_adjoint_of_forward(shape):
    a, b = random_wave(shape, 1), random_wave(shape, 2)
    there, back = (np.vdot(*pair) for pair in ((transformed(a, True), b), (a, transformed(b, False))))
    assert abs(there - back) < 1e-5 * np.linalg.norm(a) * np.linalg.norm(b) * np.sqrt(a.size)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if all(known_size(n) for n in shape)])
def test_filtered_waves_are_those_of_numpy(shape):
    wave, rng = random_wave(shape), np.random.default_rng(5)
    along = [rng.standard_normal(n) + 1j * rng.standard_normal(n) for n in shape]
    wanted = np.fft.ifft2(np.fft.fft2(wave.astype(complex)) * along[0][:, None] * along[1], norm="forward")
    found = aligned_empty(shape, np.complex64)
    found[...] = wave
    filter_wave(transform_plan(*shape, 0), found.view(np.float32).ravel(), filter_factors(*along))
    assert np.linalg.norm(found - wanted) < 5e-7 * np.linalg.norm(wanted)


def test_which_sizes_need_no_plans():
    assert [n for n in (64, 96, 100, 128, 192, 250, 256, 320, 384, 512, 1024, 4096) if known_size(n)] == [
        64, 96, 128, 192, 256, 320, 384, 512, 1024,
    ]  # fmt: skip


def test_all_threads_find_the_same_digits():
    wave = random_wave((96, 128))
    np.testing.assert_array_equal(transformed(wave, True, place=1), transformed(wave, True, place=2))


def test_threads_that_begin_together_share_living_tables(monkeypatch):
    """Tables of a size that no other test uses, made slowly: no plan may point to some that were thrown away."""
    real, n = transforms._factors, 240

    def slowly(*sizes):
        time.sleep(0.05)
        return real(*sizes)

    monkeypatch.setattr(transforms, "_factors", slowly)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda place: transform_plan(n, n, place), range(3)))
    living = transforms._axis(n)[1].ctypes.data
    assert [int(transforms._handles(n, n, place)[0][7]) for place in range(3)] == [living] * 3
