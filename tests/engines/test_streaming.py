"""Sweeps in compiled calls of many batches against the loop over batches."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from phantom import SAMPLING, SHAPE, WAVELENGTH, Phantom, phase_error, reconstruct, refinements, total_of

from hpcrec.engines import engine_class
from hpcrec.engines.base import visit
from hpcrec.models.base import Batch
from hpcrec.models.chain import Detector
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.models.stream import Block, blocks_of

# Sweeps amplify differences of round-off, sums in another order
TOLERANCE = 1e-4
NAMES = ("epie", "rpie", "gradient")
RULES = [
    ("epie", {}),
    ("rpie", {}),
    ("rpie", {"probe_regularity": 0.0}),
    ("gradient", {}),
    ("gradient", {"momentum": 0.0}),
]


def streamed(phantom, name, n_sweeps, batch_size=8, per_block=40, refine=None, **options):
    """As ``reconstruct``, in compiled calls."""
    cls, state = engine_class(name), phantom.start
    engine = cls(phantom.model, cls.Options(**options), refinements(phantom.model, refine or {}))
    engine.prepare(state)
    errors = []
    for i in range(n_sweeps):
        rule = engine.step_rule(state)
        sums = np.zeros(3)
        batches = [batch.indices for batch in phantom.batches(batch_size, i)]
        for block in blocks_of(batches, per_block):
            indices, edges = np.concatenate(block), np.cumsum([0, *map(len, block)])
            good = None if phantom.good is None else phantom.good[indices]
            part = Block(indices=indices, edges=edges, patterns=phantom.patterns, rows=indices, good=good)
            sums += phantom.model.stream(state, part, rule)
        engine.finish_iteration(state)
        errors.append(sums[1] / sums[2])
    return state, errors


def assert_same(found, wanted, tolerance=TOLERANCE):
    for states in ("memory", "object_memory"):
        assert getattr(found[0], states).keys() == getattr(wanted[0], states).keys()
        for name, values in getattr(wanted[0], states).items():
            np.testing.assert_allclose(
                getattr(found[0], states)[name], values, atol=tolerance * np.abs(values).max(), err_msg=name
            )
    for name in ("obj", "probe"):
        values = getattr(wanted[0], name)
        assert getattr(found[0], name).dtype == values.dtype
        np.testing.assert_allclose(getattr(found[0], name), values, atol=tolerance * np.abs(values).max(), err_msg=name)
    np.testing.assert_allclose(found[1], wanted[1], rtol=tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("constraint", ["none", "amplitude_bound", "phase_only"])
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_streamed_sweeps_are_those_of_the_loop(name, constraint, n_threads):
    """The first sweep leaves the probe as it is; 64 patterns make uneven batches and blocks."""
    options = {"probe_start": 1, "object_constraint": constraint}
    wanted = reconstruct(Phantom(2, 2), name, 3, batch_size=12, **options)
    found = streamed(Phantom(2, 2, threads=n_threads), name, 3, batch_size=12, **options)
    assert phase_error(found[0].obj, Phantom(2, 2).truth.obj) < 1
    assert_same(found, wanted)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("whole", [False, True])
def test_any_batch_and_whole_pixels(name, batch_size, whole):
    results = []
    for run in (reconstruct, streamed):
        phantom = Phantom(noise=True, threads=1 if run is reconstruct else 2)
        phantom.start.whole_pixels = whole
        results.append(run(phantom, name, 1, batch_size=batch_size, probe_start=0))
    # Steps of single patterns let round-off grow: single precision differs from double by 6e-4 of the gradient engine's
    # object after this sweep
    assert_same(results[1], results[0], 3e-4 if batch_size == 1 else TOLERANCE)


def complicated(dtype, threads):
    """A phantom with all that a model may know: flight, object states, near field, masks, intensities, background."""
    rng, phantom = np.random.default_rng(5), Phantom(2, 2, noise=True)
    mask = rng.random(SHAPE) > 0.05
    near = np.exp(1j * rng.uniform(-1, 1, SHAPE)).astype(np.complex64)
    detector = Detector(loss="poisson", mask=mask, saturation=300.0, propagator=near)
    flight = np.array([[-0.1, 0.0], [0.1, 0.1]])
    phantom.model = PtychographyModel(
        SHAPE, SAMPLING, WAVELENGTH, 40.0, detector=detector, flight=flight, threads=threads
    )
    phantom.good = rng.random((64, *SHAPE)) > 0.05
    phantom.patterns = phantom.patterns.astype(dtype)
    start = phantom.start
    start.n_states = 2
    start.obj = np.concatenate([start.obj, start.obj * np.exp(0.1j * rng.random(start.obj.shape))]).astype(np.complex64)
    start.refined = {
        "tilt": np.array([2e-3, -1e-3]),
        "position_tilt": rng.uniform(-1e-3, 1e-3, (64, 2)),
        "intensity": rng.uniform(0.9, 1.1, 64),
        "background": rng.uniform(0, 0.1, SHAPE),
        "variation": (0.1 * start.probe[:1]).astype(np.complex64),
        "coefficients": rng.normal(size=(64, 1)),
    }
    return phantom


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.uint16, np.float64])
def test_streams_know_what_the_model_knows(name, dtype):
    wanted = reconstruct(complicated(dtype, 1), name, 2, probe_start=0, loss="poisson")
    assert_same(streamed(complicated(dtype, 2), name, 2, probe_start=0, loss="poisson"), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_refinements_have_no_rule(name):
    """They need what single batches give, from the sweep on in which they are due."""
    phantom, cls = Phantom(), engine_class(name)
    engine = cls(phantom.model, cls.Options(), refinements(phantom.model, {"positions": {"start_iteration": 1}}))
    assert engine.step_rule(phantom.start) is not None
    phantom.start.iteration = 1
    assert engine.step_rule(phantom.start) is None


def test_blocks_hold_every_batch_once():
    batches = [np.arange(n) for n in (3, 3, 2, 9, 1)]
    blocks = blocks_of(batches, 6)
    assert [[len(batch) for batch in block] for block in blocks] == [[3, 3], [2], [9], [1]]
    assert blocks_of([], 6) == []


# Rounding of a transform, 6e-8 of the largest pixel, and of sums over some thousand terms
EXACT = 1e-5


def double(phantom, model):
    """The plain twin in double precision of a model, and a state of the same numbers."""
    detector = replace(
        model.detector,
        propagator=None if model.detector.propagator is None else model.detector.propagator.astype(complex),
    )
    twin = PtychographyModel(
        SHAPE,
        SAMPLING,
        WAVELENGTH,
        model.slice_thickness,
        detector=detector,
        flight=model.flight,
        precision="double",
        kernel="array",
    )
    state = copy.deepcopy(phantom.start)
    for values in (state.memory, state.object_memory, state.refined):
        values |= {name: a.astype(complex) for name, a in values.items() if np.iscomplexobj(a)}
    state.obj, state.probe = state.obj.astype(complex), state.probe.astype(complex)
    return twin, state


def moving(phantom):
    """Velocities as large as the steps to come, where there are any."""
    rng, state = np.random.default_rng(4), phantom.start
    for memory, like in ((state.object_memory, 0.1), (state.memory, 0.1 * np.abs(state.probe).max())):
        for name, values in memory.items():
            if name.endswith("velocity"):
                drawn = rng.standard_normal(values.shape) + 1j * rng.standard_normal(values.shape)
                memory[name] = (like * drawn).astype(np.complex64)


def one_batch(phantom, name, indices, **options):
    """States before and after the batch: as the loop over batches steps in double precision, and the stream."""
    cls = engine_class(name)
    chosen = cls.Options(probe_start=0, **options)
    cls(phantom.model, chosen).prepare(phantom.start)
    moving(phantom)
    model, state = double(phantom, phantom.model)
    before, good = copy.deepcopy(state), None if phantom.good is None else phantom.good[indices]
    engine = cls(model, chosen)
    patterns = phantom.patterns[indices]
    total = visit(engine, state, Batch(indices, patterns, n_global=len(indices), good=good), total_of)
    rule = cls(phantom.model, chosen).step_rule(phantom.start)
    edges = np.array([0, len(indices)])
    block = Block(indices=indices, edges=edges, patterns=phantom.patterns, rows=indices, good=good)
    sums = phantom.model.stream(phantom.start, block, rule)
    np.testing.assert_allclose(sums, [total.sums[key][0] for key in ("loss", "error", "counts")], rtol=EXACT)
    return before, state, phantom.start, total


def quotient_scale(engine, model, before, total, constraint):
    """What an object step s·g/W of no floor may be off by, over 1e-5: numerator and denominator to 1e-5 of their peaks.

    |du| ≤ |dg| s/W + |u| |dW|/W: dim pixels amplify the round-off of waves that are bright elsewhere. The bound by
    amplitude brings no two values further apart; that by phase divides by the amplitude.
    """
    g, weight = total.fields["object_gradient"], total.fields["illumination"].values
    step = engine.Options().object_step / (model.curvature * before.n_slices)
    scale = np.zeros(before.obj.shape)
    index = (slice(None), *g.box.slices(before.box))
    u = -step * g.values / np.where(weight > 0, weight, np.inf)
    here = (step * np.abs(g.values).max() + np.abs(u) * weight.max()) / np.where(weight > 0, weight, np.inf)
    scale[index] = here / np.abs(before.obj[index] + u) if constraint == "phase_only" else here
    return scale


def assert_steps_agree(before, wanted, found, scales=None):
    """Changes of object, probe and velocities, relative to the largest change of each or to ``scales``."""
    pairs = [(name, *(getattr(s, name) for s in (before, wanted, found))) for name in ("obj", "probe")]
    for memory in ("memory", "object_memory"):
        of_all = [getattr(s, memory) for s in (before, wanted, found)]
        assert of_all[1].keys() == of_all[2].keys()
        pairs += [(name, *(values[name] for values in of_all)) for name in of_all[1] if name.endswith("velocity")]
    assert len(pairs) in (2, 4)
    for name, start, there, here in pairs:
        assert here.dtype == np.complex64, name
        change = there - start
        assert np.abs(change).max() > 0.01 * np.abs(start).max(), name
        scale = (scales or {}).get(name, np.abs(change).max())
        assert np.all(np.abs(here - start - change) <= EXACT * scale), name


@pytest.mark.parametrize(("name", "options"), RULES)
@pytest.mark.parametrize("constraint", ["none", "amplitude_bound", "phase_only"])
@pytest.mark.parametrize(("batch_size", "n_threads"), [(1, 1), (1, 2), (12, 1), (12, 3), (64, 2)])
@pytest.mark.parametrize("whole", [False, True])
def test_a_batch_takes_the_step_of_the_loop(name, options, constraint, batch_size, n_threads, whole):
    phantom = Phantom(2, 2, threads=n_threads, noise=True)
    phantom.start.whole_pixels = whole
    rng = np.random.default_rng(6)
    phantom.start.obj *= rng.uniform(0.7, 1.2, phantom.start.obj.shape).astype(np.float32)
    indices = rng.permutation(64)[:batch_size]
    assert_steps_agree(*one_batch(phantom, name, indices, object_constraint=constraint, **options)[:3])


@pytest.mark.parametrize("constraint", ["none", "amplitude_bound", "phase_only"])
@pytest.mark.parametrize(("batch_size", "n_threads"), [(1, 2), (12, 1), (64, 3)])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("of_probe", [0.0, 1.0])
def test_a_step_without_a_floor_is_that_of_the_loop(constraint, batch_size, n_threads, whole, of_probe):
    """RPIE of regularity 0 divides by the light alone."""
    phantom = Phantom(2, 2, threads=n_threads, noise=True)
    phantom.start.whole_pixels = whole
    rng = np.random.default_rng(6)
    phantom.start.obj *= rng.uniform(0.7, 1.2, phantom.start.obj.shape).astype(np.float32)
    indices = rng.permutation(64)[:batch_size]
    options = {"object_regularity": 0.0, "probe_regularity": of_probe, "object_constraint": constraint}
    before, wanted, found, total = one_batch(phantom, "rpie", indices, **options)
    scale = quotient_scale(engine_class("rpie"), phantom.model, before, total, constraint)
    well_lit = total.fields["illumination"].values
    assert np.mean(well_lit > 0.01 * well_lit.max()) > 0.2
    assert_steps_agree(before, wanted, found, {"obj": scale})


@pytest.mark.parametrize(("name", "options"), RULES)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_batch_knows_what_the_model_knows(name, options, whole, n_threads):
    phantom = complicated(np.uint16, n_threads)
    phantom.start.whole_pixels = whole
    indices = np.random.default_rng(6).permutation(64)[:9]
    assert_steps_agree(*one_batch(phantom, name, indices, loss="poisson", **options)[:3])
