"""Constraints on arrays of a device, by the stand-in for CuPy, against the same on NumPy's; no GPU has run them."""

from dataclasses import replace

import numpy as np
import pytest

from hpcrec.objectives import constraints, depth
from hpcrec.objectives.constraints import GAUGES, OBJECT_CONSTRAINTS, PROBE_CONSTRAINTS, Surroundings, constraint_class

# Transforms of another library, exponentials of some radians; single precision has some 1e9 times more
TOLERANCE = {np.complex128: 1e-13, np.complex64: 2e-5}
OPTIONS = {
    "tv": [{"weight": 0.05}],
    "smoothness": [{"sigma_angstrom": 0.4, "strength": 0.7}],
    "butterworth": [{"cutoff_inverse_angstrom": 0.6, "order": 3}],
    "kz_filter": [
        {"ends": ends, "amplitude_share": share, "lateral_damping_pixel2": 0.5}
        for ends, share in (("mirror", 1.0), ("vacuum", 0.3), ("periodic", 1.0))
    ],
    "layer_tv": [{"weight_rad": 0.05}],
    "z_smoothing": [{"sigma_angstrom": 6.0}],
    "identical_slices": [{"strength": 0.6}],
    "sparse_phase": [{"threshold_rad": 0.05}],
    "complex_ratio": [{"ratio": -0.1, "strength": 0.5}],
    "positive_phase": [{"sign": "positive"}, {"sign": "negative"}],
    "amplitude_bound": [{"lowest": 0.95, "highest": 1.02}],
    "probe_aperture": [{"semiangle_mrad": 15.0, "edge_mrad": 2.0}, {"semiangle_mrad": 15.0}],
    "probe_support": [{"radius_angstrom": 2.5, "edge_angstrom": 0.5}],
    "probe_power": [{}, {"counts": 3e3}],
}


def cases(*tables):
    return [(name, more) for table in tables for name in table for more in OPTIONS.get(name, [{}])]


def build(name, more):
    cls = constraint_class(name)
    return cls(cls.Options(**more))


def around(light, n_slices=4):
    gaps = np.full(n_slices - 1, 5.0)
    return Surroundings(sampling=(0.4, 0.5), wavelength=0.025, gaps=gaps, power=2e3, n_modes=2, light=light)


def noise(rng, shape, dtype):
    return (0.1 * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))).astype(dtype)


def example(dtype, n_slices=4):
    """An object of two states with a ramp, three waves off the middle, and a light with a dark rim."""
    rng = np.random.default_rng(4)
    y, x = np.indices((26, 30))
    obj = (1 + noise(rng, (2, n_slices, 26, 30), dtype)) * np.exp(0.05j * y - 0.03j * x)
    waves = np.exp(-0.02 * ((np.indices((20, 18)) - np.array([11, 8])[:, None, None]) ** 2).sum(axis=0))
    waves = waves * (1 + noise(rng, (3, 20, 18), dtype)) * 10
    light = np.exp(-0.01 * ((y - 14) ** 2 + (x - 14) ** 2))
    light[light < 0.05] = 0
    return obj.astype(dtype), waves.astype(dtype), light.astype(waves.real.dtype)


def assert_close(cupy, device, host, dtype):
    assert isinstance(device, cupy.ndarray)
    assert device.dtype == host.dtype == dtype
    assert device.flags.c_contiguous
    assert np.abs(device.get() - host).max() <= TOLERANCE[np.dtype(dtype).type] * np.abs(host).max()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "more"), cases(OBJECT_CONSTRAINTS))
def test_constraints_on_the_object(cupy, name, more, dtype):
    obj, _, light = example(dtype)
    constraint, there = build(name, more), cupy.asarray(obj)
    near, beside = (around(None if constraint.pointwise else a) for a in (light, cupy.asarray(light)))
    wanted, found = constraint.apply(obj, near), constraint.apply(there, beside)
    assert np.abs(wanted - obj).max() > 1e-3
    assert_close(cupy, found, wanted, dtype)
    np.testing.assert_array_equal(there.get(), obj)
    if name in ("kz_filter", "z_smoothing"):
        single = replace(near, gaps=np.zeros(0)), replace(beside, gaps=np.zeros(0))
        found = constraint.apply(there[:, :1], single[1])
        assert_close(cupy, found, constraint.apply(obj[:, :1], single[0]), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "more"), cases(PROBE_CONSTRAINTS))
def test_constraints_on_the_probe(cupy, name, more, dtype):
    _, waves, _ = example(dtype)
    constraint = build(name, more)
    wanted, found = constraint.apply(waves, around(None)), constraint.apply(cupy.asarray(waves), around(None))
    assert np.abs(wanted - waves).max() > 1e-3
    assert_close(cupy, found, wanted, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n_slices", [1, 4])
@pytest.mark.parametrize(("name", "more"), cases(GAUGES))
def test_gauges(cupy, name, more, dtype, n_slices):
    obj, waves, light = example(dtype, n_slices)
    gauge = build(name, more)
    wanted = gauge.apply(obj, waves, around(light, n_slices))
    found = gauge.apply(cupy.asarray(obj), cupy.asarray(waves), around(cupy.asarray(light), n_slices))
    for device, host, before in zip(found, wanted, (obj, waves)):
        assert np.abs(host - before).max() > 1e-3
        assert_close(cupy, device, host, dtype)


@pytest.mark.parametrize("name", GAUGES)
def test_gauges_without_light(cupy, name):
    obj, waves, light = example(np.complex128)
    obj, waves, light = (cupy.asarray(a) for a in (0 * obj, 0 * waves, 0 * light))
    for found, before in zip(build(name, {}).apply(obj, waves, around(light)), (obj, waves)):
        np.testing.assert_array_equal(found.get(), before.get())


def test_many_rows_of_a_device_are_a_few_of_the_host(cupy, monkeypatch):
    obj, _, _ = example(np.complex128)
    constraint = build("layer_tv", {"weight_rad": 0.05})
    found = constraint.apply(cupy.asarray(obj), around(None))
    monkeypatch.setattr(depth, "_DEVICE_ROWS", 7)
    np.testing.assert_array_equal(constraint.apply(cupy.asarray(obj), around(None)).get(), found.get())


@pytest.mark.parametrize("name", constraints.CONSTRAINTS)
def test_bounds_of_engines(cupy, name):
    obj, _, _ = example(np.complex128)
    assert_close(cupy, constraints.CONSTRAINTS[name](cupy.asarray(obj)), constraints.CONSTRAINTS[name](obj), obj.dtype)


def test_every_table_is_tested():
    assert OPTIONS.keys() <= (GAUGES | OBJECT_CONSTRAINTS | PROBE_CONSTRAINTS).keys()
