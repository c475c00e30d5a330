"""Constraints in a run: any number of ranks, interrupted or not, one answer; and they hold at the end."""

from __future__ import annotations

import copy
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from one_tilt import run_one, silent

from hpcrec.errors import ConfigError
from hpcrec.geometry.grid import object_grid
from hpcrec.io.base import open_series
from hpcrec.models.base import PtychographyState
from hpcrec.models.placement import state_on
from hpcrec.objectives.constraints import (
    GAUGES,
    OBJECT_CONSTRAINTS,
    PROBE_CONSTRAINTS,
    Surroundings,
    constraint_class,
)
from hpcrec.parallel.communicator import SerialCommunicator, run_ranks
from hpcrec.run import constrain
from hpcrec.run.config import check_job, load_job
from hpcrec.run.constrain import SLICE_COPIES, chosen_constraints, illumination_share
from hpcrec.run.job import ConstraintSection, Job
from hpcrec.run.outcome import TiltOutcome, illumination
from hpcrec.run.runner import TiltRun
from hpcrec.run.start import common_grid

EVERYTHING = [
    "refine.variable_probe={start_iteration = 1, modes = 1}",
    "constraints.centre={}",
    "constraints.ramp.every=2",
    "constraints.scale={}",
    "constraints.tv.weight=0.005",
    "constraints.smoothness.sigma_angstrom=0.1",
    "constraints.butterworth.cutoff_inverse_angstrom=2",
    "constraints.kz_filter.beta=1",
    "constraints.layer_tv.weight_rad=0.005",
    "constraints.z_smoothing.sigma_angstrom=2",
    "constraints.identical_slices.strength=0.1",
    "constraints.sparse_phase={threshold_rad = 0.002, start_iteration = 1}",
    "constraints.complex_ratio={ratio = -0.05, strength = 0.2}",
    "constraints.positive_phase={}",
    "constraints.amplitude_bound.highest=1.05",
    "constraints.phase_only.stop_iteration=2",
    "constraints.probe_aperture={semiangle_mrad = 32, edge_mrad = 2}",
    "constraints.probe_support={radius_angstrom = 3.1, edge_angstrom = 0.2}",
    "constraints.probe_power={}",
]
SLICES = ["ptychography.slices=2", "ptychography.slice_thickness_angstrom=4"]


def job_with(tiny_job: Path, *overrides: str) -> Job:
    return load_job(tiny_job, [*SLICES, *overrides])[0]


def one(job: Job, folder: Path, hear: Any = silent) -> TiltOutcome:
    found = run_one(job, folder, hear=hear)
    assert found is not None
    return found


def test_the_section_names_the_tables_in_their_order() -> None:
    names = [*GAUGES, *OBJECT_CONSTRAINTS, *PROBE_CONSTRAINTS]
    assert list(ConstraintSection.__dataclass_fields__) == names
    for name in names:
        assert f"{constraint_class(name).Options.__name__} | None" in str(
            ConstraintSection.__dataclass_fields__[name].type
        )


@pytest.mark.parametrize("exchange", ["replicated", "tiled"])
@pytest.mark.parametrize("engine", ["lsqml", "epie", "gradient"])
def test_ranks_do_not_change_the_answer(tiny_job: Path, tmp_path: Path, exchange: str, engine: str) -> None:
    """Everything at once, in double precision: sums in another order are all that differs."""
    changes = ["ptychography.precision=double", f"ptychography.engine={engine}", f"parallel.exchange={exchange}"]
    job = job_with(tiny_job, *EVERYTHING, *changes)
    alone = one(job, tmp_path / "alone")
    many = run_ranks(3, lambda group: run_one(job, tmp_path / "many", group))[0]
    assert many is not None
    assert np.linalg.norm(many.obj - alone.obj) <= 1e-9 * np.linalg.norm(alone.obj)
    assert np.linalg.norm(many.probe - alone.probe) <= 1e-9 * np.linalg.norm(alone.probe)
    np.testing.assert_allclose(many.data_error, alone.data_error, rtol=1e-8)


LATERAL = [
    "constraints.tv.weight=0.02",
    "constraints.smoothness.sigma_angstrom=0.3",
    "constraints.butterworth.cutoff_inverse_angstrom=1.5",
]


@pytest.mark.parametrize("exchange", ["replicated", "tiled"])
def test_what_acts_on_slices_needs_no_whole_object(
    tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: str
) -> None:
    """Total variation and filters of three slices on two ranks: nobody gathers more than a slice."""
    changes = ["ptychography.precision=double", f"parallel.exchange={exchange}", "ptychography.slices=3"]
    job = job_with(tiny_job, *LATERAL, *changes, "ptychography.slice_thickness_angstrom=3")
    plain = one(job_with(tiny_job, *changes, "ptychography.slice_thickness_angstrom=3"), tmp_path / "plain")
    alone = one(job, tmp_path / "alone")
    assert np.linalg.norm(alone.obj - plain.obj) > 1e-2 * np.linalg.norm(plain.obj)
    monkeypatch.setattr(constrain, "Pencils", None)
    many = run_ranks(2, lambda group: run_one(job, tmp_path / "many", group))[0]
    assert many is not None
    assert np.linalg.norm(many.obj - alone.obj) <= 1e-9 * np.linalg.norm(alone.obj)


@pytest.mark.parametrize("text", LATERAL)
def test_what_acts_on_slices_takes_the_memory_that_is_planned(tiny_job: Path, text: str) -> None:
    """Beside the slice that was gathered."""
    chosen = chosen_constraints(job_with(tiny_job, text))
    ((name, options),) = chosen.items()
    constraint, obj = constraint_class(name)(options), np.ones((1, 1, 512, 512), np.complex64)
    around = Surroundings(sampling=(0.2, 0.2), wavelength=0.02, gaps=np.zeros(0), power=1.0)
    constraint.apply(obj, around)
    tracemalloc.start()
    try:
        constraint.apply(obj, around)
        taken = tracemalloc.get_traced_memory()[1] / obj.nbytes
    finally:
        tracemalloc.stop()
    assert SLICE_COPIES - 5 < taken < SLICE_COPIES - 1


@pytest.mark.parametrize("engine", ["gradient", "lsqml"])
def test_a_resumed_tilt_equals_an_uninterrupted_one(tiny_job: Path, tmp_path: Path, engine: str) -> None:
    job = job_with(tiny_job, *EVERYTHING, f"ptychography.engine={engine}")
    whole = one(job, tmp_path / "whole")

    def die(event: Any) -> None:
        if event["event"] == "sweep" and event["iteration"] == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        one(job, tmp_path / "cut", die)
    again = one(job, tmp_path / "cut")
    np.testing.assert_array_equal(again.obj, whole.obj)
    np.testing.assert_array_equal(again.probe, whole.probe)
    np.testing.assert_array_equal(again.data_error, whole.data_error)


@pytest.mark.parametrize(("exchange", "size"), [("replicated", 1), ("replicated", 2), ("tiled", 2)])
def test_constraints_on_a_device_are_those_of_the_host(
    cupy: ModuleType, tiny_job: Path, tmp_path: Path, exchange: str, size: int
) -> None:
    """All of them at once, after two sweeps in double precision; by the stand-in for CuPy, no GPU has run it."""
    job = job_with(tiny_job, *EVERYTHING, "ptychography.precision=double", f"parallel.exchange={exchange}")

    def both(group: Any) -> list[PtychographyState]:
        with open_series(job.data) as series:
            run = TiltRun(job, series, common_grid(job, series), 1, group, tmp_path, silent)
            for _ in range(2):
                run.sweep()
            ends = [copy.deepcopy(run.state), state_on(cupy, run.state)]
            for state in ends:
                run.constraints.free_scale(state)
                run.constraints.apply(state, run.exchange)
            assert np.abs(ends[0].obj - run.state.obj).max() > 1e-3
            return ends

    for host, device in run_ranks(size, both):
        for found, wanted in (
            (device.obj, host.obj),
            (device.probe, host.probe),
            (device.refined["variation"], host.refined["variation"]),
        ):
            assert isinstance(found, cupy.ndarray)
            assert np.abs(found.get() - wanted).max() <= 1e-12 * np.abs(wanted).max()
        assert device.memory["probe_power"] == pytest.approx(host.memory["probe_power"], rel=1e-12)


def test_bounds_hold_at_the_end_and_set_the_scale(tiny_job: Path, tmp_path: Path) -> None:
    bounds = ["constraints.amplitude_bound.highest=1.0", "constraints.positive_phase={}"]
    job = job_with(tiny_job, *bounds, "ptychography.gradient.probe_start=1")
    found = one(job, tmp_path / "bound")
    # Single precision
    assert np.abs(found.obj).max() <= 1 + 1e-6
    assert np.angle(found.obj).min() >= 0
    power, start = (float(np.sum(np.abs(p) ** 2, dtype=float)) for p in (found.probe, found.setup.probe))
    assert abs(power / start - 1) > 1e-4, "the probe's power is free"
    held = job_with(tiny_job, *bounds, "constraints.probe_power={}", "ptychography.gradient.probe_start=1")
    found = one(held, tmp_path / "held")
    assert np.sum(np.abs(found.probe) ** 2, dtype=float) == pytest.approx(start, rel=1e-5)


def test_a_gauge_keeps_the_scale_it_set(tiny_job: Path, tmp_path: Path) -> None:
    """Else the engine would give the probe its first power back at the end of every sweep."""
    job = job_with(tiny_job, "constraints.scale.stop_iteration=2", "ptychography.gradient.probe_start=0")
    powers = []
    with open_series(job.data) as series:
        run = TiltRun(job, series, common_grid(job, series), 1, SerialCommunicator(), tmp_path, silent)
        for _ in range(3):
            run.sweep()
            powers.append(float(np.sum(np.abs(run.state.probe) ** 2, dtype=float)))
    assert abs(powers[1] / powers[0] - 1) > 1e-4
    assert powers[2] == pytest.approx(powers[1], rel=1e-5)


def test_gauges_take_the_variable_probe_along(tiny_job: Path, tmp_path: Path) -> None:
    changes = ["refine.variable_probe.start_iteration=0", "constraints.scale.every=3"]
    job = job_with(tiny_job, *changes, "ptychography.gradient.probe_start=0")
    with open_series(job.data) as series:
        run = TiltRun(job, series, common_grid(job, series), 1, SerialCommunicator(), tmp_path, silent)
        run.sweep()
        run.sweep()
        # Two sweeps vary little and the scale is near: what a gauge forgets must be seen
        power = float(np.sum(np.abs(run.state.probe) ** 2, dtype=float))
        run.state.refined["coefficients"][:] = 0.3 * np.sqrt(power)
        run.state.obj *= np.float32(0.8)
        before, probe = run.model.simulate(run.state, np.arange(36)), run.state.probe.copy()
        run.state.iteration = 3
        run.constraints.apply(run.state, run.exchange)
        after = run.model.simulate(run.state, np.arange(36))
    assert np.abs(run.state.probe).max() < 0.9 * np.abs(probe).max()
    # Single precision
    np.testing.assert_allclose(after, before, atol=1e-5 * before.max())


def test_the_light_is_that_of_the_outcome() -> None:
    rng = np.random.default_rng(2)
    positions = rng.uniform(0, 6, (20, 2))
    probe = (rng.standard_normal((2, 9, 8)) + 1j).astype(np.complex64)
    grid = object_grid(positions, (9, 8), (0.5, 0.4))
    wanted = illumination(probe, positions, grid)
    # Single precision
    np.testing.assert_allclose(illumination_share(probe, positions, grid), wanted / wanted.max(), atol=2e-6)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["constraints.kz_filter.beta=1"], "kz_filter: needs ptychography.slices of 2"),
        (["constraints.tv.weight=0"], "tv.weight: must be positive"),
        (["constraints.tv.every=0", "constraints.tv.weight=1"], "tv.every: must be 1 or more"),
        (["constraints.tv.n_iterations=20"], "tv.weight: missing"),
        (["constraints.ramp.stop_iteration=0"], "ramp.stop_iteration: must be above"),
        (["constraints.smoothness={sigma_angstrom=1, strength=2}"], "strength: must lie between 0 and 1"),
        (["constraints.probe_support={radius_angstrom=2, edge_angstrom=-1}"], "edge_angstrom: must be 0 or more"),
        (["constraints.amplitude_bound.lowest=2"], "lowest 2 is above highest 1"),
        (["constraints.positive_phase.sign=both"], "sign"),
        (["constraints.probe_power.counts=0"], "counts: must be positive"),
        (["constraints.rampe.every=2"], "did you mean 'ramp'"),
        (["constraints.ramp.every=2", "detector.field=near", "detector.distance_angstrom=9"], "would move near-field"),
    ],
)
def test_impossible_constraints_are_named(tiny_job: Path, changes: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_job(tiny_job, changes)


def test_an_aperture_needs_the_wavelength() -> None:
    raw = {
        "version": 1,
        "name": "x",
        "data": {"format": "numpy", "path": "x.npz", "patterns": "p", "positions": "s"},
        "probe": {"source": "patterns"},
        "constraints": {"probe_aperture": {"semiangle_mrad": 2}},
    }
    with pytest.raises(ConfigError, match=r"probe_aperture: needs a \[beam\] section"):
        check_job(raw)
