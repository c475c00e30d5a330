"""Constraints along the beam, against formulas, other solvers and a phantom."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import minimize

from hpcrec.objectives.constraints import Surroundings, constraint_class
from hpcrec.objectives.depth import gaussian_matrix

SAMPLING, GAP = (0.4, 0.5), 8.0
BETA = 1.0


def around(n_slices, light=None):
    return Surroundings(sampling=SAMPLING, wavelength=0.025, gaps=np.full(n_slices - 1, GAP), power=1.0, light=light)


def build(name, **options):
    cls = constraint_class(name)
    return cls(cls.Options(**options))


ALL = {
    "kz_filter": {"beta": BETA},
    "layer_tv": {"weight_rad": 0.05},
    "z_smoothing": {"sigma_angstrom": GAP},
    "identical_slices": {},
}


def example(n_slices=4, shape=(6, 8), dtype=np.complex128):
    rng = np.random.default_rng(4)
    size = (2, n_slices, *shape)
    return (rng.uniform(0.7, 1.1, size) * np.exp(1j * rng.uniform(-0.8, 0.8, size))).astype(dtype)


def weight(kz, ky, kx, beta):
    return 1 - 2 / np.pi * np.arctan((beta * abs(kz) / np.sqrt(ky**2 + kx**2 + 1e-3)) ** 2)


@pytest.mark.parametrize(("n_slices", "ends"), [(4, "mirror"), (5, "mirror"), (4, "periodic")])
def test_the_kz_filter_weights_a_plane_wave_as_its_formula(n_slices, ends):
    """cos along z is a mode of mirrored slices, exp one of joined slices; a wave along x has one frequency."""
    shape, m, i_x = (6, 8), 1, 2
    x, z = np.arange(shape[1]), np.arange(n_slices)
    if ends == "mirror":
        along, kz = np.cos(np.pi * m * (z + 0.5) / n_slices), m / (2 * n_slices)
    else:
        along, kz = np.cos(2 * np.pi * m * z / n_slices), m / n_slices
    wave = along[:, None, None] * np.cos(2 * np.pi * i_x * x / shape[1]) * np.ones((shape[0], 1))
    logs = (0.03 + 0.2j) * wave + 0.1j
    found = build("kz_filter", beta=BETA, ends=ends).apply(np.exp(logs)[None], around(n_slices))[0]
    factor = weight(kz, 0.0, i_x / shape[1], BETA)
    np.testing.assert_allclose(np.log(found), factor * (0.03 + 0.2j) * wave + 0.1j, atol=1e-12)
    assert 0.1 < factor < 0.99, "a factor of one would prove nothing"


def test_the_kz_filter_pads_with_vacuum():
    obj = example()
    found = build("kz_filter", beta=BETA, ends="vacuum").apply(obj, around(4))
    padded = np.concatenate([obj, np.ones_like(obj)], axis=1)
    joined = build("kz_filter", beta=BETA, ends="periodic").apply(padded, around(8))
    np.testing.assert_allclose(found, joined[:, :4], atol=1e-12)


def test_the_kz_filter_spares_what_no_light_saw():
    obj, light = example(), np.linspace(0, 0.2, 48, dtype=np.float32).reshape(6, 8)
    free = np.log(build("kz_filter", beta=BETA).apply(obj, around(4)) / obj)
    held = np.log(build("kz_filter", beta=BETA).apply(obj, around(4, light)) / obj)
    np.testing.assert_allclose(held, np.minimum(1, 10 * light) * free, atol=1e-7)


def test_the_kz_filter_draws_amplitudes_to_one():
    obj = example()
    free = build("kz_filter", beta=BETA).apply(obj, around(4))
    found = build("kz_filter", beta=BETA, amplitude_share=0.9).apply(obj, around(4))
    np.testing.assert_allclose(abs(found), 1 + 0.9 * (abs(free) - 1))
    np.testing.assert_allclose(np.angle(found), np.angle(free), atol=1e-12)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_projected_phase_and_type_are_kept(name, dtype):
    obj = example(dtype=dtype)
    before = obj.copy()
    found = build(name, **ALL[name]).apply(obj, around(4))
    assert found.dtype == dtype
    np.testing.assert_array_equal(obj, before)
    tolerance = 1e-5 if dtype == np.complex64 else 1e-12
    total = np.log(found).sum(axis=1), np.log(obj).sum(axis=1)
    # The filter keeps the sum along z up to what it filters in the plane: nothing at k_z = 0
    np.testing.assert_allclose(*total, atol=tolerance * 4)
    spread = np.ptp(np.angle(found), axis=1).mean() / np.ptp(np.angle(obj), axis=1).mean()
    assert spread < 0.97


@pytest.mark.parametrize("name", ALL)
def test_one_slice_stays_as_it_is(name):
    obj = example(1)
    np.testing.assert_allclose(build(name, **ALL[name]).apply(obj, around(1)), obj, atol=1e-12)


@pytest.mark.parametrize("name", ["layer_tv", "z_smoothing", "identical_slices"])
def test_columns_are_on_their_own_and_may_wrap(name):
    constraint, obj = build(name, **ALL[name]), example()
    assert constraint.pointwise
    found = constraint.apply(obj, around(4))
    np.testing.assert_allclose(constraint.apply(obj[..., 1:4, 2:5], around(4)), found[..., 1:4, 2:5], atol=1e-12)
    turned = constraint.apply(obj * np.exp(3.0j), around(4))
    np.testing.assert_allclose(turned, found * np.exp(3.0j), atol=1e-12)


def test_layer_variation_against_a_general_solver():
    """One column of phases: minimise ½Σ(x − y)² + τ Σ|Δx|, the kinks rounded off by 1e-9."""
    y = np.array([0.1, 0.13, 0.4, 0.35, -0.2, -0.15])
    tau = 0.06

    def cost(x):
        return 0.5 * np.sum((x - y) ** 2) + tau * np.sum(np.sqrt(np.diff(x) ** 2 + 1e-9))

    best = minimize(cost, y, method="BFGS", options={"gtol": 1e-9}).x
    found = build("layer_tv", weight_rad=tau).apply(np.exp(1j * y).reshape(1, 6, 1, 1), around(6))
    # The rounding moves the optimum by about √1e-9
    np.testing.assert_allclose(np.angle(found).ravel(), best, atol=3e-4)


def test_smoothing_is_a_gaussian_with_mirrored_ends():
    matrix = gaussian_matrix(9, 1.5)
    np.testing.assert_allclose(matrix.sum(axis=0), 1)
    signal = np.random.default_rng(0).standard_normal(9)
    # scipy samples the Gaussian in real space and cuts it off; at 1.5 samples the two differ by 1e-4
    np.testing.assert_allclose(matrix @ signal, gaussian_filter1d(signal, 1.5, mode="reflect", truncate=8), atol=2e-4)


def test_smoothing_knows_the_distance_of_slices():
    """cos along mirrored slices is damped by the Gaussian's transform at its frequency in 1/Å."""
    along = np.cos(np.pi * (np.arange(5) + 0.5) / 5)[None, :, None, None]
    found = build("z_smoothing", sigma_angstrom=6.0).apply(np.exp(0.1j * along), around(5))
    damping = np.exp(-2 * (np.pi * 6.0 / (10 * GAP)) ** 2)
    np.testing.assert_allclose(found, np.exp(0.1j * damping * along), atol=1e-12)


def test_identical_slices_are_the_geometric_mean():
    obj = example()
    found = build("identical_slices").apply(obj, around(4))
    np.testing.assert_allclose(abs(found[:, 2]), np.prod(abs(obj), axis=1) ** 0.25)
    np.testing.assert_allclose(np.angle(found[:, 2]), np.angle(obj).mean(axis=1))
    np.testing.assert_allclose(build("identical_slices").apply(found, around(4)), found)
    half = build("identical_slices", strength=0.5).apply(obj, around(4))
    np.testing.assert_allclose(abs(half) ** 2, abs(obj) * abs(found))
