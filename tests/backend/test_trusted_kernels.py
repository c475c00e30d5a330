"""Kernels are compared with array code before their first use, and left alone where they disagree."""

import logging

import numpy as np
import pytest
from fused_kernels import FusedKernels, on_a_device
from kernel_chains import SAMPLING, WAVELENGTH

from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models import launched, trusted
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.placement import state_on
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.physics.probe import aberrated_probe

pytestmark = pytest.mark.emulation

N = 64


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return FusedKernels(tmp_path_factory.mktemp("trusted"))


@pytest.fixture
def device(cupy, kernels, monkeypatch):
    """A device whose kernels the CPU runs; ``wrong`` adds to what they find, the list holds what was launched."""
    state = {"wrong": 0.0, "launches": on_a_device(monkeypatch, launched, kernels)}

    def spoiled(chain, patterns, good, sums, *more, **flags):
        add_gradients(chain, patterns, good, sums, *more, **flags)
        sums.obj[...] = sums.obj + state["wrong"]

    add_gradients = launched.fused.add_gradients
    monkeypatch.setattr(launched.fused, "add_gradients", spoiled)
    monkeypatch.setattr(trusted, "compiles", lambda a: True)
    monkeypatch.setattr(trusted, "device_number", lambda: 0)
    monkeypatch.setattr(trusted, "_verdicts", {})
    return state


def case(cupy, kernel_name):
    rng, shape = np.random.default_rng(8), (N, N)
    positions = rng.uniform(0, 2, (5, 2))
    grid = object_grid(positions, shape, SAMPLING)
    probe = 60 * aberrated_probe(shape, SAMPLING, WAVELENGTH, 0.022, {"C10": -80.0})[None]
    model = PtychographyModel(shape, SAMPLING, WAVELENGTH, 20.0, kernel=kernel_name)
    state = PtychographyState(
        obj=np.exp(0.3j * rng.normal(size=(2, *grid.shape))).astype(np.complex64),
        probe=probe.astype(np.complex64),
        positions=positions,
        grid=grid,
        box=Box(0, grid.shape[0], 0, grid.shape[1]),
    )
    there = state_on(cupy, state)
    # Fitted to the last count: what is left of the gradient is small
    counts = np.rint(model.simulate(there, np.arange(5)).get()).clip(0, 255).astype(np.uint8)
    return model, there, Batch(np.arange(5), counts, n_global=5)


def test_a_kernel_that_agrees_is_compared_once(cupy, device, caplog):
    model, state, batch = case(cupy, "auto")
    wanted = case(cupy, "array")[0].gradients(state, batch, ("probe",))
    for calls in (3, 4):
        found = model.gradients(state, batch, ("probe",))
        assert np.abs((found.obj - wanted.obj).get()).max() <= 1e-5 * np.abs(wanted.illumination.get()).max()
        # Empty patterns and the first two, then all of them
        assert len(device["launches"]) == calls
    model.gradients(state, batch, ("probe", "positions"))
    assert len(device["launches"]) == 7  # a variant of its own
    assert caplog.records == []


@pytest.mark.parametrize("wrong", [1.0, np.nan])
def test_a_kernel_that_disagrees_is_told_and_not_used(cupy, device, caplog, wrong):
    model, state, batch = case(cupy, "auto")
    wanted = case(cupy, "array")[0].gradients(state, batch, ("probe",))
    device["wrong"] = wrong
    for _ in range(2):
        found = model.gradients(state, batch, ("probe",))
        np.testing.assert_array_equal(found.obj.get(), wanted.obj.get())
    assert len(device["launches"]) == 2
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "the fused kernel for 64 pixels disagrees with array code on this GPU" in record.getMessage()


def test_an_empty_share_asks_for_nothing(cupy, device):
    model, state, batch = case(cupy, "auto")
    model.gradients(state, Batch(np.arange(0), batch.patterns[:0]), ("probe",))
    assert device["launches"] == []


def test_slopes_by_positions_of_an_empty_object_are_no_disagreement(cupy, device, caplog):
    """Behind it no pattern depends on the probe's position; wrong slopes are told even so."""
    model, state, batch = case(cupy, "auto")
    state.obj = cupy.asarray(np.ones(state.obj.shape, np.complex64))
    model.gradients(state, batch, ("probe", "positions"))
    assert caplog.records == []
    trusted._verdicts.clear()
    add_gradients = launched.fused.add_gradients

    def without_slopes(chain, patterns, good, sums, *more, **flags):
        add_gradients(chain, patterns, good, sums, *more, **flags)
        sums.shifts[...] = 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launched.fused, "add_gradients", without_slopes)
        model.gradients(state, batch, ("probe", "positions"))
    assert len(caplog.records) == 1
