"""Refinements on arrays of a device, by the stand-in for CuPy, against the same on NumPy's; no GPU has run them."""

import numpy as np
import pytest
from refinery import WAVELENGTH

from hpcrec.models.chain import Detector
from hpcrec.models.placement import batch_beside
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.refine import REFINEMENTS, refinement_class
from hpcrec.refine.background import smoothed

# isort: split
# Beside the tests of engines, whose folder ``refinery`` has made known
from on_device import assert_same, pair, run

NEAR = np.exp(1j * np.linspace(0, 1, 32)[:, None] * np.linspace(0, 1, 32))
# Options of refinements, and of the detector; annealing would choose by round-off while the object is empty
CASES = [
    ("positions", {"momentum": 0.5, "max_move_angstrom": 0.2}, {}),
    ("annealing", {"start_iteration": 1, "stop_iteration": 3, "trials": 2, "radius_angstrom": 0.2}, {}),
    ("affine", {}, {}),
    ("tilt", {"start_mrad": (2.0, -1.0)}, {}),
    ("position_tilt", {"smoothing_angstrom": 2.0}, {}),
    ("thickness", {}, {}),
    ("thickness", {"each_gap": True}, {"binning": 2}),
    ("thickness", {}, {"propagator": NEAR}),
    ("aberrations", {"names": ("C10", "C12a", "C30")}, {}),
    ("variable_probe", {}, {}),
    ("variable_probe", {"modes": 3}, {}),
    ("intensity", {}, {}),
    ("background", {}, {}),
    ("background", {"smoothing_pixels": 0.0}, {"binning": 2}),
    ("background", {}, {"mask": np.random.default_rng(1).random((32, 32)) > 0.1}),
]


def on_detector(phantom, options):
    """Let a phantom's patterns fall on another detector."""
    old = phantom.model
    phantom.model = PtychographyModel(
        old.shape, old.sampling, WAVELENGTH, old.slice_thickness, detector=Detector(**options), precision="double"
    )
    phantom.patterns = phantom.model.simulate(phantom.truth, np.arange(len(phantom.positions)))


@pytest.mark.parametrize("engine", ["gradient", "lsqml"])
@pytest.mark.parametrize(("name", "more", "detector"), CASES)
def test_a_refinement_is_that_of_the_host(cupy, engine, name, more, detector):
    """Three sweeps in double precision of two slices and modes; what is refined, relative to its largest value."""
    phantom, host, device = pair(cupy)
    if detector:
        on_detector(phantom, detector)
    refine = {name: {"start_iteration": 0} | more}
    if name == "affine":
        refine["positions"] = {"start_iteration": 0}
    (_, wanted), (_, found) = (run(phantom, start, engine, 3, refine) for start in (host, device))
    moved = {"positions": ["positions"], "annealing": ["positions"], "variable_probe": ["variation", "coefficients"]}
    for quantity in moved.get(name, [name]):
        kept = phantom.start.positions if quantity == "positions" else 0
        now = host.positions if quantity == "positions" else host.refined[quantity]
        assert np.abs(now - kept).max() > 0, quantity
    assert found == pytest.approx(wanted, rel=1e-9)
    assert_same(cupy, device, host, 1e-8)


def test_single_precision_stays_single(cupy):
    phantom, host, device = pair(cupy, precision="single")
    refine = {name: {"start_iteration": 1} for name in REFINEMENTS}
    (_, wanted), (_, found) = (run(phantom, start, "gradient", 2, refine) for start in (host, device))
    assert found == pytest.approx(wanted, rel=1e-3)
    assert_same(cupy, device, host)
    assert device.probe.dtype == device.refined["variation"].dtype == np.complex64


def test_every_refinement_is_tested():
    assert {name for name, _, _ in CASES} == set(REFINEMENTS)


@pytest.mark.parametrize("name", ["aberrations", "thickness", "background", "variable_probe", "intensity"])
def test_sums_of_a_batch_come_from_the_device_at_once(cupy, name, monkeypatch):
    phantom, _, device = pair(cupy)
    cls = refinement_class(name)
    refinement = cls(phantom.model, cls.Options())
    refinement.prepare(device)
    batch = batch_beside(device.obj, next(phantom.batches(16, 0)))
    gradients = phantom.model.gradients(device, batch, [*refinement.wanted, "probe"])
    copies, get = [], cupy.ndarray.get
    monkeypatch.setattr(cupy.ndarray, "get", lambda a: copies.append(a.shape) or get(a))
    refinement.collect(device, batch, gradients)
    assert len(copies) <= 1


@pytest.mark.parametrize("width", [0.4, 2.0, 9.0])
def test_a_smooth_background_is_the_mean_of_good_neighbours(cupy, width):
    """Against sums over all pixels and their images; scipy's weights end at four widths, 3e-4 of the largest."""
    rng = np.random.default_rng(5)
    values, known = rng.random((11, 14)), rng.random((11, 14)) > 0.3
    known[:5, :5] = False
    found = smoothed(values, known, width)
    y, x = np.indices(values.shape)
    light, total = np.zeros((2, *values.shape))
    for turn_y in range(-6, 7):
        for turn_x in range(-6, 7):
            dy, dx = y[..., None, None] - y + 11 * turn_y, x[..., None, None] - x + 14 * turn_x
            weight = known * np.exp(-0.5 * (dy**2 + dx**2) / width**2)
            light, total = light + weight.sum(axis=(2, 3)), total + (weight * values).sum(axis=(2, 3))
    near = light > 1e-2
    assert near.sum() > 80
    np.testing.assert_allclose(found[near], (total / light)[near], atol=1e-3)
    if width < 1:
        assert found[2, 2] == values[2, 2], "no good pixel is near"
    there = smoothed(cupy.asarray(values), cupy.asarray(known), width)
    np.testing.assert_allclose(there.get(), found, rtol=1e-13)
