"""The constraints of a job between the sweeps of one tilt, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

import numpy as np
from scipy.fft import next_fast_len

from hpcrec.backend.array import ComplexArray, FloatArray, array_module, real_dtype, to_host
from hpcrec.backend.fft import fft2, ifft2
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.tiles import window_corners
from hpcrec.models.base import PtychographyState
from hpcrec.models.placement import beside
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.objectives.constraints import (
    GAUGES,
    OBJECT_CONSTRAINTS,
    PROBE_CONSTRAINTS,
    Gauge,
    ObjectConstraint,
    ProbeConstraint,
    Surroundings,
    constraint_class,
)
from hpcrec.parallel.exchange import Exchange
from hpcrec.run.job import Job
from hpcrec.run.optics import chosen_slices

OF_SLICES = ("kz_filter", "layer_tv", "z_smoothing", "identical_slices")
LOWEST = {"every": 1, "start_iteration": 0, "n_iterations": 1, "order": 1}
NOT_NEGATIVE = {"edge_angstrom", "edge_mrad", "lateral_damping_pixel2", "lowest"}
SHARES = {"strength", "amplitude_share"}
SIGNED = {"ratio"}
# Measured on five slices of 1024²: at most 3.4 and 9.4 arrays of the object's size, and the gathered object
WHOLE_COPIES, FILTER_COPIES = 5, 11
# Measured on a slice of 1024²: at most 6.0 arrays of its size beside the gathered one
SLICE_COPIES = 8


class Constraints:
    """What a job asks for in [constraints]; every rank makes the same calls.

    Pointwise constraints act where the object is held. What ties neighbours within a slice alone is done by slices,
    which are shared out to the ranks: each has room for one whole slice at a time. Gauges, and what ties slices and
    neighbours, need the whole object: it is gathered on the first rank of the group, changed there and handed out
    again, at most once a sweep; that rank must have room for three to ten copies of the whole object. Either way the
    answer does not depend on ranks. An object on a device passes through host memory, and is changed on the device.
    What engines remember of object and probe (momenta) is left as it is.
    """

    def __init__(self, job: Job, model: PtychographyModel, power: float) -> None:
        """``power``: counts of a pattern, with which the probe starts."""
        self._model, self._power = model, power
        self._when = chosen_constraints(job)
        made = {name: constraint_class(name)(options) for name, options in self._when.items()}
        self._gauges: dict[str, Gauge] = {n: made[n] for n in GAUGES if n in made}
        self._of_object: dict[str, ObjectConstraint] = {n: made[n] for n in OBJECT_CONSTRAINTS if n in made}
        self._of_probe: dict[str, ProbeConstraint] = {n: made[n] for n in PROBE_CONSTRAINTS if n in made}

    def free_scale(self, state: PtychographyState) -> None:
        """Let the probe keep its power where a constraint ties |O|; called before a sweep is finished."""
        tied = [name for name, constraint in self._of_object.items() if constraint.ties_scale]
        if any(self._when[name].active(state.iteration) for name in tied):
            _keep_power(state)

    def apply(self, state: PtychographyState, exchange: Exchange) -> None:
        """Change the state by what is due after the sweep that was just finished; collective."""
        due = {name for name, options in self._when.items() if options.due(state.iteration - 1)}
        if not due:
            return
        around = self._around(state)
        gauges = [g for name, g in self._gauges.items() if name in due]
        of_object = [c for name, c in self._of_object.items() if name in due]
        whole = [c for c in of_object if not c.pointwise]
        if whole and not gauges and all(c.by_slices for c in whole):
            _apply_by_slices(state, exchange, around, whole)
        elif gauges or whole:
            _apply_whole(state, exchange, around, gauges, whole)
        pointwise = [c for c in of_object if c.pointwise]
        if pointwise and state.obj.size:
            state.obj = _each(pointwise, _by_state(state, state.obj), around).reshape(state.obj.shape)
        for probe_constraint in (c for name, c in self._of_probe.items() if name in due):
            _apply_to_probe(state, probe_constraint, around)

    def _around(self, state: PtychographyState) -> Surroundings:
        return Surroundings(
            sampling=self._model.sampling,
            wavelength=self._model.wavelength,
            gaps=self._model.thicknesses(state),
            power=self._power,
            n_modes=len(state.probe),
        )


def chosen_constraints(job: Job) -> dict[str, Any]:
    """Return the options of the constraints that a job asks for, by name."""
    found = {f.name: getattr(job.constraints, f.name) for f in fields(job.constraints)}
    return {name: options for name, options in found.items() if options is not None}


def whole_copies(job: Job) -> int:
    """Return how many copies of the whole object the first rank of a group must have room for."""
    chosen = chosen_constraints(job)
    if "kz_filter" in chosen:
        return FILTER_COPIES
    return WHOLE_COPIES if any(n in GAUGES for n in chosen) else 0


def slice_copies(job: Job) -> int:
    """Return how many copies of one whole slice each rank must have room for."""
    chosen = [constraint_class(n) for n in chosen_constraints(job) if n in OBJECT_CONSTRAINTS]
    return SLICE_COPIES if any(c.by_slices for c in chosen) else 0


def illumination_share(probe: ComplexArray, positions: FloatArray, grid: Grid) -> FloatArray:
    """Return Σ_j Σ_m |P_m(r − R_j)|² (y, x) on whole pixels, its maximum 1: one convolution where the probe lives."""
    xp, (ny, nx), real = array_module(probe), probe.shape[-2:], real_dtype(probe.dtype)
    # As no window leaves the grid, the periodic convolution joins no edges
    shape = [next_fast_len(n) for n in grid.shape]
    visits, power = np.zeros(shape, real), xp.zeros(shape, real)
    np.add.at(visits, tuple(window_corners(positions, grid, (ny, nx)).T), 1)
    power[:ny, :nx] = np.sum(np.abs(probe) ** 2, axis=0)
    light = ifft2(fft2(xp.asarray(visits)) * fft2(power)).real[: grid.shape[0], : grid.shape[1]]
    # Round-off of the transforms is no light
    light = xp.maximum(light - 1e-6 * light.max(), 0)
    return (light / xp.maximum(light.max(), 1e-30)).astype(real, copy=False)  # type: ignore[no-any-return]


def _apply_whole(
    state: PtychographyState,
    exchange: Exchange,
    around: Surroundings,
    gauges: Iterable[Gauge],
    constraints: Iterable[ObjectConstraint],
) -> None:
    """Gather the object on the first rank's host, change it where it lived, and hand it out with the waves."""
    waves, whole = _waves(state), exchange.whole(state.obj)
    if whole is not None:
        around = replace(around, light=illumination_share(state.probe, state.positions, state.grid))
        obj = _by_state(state, beside(state.obj, whole))
        for gauge in gauges:
            obj, waves = gauge.apply(obj, waves, around)
        whole = to_host(_each(constraints, obj, around).reshape(whole.shape))
    state.obj = beside(state.obj, exchange.place(whole))
    if gauges:
        _keep_waves(state, beside(state.probe, exchange.communicator.broadcast(to_host(waves))))
        _keep_power(state)


def _apply_by_slices(
    state: PtychographyState, exchange: Exchange, around: Surroundings, constraints: list[ObjectConstraint]
) -> None:
    """Share the slices out to the ranks, each of which changes whole ones where the object lives."""

    def work(image: ComplexArray) -> ComplexArray:
        return to_host(_each(constraints, beside(state.obj, image)[None, None], around)[0, 0])

    state.obj = beside(state.obj, exchange.by_images(state.obj, work))


def _apply_to_probe(state: PtychographyState, constraint: ProbeConstraint, around: Surroundings) -> None:
    if constraint.linear:
        _keep_waves(state, constraint.apply(_waves(state), around))
    else:
        state.probe = constraint.apply(state.probe, around)
        _keep_power(state)


def _each(constraints: Iterable[ObjectConstraint], obj: ComplexArray, around: Surroundings) -> ComplexArray:
    for constraint in constraints:
        obj = constraint.apply(obj, around)
    return obj


def _by_state(state: PtychographyState, obj: ComplexArray) -> ComplexArray:
    """Return an object (state · slice, y, x) as (state, slice, y, x)."""
    return obj.reshape(state.n_states, state.n_slices, *obj.shape[1:])


def _waves(state: PtychographyState) -> ComplexArray:
    """Return the probe's modes and their variations (wave, y, x)."""
    variation = state.refined.get("variation")
    return state.probe if variation is None else array_module(variation).concatenate([state.probe, variation])  # type: ignore[no-any-return]


def _keep_waves(state: PtychographyState, waves: ComplexArray) -> None:
    n_modes = len(state.probe)
    state.probe = waves[:n_modes]
    if "variation" in state.refined:
        state.refined["variation"] = waves[n_modes:]


def _keep_power(state: PtychographyState) -> None:
    """Let engines hold the power that the probe has now."""
    state.memory["probe_power"] = np.array([float(np.sum(abs(state.probe) ** 2, dtype=np.float64))])


def constraint_faults(job: Job) -> list[str]:
    """Return what of [constraints] is impossible, one a line."""
    faults = []
    for name, options in chosen_constraints(job).items():
        faults += [f"constraints.{name}.{fault}" for fault in _number_faults(options)]
        if name in OF_SLICES and chosen_slices(job) == 1:
            faults.append(f"constraints.{name}: needs ptychography.slices of 2 or more")
        if name in ("centre", "ramp") and job.detector.field == "near":
            faults.append(f"constraints.{name}: would move near-field patterns; leave it out")
        if name == "probe_aperture" and job.beam is None:
            faults.append(f"constraints.{name}: needs a [beam] section")
    bound = job.constraints.amplitude_bound
    if bound is not None and bound.lowest > bound.highest:
        faults.append(f"constraints.amplitude_bound: lowest {bound.lowest:g} is above highest {bound.highest:g}")
    return faults


def _number_faults(options: Any) -> list[str]:
    """Return the numbers of one constraint that make no sense, as ``key: what they must be``."""
    found = []
    for f in fields(options):
        value = getattr(options, f.name)
        if isinstance(value, str) or value is None or f.name in SIGNED:
            continue
        if f.name in LOWEST:
            fault = f"must be {LOWEST[f.name]} or more" if value < LOWEST[f.name] else ""
        elif f.name in NOT_NEGATIVE:
            fault = "must be 0 or more" if value < 0 else ""
        elif f.name in SHARES:
            fault = "must lie between 0 and 1" if not 0 <= value <= 1 else ""
        elif f.name == "stop_iteration":
            fault = "must be above start_iteration" if value <= options.start_iteration else ""
        else:
            fault = "must be positive" if value <= 0 else ""
        if fault:
            found.append(f"{f.name}: {fault}, got {value:g}")
    return found
