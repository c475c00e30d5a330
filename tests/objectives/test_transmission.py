"""Pointwise constraints: each is the projection or proximal map it says it is."""

import numpy as np
import pytest

from hpcrec.objectives.constraints import OBJECT_CONSTRAINTS, ConstraintOptions, Surroundings, constraint_class

AROUND = Surroundings(sampling=(0.4, 0.4), wavelength=0.025, gaps=np.array([10.0]), power=1.0)
PROJECTIONS = {
    "positive_phase": {},
    "amplitude_bound": {"lowest": 0.5, "highest": 1.1},
    "complex_ratio": {"ratio": -0.2},
    "phase_only": {},
}


def build(name, **options):
    cls = constraint_class(name)
    return cls(cls.Options(**options))


def example(dtype=np.complex64):
    rng = np.random.default_rng(3)
    obj = rng.uniform(0.3, 1.6, (2, 3, 5, 6)) * np.exp(1j * rng.uniform(-3, 3, (2, 3, 5, 6)))
    obj[0, 0, 0, 0] = 0
    return obj.astype(dtype)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_projections_are_idempotent_and_keep_the_type(name):
    constraint, obj = build(name, **PROJECTIONS[name]), example()
    before = obj.copy()
    once = constraint.apply(obj, AROUND)
    assert once.dtype == obj.dtype
    assert np.isfinite(once).all()
    assert abs(once - obj).max() > 0.1
    np.testing.assert_array_equal(obj, before)
    # Single precision
    np.testing.assert_allclose(constraint.apply(once, AROUND), once, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*PROJECTIONS, "sparse_phase"])
def test_each_pixel_is_on_its_own(name):
    options = PROJECTIONS.get(name, {"threshold_rad": 0.2})
    constraint, obj = build(name, **options), example(np.complex128)
    assert constraint.pointwise
    part = constraint.apply(obj[..., 2:4, 1:5], AROUND)
    np.testing.assert_allclose(part, constraint.apply(obj, AROUND)[..., 2:4, 1:5], rtol=1e-12)


def test_positive_phase_keeps_the_amplitude():
    obj = np.array([1.2 * np.exp(0.4j), 0.8 * np.exp(-0.3j)]).reshape(1, 1, 1, 2)
    np.testing.assert_allclose(build("positive_phase").apply(obj, AROUND).ravel(), [1.2 * np.exp(0.4j), 0.8])
    found = build("positive_phase", sign="negative").apply(obj, AROUND).ravel()
    np.testing.assert_allclose(found, [1.2, 0.8 * np.exp(-0.3j)])


def test_amplitudes_are_bounded_and_phases_kept():
    obj = np.array([0.2j, 0.7, 2 - 1j, 0.0]).reshape(1, 1, 1, 4)
    found = build("amplitude_bound", lowest=0.5, highest=1.1).apply(obj, AROUND).ravel()
    np.testing.assert_allclose(abs(found), [0.5, 0.7, 1.1, 0.5])
    np.testing.assert_allclose(np.angle(found), np.angle(obj.ravel()))
    np.testing.assert_allclose(abs(build("phase_only").apply(obj, AROUND)).ravel(), [1, 1, 1, 0])


def test_complex_ratio_takes_the_nearest_point():
    """Nearest in the plane of ln|O| and phase: no other point of the line is nearer."""
    obj = np.array(0.9 * np.exp(0.5j)).reshape(1, 1, 1, 1)
    log, phase = np.log(0.9), 0.5
    on_line = np.linspace(-1, 1, 20001)
    nearest = on_line[np.argmin((log + 0.3 * on_line) ** 2 + (phase - on_line) ** 2)]
    found = build("complex_ratio", ratio=-0.3).apply(obj, AROUND).item()
    # The step of the search
    assert np.angle(found) == pytest.approx(nearest, abs=1e-4)
    assert np.log(abs(found)) == pytest.approx(-0.3 * np.angle(found))
    half = build("complex_ratio", ratio=-0.3, strength=0.5).apply(obj, AROUND).item()
    assert np.angle(half) == pytest.approx(0.5 * (phase + np.angle(found)))


def test_sparse_phase_shrinks_the_phase():
    obj = np.array([1.2 * np.exp(0.5j), 0.7 * np.exp(-0.4j), np.exp(0.05j)]).reshape(1, 1, 1, 3)
    found = build("sparse_phase", threshold_rad=0.1).apply(obj, AROUND).ravel()
    np.testing.assert_allclose(found, [1.2 * np.exp(0.4j), 0.7 * np.exp(-0.3j), 1])


def test_when_constraints_act():
    when = ConstraintOptions(every=3, start_iteration=2, stop_iteration=9)
    assert [i for i in range(14) if when.due(i)] == [4, 7]
    assert [i for i in range(14) if when.active(i)] == list(range(2, 9))
    assert all(ConstraintOptions().due(i) for i in range(3))


def test_the_table_names_classes_with_options():
    for name in OBJECT_CONSTRAINTS:
        assert issubclass(constraint_class(name).Options, ConstraintOptions)
