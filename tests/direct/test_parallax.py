"""Displacements of bright-field pictures, the picture that they align to, and the phase behind it."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from thin_object import SAMPLING, SEMIANGLE, WAVELENGTH, N, ThinObject, correlation

from hpcrec.direct.parallax import bright_disc, bright_field, fit_shifts, parallax_image, phase_from_parallax
from hpcrec.errors import DataError


def seen_by(data):
    return bright_field(data.patterns.reshape(-1, N, N), data.detector_sampling)


def truth_at(data, grid):
    y, x = np.indices(grid.shape)
    pixels = grid.to_length(np.stack([y, x], axis=-1)) / SAMPLING
    return map_coordinates(data.phase, [pixels[..., 0], pixels[..., 1]], order=1, mode="grid-wrap")


@pytest.fixture(scope="module", params=[80.0, -80.0])
def defocused(request):
    data = ThinObject(0.1, request.param, counts=20_000)
    seen = seen_by(data)
    return request.param, data, seen, fit_shifts(data.positions, seen, 0.3 * N * SAMPLING)


def test_displacements_give_the_defocus_and_no_mirror(defocused):
    defocus, _, _, fits = defocused
    # Where discs overlap in part the pictures also differ as DPC does, which adds some Å: a few per cent need lens.py
    assert np.trace(fits[False].matrix) / 2 / WAVELENGTH == pytest.approx(defocus, rel=0.15)
    assert np.linalg.det(fits[False].matrix) > 0 > np.linalg.det(fits[True].matrix)
    assert fits[False].coherence > 1.5 * fits[True].coherence


def test_the_aligned_picture_shows_the_phase(defocused):
    defocus, data, seen, _ = defocused
    matrix = WAVELENGTH * defocus * np.eye(2)
    image, grid = parallax_image(data.positions, seen, matrix, SAMPLING)
    blurred, _ = parallax_image(data.positions, seen, -matrix, SAMPLING)
    assert image.std() > 3 * blurred.std()
    inner = (slice(6, -6), slice(6, -6))
    truth = truth_at(data, grid)[inner]
    # Contrast is 2 sin χ: negative for underfocus, C10 < 0
    assert correlation(image[inner], truth) * -defocus > 0
    phase = phase_from_parallax(image, SAMPLING, WAVELENGTH, -defocus)[inner]
    assert correlation(phase, truth) > 0.85
    assert phase.std() == pytest.approx(truth.std(), rel=0.5)


def test_scattered_positions_make_the_same_picture():
    data = ThinObject(0.1, 80.0, counts=20_000)
    rng = np.random.default_rng(2)
    picks = rng.choice(N * N, 900, replace=False)
    seen = bright_field(data.patterns.reshape(-1, N, N)[picks], data.detector_sampling)
    image, grid = parallax_image(data.positions[picks], seen, WAVELENGTH * 80.0 * np.eye(2), SAMPLING)
    inner = (slice(6, -6), slice(6, -6))
    phase = phase_from_parallax(image, SAMPLING, WAVELENGTH, -80.0)[inner]
    assert correlation(phase, truth_at(data, grid)[inner]) > 0.8  # three in ten are missing


def test_the_disc_is_the_aperture():
    data = ThinObject(0.3, 60.0, counts=500)
    mean = data.patterns.reshape(-1, N, N).mean(axis=0)
    k = np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(N, SAMPLING)], indexing="ij"))
    disc = bright_disc(mean)
    assert disc[k < SEMIANGLE / WAVELENGTH - 0.1].all()
    assert not disc[k > SEMIANGLE / WAVELENGTH + 0.1].any()
    assert seen_by(data).radius == pytest.approx(SEMIANGLE / WAVELENGTH, rel=0.06)  # half a pixel


def test_groups_have_unit_poisson_noise():
    data = ThinObject(1e-6, 0.0, counts=1000)
    seen = seen_by(data)
    assert 30 < len(seen.k) < 100
    assert seen.signals.std(axis=0) == pytest.approx(1, abs=0.1)  # 1296 samples: 2 % each, 64 groups


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_positions_are_refused(count):
    data = ThinObject(0.1, 60.0)
    seen = bright_field(data.patterns.reshape(-1, N, N)[:count], data.detector_sampling)
    with pytest.raises(DataError, match=f"{count} positions.* too few"):
        fit_shifts(data.positions[:count], seen, 2.0)


def test_patterns_that_are_all_the_same_are_refused():
    data = ThinObject(0.1, 60.0)
    seen = bright_field(np.repeat(data.patterns[:1, 0], 400, axis=0), data.detector_sampling)
    with pytest.raises(DataError, match="the same at all 400 positions"):
        fit_shifts(data.positions[:400], seen, 2.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_bright", [0, 1])
def test_without_a_disc_there_is_no_parallax(n_bright):
    patterns = np.zeros((9, 8, 8))
    patterns[:, 0, :n_bright] = 5
    with pytest.raises(DataError, match=f"bright field covers {n_bright} pixels"):
        bright_field(patterns, (0.1, 0.1))
