"""The constraints of a job between the sweeps of one tilt, on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from itertools import groupby
from typing import Any

import numpy as np
from scipy.fft import next_fast_len

from hpcrec.backend.array import ComplexArray, FloatArray, array_module, real_dtype, to_host
from hpcrec.backend.fft import fft2, fftn, ifft2, ifftn
from hpcrec.geometry.grid import Grid
from hpcrec.geometry.tiles import Box, window_corners
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
    StackFilter,
    Surroundings,
    constraint_class,
)
from hpcrec.objectives.region import Region, shifted_along
from hpcrec.parallel.exchange import Exchange, as_images
from hpcrec.parallel.transpose import BLOCK_BYTES, PIECE_BYTES, Pencils, Work, row_blocks
from hpcrec.run.job import Job
from hpcrec.run.optics import chosen_slices

OF_SLICES = ("kz_filter", "layer_tv", "z_smoothing", "identical_slices")
LOWEST = {"every": 1, "start_iteration": 0, "n_iterations": 1, "order": 1}
NOT_NEGATIVE = {"edge_angstrom", "edge_mrad", "lateral_damping_pixel2", "lowest"}
SHARES = {"strength", "amplitude_share"}
SIGNED = {"ratio"}
# Measured on a slice of 1024²: at most 6.0 arrays of its size beside the gathered one
SLICE_COPIES = 8
# Measured likewise, of a slice of the held box: the light, and what a gauge measures
LIGHT_COPIES, GAUGE_COPIES = 5, 7
# Of a block of rows or columns in a filter of twice the slices, measured
BLOCK_COPIES = 12


class Constraints:
    """What a job asks for in [constraints]; every rank makes the same calls.

    Pointwise constraints act where the object is held. What ties neighbours within a slice alone is done by slices,
    which are shared out to the ranks: each has room for one whole slice at a time. Filters of a stack's spectrum are
    done in whole rows and columns of all slices, shared out to the ranks. Gauges add up what each rank measures of its
    pixels, and change the pixels that are held; what they shift goes through rows and columns. So no rank needs the
    whole object, and ranks do not change the answer. An object on a device passes through host memory, and is changed
    on the device.
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
        together = [c for c in of_object if not c.pointwise]
        filters = any(isinstance(c, StackFilter) for c in together)
        if gauges or filters:
            pencils = Pencils(exchange.communicator, exchange.core, exchange.held, state.grid.shape)
            around = replace(around, light=_light(state, exchange), region=_region(state, pencils))
            _apply_gauges(state, exchange, around, gauges)
        for by_slices, group in groupby(together, key=lambda c: c.by_slices):
            if by_slices:
                _apply_by_slices(state, exchange, around, list(group))
                continue
            for constraint in group:
                assert isinstance(constraint, StackFilter)
                _apply_filter(state, pencils, constraint, around.light)
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


def bytes_between_sweeps(job: Job, whole: float, held: float, size: int, n_images: int, itemsize: int) -> float:
    """Return the bytes that constraints need on each rank of ``size``, beside the object.

    ``whole`` and ``held`` : pixels of the grid, and of a rank's box; ``n_images`` slices of all states in the object
    """
    chosen, share, image = chosen_constraints(job), whole / size, itemsize * held
    made = [constraint_class(n) for n in chosen if n in OBJECT_CONSTRAINTS]
    gauges, filters = [n for n in chosen if n in GAUGES], any(issubclass(c, StackFilter) for c in made)
    moved = max(2 * share, share + held) * n_images * itemsize + BLOCK_COPIES * BLOCK_BYTES + 2 * PIECE_BYTES
    found = SLICE_COPIES * whole * itemsize if any(c.by_slices for c in made) else 0.0
    if filters:
        found = max(found, moved + image, LIGHT_COPIES * image)
    if gauges:
        # What a gauge leaves is there until the next one is done
        shifts = moved if gauges != ["scale"] else 0.0
        found = max(found, min(len(gauges), 2) * n_images * image + max(shifts, GAUGE_COPIES * image))
    return found


def illumination_share(
    probe: ComplexArray,
    positions: FloatArray,
    grid: Grid,
    box: Box | None = None,
    highest: Callable[[float], float] = float,
) -> FloatArray:
    """Return Σ_j Σ_m |P_m(r − R_j)|² (y, x) on whole pixels, its maximum 1: one convolution where the probe lives.

    ``box`` : the pixels that are wanted, default all; ``highest`` : gives the maximum over all ranks' boxes
    """
    xp, (ny, nx), real = array_module(probe), probe.shape[-2:], real_dtype(probe.dtype)
    whole = Box(0, grid.shape[0], 0, grid.shape[1])
    box = whole if box is None else box
    # All of the windows that reach into the box; as none leaves it, the periodic convolution joins no edges
    around = Box(box.y0 - ny + 1, box.y1 + ny - 1, box.x0 - nx + 1, box.x1 + nx - 1).intersect(whole)
    first = window_corners(positions, grid, (ny, nx)) - (around.y0, around.x0)
    inside = ((first >= 0) & (first + (ny, nx) <= around.shape)).all(axis=1)
    light = xp.zeros(box.shape, real)
    if inside.any() and not box.empty:
        shape = [next_fast_len(n) for n in around.shape]
        visits, power = np.zeros(shape, real), xp.zeros(shape, real)
        np.add.at(visits, tuple(first[inside].T), 1)
        spectrum = fft2(xp.asarray(visits))
        del visits
        power[:ny, :nx] = np.sum(np.abs(probe) ** 2, axis=0)
        spectrum *= fft2(power)
        # The transforms are unitary; boxes of another size must have the same light
        spectrum *= real.type(math.sqrt(math.prod(shape)))
        light = ifft2(spectrum).real[box.slices(around)]
    # Round-off of the transforms is no light
    top = real.type(highest(float(light.max()) if light.size else 0.0))
    floor = real.type(1e-6) * top
    light = xp.maximum(light - floor, 0)
    light /= max(top - floor, real.type(1e-30))
    return light.astype(real, copy=False)  # type: ignore[no-any-return]


def _light(state: PtychographyState, exchange: Exchange) -> FloatArray:
    """Return the illumination of the held pixels; its maximum over all ranks is 1."""

    def highest(value: float) -> float:
        return float(exchange.communicator.max(np.array([value]))[0])

    return illumination_share(state.probe, state.positions, state.grid, exchange.held, highest)


def _region(state: PtychographyState, pencils: Pencils) -> Region:
    """Return what gauges know of the object's pixels on other ranks."""

    def shifted(obj: ComplexArray, ways: FloatArray) -> ComplexArray:
        several = np.tile(ways, (len(obj), 1))

        def along(axis: int) -> Work:
            return lambda block, _: to_host(shifted_along(beside(state.obj, block), several[:, axis], axis))

        images = as_images(to_host(obj))
        return beside(state.obj, pencils.through(images, along(-1), along(-2))).reshape(obj.shape)  # type: ignore[no-any-return]

    return Region(
        shape=pencils.shape,
        held=pencils.held[pencils.communicator.rank],
        core=pencils.core,
        total=pencils.communicator.sum,
        with_next=pencils.with_next,
        shifted=shifted,
    )


def _apply_gauges(state: PtychographyState, exchange: Exchange, around: Surroundings, gauges: list[Gauge]) -> None:
    """Change object and waves; the first rank's waves are everybody's."""
    if not gauges:
        return
    obj, waves = _by_state(state, state.obj), _waves(state)
    for gauge in gauges:
        obj, waves = gauge.apply(obj, waves, around)
    state.obj = obj.reshape(state.obj.shape)
    first = to_host(waves) if exchange.communicator.rank == 0 else None
    _keep_waves(state, beside(state.probe, exchange.communicator.broadcast(first)))
    _keep_power(state)


def _apply_filter(
    state: PtychographyState, pencils: Pencils, constraint: StackFilter, light: FloatArray | None
) -> None:
    """Filter along rows, then along columns and from slice to slice, a block at a time where the object lives."""

    def worked(block: ComplexArray, work: Callable[[ComplexArray], ComplexArray]) -> ComplexArray:
        return to_host(work(beside(state.obj, np.ascontiguousarray(block))))

    def of_rows(block: ComplexArray, _: Box) -> ComplexArray:
        return worked(block, lambda b: fftn(constraint.start(_by_state(state, b)), axes=(-1,)).reshape(b.shape))

    def of_columns(block: ComplexArray, box: Box) -> ComplexArray:
        def work(b: ComplexArray) -> ComplexArray:
            spectrum = constraint.filtered(_by_state(state, fftn(b, axes=(-2,))), pencils.shape, box)
            return ifftn(spectrum, axes=(-2,)).reshape(b.shape)

        return worked(block, work)

    def back(block: ComplexArray, _: Box) -> ComplexArray:
        return worked(block, lambda b: ifftn(b, axes=(-1,)))

    held = pencils.held[pencils.communicator.rank]
    found = pencils.through(state.obj, of_rows, of_columns, back)
    for rows in row_blocks(held, len(found) * found.dtype.itemsize):
        part = np.s_[:, *rows.slices(held)]
        new = _by_state(state, beside(state.obj, found[part]))
        lit = None if light is None else light[rows.slices(held)]
        found[part] = to_host(constraint.finish(_by_state(state, state.obj[part]), new, lit)).reshape(found[part].shape)
    state.obj = beside(state.obj, found)


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
