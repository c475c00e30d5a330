"""Gauges: patterns stay, what is left open is fixed."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import PtychographyState
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.objectives.constraints import GAUGES, ConstraintOptions, Surroundings, constraint_class
from hpcrec.objectives.gauges import centre_of_mass, ramp, tilt
from hpcrec.physics.probe import orthogonal_start_modes

SHAPE, SAMPLING, WAVELENGTH, THICKNESS = (32, 32), (0.4, 0.4), 0.0251, 60.0
POSITIONS = np.random.default_rng(1).uniform(0, 8, (12, 2))
GRID = object_grid(POSITIONS, SHAPE, SAMPLING)


def example(n_slices=1, n_states=1, varied=False):
    """Model and state of smooth slices with ramps under an off-centre probe, in double precision.

    The probe is a curved Gaussian: it ends inside of the window, and with the object inside of the grid's frequencies.
    """
    rng = np.random.default_rng(7)
    model = PtychographyModel(SHAPE, SAMPLING, WAVELENGTH, THICKNESS if n_slices > 1 else 0.0, precision="double")
    shape = (n_states, n_slices, *GRID.shape)
    phase = gaussian_filter(rng.standard_normal(shape), (0, 0, 4, 4), mode="wrap")
    obj = (0.9 + 0.5 * phase) * np.exp(6j * phase)
    for s in range(n_slices):
        # Whole periods over the grid, so that the Fourier shifts find no edge
        slope = np.array([1 + s, -s]) / (np.array(GRID.shape) * SAMPLING)
        obj[:, s] *= tilt(GRID.shape, slope, SAMPLING)
    y, x = (np.arange(n) - n // 2 - d for n, d in zip(SHAPE, (1.5, -2.2)))
    squared = y[:, None] ** 2 + x**2
    probe = 30 * np.exp((0.02j - 0.08) * squared)
    state = PtychographyState(
        obj=obj.reshape(-1, *GRID.shape),
        probe=orthogonal_start_modes(probe, 2, share=0.2),
        positions=POSITIONS,
        grid=GRID,
        box=Box(0, GRID.shape[0], 0, GRID.shape[1]),
        n_states=n_states,
    )
    if varied:
        state.refined["variation"] = orthogonal_start_modes(probe / 30, 2, share=0.5)[1:]
        state.refined["coefficients"] = rng.standard_normal((12, 1))
    return model, state


def light():
    y, x = (np.arange(n) - 0.45 * n for n in GRID.shape)
    return np.exp(-(y[:, None] ** 2 + x**2) / 200).astype(np.float32)


def apply(name, model, state):
    """Change the state by a gauge as a run does."""
    obj = state.obj.reshape(state.n_states, state.n_slices, *GRID.shape)
    variation = state.refined.get("variation", state.probe[:0])
    around = Surroundings(
        sampling=SAMPLING,
        wavelength=WAVELENGTH,
        gaps=model.thicknesses(state),
        power=1.0,
        n_modes=len(state.probe),
        light=light(),
    )
    gauge = constraint_class(name)(ConstraintOptions())
    obj, waves = gauge.apply(obj, np.concatenate([state.probe, variation]), around)
    state.obj, state.probe = obj.reshape(state.obj.shape), waves[: len(state.probe)]
    if len(variation):
        state.refined["variation"] = waves[len(state.probe) :]


@pytest.mark.parametrize("name", GAUGES)
@pytest.mark.parametrize(("n_slices", "n_states", "varied"), [(1, 1, False), (1, 2, True), (3, 1, True)])
def test_no_pattern_changes(name, n_slices, n_states, varied):
    model, state = example(n_slices, n_states, varied)
    before, obj = model.simulate(state, np.arange(12)), state.obj.copy()
    apply(name, model, state)
    assert np.abs(state.obj - obj).max() > 0.1, "a gauge that does nothing proves nothing"
    after = model.simulate(state, np.arange(12))
    # Tails of the probe at the window's border; three slices without ramps do not join at the grid's edges any more,
    # which their shift by half a pixel spreads
    tolerance = {"centre": 1e-4, "ramp": 1e-6 if n_slices == 1 else 5e-4, "scale": 1e-12}[name]
    np.testing.assert_allclose(after, before, atol=tolerance * before.max())


@pytest.mark.parametrize("name", GAUGES)
def test_a_gauge_that_holds_is_left_alone(name):
    model, state = example()
    apply(name, model, state)
    obj, probe = state.obj.copy(), state.probe.copy()
    apply(name, model, state)
    # The light is single precision
    np.testing.assert_allclose(state.obj, obj, atol=1e-5)
    np.testing.assert_allclose(state.probe, probe, atol=1e-5 * np.abs(probe).max())


def test_the_probe_comes_to_the_middle():
    """That of all modes together, without what varies from position to position."""
    model, state = example(varied=True)
    state.probe[1] = np.roll(state.probe[1], (3, 4), (0, 1))
    state.refined["variation"] *= 1e3
    before = centre_of_mass(np.sum(np.abs(state.probe) ** 2, axis=0))
    apply("centre", model, state)
    assert np.abs(before).max() > 1
    # Tails of the probe at the window's border
    np.testing.assert_allclose(centre_of_mass(np.sum(np.abs(state.probe) ** 2, axis=0)), 0, atol=1e-6)


def test_ramps_leave_all_slices():
    model, state = example(3)
    before = [np.abs(ramp(obj, light(), SAMPLING)).max() for obj in state.obj]
    apply("ramp", model, state)
    after = [np.abs(ramp(obj, light(), SAMPLING)).max() for obj in state.obj]
    assert after[0] < 1e-9
    # Slices behind the first have moved under the light, by up to half a pixel
    assert max(after) < 0.01 * min(before)


def test_the_ramp_is_that_of_least_squares():
    """Against the normal equations of a plane with an offset, where no phase wraps; and found where phases wrap."""
    rng = np.random.default_rng(3)
    phase, weight = gaussian_filter(rng.standard_normal((20, 25)), 2), light()[:20, :25]
    y, x = np.indices(phase.shape)
    design = np.stack([y.ravel() * 0.4, x.ravel() * 0.4, np.ones(500)], axis=1) * np.sqrt(weight.ravel())[:, None]
    wanted = np.linalg.lstsq(design, phase.ravel() * np.sqrt(weight.ravel()), rcond=None)[0][:2] / (2 * np.pi)
    np.testing.assert_allclose(ramp(np.exp(1j * phase), weight, SAMPLING), wanted, atol=1e-9)
    steep = np.array([0.4, -0.3])
    tilted = np.exp(1j * phase) * tilt(phase.shape, steep, SAMPLING)
    np.testing.assert_allclose(ramp(tilted, weight, SAMPLING), steep + wanted, atol=1e-9)


def test_slices_get_a_mean_of_one():
    model, state = example(2, 2)
    apply("scale", model, state)
    sizes = np.abs(state.obj.reshape(2, 2, *GRID.shape)).mean(axis=0)
    np.testing.assert_allclose(np.sum(sizes * light(), axis=(1, 2)) / light().sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["ramp", "scale"])
def test_nothing_lit_is_left_as_it_is(name):
    around = Surroundings(
        sampling=SAMPLING, wavelength=1, gaps=np.zeros(0), power=1, light=np.zeros((4, 5), np.float32)
    )
    obj, waves = np.ones((1, 1, 4, 5), complex), np.ones((1, 3, 3), complex)
    found = constraint_class(name)(ConstraintOptions()).apply(obj, waves, around)
    np.testing.assert_array_equal(found[0], obj)
    np.testing.assert_array_equal(found[1], waves)
