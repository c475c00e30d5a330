"""The shared suite: every engine of the table."""

import dataclasses

import numpy as np
import pytest
from phantom import Phantom, phase_error, reconstruct, refinements, size_for, sweep, total_of

from hpcrec.engines import ENGINES, engine_class
from hpcrec.engines.base import visit
from hpcrec.errors import ConfigError
from hpcrec.models.base import Batch
from hpcrec.models.partial import Field, Total
from hpcrec.refine import REFINEMENTS

ALL = pytest.mark.parametrize("name", ENGINES)
PROBE = pytest.mark.parametrize("name", [n for n in ENGINES if engine_class(n).moves_probe])


# How many times more sweeps than the others these need
SLOWER = {"relaxed_average": 3}


def noise_free(name):
    """Options for patterns without noise, where what is left of the error means something."""
    # ePIE's own steps, half of the published ones, are made for noise
    return {"object_step": 1.0, "probe_step": 1.0} if name == "epie" else PURE if engine_class(name).keeps_waves else {}


PURE = {"noise_share": 0.0}


def build(phantom, name, refine=None, **options):
    cls = engine_class(name)
    engine = cls(phantom.model, cls.Options(**options), refinements(phantom.model, refine or {}))
    engine.prepare(phantom.start)
    return engine


def arrays_of(state):
    found = {"obj": state.obj, "probe": state.probe, "positions": state.positions}
    return found | state.memory | state.object_memory | state.refined


def copies_of(state):
    return {name: values.copy() for name, values in arrays_of(state).items()}


def refinements_for(name):
    """All refinements, from the first sweep, that make sense for the engine's objects."""
    left_out = ("tilt", "position_tilt", "thickness") if engine_class(name).one_slice_only else ()
    return {n: {"start_iteration": 0} for n in REFINEMENTS if n not in left_out}


def slices_of(name, n_slices):
    """The number of slices, or one for engines that know no more."""
    return 1 if engine_class(name).one_slice_only else n_slices


# Measured after 12 sweeps at worst (three slices, gradient and 3PIE): data error 3.5e-3, a twelfth of the first
# sweep's, and 0.67 of the object error of an empty object
@ALL
@pytest.mark.parametrize(("n_slices", "n_modes"), [(1, 1), (1, 3), (2, 2), (3, 1)])
def test_converges_to_the_truth(name, n_slices, n_modes):
    if slices_of(name, n_slices) != n_slices:
        pytest.skip(f"{name} is made for one slice")
    phantom = Phantom(n_slices, n_modes)
    before = phase_error(phantom.start.obj, phantom.truth.obj)
    n_sweeps = 12 * SLOWER.get(name, 1)
    state, errors = reconstruct(phantom, name, n_sweeps, **noise_free(name))
    assert errors[-1] < 0.2 * errors[0]
    assert errors[-1] < 6e-3
    assert phase_error(state.obj, phantom.truth.obj) < 0.7 * before
    assert state.iteration == n_sweeps


@ALL
def test_converges_on_counts_with_the_poisson_loss(name):
    phantom = Phantom(loss="poisson", counts=1e4, noise=True)
    _, errors = reconstruct(phantom, name, 8, loss="poisson")
    # Poisson noise itself leaves Σ(√I − √I₀)² ≈ ¼ a lit pixel, less in the dark ones: at most 1024/4 of 1e4 counts
    assert errors[-1] < 0.026


@ALL
def test_two_object_states_are_fitted(name):
    """Patterns of two objects at once: one state cannot explain them, two that start with faint phases do better."""
    phantom = Phantom(precision="double")
    other = Phantom(precision="double").truth
    other.obj = other.obj[:, ::-1, ::-1].copy()
    phantom.patterns = 0.5 * (phantom.patterns + phantom.model.simulate(other, np.arange(64)))
    rng, errors = np.random.default_rng(5), []
    for n_states in (1, 2):
        shape = (n_states, *phantom.grid.shape)
        faint = np.exp(0.05j * rng.standard_normal(shape))
        phantom.start = dataclasses.replace(
            phantom.start, obj=faint, n_states=n_states, iteration=0, memory={}, object_memory={}, pattern_memory={}
        )
        chosen = noise_free(name) | {"probe_start": 999}
        errors.append(reconstruct(phantom, name, 12 * SLOWER.get(name, 1), **chosen)[1][-1])
    # Measured: the difference map gains least, 0.84
    assert errors[1] < 0.9 * errors[0]


@ALL
def test_bad_pixels_say_nothing(name):
    """Dead pixels in the bright disc, the same in all patterns and one more in each, hold nonsense."""
    phantom, mask = Phantom(1, 3), np.ones((32, 32), bool)
    mask[1:4, 2:5] = False
    phantom.patterns[:, ~mask] = 1e7
    phantom.patterns[:, -2, -3] = np.nan
    phantom.model.detector = dataclasses.replace(phantom.model.detector, mask=mask)
    good = np.ones(phantom.patterns.shape, bool)
    good[:, -2, -3] = False
    phantom.good = good
    state, errors = reconstruct(phantom, name, 12 * SLOWER.get(name, 1), **noise_free(name))
    assert errors[-1] < 0.2 * errors[0]
    assert phase_error(state.obj, phantom.truth.obj) < 0.7


@ALL
def test_the_truth_stays(name):
    phantom = Phantom(slices_of(name, 2), 2, precision="double")
    phantom.start = phantom.truth
    wanted = phantom.truth.obj.copy()
    state, errors = reconstruct(phantom, name, 1, probe_start=0)
    # The floor of 1e-6 counts in the loss is all that is not exact
    assert errors[0] < 1e-12
    np.testing.assert_allclose(state.obj, wanted, atol=1e-6)


class Split:
    """An engine that also sees each batch in three shares, the last one empty, and compares."""

    def __init__(self, engine):
        self.engine, self.passes, self.peaks, self.apply = engine, engine.passes, engine.peaks, engine.apply

    def accumulate(self, name, state, batch):
        n = len(batch.indices)
        if name in self.engine.pixel_passes:
            return self.engine.accumulate(name, state, batch)
        cuts = (slice(5), slice(5, n), slice(n, n))
        shares = [Batch(batch.indices[i], batch.patterns[i], n_global=n, of_all=batch.indices) for i in cuts]
        parts = [self.engine.accumulate(name, state, share) for share in shares]
        added, whole = parts[0] + parts[1] + parts[2], self.engine.accumulate(name, state, batch)
        assert set(added.fields) == set(whole.fields)
        for key, field in whole.fields.items():
            assert added.fields[key].box == field.box
            # Round-off of sums in another order
            np.testing.assert_allclose(added.fields[key].values, field.values, atol=1e-9 * np.abs(field.values).max())
        for key, values in whole.sums.items():
            np.testing.assert_allclose(added.sums[key], values, rtol=1e-9, atol=1e-9 * np.abs(values).max())
        return whole


@ALL
def test_partials_of_a_split_batch_add_up(name):
    phantom = Phantom(slices_of(name, 2), 2, precision="double")
    engine = build(phantom, name, refinements_for(name), probe_start=0)
    batch = next(phantom.batches(size_for(name, 8), 1))
    visit(Split(engine), phantom.start, batch, total_of)


@ALL
def test_an_empty_batch_changes_nothing(name):
    phantom = Phantom(slices_of(name, 2), 1)
    engine = build(phantom, name, refinements_for(name), probe_start=0)
    sweep(engine, phantom.start, phantom.batches(size_for(name, 16), 1))
    before = copies_of(phantom.start)
    empty = Batch(np.arange(0), phantom.patterns[:0])
    visit(engine, phantom.start, empty, total_of)
    for key, values in arrays_of(phantom.start).items():
        np.testing.assert_array_equal(values, before[key], err_msg=key)


@ALL
def test_boxes_larger_than_the_batch_change_nothing(name):
    """Exchanges may hand a rank more pixels than the batch touches; momenta must not move there."""
    options = {"method": "adam"} if name == "gradient" else {}
    results = []
    for widen in (False, True):
        phantom = Phantom(slices_of(name, 2), 1, precision="double")
        engine = build(phantom, name, probe_start=0, object_constraint="amplitude_bound", **options)

        def exchange(partial, peaks, phantom=phantom, widen=widen):
            total = total_of(partial, peaks)
            if not widen:
                return total
            blank = {
                key: Field(phantom.box, np.zeros((*field.values.shape[:-2], *phantom.box.shape), field.values.dtype))
                for key, field in partial.fields.items()
            }
            return Total({key: field + blank[key] for key, field in partial.fields.items()}, total.sums, total.peaks)

        for batch in phantom.batches(size_for(name, 4), 1):
            visit(engine, phantom.start, batch, exchange)
        results.append(copies_of(phantom.start))
    for key, values in results[0].items():
        np.testing.assert_allclose(results[1][key], values, atol=1e-12, err_msg=key)


@PROBE
def test_schedule_gauges_and_sums(name):
    phantom = Phantom(1, 2)
    power, size = np.sum(np.abs(phantom.start.probe) ** 2), size_for(name, 16)
    engine = build(phantom, name, probe_start=1)
    before = phantom.start.probe.copy()
    sweep(engine, phantom.start, phantom.batches(size, 1))
    np.testing.assert_array_equal(phantom.start.probe, before)
    sweep(engine, phantom.start, phantom.batches(size, 2))
    modes = phantom.start.probe.reshape(2, -1)
    gram = modes.conj() @ modes.T
    assert not np.array_equal(phantom.start.probe, before)
    # Single precision
    assert np.trace(gram).real == pytest.approx(power, rel=1e-5)
    assert abs(gram[0, 1]) < 1e-5 * power
    assert gram[0, 0].real > gram[1, 1].real
    total = visit(engine, phantom.start, next(phantom.batches(size, 1)), total_of)
    assert {total.sums[key].shape for key in ("loss", "error", "counts")} == {(1,)}
    assert {total.sums[key].dtype for key in ("loss", "error", "counts")} == {np.dtype(np.float64)}


@ALL
def test_positions_are_found(name):
    phantom = Phantom()
    moved = np.random.default_rng(3).uniform(-0.3, 0.3, phantom.positions.shape)
    moved -= moved.mean(axis=0)
    phantom.start.positions = phantom.positions + moved
    chosen = noise_free(name) | {"refine": {"positions": {"max_move_angstrom": 0.5}}, "probe_start": 999}
    state, _ = reconstruct(phantom, name, 25 * SLOWER.get(name, 1), **chosen)
    left = state.positions - phantom.positions
    # Half a pixel of errors at the start; what is left is what the object's own shift and scale can hide
    assert np.std(left) < 0.5 * np.std(moved)
    assert np.abs(state.positions - phantom.positions - moved).max() <= 0.5
    np.testing.assert_allclose((left - moved).mean(axis=0), 0, atol=1e-9)


@ALL
@pytest.mark.parametrize(
    ("constraint", "fits"), [("phase_only", lambda a: abs(a - 1)), ("amplitude_bound", lambda a: a - 1)]
)
def test_constraints_hold(name, constraint, fits):
    state, _ = reconstruct(Phantom(slices_of(name, 2)), name, 2, object_constraint=constraint, probe_start=100)
    assert fits(np.abs(state.obj)).max() < 1e-5


@PROBE
def test_a_constraint_sets_the_scale(name):
    """The probe starts with 0.8 of the true power: if it got that back each sweep, |O| = 1 could not hold."""
    phantom = Phantom()
    phantom.start.probe *= np.float32(np.sqrt(0.8))
    state, errors = reconstruct(phantom, name, 8, object_constraint="phase_only", probe_start=1)
    seen = np.abs(state.obj)[0, 16:-16, 16:-16]
    # Single precision
    assert np.abs(seen - 1).max() < 1e-5
    power = np.sum(np.abs(state.probe) ** 2) / np.sum(np.abs(phantom.truth.probe) ** 2)
    assert power == pytest.approx(1, abs=0.01)
    assert errors[-1] < errors[0] / 3


def test_unknown_engines_are_refused():
    with pytest.raises(ConfigError, match="engine"):
        engine_class("magic")


@ALL
def test_gauges_change_no_pattern(name):
    """Two slices share the probe's missing power; mixed modes are turned. Single precision to 1e-4 of the largest."""
    phantom = Phantom(slices_of(name, 2), 2)
    engine, state = build(phantom, name, probe_start=0), phantom.start
    mixed = np.array([[0.8, 0.6], [-0.6, 0.8]], np.float32)
    state.probe = np.tensordot(mixed, state.probe, axes=1) * np.float32(1.3)
    before = phantom.model.simulate(state, np.arange(5))
    engine.finish_iteration(state)
    after = phantom.model.simulate(state, np.arange(5))
    np.testing.assert_allclose(after, before, atol=1e-4 * before.max())


@pytest.mark.parametrize(
    ("name", "options"), [("gradient", {}), ("gradient", {"method": "adam"}), ("lsqml", {"momentum": 0.5})]
)
def test_round_off_is_no_light(name, options):
    """Where a probe ends, weights are zero or some 1e-32 of the peak by chance: neither moves a momentum."""
    found = []
    for faint in (0.0, 1e-31):
        phantom = Phantom(precision="double")
        engine = build(phantom, name, probe_start=9, **options)
        sweep(engine, phantom.start, phantom.batches(16, 0))

        def dimmed(partial, peaks, faint=faint):
            total = total_of(partial, peaks)
            if "illumination" in total.fields:
                light, gradient = (total.fields[key].values for key in ("illumination", "object_gradient"))
                light[:, 10:20], gradient[:, 10:20] = faint * light.max(), np.sqrt(faint) * gradient[:, 10:20]
            return total

        visit(engine, phantom.start, next(phantom.batches(16, 1)), dimmed)
        found.append(phantom.start.obj)
    assert np.abs(found[0] - found[1]).max() < 1e-14


@pytest.mark.parametrize(("name", "options"), [("gradient", {}), ("lsqml", {"momentum": 0.5}), ("mpie", {})])
def test_momenta_turn_with_the_modes(name, options):
    phantom = Phantom(1, 2)
    engine, state = build(phantom, name, probe_start=0, **options), phantom.start
    mixed = np.array([[0.8, 0.6], [-0.6, 0.8]], np.float32)
    state.probe = np.tensordot(mixed, state.probe, axes=1)
    state.memory["probe_velocity"] = state.probe.copy()
    engine.finish_iteration(state)
    # Single precision
    np.testing.assert_allclose(state.memory["probe_velocity"], state.probe, atol=1e-4 * np.abs(state.probe).max())


def test_the_probe_of_the_gradient_engine_has_momentum():
    """The same gradient twice: v = u, then μu + u, so the steps u + μv are as 1 + μ and 1 + μ + μ²."""
    phantom = Phantom()
    engine = build(phantom, "gradient", probe_start=0, momentum=0.5)
    total = total_of(engine.accumulate("update", phantom.start, next(phantom.batches(16, 1))), ("illumination",))
    probes = [phantom.start.probe.copy()]
    for _ in range(2):
        engine.apply("update", phantom.start, total)
        probes.append(phantom.start.probe.copy())
    first, second = (np.linalg.norm(b - a) for a, b in zip(probes, probes[1:]))
    assert second / first == pytest.approx(1.75 / 1.5, rel=1e-3)


@pytest.mark.parametrize("n_updates", [1, 4])
def test_adam_corrects_the_bias_of_its_young_means(n_updates):
    """The same gradient n times: both means, corrected, are those of that gradient, so each step has full length."""
    phantom = Phantom(precision="double")
    engine = build(phantom, "gradient", probe_start=9, method="adam", object_step=0.02)
    total = total_of(engine.accumulate("update", phantom.start, next(phantom.batches(16, 1))), ("illumination",))
    for _ in range(n_updates):
        before = phantom.start.obj.copy()
        engine.apply("update", phantom.start, total)
    gradient = np.abs(total.fields["object_gradient"].values)
    moved = np.abs(phantom.start.obj - before)[(slice(None), *total.fields["object_gradient"].box.slices(phantom.box))]
    strong = gradient > 1e-3 * gradient.max()
    assert strong.sum() > 1000
    np.testing.assert_allclose(moved[strong], 0.02, rtol=1e-4)


def test_positions_move_alike_for_both_losses():
    """Near the truth the Poisson loss is twice as curved: the least-squares shift is the same, to a few per cent."""
    moves = []
    for loss in ("amplitude", "poisson"):
        phantom = Phantom(loss=loss, precision="double", counts=1e7)
        phantom.start = phantom.truth
        phantom.start.positions = phantom.positions + np.random.default_rng(1).normal(0, 0.01, phantom.positions.shape)
        before = phantom.start.positions.copy()
        refine = {"positions": {"start_iteration": 0}}
        engine = build(phantom, "gradient", refine, probe_start=9, object_step=0.0, loss=loss)
        engine.prepare(phantom.start)
        sweep(engine, phantom.start, phantom.batches(64, 1))
        moves.append(phantom.start.positions - before)
    assert np.abs(moves[0]).max() > 1e-3
    assert np.linalg.norm(moves[1] - moves[0]) < 0.1 * np.linalg.norm(moves[0])


def test_the_scale_gauge_takes_a_varying_probe_along():
    phantom = Phantom(2)
    engine = build(phantom, "gradient", {"variable_probe": {"start_iteration": 0}}, probe_start=0)
    state = phantom.start
    state.refined["coefficients"] = np.random.default_rng(0).normal(0, 30, state.refined["coefficients"].shape)
    state.refined["coefficients"] -= state.refined["coefficients"].mean(axis=0)
    state.probe = state.probe * np.float32(1.3)
    before = phantom.model.simulate(state, np.arange(5))
    engine.finish_iteration(state)
    np.testing.assert_allclose(phantom.model.simulate(state, np.arange(5)), before, atol=1e-4 * before.max())


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("epie", {}),
        ("rpie", {}),
        ("gradient", {}),
        ("gradient", {"method": "adam"}),
        ("mpie", {"patterns_per_kick": 24}),
        ("pie", {}),
        ("wasp", {"groups": 2}),
        ("three_pie", {"wave_regularity": 0.8}),
        ("lsqml", {}),
        ("lsqml", {"momentum": 0.5}),
    ],
)
@pytest.mark.parametrize("constraint", ["none", "amplitude_bound", "phase_only"])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_gradients_on_windows_give_the_same_object(name, more, constraint, n_threads):
    """The way of one rank, without boxes, in sweeps that refine the probe; the same but for the order of sums."""
    results = []
    for windowed in (False, True):
        phantom = Phantom(2, 2, threads=n_threads if windowed else 1)
        phantom.start.windowed = windowed
        options = {"probe_start": 1, "object_constraint": constraint, **more}
        results.append(reconstruct(phantom, name, 3, batch_size=12, **options)[0])
    dense, windowed = results
    for values in ("obj", "probe"):
        wanted = getattr(dense, values)
        np.testing.assert_allclose(getattr(windowed, values), wanted, atol=1e-4 * np.abs(wanted).max())


@ALL
def test_sweeps_on_whole_pixels_see_rounded_positions(name):
    """The same as with positions on pixels; engines with waves of their own too."""
    results = []
    for whole in (False, True):
        phantom = Phantom(slices_of(name, 2), 2, precision="double")
        phantom.start.whole_pixels = whole
        if not whole:
            phantom.start.positions = phantom.grid.to_length(np.rint(phantom.grid.to_pixels(phantom.start.positions)))
        results.append(reconstruct(phantom, name, 2, probe_start=1)[0])
    for values in ("obj", "probe"):
        wanted = getattr(results[0], values)
        np.testing.assert_allclose(getattr(results[1], values), wanted, atol=1e-6 * np.abs(wanted).max())
