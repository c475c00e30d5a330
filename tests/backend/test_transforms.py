"""The transforms of compiled kernels against NumPy's in double precision."""

import numpy as np
import pytest

from hpcrec.backend.fft import aligned_empty
from hpcrec.backend.kernels.transforms import known_size, transform, transform_plan

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


def test_which_sizes_need_no_plans():
    assert [n for n in (64, 96, 100, 128, 192, 250, 256, 320, 384, 512, 1024, 4096) if known_size(n)] == [
        64, 96, 128, 192, 256, 320, 384, 512, 1024,
    ]  # fmt: skip


def test_all_threads_find_the_same_digits():
    wave = random_wave((96, 128))
    np.testing.assert_array_equal(transformed(wave, True, place=1), transformed(wave, True, place=2))
