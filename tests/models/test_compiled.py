"""The compiled chain against its plain twin."""

from dataclasses import replace

import numpy as np
import pytest
import test_ptychography
from test_ptychography import (
    DETECTORS,
    EVERYTHING,
    FLIGHT,
    SAMPLING,
    WANTED,
    case,
    random_like,
    slope_terms,
    weights_and_powers,
)

from hpcrec.backend.kernels.transforms import known_size
from hpcrec.backend.threads import Threads
from hpcrec.errors import ConfigError
from hpcrec.geometry.tiles import Box
from hpcrec.models import compiled, refined
from hpcrec.models.line import losses_along
from hpcrec.models.partial import Field
from hpcrec.models.responses import responses, room_to_keep
from hpcrec.models.revised import revised_gradients
from hpcrec.physics.propagation import propagation_rate, tilted_factor

# Sums of some thousand terms in single precision, in another order
TOLERANCE = 1e-5


@pytest.fixture(params=[(16, 18), (32, 48)], autouse=True)
def window(request, monkeypatch):
    """A window that only FFTW transforms, and one of hpcrec's own."""
    monkeypatch.setattr(test_ptychography, "SHAPE", request.param)
    own = request.param == (32, 48)
    assert all(map(known_size, request.param)) == own
    return own


CASES = pytest.mark.parametrize(
    ("n_slices", "n_modes", "loss", "masked", "more"),
    [
        (1, 1, "amplitude", False, {}),
        (1, 2, "poisson", True, {}),
        (3, 1, "poisson", False, {}),
        (3, 2, "amplitude", True, {}),
        (2, 2, "gaussian", True, {"more": EVERYTHING, "n_states": 2, "flight": FLIGHT}),
        (3, 1, "anscombe", False, {"more": EVERYTHING[:-2], **DETECTORS["near"]}),
        (1, 1, "amplitude", False, {"n_states": 2, "flight": FLIGHT, **DETECTORS["near"]}),
        (1, 2, "amplitude", True, {"more": EVERYTHING, **DETECTORS["saturated"]}),
    ],
)


def twins(*arguments, precision="single", **more):
    """The same case for both kernels, on the same counts and on values that single precision holds."""
    if "propagator" in more:
        more = more | {"propagator": test_ptychography.near_factor()}
    plain, _, _ = case(*arguments, precision=precision, kernel="array", **more)
    fast, state, batch = case(*arguments, precision="single", kernel="compiled", **more)
    state.obj, state.probe = (a.astype(np.complex64).astype(a.dtype) for a in (state.obj, state.probe))
    return plain, fast, state, batch


def assert_close(found, wanted, name, scale=None):
    """To 1e-5 of the largest value, or of what ``scale`` says."""
    scale = np.abs(wanted).max() if scale is None else scale
    assert np.min(scale) > 0, name
    assert np.all(np.abs(found - wanted) <= TOLERANCE * scale), name


def assert_gradients_close(found, wanted, terms):
    """Every sum to 1e-5; ``terms``: scales of those that are small differences of large sums."""
    assert found.box == wanted.box
    for name in ("obj", "illumination", "probe", "object_weight"):
        assert_close(getattr(found, name), getattr(wanted, name), name)
    for group in ("of_patterns", "added"):
        assert getattr(found, group).keys() == getattr(wanted, group).keys()
        for name, values in getattr(wanted, group).items():
            assert_close(getattr(found, group)[name], values, name, terms.get(name))
    for name in ("loss", "error", "counts"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=TOLERANCE), name


def assert_terms_close(found, wanted):
    """Products u·v, which may cancel, relative to |u||v|; of χ its largest part along a direction takes part."""
    a, b = np.sqrt(wanted[:, 0]), np.sqrt(wanted[:, 2])
    chi = np.abs(wanted[:, 3:] / np.maximum(np.stack([a, b], axis=1), 1e-30)).max()
    scales = np.stack([a * a, a * b, b * b, a * chi, b * chi], axis=1)
    assert scales[:, [0, 3]].min() > 0
    assert np.all(np.abs(found - wanted) <= TOLERANCE * scales)


@CASES
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("bad", [False, True])
def test_gradients_agree(n_slices, n_modes, loss, masked, more, whole, bad):
    """Against the plain chain in double precision; with pixels of single patterns that are bad too."""
    plain, fast, state, batch = twins(n_slices, n_modes, loss, masked, precision="double", **more)
    state.whole_pixels = whole
    if bad:
        batch = replace(batch, good=np.random.default_rng(6).random(batch.patterns.shape) > 0.1)
    chosen = [name for name in WANTED if name != "positions" or not whole]
    wanted, found = (model.gradients(state, batch, chosen) for model in (plain, fast))
    assert_gradients_close(found, wanted, {"intensity": slope_terms(plain, state, batch)})


def test_position_weights_agree(monkeypatch):
    """The compiled sums against the plain ones, on the same single-precision chain."""
    _, fast, state, batch = twins(3, 2, n_states=2, flight=FLIGHT)
    found = fast.gradients(state, batch, ("positions",)).of_patterns["positions_weight"]
    monkeypatch.setattr(refined, "position_weight", refined.plain_position_weight)
    wanted = fast.gradients(state, batch, ("positions",)).of_patterns["positions_weight"]
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCE)


@pytest.mark.parametrize("more", [{}, {"n_states": 2, "flight": FLIGHT}])
def test_weights_of_the_probe_agree(monkeypatch, more):
    """Every chain on the host takes the compiled sum: its twin is asked here."""
    _, fast, state, batch = twins(2, 1, **more)
    found = fast.gradients(state, batch, ("probe",)).object_weight
    monkeypatch.setattr("hpcrec.models.ptychography.object_weight", refined.plain_object_weight)
    assert_close(found, fast.gradients(state, batch, ("probe",)).object_weight, "object_weight")


@CASES
def test_responses_agree(n_slices, n_modes, loss, masked, more):
    plain, fast, state, batch = twins(n_slices, n_modes, loss, masked, precision="double", **more)
    rng = np.random.default_rng(12)
    change = Field(state.box, random_like(state.obj, rng))
    for probe_change in (random_like(state.probe, rng), np.zeros_like(state.probe)):
        wanted, found = (responses(model, state, batch, change, probe_change) for model in (plain, fast))
        assert_terms_close(found, wanted)


@CASES
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_responses_from_kept_waves_agree(n_slices, n_modes, loss, masked, more, whole, n_threads):
    """Exit waves give what far fields give, and keeping them changes no gradient."""
    plain, fast, state, batch = twins(n_slices, n_modes, loss, masked, precision="double", **more)
    fast.threads = Threads(n_threads)
    state.whole_pixels = whole
    kept = room_to_keep(fast, state, len(batch.indices))
    if fast.detector.propagator is not None:
        assert kept is None
        return
    wanted, found = fast.gradients(state, batch, ("probe",)), fast.gradients(state, batch, ("probe",), kept=kept)
    np.testing.assert_array_equal(found.obj, wanted.obj)
    np.testing.assert_array_equal(found.probe, wanted.probe)
    assert room_to_keep(fast, state, len(batch.indices) - 1, kept) is kept
    rng = np.random.default_rng(12)
    box = Box(state.box.y0, state.box.y1, state.box.x0 + 1, state.box.x1)
    box = box if box.contains(found.box) else state.box
    change = Field(box, random_like(np.empty((len(state.obj), *box.shape)), rng))
    for probe_change in (random_like(state.probe, rng), np.zeros_like(state.probe)):
        expected = responses(plain, state, batch, change, probe_change)
        assert_terms_close(responses(fast, state, batch, change, probe_change, kept), expected)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("more", [{}, {"more": EVERYTHING, "n_states": 2, "flight": FLIGHT}, DETECTORS["near"]])
@pytest.mark.parametrize("loss", ["amplitude", "poisson"])
@pytest.mark.parametrize("whole", [False, True])
def test_revised_gradients_agree(more, n_threads, loss, whole):
    """The waves of 3PIE between slices, of objects that also absorb."""
    plain, fast, state, batch = twins(3, 2, loss, True, precision="double", **more)
    fast.threads, state.whole_pixels = Threads(n_threads), whole
    batch = replace(batch, good=np.random.default_rng(6).random(batch.patterns.shape) > 0.1)
    state.obj = state.obj * np.random.default_rng(5).uniform(0.7, 1, state.obj.shape)
    wanted, found = (revised_gradients(model, state, batch, 0.8, 0.7) for model in (plain, fast))
    assert found.box == wanted.box
    for name in ("obj", "illumination", "probe", "object_weight"):
        assert_close(getattr(found, name), getattr(wanted, name), name)
    assert found.loss == pytest.approx(wanted.loss, rel=TOLERANCE)
    exact = fast.gradients(state, batch, ("probe",))
    assert np.abs(found.obj - exact.obj).max() > 0.05 * np.abs(exact.obj).max()


def test_more_waves_than_fit_are_not_kept(monkeypatch):
    _, fast, state, batch = twins(2, 2)
    assert room_to_keep(fast, state, len(batch.indices)) is not None
    monkeypatch.setattr("hpcrec.models.responses.KEPT_BYTES", 5 * 2 * 3 * 16 * 18 * 8 - 1)
    assert room_to_keep(fast, state, len(batch.indices)) is None


@CASES
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_losses_along_a_line_agree(n_slices, n_modes, loss, masked, more, whole, n_threads):
    """Relative to each loss, a sum of terms that are not negative; pixels of single patterns are bad too."""
    plain, fast, state, batch = twins(n_slices, n_modes, loss, masked, precision="double", **more)
    fast.threads, state.whole_pixels = Threads(n_threads), whole
    rng = np.random.default_rng(12)
    good = rng.random(batch.patterns.shape) > 0.1
    changes = 0.1 * random_like(state.obj, rng), 3 * random_like(state.probe, rng)
    for chosen in (batch, replace(batch, good=good)):
        wanted, found = (losses_along(model, state, chosen, *changes, [0.0, 0.3, 1.0]) for model in (plain, fast))
        assert len(set(wanted)) == 3
        np.testing.assert_allclose(found, wanted, rtol=TOLERANCE)


@CASES
def test_intensities_agree(n_slices, n_modes, loss, masked, more):
    plain, fast, state, _ = twins(n_slices, n_modes, loss, masked, precision="double", **more)
    assert_close(fast.simulate(state, np.arange(5)), plain.simulate(state, np.arange(5)), "intensities")


@pytest.mark.parametrize("loss", ["amplitude", "poisson", "gaussian"])
@pytest.mark.parametrize(("n_modes", "more"), [(1, ()), (2, ()), (2, ("intensity",))])
def test_errors_of_bright_patterns_agree(loss, n_modes, more):
    """Counts of 10⁴ that fit within their noise: Σ(√Î − √I)² is a small part of Σ Î + I."""
    plain, fast, state, batch = twins(1, n_modes, loss, precision="double", more=more)
    state.probe = (30 * state.probe).astype(np.complex64).astype(complex)
    counts = np.random.default_rng(3).poisson(plain.simulate(state, batch.indices)).astype(np.float32)
    assert counts.max() > 5000
    wanted, found = (model.gradients(state, replace(batch, patterns=counts)) for model in (plain, fast))
    assert wanted.error < 0.01 * wanted.counts
    assert found.error == pytest.approx(wanted.error, rel=TOLERANCE)


def test_a_large_window_agrees(monkeypatch):
    """Sums over 65536 pixels in single precision; the window of each pattern is one of many, as in a run."""
    monkeypatch.setattr(test_ptychography, "SHAPE", (256, 256))
    more = ("variation", "coefficients", "intensity", "background")
    plain, fast, state, batch = twins(1, 2, "poisson", True, precision="double", more=more)
    wanted, found = (model.gradients(state, batch, WANTED) for model in (plain, fast))
    weight, power = weights_and_powers(plain, state, batch)
    # A coefficient's slope is 2 Re Σ G* U, and |G| ≤ c max|O| |w Ψ|
    far = state.refined["intensity"] * np.sqrt(np.sum(weight**2 * power, axis=(1, 2))) * np.abs(state.obj).max()
    sizes = np.linalg.norm(state.refined["variation"], axis=(1, 2))
    terms = {"intensity": slope_terms(plain, state, batch), "coefficients": 2 * far[:, None] * sizes}
    assert_gradients_close(found, wanted, terms)
    change, rng = Field(state.box, random_like(state.obj, np.random.default_rng(1))), np.random.default_rng(2)
    probe_change = random_like(state.probe, rng)
    wanted, found = (responses(model, state, batch, change, probe_change) for model in (plain, fast))
    assert_terms_close(found, wanted)
    wanted, found = (losses_along(m, state, batch, change.values, probe_change, [0.0, 0.1]) for m in (plain, fast))
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCE)


def test_an_empty_share_is_legal():
    _, fast, state, batch = twins(2, 2)
    empty = type(batch)(np.arange(0), batch.patterns[:0])
    assert not fast.gradients(state, empty, WANTED).probe.any()


def test_bad_pixels_may_hold_anything():
    for model, state, batch in (case(1, 1, "amplitude", True, kernel=k, precision="single") for k in ("array", "auto")):
        wanted = model.gradients(state, batch)
        bad = np.random.default_rng(7)
        mask = model.detector.mask
        spoiled = np.where(mask, batch.patterns, np.where(bad.random(mask.shape) < 0.5, np.nan, -1e30)).astype(
            np.float32
        )
        found = model.gradients(state, type(batch)(batch.indices, spoiled))
        np.testing.assert_array_equal(found.obj, wanted.obj)
        assert found.error == wanted.error


def test_the_compiled_kernel_is_single_precision():
    with pytest.raises(ConfigError, match="single precision"):
        case(1, 1, precision="double", kernel="compiled")


@pytest.mark.parametrize("more", [{}, {"more": EVERYTHING, "n_states": 2, "flight": FLIGHT}, DETECTORS["near"]])
def test_whole_pixels_agree(more):
    """Without shifts the probe passes no transform: the same answers as its plain twin, in double precision."""
    plain, fast, state, batch = twins(2, 2, "amplitude", True, precision="double", **more)
    state.whole_pixels = True
    change, probe_change = Field(state.box, random_like(state.obj, np.random.default_rng(1))), 0.3j * state.probe
    wanted, found = (responses(model, state, batch, change, probe_change) for model in (plain, fast))
    assert_terms_close(found, wanted)
    assert_close(fast.simulate(state, np.arange(5)), plain.simulate(state, np.arange(5)), "intensities")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.dtype(">u2"), np.float32, np.float64])
def test_counts_come_in_any_type(dtype):
    _, fast, state, batch = twins(1, 1)
    found = fast.gradients(state, type(batch)(batch.indices, np.minimum(batch.patterns, 255).astype(dtype)))
    wanted = fast.gradients(state, type(batch)(batch.indices, np.minimum(batch.patterns, 255).astype(np.float32)))
    np.testing.assert_array_equal(found.obj, wanted.obj)
    assert found.counts == wanted.counts


@pytest.mark.parametrize("n_threads", [2, 3, 8])
@pytest.mark.parametrize("more", [{}, {"more": EVERYTHING, "n_states": 2, "flight": FLIGHT}])
def test_threads_change_nothing(n_threads, more):
    """More threads than patterns too; what belongs to single patterns keeps its order."""
    one, state, batch = case(2, 2, "poisson", True, precision="single", kernel="compiled", **more)
    many, _, _ = case(2, 2, "poisson", True, precision="single", kernel="compiled", threads=n_threads, **more)
    wanted, found = (model.gradients(state, batch, WANTED) for model in (one, many))
    assert_gradients_close(found, wanted, {"intensity": slope_terms(one, state, batch)})
    change = Field(state.box, random_like(state.obj, np.random.default_rng(1)))
    wanted, found = (responses(model, state, batch, change, 0.1j * state.probe) for model in (one, many))
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCE)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_windows_hold_the_gradient_and_are_cleared(n_threads):
    model, state, batch = case(2, 1, precision="single", kernel="compiled", threads=n_threads)
    wanted = model.gradients(state, batch)
    state.obj = state.obj.astype(np.complex64)
    for _ in range(2):
        lent = model.gradients(state, batch, windowed=True)
        assert lent.obj.size == lent.illumination.size == 0
        windows = lent.windows
        inside = (slice(None), *wanted.box.slices(state.box))
        assert_close(windows.obj.sum(axis=0)[inside], wanted.obj, "obj")
        assert windows.peak() == pytest.approx(wanted.illumination.max(), rel=TOLERANCE)
        assert_close(windows.illumination.sum(axis=0)[inside], wanted.illumination, "illumination")
        moved = np.ones_like(state.obj)
        windows.step(moved, share=0.0, floor=1e6, scale=-0.5e6)
        change = np.zeros_like(moved)
        change[inside] = np.where(wanted.illumination > 0, -0.5 * wanted.obj, 0)
        assert_close(moved - 1, change, "step")
        assert not windows.obj.any()
        assert not windows.illumination.any()


@pytest.mark.parametrize("options", [{}, {"more": ("thickness",)}, {"band_limit": 0.6}, {"propagation": "exact"}])
def test_gaps_are_crossed_there_and_back(options):
    """Of one thickness, and each of its own."""
    plain, fast, state, batch = twins(4, 2, **options)
    wanted, found = (model.gradients(state, batch, ("probe",)) for model in (plain, fast))
    for name in ("obj", "illumination", "probe"):
        assert_close(getattr(found, name), getattr(wanted, name), name)


@pytest.mark.parametrize("options", [{}, {"band_limit": 0.6}, {"propagation": "exact"}])
def test_gaps_have_factors_along_each_axis_where_they_can(options, window):
    """Not where the factor is no product of two, nor where only FFTW knows the size."""
    rate = propagation_rate(test_ptychography.SHAPE, SAMPLING, 0.3, options.get("propagation", "fresnel"))
    factors = np.stack([tilted_factor(rate, SAMPLING, d, (0.01, 0.02), options.get("band_limit")) for d in (3.0, 5.0)])
    whole, axes = compiled.gaps_of(factors)
    assert len(whole) == 2
    assert len(axes) == (2 if window and "propagation" not in options else 0)
