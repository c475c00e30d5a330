"""The plain chain on arrays of a device, by the stand-in for CuPy, against the same on NumPy's; no GPU has run it."""

from dataclasses import replace

import numpy as np
import pytest
import test_ptychography
from test_ptychography import (
    DETECTORS,
    EVERYTHING,
    FLIGHT,
    LOSS_NAMES,
    WANTED,
    case,
    near_factor,
    random_like,
    slope_terms,
)

from hpcrec.errors import ConfigError
from hpcrec.geometry.tiles import Box
from hpcrec.models import compiled, multislice, trusted, waves
from hpcrec.models.line import losses_along
from hpcrec.models.partial import Field
from hpcrec.models.placement import state_on
from hpcrec.models.responses import responses, room_to_keep
from hpcrec.models.revised import revised_gradients
from hpcrec.operators import patches
from hpcrec.operators.propagate import FarField, FreeSpaceStep, SubpixelShift

# Another library's transforms, and sums in another order (chunks). Double precision tells the arithmetic apart from
# round-off; in single precision weights of dark pixels, (I₀+ε)/(I+ε), raise the transforms' 3e-7 by some ten times
TOLERANCE = {"single": 1e-5, "double": 1e-12}
ON_DEVICE = ("obj", "illumination", "probe", "object_weight")
CASES = pytest.mark.parametrize(
    ("n_slices", "n_modes", "loss", "masked", "more"),
    [
        *((n_slices, 1, loss, n_slices == 3, {}) for n_slices in (1, 3) for loss in LOSS_NAMES),
        (1, 2, "poisson", True, {"more": EVERYTHING}),
        (3, 2, "gaussian", True, {"more": EVERYTHING, "n_states": 2, "flight": FLIGHT}),
        *((3, 2, "amplitude", True, {"more": EVERYTHING[:-1], **DETECTORS[name]}) for name in sorted(DETECTORS)),
    ],
)


def twins(cupy, precision, *arguments, **more):
    """A model, a state on the host and the same on the device, and the batch on the host."""
    if "propagator" in more:
        more = more | {"propagator": near_factor()}
    model, state, batch = case(*arguments, precision=precision, kernel="array", **more)
    if precision == "single":
        state.obj, state.probe = state.obj.astype(np.complex64), state.probe.astype(np.complex64)
    return model, state, state_on(cupy, state), batch


def assert_close(found, wanted, name, precision, scale=None):
    """Relative to the largest value, or to what ``scale`` says."""
    scale = np.abs(wanted).max() if scale is None else scale
    assert np.min(scale) > 0, name
    assert found.dtype == wanted.dtype, name
    assert np.all(np.abs(found - wanted) <= TOLERANCE[precision] * scale), name


@pytest.mark.parametrize("precision", ["single", "double"])
@CASES
def test_gradients_are_those_of_the_host(cupy, precision, n_slices, n_modes, loss, masked, more):
    model, state, there, batch = twins(cupy, precision, n_slices, n_modes, loss, masked, **more)
    good = np.random.default_rng(3).random(batch.patterns.shape) > 0.1
    for seen in (batch, replace(batch, good=good)):
        wanted, found = (model.gradients(s, seen, WANTED) for s in (state, there))
        assert found.box == wanted.box
        for name in ON_DEVICE:
            assert isinstance(getattr(found, name), cupy.ndarray), name
            assert_close(getattr(found, name).get(), getattr(wanted, name), name, precision)
        assert found.of_patterns.keys() == wanted.of_patterns.keys()
        for name, values in wanted.of_patterns.items():
            assert isinstance(found.of_patterns[name], np.ndarray), name
            terms = slope_terms(model, state, seen) if name == "intensity" else None
            assert_close(found.of_patterns[name], values, name, precision, terms)
        assert found.added.keys() == wanted.added.keys()
        for name, values in wanted.added.items():
            on_device = name.startswith("background") or name == "variation"
            assert isinstance(found.added[name], cupy.ndarray) == on_device, name
            assert_close(found.added[name].get() if on_device else found.added[name], values, name, precision)
        for name in ("loss", "error", "counts"):
            assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=TOLERANCE[precision]), name


@pytest.mark.parametrize("precision", ["single", "double"])
@CASES
def test_intensities_and_responses_are_those_of_the_host(cupy, precision, n_slices, n_modes, loss, masked, more):
    model, state, there, batch = twins(cupy, precision, n_slices, n_modes, loss, masked, **more)
    wanted, found = (model.simulate(s, batch.indices) for s in (state, there))
    assert_close(found.get(), wanted, "intensities", precision)
    np.testing.assert_allclose(
        model.pattern_errors(there, batch), model.pattern_errors(state, batch), rtol=TOLERANCE[precision]
    )
    rng = np.random.default_rng(12)
    change, probe = random_like(state.obj, rng).astype(model.dtype), random_like(state.probe, rng).astype(model.dtype)
    assert room_to_keep(model, there, 5) is None
    wanted = responses(model, state, batch, Field(state.box, change), probe)
    found = responses(model, there, batch, Field(state.box, cupy.asarray(change)), cupy.asarray(probe))
    assert isinstance(found, np.ndarray)
    a, b = np.sqrt(wanted[:, 0]), np.sqrt(wanted[:, 2])
    chi = np.abs(wanted[:, 3:] / np.stack([a, b], axis=1)).max()
    scales = np.stack([a * a, a * b, b * b, a * chi, b * chi], axis=1)
    assert np.all(np.abs(found - wanted) <= TOLERANCE[precision] * scales)
    steps = [0.0, 0.1]
    wanted = losses_along(model, state, batch, change, probe, steps)
    found = losses_along(model, there, batch, cupy.asarray(change), cupy.asarray(probe), steps)
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCE[precision])


def test_whole_pixels_and_revised_waves_too(cupy):
    model, state, there, batch = twins(cupy, "double", 3, 2, "poisson", True, n_states=2, flight=FLIGHT)
    for found, wanted in (
        [model.gradients(replace(s, whole_pixels=True), batch, ("probe",)) for s in (there, state)],
        [revised_gradients(model, s, batch, 0.8, 0.7) for s in (there, state)],
    ):
        for name in ON_DEVICE:
            assert_close(getattr(found, name).get(), getattr(wanted, name), name, "double")


@pytest.mark.parametrize("precision", ["single", "double"])
@pytest.mark.parametrize(
    ("n_modes", "more"),
    [
        (1, {}),
        (2, {"more": EVERYTHING, "n_states": 2, "flight": FLIGHT}),
        *((2, {"more": EVERYTHING[:-1], **DETECTORS[name]}) for name in sorted(DETECTORS)),
    ],
)
def test_exit_waves_and_projections_are_those_of_the_host(cupy, precision, n_modes, more):
    model, state, there, batch = twins(cupy, precision, 1, n_modes, "amplitude", True, **more)
    seen = replace(batch, good=np.random.default_rng(3).random(batch.patterns.shape) > 0.1)
    wanted, found = (waves.exit_waves(model, s, batch.indices) for s in (state, there))
    old = wanted * (1 + 0.1 * random_like(wanted, np.random.default_rng(4))).astype(wanted.dtype)
    numbers = (0.3, 0.6, 1.7)
    pairs = [(found, wanted, "exit waves")]
    for share in (0.0, 0.75):
        new, beside = (
            waves.stepped_waves(model, s, seen, o, numbers, share)
            for s, o in ((state, old), (there, cupy.asarray(old)))
        )
        pairs.append((beside, new, "step"))
    for one in (waves.overlap_object, waves.overlap_probe):
        host, device = one(model, state, batch.indices, old), one(model, there, batch.indices, cupy.asarray(old))
        if one is waves.overlap_object:
            assert [field.box for field in device] == [field.box for field in host]
            host, device = ([field.values for field in fields] for fields in (host, device))
        pairs += [(b, a, one.__name__) for a, b in zip(host, device)]
    for b, a, name in pairs:
        assert isinstance(b, cupy.ndarray), name
        assert_close(b.get(), a, name, precision)


def test_a_batch_waits_for_the_device_once(cupy, monkeypatch):
    """What comes back is the loss, error and counts together; of responses these and all products."""
    model, _, there, batch = twins(cupy, "double", 3, 2)
    copies, get = [], cupy.ndarray.get
    monkeypatch.setattr(cupy.ndarray, "get", lambda a: copies.append(a.shape) or get(a))
    model.gradients(there, batch, ("probe",))
    assert copies == [(3,)]
    change = Field(there.box, cupy.zeros_like(there.obj))
    responses(model, there, batch, change, there.probe)
    assert copies[1:] == [(3,), (len(batch.indices), 5)]
    losses_along(model, there, batch, change.values, there.probe, [0.0, 0.1, 0.2])
    assert copies[3:] == [(3,)]


def test_fields_of_a_device_add_up(cupy):
    rng = np.random.default_rng(4)
    parts = [Field(Box(y, y + 4, x, x + 5), rng.random((2, 4, 5))) for y, x in ((0, 0), (2, 3))]
    wanted = parts[0] + parts[1]
    found = Field(parts[0].box, cupy.asarray(parts[0].values)) + Field(parts[1].box, cupy.asarray(parts[1].values))
    assert found.box == wanted.box
    np.testing.assert_array_equal(found.values.get(), wanted.values)


def test_chunks_of_a_device_add_up(cupy, monkeypatch):
    model, state, there, batch = twins(cupy, "double", 2, 2, more=EVERYTHING)
    wanted = model.gradients(there, batch, WANTED)
    monkeypatch.setattr(multislice, "_DEVICE_CHUNK_BYTES", 1)
    monkeypatch.setattr(patches, "_DEVICE_CHUNK_BYTES", 1)
    found = model.gradients(there, batch, WANTED)
    assert_close(found.obj.get(), wanted.obj.get(), "obj", "double")
    assert_close(found.object_weight.get(), wanted.object_weight.get(), "object_weight", "double")
    for name, values in wanted.of_patterns.items():
        assert_close(found.of_patterns[name], values, name, "double")


def test_auto_takes_array_code_where_no_kernel_can_be_compiled(cupy):
    model, state, batch = case(2, 1, precision="single", kernel="auto")
    there = state_on(cupy, state)
    assert model.code(there) is trusted
    assert model.code(state) is compiled
    wanted = case(2, 1, precision="single", kernel="array")[0].gradients(state, batch, ("probe",))
    found = model.gradients(there, batch, ("probe",), windowed=True)
    assert found.windows is None
    assert_close(found.obj.get(), wanted.obj, "obj", "single")
    on_host, _, _ = case(2, 1, precision="single", kernel="compiled")
    with pytest.raises(ConfigError, match="GPU"):
        on_host.simulate(there, np.arange(2))


def test_an_empty_share_is_legal(cupy):
    model, _, there, batch = twins(cupy, "single", 2, 2)
    found = model.gradients(there, type(batch)(np.arange(0), batch.patterns[:0]), WANTED)
    assert not found.probe.get().any()
    assert model.simulate(there, np.arange(0)).shape == (0, *test_ptychography.SHAPE)


def test_counts_of_a_file_in_another_byte_order(cupy):
    model, state, there, batch = twins(cupy, "double", 1, 1)
    swapped = type(batch)(batch.indices, batch.patterns.astype(">u2"))
    assert model.gradients(there, swapped).loss == model.gradients(there, batch).loss


def test_a_state_comes_back_as_it_went(cupy):
    _, state, there, _ = twins(cupy, "double", 2, 2, more=EVERYTHING)
    back = state_on(np, there)
    for name in ("obj", "probe", "positions"):
        np.testing.assert_array_equal(getattr(back, name), getattr(state, name))
    for name, values in state.refined.items():
        np.testing.assert_array_equal(back.refined[name], values)
        assert isinstance(there.refined[name], cupy.ndarray) == (name in ("variation", "background"))


@pytest.mark.parametrize("kind", [patches.Patches, SubpixelShift, FreeSpaceStep, FarField])
def test_operators_and_their_adjoints(cupy, kind):
    operator, rng = kind.example(), np.random.default_rng(5)
    for call, shape in ((operator.apply, operator.domain), (operator.adjoint, operator.range)):
        a = random_like(np.empty(shape), rng)
        np.testing.assert_allclose(call(cupy.asarray(a)).get(), call(a), rtol=0, atol=1e-13)
