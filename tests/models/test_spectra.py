"""Spectra of probes: the compiled transforms where they know size and precision, FFTW else; always unitary."""

import numpy as np
import pytest

from hpcrec.models.spectra import spectra_of, waves_of

# Known to the compiled transforms; an odd length; a length that they know only beside another
SHAPES = [(1, 64, 96), (3, 128, 128), (2, 30, 27), (2, 64, 50)]


def random_waves(shape, dtype, seed):
    parts = np.random.default_rng(seed).standard_normal((2, *shape))
    return (parts[0] + 1j * parts[1]).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.complex64, 3e-7), (np.complex128, 1e-14)])
def test_spectra_are_those_of_numpy(shape, dtype, tolerance):
    waves = random_waves(shape, dtype, 1)
    kept = waves.copy()
    for found, wanted in (
        (spectra_of(waves), np.fft.fft2(waves.astype(complex), norm="ortho")),
        (waves_of(waves), np.fft.ifft2(waves.astype(complex), norm="ortho")),
    ):
        assert found.dtype == dtype
        assert np.linalg.norm(found - wanted) < tolerance * np.linalg.norm(wanted)
    np.testing.assert_array_equal(waves, kept)


@pytest.mark.parametrize("shape", SHAPES)
def test_going_back_is_the_adjoint(shape):
    a, b = random_waves(shape, np.complex64, 2), random_waves(shape, np.complex64, 3)
    there, back = np.vdot(spectra_of(a), b), np.vdot(a, waves_of(b))
    assert abs(there - back) < 1e-5 * np.linalg.norm(a) * np.linalg.norm(b)


def test_parts_of_an_array_and_none_at_all():
    """Every second wave of an array that is not contiguous; no mode."""
    waves = random_waves((4, 64, 64), np.complex64, 4)[::2]
    np.testing.assert_array_equal(spectra_of(waves), spectra_of(waves.copy()))
    assert spectra_of(waves[:0]).shape == (0, 64, 64)
