"""Each refinement finds what the patterns were made with. Bounds are about twice what was measured."""

from dataclasses import replace

import numpy as np
import pytest
from refinery import Case, detector

from hpcrec.models.base import Batch
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.physics.probe import aberration_basis
from hpcrec.refine import REFINEMENTS, refinement_class
from hpcrec.refine.affine import affine_fit, affine_parts
from hpcrec.refine.tilt import smoothed

FREE = {"probe_start": 1000}


def test_the_table_names_what_is_there():
    for name in REFINEMENTS:
        assert refinement_class(name).Options().start_iteration >= 0


def alike(state):
    """Make all slices their geometric mean."""
    state.obj[:] = np.exp(np.mean(np.log(np.abs(state.obj)) + 1j * np.angle(state.obj), axis=0))


@pytest.mark.parametrize("engine", ["lsqml", "gradient"])
def test_the_tilt_is_found(engine):
    """12 and −8 mrad: slices 25 Å apart move by 0.75 and 0.5 pixels against one another; the slices are alike."""
    truth = np.array([0.012, -0.008])
    case = Case(3, {"tilt": truth}, alike=True)
    refine = {"tilt": {"start_iteration": 5, "max_step_mrad": 2.0}}
    state, error = case.reconstruct(engine, refine, 40, after=alike, **FREE)
    without = case.reconstruct(engine, {}, 40, after=alike, **FREE)[1]
    assert np.abs(state.refined["tilt"] - truth).max() < 2e-3
    assert error < 0.5 * without


def test_tilts_of_positions_follow_a_bend():
    """A bent sample: the tilt along y changes by ±10 mrad over the scan."""
    plain = Case(3)
    y = plain.truth.positions[:, 0]
    bend = 0.01 * (y - y.mean()) / np.ptp(y) * 2
    case = Case(3, {"position_tilt": np.column_stack([bend, 0 * bend])})
    refine = {"position_tilt": {"start_iteration": 5, "smoothing_angstrom": 2.0}}
    state, _ = case.reconstruct("gradient", refine, 40, **FREE)
    found = state.refined["position_tilt"][:, 0]
    assert np.corrcoef(found, bend)[0, 1] > 0.9
    assert np.std(found - bend) < 0.5 * np.std(bend)


@pytest.mark.parametrize("each_gap", [False, True])
def test_the_distance_of_slices_is_found(each_gap):
    case = Case(3, {"thickness": np.array([30.0, 30.0])})
    refine = {"thickness": {"start_iteration": 5, "each_gap": each_gap, "max_step_angstrom": 1.0}}
    state, _ = case.reconstruct("lsqml", refine, 60, **FREE)
    assert np.abs(state.refined["thickness"] - 30.0).max() < (3.0 if each_gap else 1.5)


def test_defocus_and_astigmatism_are_found():
    """The probe starts 40 Å off; only its aberrations change."""
    case = Case(defocus=120.0)
    refine = {"aberrations": {"start_iteration": 3}}
    state, _ = case.reconstruct("lsqml", refine, 40, probe=Case.probe(80.0), **FREE)
    defocus, *astigmatism = state.refined["aberrations"]
    # C10 > 0 is overfocus
    assert defocus == pytest.approx(-40.0, abs=4.0)
    assert np.abs(astigmatism).max() < 4.0


def test_aberrations_need_names_of_aberrations():
    case = Case()
    options = refinement_class("aberrations").Options(names=("C11",))
    with pytest.raises(Exception, match="not an aberration"):
        refinement_class("aberrations")(case.model, options)


def test_intensities_are_found():
    factors = np.random.default_rng(1).uniform(0.7, 1.4, 100)
    case = Case(refined={"intensity": factors})
    state, error = case.reconstruct("lsqml", {"intensity": {}}, 25, **FREE)
    wanted = factors / np.exp(np.mean(np.log(factors)))
    assert np.abs(state.refined["intensity"] / wanted - 1).max() < 0.02
    assert error < 0.3 * case.reconstruct("lsqml", {}, 25, **FREE)[1]


def test_a_background_is_found():
    ky = np.fft.fftfreq(32)
    background = 8.0 * np.exp(-((ky[:, None] ** 2 + ky**2) / 0.3**2)) + 2.0
    case = Case(refined={"background": background})
    refine = {"background": {"start_iteration": 2, "smoothing_pixels": 1.0}}
    state, error = case.reconstruct("lsqml", refine, 40, **FREE)
    # Where the beam itself lies, background and sample are hard to tell apart
    outside = np.hypot(ky[:, None], ky) > 0.45
    assert np.abs(state.refined["background"] - background)[outside].mean() < 0.1 * background[outside].mean()
    assert error < 0.5 * case.reconstruct("lsqml", {}, 40, **FREE)[1]


def test_bad_pixels_do_not_draw_the_background():
    """A dead block tells nothing: four counts all around come out as four counts, up to its rim and inside."""
    case = Case()
    cls = refinement_class("background")
    background, state = cls(case.model, cls.Options(smoothing_pixels=2.0)), replace(case.truth, refined={}, memory={})
    background.prepare(state)
    weight = np.ones((32, 32))
    weight[5:9, 20:27] = 0
    for _ in range(40):
        gradient = weight * (state.refined["background"] - 4.0)
        background.apply(state, {"background": np.stack([gradient, weight])})
        background.finish(state)
    # Half of what is missing is left by each sweep
    np.testing.assert_allclose(state.refined["background"], 4.0, rtol=1e-9)


def test_a_varying_probe_is_found():
    """A beam that wanders by about a third of a pixel."""
    plain = Case()
    ky = np.fft.fftfreq(32)[:, None]
    spectrum = np.fft.fft2(plain.truth.probe[0])
    modes = np.fft.ifft2(np.stack([-2j * np.pi * ky * spectrum, -2j * np.pi * ky.T * spectrum]))
    drift = 0.35 * np.random.default_rng(2).standard_normal((100, 2))
    case = Case(refined={"variation": modes.astype(np.complex64), "coefficients": drift})
    refine = {"variable_probe": {"modes": 2}}
    state, error = case.reconstruct("gradient", refine, 40, **FREE)
    without = case.reconstruct("gradient", {}, 40, **FREE)[1]
    assert error < 0.1 * without
    # What is found spans the same drift: the true weights are a linear map of the found ones
    found = state.refined["coefficients"]
    left = drift - drift.mean(axis=0)
    left = left - found @ np.linalg.lstsq(found, left, rcond=None)[0]
    assert np.std(left) < 0.5 * np.std(drift)


def test_components_of_equal_strength_stay_what_they_are():
    """Round-off would choose among their directions, another one on other numbers of ranks."""
    case = Case()
    cls = refinement_class("variable_probe")
    refinement, ends = cls(case.model, cls.Options(modes=3)), []
    start = replace(case.truth, refined={})
    refinement.prepare(start)
    rng = np.random.default_rng(2)
    start.refined["coefficients"] = rng.standard_normal((100, 3))
    before = start.refined["variation"].copy()
    for noise in (0.0, 1e-7):
        state = replace(start, refined=dict(start.refined))
        state.refined["variation"] = (
            1.02 * before * (1 + noise * rng.standard_normal(before.shape)).astype(np.complex64)
        )
        refinement.finish(state)
        ends.append(state.refined)
    for found in ends:
        # Single precision
        assert np.abs(found["variation"] - before).max() < 1e-6
        products = [np.tensordot(r["coefficients"], r["variation"], axes=1) for r in (start.refined, found)]
        mean = np.tensordot(start.refined["coefficients"].mean(axis=0), before, axes=1)
        np.testing.assert_allclose(products[1], 1.02 * (products[0] - mean), atol=1e-5)


def test_annealing_finds_positions_that_are_far_off():
    """Errors of 0.5 Å rms; half-pixel gradients would need many sweeps."""
    case = Case()
    off = np.random.default_rng(3).normal(0, 0.35, (100, 2))
    off -= off.mean(axis=0)
    refine = {"annealing": {"start_iteration": 3, "stop_iteration": 40, "radius_angstrom": 0.8, "trials": 3}}
    state, _ = case.reconstruct(
        "lsqml", refine, 45, positions=np.clip(case.truth.positions + off, *_room(case)), **FREE
    )
    left = state.positions - case.truth.positions
    assert np.std(left - left.mean(axis=0)) < 0.5 * np.std(off)


def _room(case):
    low, high = case.truth.positions.min(axis=0) - 1, case.truth.positions.max(axis=0) + 1
    return low, high


def test_trials_stay_on_the_grid():
    """Four pixels of margin, shifts of up to twelve: those of the scan's edge would leave the object."""
    case = Case()
    refine = {"annealing": {"start_iteration": 0, "stop_iteration": 1, "radius_angstrom": 5.0}}
    state, _ = case.reconstruct("lsqml", refine, 1, **FREE)
    assert (state.positions != case.truth.positions).any()
    # The common drift, well below a pixel here, is taken out afterwards
    assert state.box.grow(1).contains(case.model.box(state.positions, state.grid))


@pytest.mark.parametrize(
    ("name", "options"), [("positions", {}), ("annealing", {"radius_angstrom": 0.4, "stop_iteration": 3})]
)
def test_no_position_moves_beyond_the_bound(name, options):
    """The common drift is taken out too, which must not push single positions over it."""
    case = Case()
    off = np.where(np.arange(100) % 4, 0.2, -0.6)[:, None] * [1.0, -1.0]
    refine = {name: {"start_iteration": 1, "max_move_angstrom": 0.05} | options}
    start = case.truth.positions + off
    state, _ = case.reconstruct("lsqml", refine, 3, positions=start, **FREE)
    # Round-off of positions of some ten Å
    assert 0.04 < np.abs(state.positions - start).max() <= 0.05 + 1e-12


def test_an_affine_map_is_fitted_and_told():
    rng = np.random.default_rng(4)
    start = rng.uniform(0, 50, (60, 2))
    scale, rotation = 1.03, np.radians(1.5)
    turn = np.array([[np.cos(rotation), np.sin(rotation)], [-np.sin(rotation), np.cos(rotation)]])
    matrix = scale * turn @ np.array([[1.01, 0], [0.02, 0.99]])
    found, fitted = affine_fit(start, start @ matrix.T + 3.0)
    np.testing.assert_allclose(found, matrix, atol=1e-12)
    np.testing.assert_allclose(fitted, start @ matrix.T + 3.0, atol=1e-10)
    parts = affine_parts(found)
    assert parts["scale"] == pytest.approx(scale, rel=1e-6)
    assert parts["asymmetry"] == pytest.approx(0.02, rel=1e-6)
    assert parts["rotation_deg"] == pytest.approx(1.5, rel=1e-6)
    assert parts["shear_deg"] == pytest.approx(np.degrees(np.arctan(0.02)), rel=1e-4)


def test_a_line_scan_leaves_the_affine_map_open_across_it():
    start = np.column_stack([np.zeros(9), np.arange(9.0)])
    matrix, fitted = affine_fit(start, 1.1 * start)
    np.testing.assert_allclose(matrix, np.diag([1.0, 1.1]), atol=1e-12)
    np.testing.assert_allclose(fitted, 1.1 * start, atol=1e-12)


def test_affine_draws_positions_to_the_true_scale():
    """A scan step 2 % too small, found from positions that also scatter."""
    case = Case()
    centre = case.truth.positions.mean(axis=0)
    wrong = centre + (case.truth.positions - centre) / 1.02
    refine = {"positions": {"start_iteration": 3}, "affine": {"start_iteration": 3, "share": 0.5}}
    state, _ = case.reconstruct("lsqml", refine, 40, positions=wrong, **FREE)
    assert affine_parts(state.refined["affine"])["scale"] == pytest.approx(1.02, abs=0.006)


def test_smoothing_keeps_a_slope_and_removes_noise():
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 100, (2000, 2))
    slope = 0.1 * positions[:, :1]
    noisy = slope + rng.standard_normal((2000, 1))
    inside = (np.abs(positions - 50) < 25).all(axis=1)
    found = smoothed(noisy, positions, 8.0)
    assert np.std((found - slope)[inside]) < 0.15
    np.testing.assert_array_equal(smoothed(noisy, positions, 0.0), noisy)


def test_a_saturated_detector_reconstructs():
    """Pixels above 60 % of the brightest say nothing; the object is found all the same."""
    case = Case()
    level = 0.6 * case.patterns.max()
    clipped = np.minimum(case.patterns, level)
    saturated = PtychographyModel(
        case.model.shape, case.model.sampling, case.model.wavelength, detector=detector(saturation=float(level))
    )
    whole = case.patterns
    case.patterns = clipped
    _, told = case.reconstruct("lsqml", {}, 25, model=saturated, **FREE)
    _, untold = case.reconstruct("lsqml", {}, 25, **FREE)
    case.patterns = whole
    assert told < 0.3 * untold


@pytest.mark.parametrize("loss", ["amplitude", "poisson", "gaussian", "anscombe"])
def test_the_gradient_by_aberrations_is_exact(loss):
    """Through the probe, by the chain rule: central differences of the loss in defocus, astigmatism and coma."""
    case = Case(2, detector=detector(loss=loss), precision="double")
    names = ("C10", "C12a", "C12b", "C21a")
    aberrations = refinement_class("aberrations")(case.model, refinement_class("aberrations").Options(names=names))
    state = replace(case.truth, probe=Case.probe(100.0)[None].astype(complex), obj=case.truth.obj.astype(complex))
    aberrations.prepare(state)
    batch = Batch(np.arange(20), case.patterns[:20], n_global=20)
    found = aberrations.collect(state, batch, case.model.gradients(state, batch, ("probe",)))["aberrations"][0]
    basis = aberration_basis(case.model.shape, case.model.sampling, case.model.wavelength, names)
    for name, direction, slope in zip(names, basis, found * case.model.curvature, strict=True):
        step = 1e-2 / np.abs(direction).max()
        losses = []
        for sign in (1, -1):
            probe = np.fft.ifft2(np.fft.fft2(state.probe) * np.exp(-1j * sign * step * direction))
            losses.append(case.model.gradients(replace(state, probe=probe), batch).loss)
        # A phase of 0.01 rad at most: the third-order rest is 1e-5 of the slope
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-3, abs=1e-6 * abs(found).max()), name
