"""Constraints in the plane, against formulas and a denoising solver of another kind."""

import numpy as np
import pytest
from skimage.restoration import denoise_tv_chambolle

from hpcrec.objectives.constraints import Surroundings, constraint_class
from hpcrec.objectives.regularizers import flatten_variation, total_variation

SAMPLING = (0.4, 0.5)
AROUND = Surroundings(sampling=SAMPLING, wavelength=0.025, gaps=np.array([8.0]), power=1.0)
ALL = {
    "tv": {"weight": 0.1},
    "smoothness": {"sigma_angstrom": 0.5},
    "butterworth": {"cutoff_inverse_angstrom": 0.4},
}


def build(name, **options):
    cls = constraint_class(name)
    return cls(cls.Options(**options))


def noise(shape=(2, 2, 24, 30), dtype=np.complex64):
    rng = np.random.default_rng(9)
    return (1 + 0.2 * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))).astype(dtype)


@pytest.mark.parametrize("name", ALL)
def test_slices_get_less_variation_and_keep_their_mean(name):
    obj = noise()
    before = obj.copy()
    found = build(name, **ALL[name]).apply(obj, AROUND)
    assert found.dtype == obj.dtype
    np.testing.assert_array_equal(obj, before)
    assert total_variation(found, (-2, -1)) < 0.8 * total_variation(obj, (-2, -1))
    # Single precision sums of 720 pixels
    np.testing.assert_allclose(found.mean(axis=(2, 3)), obj.mean(axis=(2, 3)), atol=1e-5)
    alone = build(name, **ALL[name]).apply(obj[:1, 1:], AROUND)
    np.testing.assert_allclose(alone[0, 0], found[0, 1], atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_phases_may_wrap(name):
    found = build(name, **ALL[name]).apply(noise(dtype=np.complex128), AROUND)
    turned = build(name, **ALL[name]).apply(noise(dtype=np.complex128) * np.exp(3.1j), AROUND)
    np.testing.assert_allclose(turned, found * np.exp(3.1j), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "factor"),
    [
        (
            "smoothness",
            {"sigma_angstrom": 0.6, "strength": 0.7},
            lambda k: 0.3 + 0.7 * np.exp(-2 * (0.6 * np.pi * k) ** 2),
        ),
        ("butterworth", {"cutoff_inverse_angstrom": 0.5, "order": 3}, lambda k: 1 / np.sqrt(1 + (k / 0.5) ** 6)),
    ],
)
def test_filters_weight_a_plane_wave_as_their_formula(name, options, factor):
    y, x = np.indices((24, 30))
    wave = np.exp(2j * np.pi * (2 * y / 24 - 3 * x / 30))
    found = build(name, **options).apply((1 + 0.1 * wave)[None, None], AROUND)[0, 0]
    k = np.hypot(2 / (24 * 0.4), 3 / (30 * 0.5))
    np.testing.assert_allclose(found, 1 + 0.1 * factor(k) * wave, atol=1e-12)


def test_variation_against_another_solver():
    """Real images: Chambolle's fixed point reaches the same minimum; 1e-3 of the cost covers both solvers' rest."""
    rng = np.random.default_rng(2)
    image = np.pad(np.ones((8, 9)), 6) + 0.2 * rng.standard_normal((20, 21))
    tau = 0.15
    ours = flatten_variation(image, tau, (-2, -1), 300)
    theirs = denoise_tv_chambolle(image, weight=tau, eps=1e-9, max_num_iter=5000)

    def cost(x):
        return 0.5 * np.sum((x - image) ** 2) + tau * total_variation(x, (-2, -1))

    assert cost(ours) <= cost(theirs) * (1 + 1e-3)
    assert np.abs(ours - theirs).max() < 0.01
    # The twenty steps of a sweep come near enough
    assert cost(flatten_variation(image, tau, (-2, -1), 20)) < 1.01 * cost(ours)
