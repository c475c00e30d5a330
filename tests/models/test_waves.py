"""Exit waves: their patterns are the model's, and the overlap's sums are gradients of a distance."""

from dataclasses import replace

import numpy as np
import pytest

from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import Detector
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.models.waves import exit_waves, overlap_object, overlap_probe, stepped_waves, with_measured_moduli
from hpcrec.objectives.losses import AMPLITUDE_FLOOR

SHAPE, SAMPLING = (12, 10), (0.4, 0.5)
TOLERANCE = 1e-5
INDICES = np.array([3, 0, 5])


def problem(n_states=1, flight=None, precision="double", kernel="array", threads=1, **detector):
    """A model and a state of random values at sub-pixel positions under two modes."""
    rng, detector = np.random.default_rng(2), Detector(**detector)
    options = {"precision": precision, "kernel": kernel, "threads": threads}
    model = PtychographyModel(SHAPE, SAMPLING, 0.025, detector=detector, flight=flight, **options)
    positions = rng.uniform(0, 3, (6, 2))
    grid = object_grid(positions, SHAPE, SAMPLING, 3)

    def draw(*shape):
        return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)

    state = PtychographyState(
        obj=draw(n_states, *grid.shape),
        probe=draw(2, *SHAPE),
        positions=positions,
        grid=grid,
        box=Box(0, grid.shape[0], 0, grid.shape[1]),
        n_states=n_states,
    )
    return model, state, rng


FLIGHT = np.array([[-0.2, 0.1], [0.2, -0.1]])
CASES = pytest.mark.parametrize(("n_states", "flight"), [(1, None), (2, FLIGHT)])


@CASES
def test_waves_make_the_patterns(n_states, flight):
    model, state, _ = problem(n_states, flight)
    waves = exit_waves(model, state, INDICES)
    assert waves.shape == (3, 2 * n_states * (1 if flight is None else 2), *SHAPE)
    power = np.sum(np.abs(np.fft.fft2(waves, norm="ortho")) ** 2, axis=1)
    np.testing.assert_allclose(power, model.simulate(state, INDICES), rtol=1e-10)


@CASES
def test_overlap_sums_are_gradients_of_the_distance(n_states, flight):
    model, state, rng = problem(n_states, flight)
    there = exit_waves(model, state, INDICES)
    waves = there + rng.standard_normal(there.shape)
    field, weight = overlap_object(model, state, INDICES, waves)
    found, light = overlap_probe(model, state, INDICES, waves)
    assert weight.values.shape == field.values.shape
    assert light.shape == SHAPE

    def distance():
        return np.sum(np.abs(exit_waves(model, state, INDICES) - waves) ** 2)

    index = (slice(None), *field.box.slices(state.box))
    obj, probe, h = state.obj.copy(), state.probe.copy(), 1e-4
    change = rng.standard_normal(field.values.shape) + 1j * rng.standard_normal(field.values.shape)
    ends = []
    for sign in (1, -1):
        state.obj = obj.copy()
        state.obj[index] += sign * h * change
        ends.append(distance())
    assert 2 * np.vdot(field.values, change).real == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-7)
    # The second derivative along the object is twice the weight
    state.obj = obj
    curvature = (ends[0] + ends[1] - 2 * distance()) / h**2
    # Rounding of 1e-16 over h²
    assert 2 * np.sum(weight.values * np.abs(change) ** 2) == pytest.approx(curvature, rel=1e-4)
    change = rng.standard_normal(probe.shape) + 1j * rng.standard_normal(probe.shape)
    ends = []
    for sign in (1, -1):
        state.probe = probe + sign * h * change
        ends.append(distance())
    assert 2 * np.vdot(found, change).real == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-7)


@pytest.mark.parametrize("near", [False, True])
def test_moduli_become_the_measured_ones(near):
    phase = np.exp(1j * np.random.default_rng(1).uniform(0, 6, SHAPE)) if near else None
    mask = np.ones(SHAPE, bool)
    mask[3, 4:7] = False
    model, state, rng = problem(mask=mask, propagator=phase)
    # On whole pixels a near-field image need not be moved back
    state.positions = state.grid.to_length(np.rint(state.grid.to_pixels(state.positions)))
    patterns = rng.uniform(50, 100, (3, *SHAPE))
    patterns[:, ~mask] = np.nan
    waves = exit_waves(model, state, INDICES)
    found = with_measured_moduli(model, state, Batch(INDICES, patterns), waves)

    def power(values):
        far = np.fft.fft2(values, norm="ortho")
        return np.sum(np.abs(far if phase is None else np.fft.ifft2(far * phase, norm="ortho")) ** 2, axis=1)

    # The floor stands in both
    before = power(waves)[:, mask]
    wanted = before * (patterns[:, mask] + AMPLITUDE_FLOOR) / (before + AMPLITUDE_FLOOR)
    np.testing.assert_allclose(power(found)[:, mask], wanted, rtol=1e-9)
    np.testing.assert_allclose(power(found)[:, ~mask], power(waves)[:, ~mask], rtol=1e-10)


def test_moduli_are_reached_whatever_the_intensity_of_a_pattern():
    """Counts are c times the power: it is the power that must come to I/c."""
    model, state, rng = problem()
    patterns = rng.uniform(50, 100, (3, *SHAPE))
    intensity = np.array([1.0, 0.5, 1.0, 2.0, 1.0, 0.7])
    state.refined["intensity"] = intensity
    waves = exit_waves(model, state, INDICES)
    found = with_measured_moduli(model, state, Batch(INDICES, patterns), waves)
    before, after = (
        intensity[INDICES, None, None] * np.sum(np.abs(np.fft.fft2(w, norm="ortho")) ** 2, axis=1)
        for w in (waves, found)
    )
    wanted = before * (patterns + AMPLITUDE_FLOOR) / (before + AMPLITUDE_FLOOR)
    np.testing.assert_allclose(after, wanted, rtol=1e-9)


def test_patterns_within_the_noise_stay():
    """One pattern fits better than its noise, one is far off and goes 1 − √(p/e) of the way."""
    model, state, rng = problem()
    waves = exit_waves(model, state, INDICES)
    power = model.simulate(state, INDICES)
    patterns = power.copy()
    patterns[0] += 0.3 * np.sqrt(power[0]) * rng.standard_normal(SHAPE)
    patterns[1] *= 9
    patterns = np.maximum(patterns, 0)
    found = with_measured_moduli(model, state, Batch(INDICES, patterns), waves, 1.0)
    # There and back through the far field
    np.testing.assert_allclose(found[[0, 2]], waves[[0, 2]], atol=1e-12)
    whole = with_measured_moduli(model, state, Batch(INDICES, patterns), waves)
    error = np.sum((np.sqrt(power[1]) - np.sqrt(patterns[1])) ** 2)
    share = 1 - np.sqrt(np.sum(np.minimum(patterns[1], 0.25)) / error)
    np.testing.assert_allclose(found[1] - waves[1], share * (whole[1] - waves[1]), atol=1e-9)


def everything_refined(rng):
    """What makes patterns differ from one another, drawn for six positions."""
    drawn = rng.standard_normal((2, *SHAPE)) + 1j * rng.standard_normal((2, *SHAPE))
    return {
        "intensity": rng.uniform(0.5, 2, 6),
        "background": rng.uniform(0, 2, SHAPE),
        "variation": drawn.astype(np.complex64),
        "coefficients": rng.standard_normal((6, 2)),
    }


def all_waves(model, state, batch, old, noise):
    """All that projection engines ask of exit waves, by name, of a batch and the waves kept of it."""
    field, weight = overlap_object(model, state, batch.indices, old)
    found, light = overlap_probe(model, state, batch.indices, old)
    # Of the difference map, relaxed averages, and the average of projections
    numbers = {"difference": (-0.9, 0.9, 2.0), "relaxed": (0.3, 0.6, 0.4), "average": (0.0, 1.0, 0.0)}
    steps = {name: stepped_waves(model, state, batch, old, n, noise) for name, n in numbers.items()}
    sums = {"object": field.values, "weight": weight.values, "probe": found, "light": light}
    return sums | steps | {"exit": exit_waves(model, state, batch.indices)}


@CASES
@pytest.mark.parametrize("n_modes", [1, 2])
@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("bad", ["none", "mask", "patterns"])
@pytest.mark.parametrize(("threads", "noise", "whole"), [(1, 0.5, False), (2, 0.0, True), (5, 0.5, True)])
def test_the_compiled_and_the_plain_waves_agree(n_states, flight, n_modes, near, refined, bad, threads, noise, whole):
    """All functions against double precision, relative to the largest value of each.

    With bad pixels of the detector or of single patterns, saturated ones, and a pattern that is left alone.
    """
    mask = np.ones(SHAPE, bool)
    mask[3, 4:7] = bad != "mask"
    phase = np.exp(1j * np.random.default_rng(1).uniform(0, 6, SHAPE)) if near else None
    kinds = ("double", "array", 1), ("single", "compiled", threads)
    options = {"mask": mask if bad == "mask" else None, "loss": "poisson", "saturation": 29.0 if whole else None}
    plain, fast = (
        problem(n_states, flight, p, k, t, propagator=None if phase is None else phase.astype(f"c{c}"), **options)[0]
        for (p, k, t), c in zip(kinds, (16, 8), strict=True)
    )
    _, state, rng = problem(n_states, flight)
    # Both precisions see the same numbers
    state.obj, state.probe = (a.astype(np.complex64).astype(complex) for a in (state.obj, state.probe[:n_modes]))
    state.whole_pixels = whole
    state.refined = everything_refined(rng) if refined else {}
    patterns = rng.uniform(1, 30, (3, *SHAPE)).astype(np.float32)
    # Below ¼, the variance of a root of a count, their noise is that of what was counted
    patterns[rng.random(patterns.shape) < 0.2] *= np.float32(0.01)
    patterns[0] = plain.simulate(state, INDICES[:1])[0]
    good = rng.random(patterns.shape) > 0.1 if bad == "patterns" else None
    patterns[:, ~mask] = np.nan
    if good is not None:
        patterns[~good] = np.nan
    old = exit_waves(plain, state, INDICES).astype(np.complex64)
    old[1:] += 0.3 * rng.standard_normal(old[1:].shape).astype(np.float32)
    wanted = all_waves(plain, state, Batch(INDICES, patterns, good=good), old.astype(complex), noise)
    single = replace(state, obj=state.obj.astype(np.complex64), probe=state.probe.astype(np.complex64))
    found = all_waves(fast, single, Batch(INDICES, patterns, good=good), old, noise)
    for name, values in wanted.items():
        assert found[name].dtype in (np.complex64, np.float32), name
        np.testing.assert_allclose(found[name], values, rtol=0, atol=TOLERANCE * np.abs(values).max(), err_msg=name)


def test_kept_waves_may_come_in_double_precision():
    """As a run in double precision left them."""
    model, state, rng = problem(precision="single", kernel="compiled")
    state.obj, state.probe = state.obj.astype(np.complex64), state.probe.astype(np.complex64)
    old = exit_waves(model, state, INDICES)
    old += rng.standard_normal(old.shape).astype(np.float32)
    batch = Batch(INDICES, rng.uniform(0, 20, (3, *SHAPE)).astype(np.float32))
    wanted, found = (all_waves(model, state, batch, waves, 0.5) for waves in (old, old.astype(complex)))
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
