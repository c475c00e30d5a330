from dataclasses import replace

import numpy as np
import pytest

from hpcrec.backend.fft import fft2
from hpcrec.errors import ConfigError, DataError
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import EMPTY_BOX, Box
from hpcrec.models import detector
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import Detector, good_pixels
from hpcrec.models.partial import Field
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.models.responses import responses
from hpcrec.objectives.losses import LOSSES
from hpcrec.operators.patches import Patches
from hpcrec.operators.propagate import FarField, FreeSpaceStep, SubpixelShift
from hpcrec.physics.probe import aberrated_probe, orthogonal_start_modes
from hpcrec.physics.propagation import propagation_rate, tilted_factor

SHAPE, SAMPLING, WAVELENGTH, THICKNESS = (16, 18), (0.4, 0.5), 0.025, 12.0
FLIGHT = np.array([[-0.3, -0.2], [0.1, 0.0], [0.2, 0.3]])


def case(n_slices, n_modes, loss="amplitude", masked=False, more=(), n_states=1, **model_options):
    """A model, a state and counts of a state beside it. ``more`` names what of ``state.refined`` is there."""
    rng = np.random.default_rng(7)
    positions = rng.uniform(0, 4, (5, 2))
    grid = object_grid(positions, SHAPE, SAMPLING, 2)
    probe = orthogonal_start_modes(
        aberrated_probe(SHAPE, SAMPLING, WAVELENGTH, 0.02, {"C10": -60.0}), n_modes, share=0.1
    )
    obj = 0.9 * np.exp(0.3j * rng.standard_normal((n_states * n_slices, *grid.shape)))
    box = Box(0, grid.shape[0], 0, grid.shape[1])
    state = PtychographyState(obj=obj, probe=probe * 60, positions=positions, grid=grid, box=box, n_states=n_states)
    binning = model_options.pop("binning", 1)
    pattern = (SHAPE[0] // binning, SHAPE[1] // binning)
    seen = Detector(
        loss=loss,
        mask=rng.random(pattern) > 0.2 if masked else None,
        binning=binning,
        **{key: model_options.pop(key) for key in ("propagator", "blur", "saturation") if key in model_options},
    )
    options = {"precision": "double", "kernel": "array"} | model_options
    model = PtychographyModel(SHAPE, SAMPLING, WAVELENGTH, THICKNESS, detector=seen, **options)
    everything = {
        "tilt": 0.01 * rng.standard_normal(2),
        "position_tilt": 0.01 * rng.standard_normal((5, 2)),
        "thickness": THICKNESS * rng.uniform(0.8, 1.2, n_slices - 1),
        "variation": random_like(probe[:1].repeat(2, axis=0), rng),
        "coefficients": rng.standard_normal((5, 2)),
        "intensity": rng.uniform(0.8, 1.2, 5),
        "background": rng.uniform(0.1, 0.5, pattern),
    }
    state.refined = {name: everything[name] for name in more}
    moved = replace(state, positions=positions + rng.normal(0, 0.2, (5, 2)))
    patterns = rng.poisson(model.simulate(moved, np.arange(5)))
    return model, state, Batch(np.arange(5), patterns.astype(np.uint16), n_global=5)


def loss_of(model, state, batch):
    return model.gradients(state, batch).loss


def random_like(a, rng):
    return rng.standard_normal(a.shape) + 1j * rng.standard_normal(a.shape)


def weights_and_powers(model, state, batch):
    """∂L/∂Î and the power P (n, ky, kx) of the counts Î = c P + b."""
    shown = model.simulate(state, batch.indices)
    ground, factor = state.refined.get("background", 0.0), state.refined.get("intensity", np.ones(5))[:, None, None]
    good = good_pixels(model.detector, batch.patterns, batch.good)
    weight = LOSSES[model.detector.loss].evaluate(shown, batch.patterns.astype(float), good)[1]
    return weight, (shown - ground) / factor


def slope_terms(model, state, batch):
    """Σ|w P| of each pattern: its slope by the intensity, Σ w P of weights w of either sign, may cancel."""
    weight, power = weights_and_powers(model, state, batch)
    return np.sum(np.abs(weight * power), axis=(1, 2))


LOSS_NAMES = ["amplitude", "poisson", "gaussian", "anscombe"]
EVERYTHING = ("tilt", "position_tilt", "thickness", "variation", "coefficients", "intensity", "background")
WANTED = ("probe", "positions", "tilt", "thickness", "variation", "intensity", "background")


def slopes(model, state, batch, names, rng):
    """Yield name, slope by central differences, slope by the gradient, along a random direction for each name."""
    gradients = model.gradients(state, batch, WANTED)
    mine, added = gradients.of_patterns, gradients.added
    by_name = {
        "obj": gradients.obj,
        "probe": gradients.probe,
        "positions": mine["positions"],
        "variation": added.get("variation"),
        "coefficients": mine.get("coefficients"),
        "intensity": mine.get("intensity"),
        "background": added.get("background"),
        "thickness": added.get("thickness"),
        # By tan θ; with both tilts tan θ = tan θ_scan + tan θ_position, so each has its own derivative 1/cos²
        "tilt": None if "tilt" not in mine else mine["tilt"].sum(axis=0) / np.cos(state.refined.get("tilt", 0.0)) ** 2,
        "position_tilt": None
        if "tilt" not in mine
        else mine["tilt"] / np.cos(state.refined.get("position_tilt", 0)) ** 2,
    }
    steps = {"obj": 1e-5, "probe": 1e-5, "tilt": 1e-6, "position_tilt": 1e-6, "positions": 1e-6}
    for name in names:
        own = name in ("obj", "probe", "positions")
        start = getattr(state, name) if own else state.refined[name]
        change = random_like(start, rng) if np.iscomplexobj(start) else rng.standard_normal(start.shape)
        inside = change[(..., *gradients.box.slices(state.box))] if name == "obj" else change
        expected = np.vdot(by_name[name], inside).real * (2 if np.iscomplexobj(start) else 1)
        step, found = steps.get(name, 1e-5), 0.0
        for sign in (1, -1):
            moved = start + sign * step * change
            there = replace(state, **{name: moved}) if own else replace(state, refined=state.refined | {name: moved})
            found += sign * loss_of(model, there, batch) / (2 * step)
        yield name, found, expected


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", LOSS_NAMES)
@pytest.mark.parametrize(("n_slices", "n_modes"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_gradients_agree_with_finite_differences(n_slices, n_modes, loss, masked):
    model, state, batch = case(n_slices, n_modes, loss, masked)
    for name, found, expected in slopes(model, state, batch, ("obj", "probe", "positions"), np.random.default_rng(8)):
        # Central differences in double precision: round-off 1e-16 · L / step ≈ 1e-8 of the slope
        assert found == pytest.approx(expected, rel=2e-6), name


@pytest.mark.parametrize("loss", LOSS_NAMES)
@pytest.mark.parametrize("n_slices", [1, 3])
def test_what_is_refined_has_exact_gradients(n_slices, loss):
    """Each quantity beside object and probe, in each loss, with all the others there and with a mask."""
    model, state, batch = case(n_slices, 2, loss, True, EVERYTHING, flight=FLIGHT, n_states=2)
    names = ("obj", "probe", "positions", "variation", "coefficients", "intensity", "background")
    names += ("tilt", "position_tilt", "thickness") if n_slices > 1 else ()
    for name, found, expected in slopes(model, state, batch, names, np.random.default_rng(8)):
        assert found == pytest.approx(expected, rel=5e-6), name


def near_factor():
    """A detector 40 Å behind the sample, its image with the centre at [0, 0]."""
    rate = propagation_rate(SHAPE, SAMPLING, WAVELENGTH)
    ky, kx = (np.exp(2j * np.pi * np.fft.fftfreq(n) * (n // 2)) for n in SHAPE)
    return tilted_factor(rate, SAMPLING, 40.0, dtype=np.complex128) * ky[:, None] * kx


def spread_factor():
    """The transfer function of a lopsided point spread."""
    kernel = np.zeros(SHAPE)
    kernel[0, 0], kernel[0, 1], kernel[-1, 0] = 0.7, 0.2, 0.1
    return np.fft.fft2(kernel)


DETECTORS = {
    "near": {"propagator": near_factor()},
    "saturated": {"saturation": 9.0},
    "blurred": {"blur": spread_factor()},
    "binned by two": {"binning": 2},
    "exact propagation": {"propagation": "exact", "band_limit": 0.9},
}


@pytest.mark.parametrize("loss", LOSS_NAMES)
@pytest.mark.parametrize("kind", DETECTORS)
def test_gradients_are_exact_for_every_detector(kind, loss):
    model, state, batch = case(2, 2, loss, True, ("intensity", "background"), **DETECTORS[kind])
    names = ("obj", "probe", "positions", "intensity", "background")
    for name, found, expected in slopes(model, state, batch, names, np.random.default_rng(8)):
        assert found == pytest.approx(expected, rel=5e-6), name


@pytest.mark.parametrize("kernel", ["array", "compiled"])
def test_a_near_field_image_moves_with_the_sample(kernel):
    """An even beam over a blob: where the position moves by any part of a pixel, the image moves back by as much."""
    precision = "single" if kernel == "compiled" else "double"
    model, state, _ = case(1, 1, propagator=near_factor(), kernel=kernel, precision=precision)
    y, x = (np.arange(n) for n in state.grid.shape)
    blob = np.exp(-((y[:, None] - 14) ** 2 + (x - 15) ** 2) / 8)
    state = replace(state, obj=np.exp(0.5j * blob)[None], probe=np.ones((1, *SHAPE), complex))
    centres = []
    for part in (0.0, 0.3, 0.8):
        pixel = np.array([[14 + part, 15 - part]])
        image = model.simulate(replace(state, positions=state.grid.to_length(pixel)), np.arange(1))[0]
        contrast = np.abs(np.fft.fftshift(image) - 1) ** 2
        rows, columns = np.indices(SHAPE)
        centres.append([np.sum(contrast * i) / contrast.sum() for i in (rows, columns)])
    np.testing.assert_allclose(np.subtract(centres[1:], centres[0]), [[-0.3, 0.3], [-0.8, 0.8]], atol=0.02)


def test_binned_and_blurred_detectors_keep_the_counts():
    sharp = case(1, 1)[0]
    for kind in ("blurred", "binned by two"):
        model, state, _ = case(1, 1, **DETECTORS[kind])
        total, wanted = (m.simulate(state, np.arange(5)).sum(axis=(1, 2)) for m in (model, sharp))
        np.testing.assert_allclose(total, wanted, rtol=1e-12)


@pytest.mark.parametrize(("binning", "k"), [(2, 3), (2, -4), (3, 2), (3, -3)])
def test_a_detector_pixel_is_centred_on_its_frequency(binning, k):
    """Half of a pixel between two goes to each: the mean frequency stays, and so do the counts."""
    power = np.zeros((1, 24, 24))
    power[0, k, 0] = 1.0
    binned = detector._spread(Detector(binning=binning), power)[0, :, 0]
    frequencies = np.fft.fftfreq(len(binned), 1 / len(binned)) * binning
    assert binned.sum() == 1
    nearest = {2: k, 3: 3 * round(k / 3)}[binning]
    assert binned @ frequencies == nearest


def test_dark_pixels_of_a_blurred_detector_have_counts():
    """In single precision the filter leaves −1e-8 of the brightest pixel, whose root is not a number."""
    flat = np.ones((1, *SHAPE))
    model, state, batch = case(1, 1, precision="single", blur=spread_factor().astype(np.complex64))
    state = replace(state, obj=np.ones_like(state.obj), probe=1e3 * flat)
    assert model.simulate(state, np.arange(5)).min() >= 0
    found = model.gradients(state, batch, WANTED)
    assert np.isfinite([found.loss, found.error, *model.pattern_errors(state, batch)]).all()
    assert np.isfinite(found.obj).all()


@pytest.mark.parametrize("kernel", ["array", "compiled"])
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_pixels_of_a_patterns_own_mask_and_saturated_ones_do_not_count(loss, kernel):
    """Whatever a masked pixel holds, nothing changes; a saturated one is as if it were masked."""
    precision = "single" if kernel == "compiled" else "double"
    model, state, batch = case(2, 1, loss, kernel=kernel, precision=precision, saturation=9.0)
    good = np.random.default_rng(3).random(batch.patterns.shape) > 0.3
    spoiled = np.where(good, batch.patterns, 60000).astype(np.uint16)
    wanted = model.gradients(state, replace(batch, good=good), WANTED)
    counted = good & (batch.patterns < 9)
    assert counted.sum() < good.sum()
    assert wanted.counts == batch.patterns[counted].sum()
    for patterns, own in ((spoiled, good), (np.where(counted, batch.patterns, 8).astype(np.uint16), counted)):
        found = model.gradients(state, replace(batch, patterns=patterns, good=own), WANTED)
        np.testing.assert_array_equal(found.obj, wanted.obj)
        np.testing.assert_array_equal(found.probe, wanted.probe)
        assert (found.loss, found.error, found.counts) == (wanted.loss, wanted.error, wanted.counts)
        np.testing.assert_array_equal(
            model.pattern_errors(state, replace(batch, patterns=patterns, good=own)),
            model.pattern_errors(state, replace(batch, good=good)),
        )
    assert not np.allclose(wanted.obj, model.gradients(state, batch).obj)


def test_errors_of_eight_bit_counts_are_those_of_wider_ones():
    model, state, batch = case(1, 1, precision="double")
    state = replace(state, refined={"intensity": np.full(5, 0.05)})
    small = np.minimum(batch.patterns // 20, 255)
    found, wanted = (
        model.pattern_errors(state, replace(batch, patterns=small.astype(t))) for t in (np.uint8, np.float64)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_a_tilted_sample_is_a_sheared_one():
    """Columns along tan θ: the slices of the tilted object lie where the shear puts them, seen along the beam."""
    model, state, _ = case(2, 1)
    shift = 2 * SAMPLING[1]  # two pixels along x between the slices
    tilted = replace(state, refined={"tilt": np.array([0.0, np.arctan(shift / THICKNESS)])})
    moved = state.obj.copy()
    moved[1] = np.roll(state.obj[1], 2, axis=1)
    straight = replace(state, obj=moved)
    inner = np.arange(5)
    # The windows' content is periodic, the object is not: rolled pixels of the border make a small difference
    a, b = (model.simulate(s, inner) for s in (tilted, straight))
    untilted = model.simulate(state, inner)
    assert np.abs(a - b).sum() < 0.1 * np.abs(untilted - b).sum()


def test_a_tilt_of_every_position_is_a_tilt_of_the_sample():
    model, state, _ = case(3, 2)
    tilt = np.array([0.02, -0.03])
    one, each = (
        model.simulate(replace(state, refined=refined), np.arange(5))
        for refined in ({"tilt": tilt}, {"position_tilt": np.tile(tilt, (5, 1))})
    )
    np.testing.assert_allclose(each, one, rtol=1e-9)
    assert not np.allclose(one, model.simulate(state, np.arange(5)), rtol=1e-3)


def test_the_variation_is_added_to_the_first_mode():
    model, state, _ = case(2, 2, more=("variation", "coefficients"))
    found = model.simulate(state, np.arange(5))
    for j, coefficients in enumerate(state.refined["coefficients"]):
        probe = state.probe.copy()
        probe[0] += np.tensordot(coefficients, state.refined["variation"], 1)
        alone = model.simulate(replace(state, probe=probe, refined={}), np.array([j]))
        np.testing.assert_allclose(found[j], alone[0], rtol=1e-9)


def test_gaps_have_the_thickness_that_was_refined():
    model, state, _ = case(3, 1)
    thicker = PtychographyModel(SHAPE, SAMPLING, WAVELENGTH, 15.0, precision="double", kernel="array")
    refined = {"thickness": np.full(2, 15.0)}
    found = model.simulate(replace(state, refined=refined), np.arange(5))
    np.testing.assert_allclose(found, thicker.simulate(state, np.arange(5)), rtol=1e-12)
    # The factors of a gap are kept: they must not outlive a change
    np.testing.assert_array_equal(model.simulate(state, np.arange(5)), case(3, 1)[0].simulate(state, np.arange(5)))


def test_a_flight_is_the_mean_over_its_points():
    model, state, _ = case(1, 2, flight=FLIGHT)
    plain = case(1, 2)[0]
    points = [plain.simulate(replace(state, positions=state.positions + f), np.arange(5)) for f in FLIGHT]
    np.testing.assert_allclose(model.simulate(state, np.arange(5)), np.mean(points, axis=0), rtol=1e-12)


def test_object_states_add_in_intensity():
    model, state, _ = case(2, 1, n_states=2)
    apart = [model.simulate(replace(state, obj=o, n_states=1), np.arange(5)) for o in (state.obj[:2], state.obj[2:])]
    np.testing.assert_allclose(model.simulate(state, np.arange(5)), np.mean(apart, axis=0), rtol=1e-12)


def test_intensity_and_background_are_what_they_say():
    model, state, _ = case(1, 1, more=("intensity", "background"))
    plain = model.simulate(replace(state, refined={}), np.arange(5))
    wanted = state.refined["intensity"][:, None, None] * plain + state.refined["background"]
    np.testing.assert_allclose(model.simulate(state, np.arange(5)), wanted, rtol=1e-12)


@pytest.mark.parametrize("n_slices", [1, 2])
def test_simulation_is_the_composition_of_the_operators(n_slices):
    model, state, _ = case(n_slices, 1)
    corners, shifts = model.windows(state.positions, state.grid)
    patches = Patches(state.obj.shape, corners, SHAPE, np.complex128).apply(state.obj)
    wave = SubpixelShift(SHAPE, shifts, np.complex128).apply(np.repeat(state.probe, 5, axis=0))
    step = FreeSpaceStep(wave.shape, SAMPLING, WAVELENGTH, THICKNESS, dtype=np.complex128)
    for i_slice in range(n_slices):
        wave = patches[i_slice] * (step.apply(wave) if i_slice else wave)
    far = FarField(wave.shape, np.complex128).apply(wave)
    np.testing.assert_allclose(model.simulate(state, np.arange(5)), np.abs(far) ** 2, atol=1e-9)


def test_counts_are_conserved_by_a_phase_object():
    model, state, _ = case(3, 2)
    state.obj = state.obj / np.abs(state.obj)
    totals = model.simulate(state, np.arange(5)).sum(axis=(1, 2))
    np.testing.assert_allclose(totals, np.sum(np.abs(state.probe) ** 2), rtol=1e-12)


def test_a_position_is_where_the_probe_centre_sits():
    model, state, _ = case(1, 1)
    # An object that is open in one pixel only, the one under the probe's centre, passes |probe[n//2, n//2]|²
    pixel = np.array([12, 13])
    state.obj = np.zeros_like(state.obj)
    state.obj[0, 12, 13] = 1
    state.positions = state.grid.to_length(pixel[None])
    total = model.simulate(state, np.arange(1)).sum()
    assert total == pytest.approx(abs(state.probe[0, 8, 9]) ** 2, rel=1e-12)


def test_illumination_and_object_weight():
    model, state, batch = case(2, 2)
    gradients = model.gradients(state, batch, ("probe",))
    # Slices of modulus 0.9 pass 0.81 of the power on
    power = 5 * np.sum(np.abs(state.probe) ** 2)
    np.testing.assert_allclose(gradients.illumination.sum(axis=(1, 2)), [power, 0.81 * power], rtol=1e-10)
    np.testing.assert_allclose(gradients.object_weight, 5 * 0.81, rtol=1e-12)
    assert gradients.counts == batch.patterns.sum()


@pytest.mark.parametrize(("n_slices", "n_modes"), [(1, 1), (3, 2)])
def test_responses_are_the_far_fields_first_order_changes(n_slices, n_modes):
    model, state, batch = case(n_slices, n_modes, masked=True)
    rng = np.random.default_rng(9)
    d_obj, d_probe = random_like(state.obj, rng), random_like(state.probe, rng)
    found = responses(model, state, batch, Field(state.box, d_obj), d_probe)
    # Intensities change by 2 Re Ψ*A: compare the slope of the loss along both directions with −2 Re Σ A*χ
    for column, name, change in ((3, "obj", d_obj), (4, "probe", d_probe)):
        gradients = model.gradients(state, batch, ("probe",))
        inside = change[(..., *gradients.box.slices(state.box))] if name == "obj" else change
        slope = np.vdot(getattr(gradients, name), inside).real
        assert -found[:, column].sum() == pytest.approx(slope, rel=1e-9)


def test_response_norms_of_one_slice():
    model, state, batch = case(1, 1)
    rng = np.random.default_rng(10)
    d_obj, d_probe = random_like(state.obj, rng), random_like(state.probe, rng)
    terms = responses(model, state, batch, Field(state.box, d_obj), d_probe)
    corners, shifts = model.windows(state.positions, state.grid)
    shift = SubpixelShift(SHAPE, shifts, np.complex128)
    cut = Patches(state.obj.shape, corners, SHAPE, np.complex128)
    a = fft2(cut.apply(d_obj)[0] * shift.apply(np.repeat(state.probe, 5, axis=0)))
    b = fft2(cut.apply(state.obj)[0] * shift.apply(np.repeat(d_probe, 5, axis=0)))
    expected = [np.sum(u.conj() * v, axis=(1, 2)).real for u, v in ((a, a), (a, b), (b, b))]
    np.testing.assert_allclose(terms[:, :3].T, expected, rtol=1e-10)


@pytest.mark.parametrize("kernel", ["array", "compiled"])
def test_responses_know_the_intensity_of_a_pattern(kernel):
    """A factor c is the same as a probe, and a change of it, √c times as strong."""
    precision, c = ("single", 4.0) if kernel == "compiled" else ("double", 1.7)
    model, state, batch = case(2, 2, kernel=kernel, precision=precision)
    rng = np.random.default_rng(11)
    d_obj, d_probe = Field(state.box, random_like(state.obj, rng)), random_like(state.probe, rng)
    bright = replace(state, probe=np.sqrt(c) * state.probe)
    scaled = replace(state, refined={"intensity": np.full(5, c)})
    wanted = responses(model, bright, batch, d_obj, np.sqrt(c) * d_probe)
    found = responses(model, scaled, batch, d_obj, d_probe)
    # Products that may cancel, relative to the norms of their factors
    a, b = np.sqrt(wanted[:, 0]), np.sqrt(wanted[:, 2])
    chi = np.abs(wanted[:, 3:] / np.stack([a, b], axis=1)).max()
    scales = np.stack([a * a, a * b, b * b, a * chi, b * chi], axis=1)
    assert np.all(np.abs(found - wanted) <= (1e-5 if kernel == "compiled" else 1e-12) * scales)


def test_weights_know_the_intensity_of_a_pattern():
    """As above: gradients and weights of what each pattern refines stay in proportion."""
    c = 1.7
    model, state, batch = case(2, 2, more=("variation", "coefficients", "position_tilt"))
    refined = state.refined | {"variation": np.sqrt(c) * state.refined["variation"]}
    bright = replace(state, probe=np.sqrt(c) * state.probe, refined=refined)
    scaled = replace(state, refined=state.refined | {"intensity": np.full(5, c)})
    wanted, found = (model.gradients(s, batch, WANTED).of_patterns for s in (bright, scaled))
    for name in ("positions", "coefficients", "tilt"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-9)
        np.testing.assert_allclose(found[f"{name}_weight"], wanted[f"{name}_weight"], rtol=1e-12)


def test_an_empty_share_gives_zeros():
    model, state, batch = case(2, 2)
    empty = Batch(np.arange(0), batch.patterns[:0], n_global=5)
    gradients = model.gradients(state, empty, WANTED)
    assert gradients.box == EMPTY_BOX
    assert gradients.obj.shape == (2, 0, 0)
    assert not gradients.probe.any()
    assert gradients.counts == 0
    assert responses(model, state, empty, Field(EMPTY_BOX, gradients.obj), state.probe).shape == (0, 5)


def test_a_part_of_the_object_gives_the_same_gradients():
    model, state, batch = case(2, 1)
    whole = model.gradients(state, batch, ("probe",))
    part = Batch(batch.indices[:2], batch.patterns[:2], n_global=5)
    held = model.box(state.positions[:2], state.grid)
    tile = PtychographyState(
        obj=state.obj[(slice(None), *held.slices(state.box))].copy(),
        probe=state.probe,
        positions=state.positions,
        grid=state.grid,
        box=held,
    )
    rest = Batch(batch.indices[2:], batch.patterns[2:], n_global=5)
    a, b = (model.gradients(s, b, ("probe",)) for s, b in ((tile, part), (state, rest)))
    total = Field(a.box, a.obj) + Field(b.box, b.obj)
    assert total.box == whole.box
    np.testing.assert_allclose(total.values, whole.obj, atol=1e-10)
    np.testing.assert_allclose(a.probe + b.probe, whole.probe, atol=1e-10)


def test_position_weight_is_of_each_window_alone():
    model, state, batch = case(2, 2)
    whole = model.gradients(state, batch, ("positions",)).of_patterns["positions_weight"]
    product, power = np.prod(state.obj, axis=0), np.sum(np.abs(state.probe) ** 2, axis=0)
    for j, (y, x) in enumerate(model.windows(state.positions, state.grid)[0]):
        one = Batch(batch.indices[j : j + 1], batch.patterns[j : j + 1])
        alone = model.gradients(state, one, ("positions",)).of_patterns["positions_weight"]
        np.testing.assert_allclose(alone[0], whole[j], rtol=1e-12)
        patch = product[y : y + SHAPE[0], x : x + SHAPE[1]]
        along_x = np.abs(np.diff(patch, axis=1) / SAMPLING[1]) ** 2 * 0.5 * (power[:, 1:] + power[:, :-1])
        assert whole[j, 1] == pytest.approx(along_x.sum(), rel=1e-12)


def test_faults_are_told():
    with pytest.raises(ConfigError, match="loss"):
        PtychographyModel(SHAPE, SAMPLING, WAVELENGTH, detector=Detector(loss="gauss"))
    with pytest.raises(ConfigError, match="mask"):
        PtychographyModel(SHAPE, SAMPLING, WAVELENGTH, detector=Detector(mask=np.ones((3, 3), bool)))
    with pytest.raises(ConfigError, match="slice_thickness"):
        PtychographyModel(SHAPE, SAMPLING, WAVELENGTH, 1e4)
    model, state, batch = case(1, 1)
    state.positions = state.positions + 100
    with pytest.raises(DataError, match=r"pixels \d+…\d+ × \d+…\d+, outside of the object's .*halo_margin_angstrom"):
        model.gradients(state, batch)


def test_single_precision_stays_single():
    model, state, batch = case(2, 2, precision="single")
    gradients = model.gradients(state, batch, ("probe", "positions"))
    assert gradients.obj.dtype == gradients.probe.dtype == np.complex64
    assert gradients.illumination.dtype == gradients.object_weight.dtype == np.float32
    assert model.simulate(state, np.arange(5)).dtype == np.float32


@pytest.mark.parametrize("kernel", ["array", "auto"])
def test_whole_pixels_are_exact_where_positions_are(kernel):
    """The short way without shifts and the exact one meet at positions on pixels."""
    model, state, batch = case(2, 2, more=("variation", "coefficients"), kernel=kernel)
    rounded = replace(state, positions=state.grid.to_length(np.rint(state.grid.to_pixels(state.positions))))
    wanted = model.gradients(rounded, batch, ("probe", "variation"))
    found = model.gradients(replace(state, whole_pixels=True), batch, ("probe", "variation"))
    for name in ("obj", "illumination", "probe", "object_weight"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-9 * abs(wanted.obj).max())
    for name, values in wanted.added.items():
        np.testing.assert_allclose(found.added[name], values, rtol=1e-9, atol=1e-9 * abs(values).max())
    assert found.loss == pytest.approx(wanted.loss, rel=1e-12)
    # Where the positions are refined, their gradient is that at the pixels
    found = model.gradients(replace(state, whole_pixels=True), batch, ("positions",)).of_patterns["positions"]
    wanted = model.gradients(rounded, batch, ("positions",)).of_patterns["positions"]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
