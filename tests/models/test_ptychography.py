import numpy as np
import pytest

from hpcrec.backend.fft import fft2
from hpcrec.errors import ConfigError, DataError
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import EMPTY_BOX, Box
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.partial import Field
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.operators.patches import Patches
from hpcrec.operators.propagate import FarField, FreeSpaceStep, SubpixelShift
from hpcrec.physics.probe import aberrated_probe, orthogonal_start_modes

SHAPE, SAMPLING, WAVELENGTH, THICKNESS = (16, 18), (0.4, 0.5), 0.025, 12.0


def case(n_slices, n_modes, loss="amplitude", masked=False, **model_options):
    rng = np.random.default_rng(7)
    positions = rng.uniform(0, 4, (5, 2))
    grid = object_grid(positions, SHAPE, SAMPLING)
    probe = orthogonal_start_modes(
        aberrated_probe(SHAPE, SAMPLING, WAVELENGTH, 0.02, {"C10": -60.0}), n_modes, share=0.1
    )
    obj = 0.9 * np.exp(0.3j * rng.standard_normal((n_slices, *grid.shape)))
    box = Box(0, grid.shape[0], 0, grid.shape[1])
    state = PtychographyState(obj=obj, probe=probe * 60, positions=positions, grid=grid, box=box)
    mask = rng.random(SHAPE) > 0.2 if masked else None
    options = {"precision": "double", "kernel": "numpy"} | model_options
    model = PtychographyModel(SHAPE, SAMPLING, WAVELENGTH, THICKNESS, mask=mask, loss=loss, **options)
    patterns = rng.poisson(model.simulate(state, positions + rng.normal(0, 0.2, (5, 2))))
    return model, state, Batch(np.arange(5), patterns.astype(np.uint16), n_global=5)


def loss_of(model, state, batch):
    return model.gradients(state, batch).loss


def random_like(a, rng):
    return rng.standard_normal(a.shape) + 1j * rng.standard_normal(a.shape)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", ["amplitude", "poisson"])
@pytest.mark.parametrize(("n_slices", "n_modes"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_gradients_agree_with_finite_differences(n_slices, n_modes, loss, masked):
    model, state, batch = case(n_slices, n_modes, loss, masked)
    gradients = model.gradients(state, batch, probe=True, positions=True)
    rng = np.random.default_rng(8)
    changes = {
        "obj": (random_like(state.obj, rng), gradients.obj, 1e-5),
        "probe": (random_like(state.probe, rng), gradients.probe, 1e-5),
        "positions": (rng.standard_normal(state.positions.shape), gradients.positions, 1e-6),
    }
    for name, (change, gradient, step) in changes.items():
        start = getattr(state, name)
        inside = change[(..., *gradients.box.slices(state.box))] if name == "obj" else change
        expected = np.vdot(gradient, inside).real * (1 if name == "positions" else 2)
        found = 0.0
        for sign in (1, -1):
            setattr(state, name, start + sign * step * change)
            found += sign * loss_of(model, state, batch) / (2 * step)
        setattr(state, name, start)
        # Central differences in double precision: round-off 1e-16 · L / step ≈ 1e-8 of the slope
        assert found == pytest.approx(expected, rel=2e-6), name


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
    np.testing.assert_allclose(model.simulate(state, state.positions), np.abs(far) ** 2, atol=1e-9)


def test_counts_are_conserved_by_a_phase_object():
    model, state, _ = case(3, 2)
    state.obj = state.obj / np.abs(state.obj)
    totals = model.simulate(state, state.positions).sum(axis=(1, 2))
    np.testing.assert_allclose(totals, np.sum(np.abs(state.probe) ** 2), rtol=1e-12)


def test_a_position_is_where_the_probe_centre_sits():
    model, state, _ = case(1, 1)
    # An object that is open in one pixel only, the one under the probe's centre, passes |probe[n//2, n//2]|²
    pixel = np.array([12, 13])
    state.obj = np.zeros_like(state.obj)
    state.obj[0, 12, 13] = 1
    total = model.simulate(state, state.grid.to_length(pixel[None])).sum()
    assert total == pytest.approx(abs(state.probe[0, 8, 9]) ** 2, rel=1e-12)


def test_illumination_and_object_weight():
    model, state, batch = case(2, 2)
    gradients = model.gradients(state, batch)
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
    found = model.responses(state, batch, Field(state.box, d_obj), d_probe)
    # Intensities change by 2 Re Ψ*A: compare the slope of the loss along both directions with −2 Re Σ A*χ
    for column, name, change in ((3, "obj", d_obj), (4, "probe", d_probe)):
        gradients = model.gradients(state, batch)
        inside = change[(..., *gradients.box.slices(state.box))] if name == "obj" else change
        slope = np.vdot(getattr(gradients, name), inside).real
        assert -found.terms[:, column].sum() == pytest.approx(slope, rel=1e-9)
    assert found.loss == pytest.approx(gradients.loss, rel=1e-12)


def test_response_norms_of_one_slice():
    model, state, batch = case(1, 1)
    rng = np.random.default_rng(10)
    d_obj, d_probe = random_like(state.obj, rng), random_like(state.probe, rng)
    terms = model.responses(state, batch, Field(state.box, d_obj), d_probe).terms
    corners, shifts = model.windows(state.positions, state.grid)
    shift = SubpixelShift(SHAPE, shifts, np.complex128)
    cut = Patches(state.obj.shape, corners, SHAPE, np.complex128)
    a = fft2(cut.apply(d_obj)[0] * shift.apply(np.repeat(state.probe, 5, axis=0)))
    b = fft2(cut.apply(state.obj)[0] * shift.apply(np.repeat(d_probe, 5, axis=0)))
    expected = [np.sum(u.conj() * v, axis=(1, 2)).real for u, v in ((a, a), (a, b), (b, b))]
    np.testing.assert_allclose(terms[:, :3].T, expected, rtol=1e-10)


def test_an_empty_share_gives_zeros():
    model, state, batch = case(2, 2)
    empty = Batch(np.arange(0), batch.patterns[:0], n_global=5)
    gradients = model.gradients(state, empty, positions=True)
    assert gradients.box == EMPTY_BOX
    assert gradients.obj.shape == (2, 0, 0)
    assert not gradients.probe.any()
    assert gradients.counts == 0
    assert model.responses(state, empty, Field(EMPTY_BOX, gradients.obj), state.probe).terms.shape == (0, 5)


def test_a_part_of_the_object_gives_the_same_gradients():
    model, state, batch = case(2, 1)
    whole = model.gradients(state, batch)
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
    a, b = model.gradients(tile, part), model.gradients(state, rest)
    total = Field(a.box, a.obj) + Field(b.box, b.obj)
    assert total.box == whole.box
    np.testing.assert_allclose(total.values, whole.obj, atol=1e-10)
    np.testing.assert_allclose(a.probe + b.probe, whole.probe, atol=1e-10)


def test_position_weight_is_of_each_window_alone():
    model, state, batch = case(2, 2)
    whole = model.gradients(state, batch, positions=True).position_weight
    product, power = np.prod(state.obj, axis=0), np.sum(np.abs(state.probe) ** 2, axis=0)
    for j, (y, x) in enumerate(model.windows(state.positions, state.grid)[0]):
        one = Batch(batch.indices[j : j + 1], batch.patterns[j : j + 1])
        np.testing.assert_allclose(model.gradients(state, one, positions=True).position_weight[0], whole[j], rtol=1e-12)
        patch = product[y : y + SHAPE[0], x : x + SHAPE[1]]
        along_x = np.abs(np.diff(patch, axis=1) / SAMPLING[1]) ** 2 * 0.5 * (power[:, 1:] + power[:, :-1])
        assert whole[j, 1] == pytest.approx(along_x.sum(), rel=1e-12)


def test_faults_are_told():
    with pytest.raises(ConfigError, match="loss"):
        PtychographyModel(SHAPE, SAMPLING, WAVELENGTH, loss="gauss")
    with pytest.raises(ConfigError, match="mask"):
        PtychographyModel(SHAPE, SAMPLING, WAVELENGTH, mask=np.ones((3, 3), bool))
    with pytest.raises(ConfigError, match="slice_thickness"):
        PtychographyModel(SHAPE, SAMPLING, WAVELENGTH, 1e4)
    model, state, batch = case(1, 1)
    state.positions = state.positions + 100
    with pytest.raises(DataError, match="outside of the object"):
        model.gradients(state, batch)


def test_single_precision_stays_single():
    model, state, batch = case(2, 2, precision="single")
    gradients = model.gradients(state, batch, positions=True)
    assert gradients.obj.dtype == gradients.probe.dtype == np.complex64
    assert gradients.illumination.dtype == gradients.object_weight.dtype == np.float32
    assert model.simulate(state, state.positions).dtype == np.float32
