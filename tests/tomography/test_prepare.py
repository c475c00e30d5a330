"""Phase preparation: planes, wraps and residues that were put in must come out."""

import numpy as np
import pytest
from scipy import ndimage

from hpcrec.errors import DataError
from hpcrec.tomography.prepare import (
    PrepareOptions,
    illuminated_region,
    phase_residues,
    prepare_projection,
    wrapped_ramp,
)

SHAPE = (150, 140)
SAMPLING = (0.2, 0.2)


def particle(seed: int = 0, peak: float = 1.2) -> np.ndarray:
    """A block of columns in vacuum, about a quarter of the field, (y, x) rad."""
    rng = np.random.default_rng(seed)
    image = np.zeros(SHAPE)
    y, x = np.meshgrid(np.arange(45, 105, 9), np.arange(40, 100, 9), indexing="ij")
    image[y, x] = rng.uniform(0.7, 1.0, y.shape)
    image = ndimage.gaussian_filter(image, 2.0)
    return peak * image / image.max()


def illumination() -> np.ndarray:
    y, x = np.indices(SHAPE)
    inside = (np.abs(y - 75) < 62) & (np.abs(x - 70) < 58)
    return ndimage.gaussian_filter(inside.astype(float), 5.0)


def plane(offset: float, ramp: tuple[float, float]) -> np.ndarray:
    y, x = np.indices(SHAPE)
    return offset + ramp[0] * (y - SHAPE[0] // 2) + ramp[1] * (x - SHAPE[1] // 2)


@pytest.mark.parametrize("ramp", [(0.0, 0.0), (0.01, -0.02), (0.35, 0.2)])
def test_plane_is_removed_and_reported(ramp):
    rng = np.random.default_rng(3)
    truth = particle()
    noise = 0.05 * rng.standard_normal(SHAPE)
    obj = np.exp(1j * (truth + plane(0.7, ramp) + noise))[None]
    result = prepare_projection(obj, illumination(), SAMPLING, PrepareOptions())
    deep = result.weight > 0.99
    # the columns' tails reach the vacuum: a bias of a few 0.001 rad is the physics of "empty", not an error
    difference = (result.phase - truth - noise)[deep]
    assert np.abs(difference).max() < 0.02
    assert abs(difference.mean()) < 0.008
    np.testing.assert_allclose(np.array(result.ramp) * 0.2, ramp, atol=2e-4)
    assert abs((result.offset - 0.7 + np.pi) % (2 * np.pi) - np.pi) < 0.02
    assert result.n_residues == 0
    assert 0.4 < result.vacuum_fraction < 0.95
    assert result.phase.dtype == np.float32


def test_slices_are_summed_and_unwrapped():
    truth = particle(peak=9.0)
    shares = (0.2, 0.5, 0.3)
    obj = np.stack([np.exp(1j * (share * truth + plane(k, (0.02 * k, -0.03)))) for k, share in enumerate(shares)])
    result = prepare_projection(obj, illumination(), SAMPLING, PrepareOptions())
    deep = result.weight > 0.99
    assert np.abs(result.phase - truth)[deep].max() < 0.1  # 1 % of the peak
    wrapped = prepare_projection(obj, illumination(), SAMPLING, PrepareOptions(unwrap="none"))
    assert np.abs(wrapped.phase - truth)[deep].max() > 3.0


def test_mass_does_not_depend_on_noise_or_ramp():
    truth = particle()
    clean = prepare_projection(np.exp(1j * truth)[None], illumination(), SAMPLING, PrepareOptions())
    noisy = truth + plane(-0.3, (0.03, 0.01)) + 0.1 * np.random.default_rng(1).standard_normal(SHAPE)
    result = prepare_projection(np.exp(1j * noisy)[None], illumination(), SAMPLING, PrepareOptions())
    assert clean.mass == pytest.approx(truth.sum() * 0.04, rel=0.05)
    assert result.mass == pytest.approx(clean.mass, rel=0.03)


def test_outside_is_zero_with_soft_edge():
    result = prepare_projection(np.exp(1j * particle())[None], illumination(), SAMPLING, PrepareOptions())
    seen = illuminated_region(illumination(), 0.25)
    assert np.all(result.phase[~seen] == 0)
    assert np.all(result.weight[~seen] == 0)
    steps = np.abs(np.diff(result.weight, axis=0)).max()
    assert 0 < steps < 0.25  # 2 Å edge on 0.2 Å pixels: the cosine rises by at most 0.16 a pixel


def test_residues_count_vortices():
    y, x = np.indices((40, 40)) - 19.5
    vortex = np.exp(1j * np.arctan2(y, x))
    residues = phase_residues(vortex)
    assert np.abs(residues).sum() == 1
    assert residues[19, 19] != 0
    assert np.abs(phase_residues(vortex.conj()) + residues).max() == 0


def test_vortices_make_a_projection_doubtful():
    rng = np.random.default_rng(5)
    obj = np.exp(1j * rng.uniform(-np.pi, np.pi, SHAPE))[None]
    result = prepare_projection(obj, illumination(), SAMPLING, PrepareOptions())
    assert result.doubtful
    assert result.n_residues > 1000


def test_wrapped_ramp_of_many_periods():
    obj = np.exp(1j * (plane(0.4, (1.3, -0.8)) + particle()))
    np.testing.assert_allclose(wrapped_ramp(obj, np.ones(SHAPE)), (1.3, -0.8), atol=5e-3)


def test_background_choices():
    obj = np.exp(1j * (particle() + plane(0.5, (0.004, 0.0))))[None]
    offset = prepare_projection(obj, illumination(), SAMPLING, PrepareOptions(background="offset"))
    assert offset.ramp == (0.0, 0.0)
    none = prepare_projection(obj, illumination(), SAMPLING, PrepareOptions(background="none"))
    assert (none.offset, none.ramp) == (0.0, (0.0, 0.0))


@pytest.mark.parametrize(
    ("obj", "light", "words"),
    [
        (np.ones((5, 5), complex), np.ones((5, 5)), "slices"),
        (np.ones((1, 5, 5), complex), np.ones((5, 6)), "slices"),
        (np.full((1, 5, 5), np.nan, complex), np.ones((5, 5)), "not finite"),
        (np.ones((1, 5, 5), complex), np.zeros((5, 5)), "illuminated"),
    ],
)
def test_bad_input(obj, light, words):
    with pytest.raises(DataError, match=words):
        prepare_projection(obj, light, SAMPLING, PrepareOptions())
