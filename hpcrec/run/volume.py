"""The tomography stage: align the stack of projections and reconstruct the volume, on Dask workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hpcrec.backend.array import Array, FloatArray, to_host
from hpcrec.backend.device import library
from hpcrec.engines.solvers import Solver, solver_class
from hpcrec.io.checkpoint import latest_good, save_checkpoint
from hpcrec.io.results import VolumeResult, write_volume
from hpcrec.io.store import Attribute
from hpcrec.models.tomography import Misfit, TomographyModel
from hpcrec.run.cluster import DaskExecutor
from hpcrec.run.directory import RunDirectory
from hpcrec.run.job import Job, TomographySection
from hpcrec.run.observers import Observer
from hpcrec.run.slabs import SlabFiles, problem_key
from hpcrec.run.stack import ProjectionStack, gather_stack
from hpcrec.tomography.align import Alignment, AlignmentRound, align
from hpcrec.tomography.mask import fitting_shape, resize_mask
from hpcrec.tomography.reconstruct import Reconstruction, reconstruct
from hpcrec.tomography.slabs import split_rows
from hpcrec.tomography.turn import turn_rotation, turn_vectors

WHOLE = "volume"
HALVES = ("even tilts", "odd tilts")


@dataclass(frozen=True, kw_only=True)
class VolumeProblem:
    """What every reconstruction of a run shares; ``shape`` (z, y, x) voxels; ``weights`` (tilt, y, x).

    ``saver(name, key)`` saves the ``n_slabs`` slabs of a reconstruction, however many workers there are.
    """

    stack: ProjectionStack
    alignment: Alignment
    weights: FloatArray
    shape: tuple[int, int, int]
    solver: Solver
    executor: DaskExecutor
    observer: Observer
    n_slabs: int
    saver: Callable[[str, str], SlabFiles]

    def model(self, picks: Array) -> TomographyModel:
        """Return the geometry of some of the projections."""
        return TomographyModel(
            volume_shape=self.shape,
            voxel_size=self.stack.pixel_size,
            detector_shape=(self.stack.used.shape[1], self.stack.used.shape[2]),
            poses=tuple(self.alignment.poses[i] for i in picks),
            blur=self.solver.options.blur_angstrom,
        )

    def aligned(self, projections: FloatArray) -> FloatArray:
        """Return projections (tilt, y, x) without the backgrounds that the alignment found, float32."""
        return self.alignment.without_background(projections, self.stack.pixel_size).astype(np.float32)

    def solve(self, data: FloatArray, picks: Array, name: str) -> Reconstruction:
        """Reconstruct from some of the projections ``data`` (tilt, y, x), or go on where an interrupted run was."""
        total, first = self.solver.options.n_iterations, True

        def hear(i: int, misfit: Misfit) -> None:
            nonlocal first
            if first and i:
                self.observer({"event": "note", "text": f"{name}: {i} iterations done before, kept"})
            first = False
            text = f"{name}, R1 {misfit.r1:.4f}"
            self.observer(
                {"event": "stage_progress", "stage": "tomography", "done": i + 1, "total": total, "text": text}
            )

        found = self.alignment
        support = resize_mask(found.support, self.shape, found.support_voxel, self.stack.pixel_size)
        own = data[picks], self.weights[picks]
        settings = (
            f"{type(self.solver).__name__} {self.solver.options} {self.stack.pixel_size} {self.shape} {self.n_slabs}"
        )
        return reconstruct(
            self.model(picks),
            *own,
            self.solver,
            support=support,
            n_slabs=self.n_slabs,
            executor=self.executor,
            saver=self.saver(name, problem_key(settings, *own, found.parameters[picks], support)),
            callback=hear,
        )

    def reproject(self, coefficients: FloatArray) -> FloatArray:
        """Return the projections (tilt, y, x) of a volume of coefficients."""
        model = self.model(np.arange(len(self.weights)))
        slabs = split_rows(self.shape[1], self.n_slabs)
        rows = [np.ascontiguousarray(coefficients[:, a:b]) for a, b in slabs]
        devices = [self.executor.device] * len(slabs)
        return to_host(model.smooth(self.executor.sum(_reproject, [model] * len(slabs), slabs, rows, devices)))


def _reproject(
    model: TomographyModel, slab: tuple[int, int], volume: FloatArray, device: Literal["cpu", "gpu"]
) -> FloatArray:
    return model.projector(slab).forward(library(device).asarray(volume))


def reconstruct_volume(job: Job, key: str, directory: RunDirectory, executor: DaskExecutor, observer: Observer) -> None:
    """Turn ``projections.h5`` into ``volume.h5``; ``key`` tells whether a saved alignment belongs to these settings."""
    section = job.tomography
    assert section is not None
    executor.told = lambda text: observer({"event": "warning", "text": text})
    n_slabs = _slab_count(directory, key, executor, observer)

    def saver(name: str, problem: str) -> SlabFiles:
        folder, every = directory.checkpoints, job.parallel.save_every
        return SlabFiles(folder=folder, name=name.replace(" ", "-"), key=problem, every=every)

    stack = gather_stack(directory.projections, section, executor, observer)
    for number in stack.numbers[stack.doubtful > 0]:
        observer({"event": "warning", "text": f"tilt {number}: phase vortices make its unwrapping doubtful"})
    alignment = _aligned(stack, section, key, directory, executor, observer, n_slabs, saver)
    problem = VolumeProblem(
        stack=stack,
        alignment=alignment,
        weights=(stack.weights * alignment.weights[:, None, None]).astype(np.float32),
        shape=_volume_shape(stack, section, alignment),
        solver=_solver(section),
        executor=executor,
        observer=observer,
        n_slabs=n_slabs,
        saver=saver,
    )
    everything = np.arange(len(stack.used))
    data = problem.aligned(stack.used)
    whole = problem.solve(data, everything, WHOLE)
    arrays: dict[str, Array] = {
        "convergence/r1": whole.r1,
        "convergence/per_projection": whole.per_projection,
        **alignment_arrays(alignment, stack.axis),
        **projection_arrays(stack),
        "projections/aligned": data,
        "projections/reprojected": problem.reproject(whole.coefficients),
    }
    if section.denoise.method != "none":
        arrays["projections/denoised"] = stack.used
    if section.half_sets:
        arrays |= half_volumes(problem)
    attributes: dict[str, Attribute] = {
        "centre_angstrom": stack.centre,
        "tilt_axis_deg": section.tilt_axis_deg,
        "solver": section.solver,
        "unit": "rad/angstrom",
    }
    write_volume(
        directory.volume,
        VolumeResult(volume=whole.volume, voxel_size=stack.pixel_size, arrays=arrays, attributes=attributes),
    )
    for name in (WHOLE, *HALVES):
        saver(name, "").remove()
    _slabs_file(directory).unlink(missing_ok=True)


def _slabs_file(directory: RunDirectory) -> Path:
    return directory.checkpoints / "slabs.json"


def _slab_count(directory: RunDirectory, key: str, executor: DaskExecutor, observer: Observer) -> int:
    """Return the number of slabs, on which sums depend to the last bit: as many as slots at the start."""
    path = _slabs_file(directory)
    begun = directory.read_json(path)
    if begun.get("key") != key:
        directory.write_json(path, {"key": key, "n_slabs": executor.n_slots})
        return executor.n_slots
    n_slabs = int(begun["n_slabs"])
    if n_slabs < executor.n_slots:
        text = f"the volume was begun in {n_slabs} slab(s), so {executor.n_slots - n_slabs} worker(s) have none"
        observer({"event": "warning", "text": f"{text}; remove {path} to begin it anew"})
    return n_slabs


def half_volumes(problem: VolumeProblem) -> dict[str, Array]:
    """Return the volumes of even and odd tilts, from projections that were not denoised.

    A denoiser makes both halves alike where it errs alike, and their correlation would count that as signal.
    """
    measured = problem.aligned(problem.stack.prepared)
    by_angle = np.argsort(problem.stack.tilts, kind="stable")  # neighbours in angle, whatever the order in the file
    return {
        "halves/even": problem.solve(measured, by_angle[::2], HALVES[0]).volume,
        "halves/odd": problem.solve(measured, by_angle[1::2], HALVES[1]).volume,
    }


def _solver(section: TomographySection) -> Solver:
    made: Solver = solver_class(section.solver)(getattr(section, section.solver))  # type: ignore[call-arg]
    return made


def _volume_shape(stack: ProjectionStack, section: TomographySection, alignment: Alignment) -> tuple[int, int, int]:
    """Return (z, y, x) voxels: what holds the object's support, or the whole field at the asked thickness."""
    if section.thickness_angstrom == 0:
        return fitting_shape(alignment.support, alignment.support_voxel, stack.pixel_size)
    _, ny, nx = stack.prepared.shape
    return int(round(section.thickness_angstrom / stack.pixel_size)) | 1, ny, nx


def _aligned(
    stack: ProjectionStack,
    section: TomographySection,
    key: str,
    directory: RunDirectory,
    executor: DaskExecutor,
    observer: Observer,
    n_slabs: int,
    saver: Callable[[str, str], SlabFiles],
) -> Alignment:
    """Return the alignment saved by an interrupted run with the same settings, or find it and save it."""
    found = latest_good(directory.checkpoints, "alignment")
    if found is not None and found.attributes.get("key") == key:
        observer({"event": "note", "text": "alignment: done before, kept"})
        return alignment_from(found.arrays, float(np.asarray(found.attributes["support_voxel"])))
    total, done = sum(section.alignment.rounds), 0

    def hear(found: AlignmentRound) -> None:
        nonlocal done
        done += 1
        text = f"aligning at {found.bin} pixels, R1 {found.r1:.4f}, shifts moved {found.shift_change:.3f} Å"
        observer({"event": "stage_progress", "stage": "tomography", "done": done, "total": total, "text": text})

    alignment = align(
        stack.used,
        stack.weights,
        stack.pixel_size,
        stack.tilts,
        section.alignment,
        n_slabs=n_slabs,
        executor=executor,
        saver=lambda name: saver(name, key),
        callback=hear,
    )
    arrays = {
        name: np.asarray(getattr(alignment, name))
        for name in ("parameters", "start", "weights", "residuals", "mass", "support")
    }
    history = np.array([[r.bin, r.r1, r.shift_change, r.angle_change, r.n_refused] for r in alignment.history])
    arrays["history"] = history
    arrays["support"] = alignment.support.astype(np.uint8)
    path = directory.checkpoints / "alignment_000001.h5"
    save_checkpoint(path, arrays, {"key": key, "support_voxel": alignment.support_voxel})
    return alignment


def alignment_from(arrays: dict[str, Array], support_voxel: float) -> Alignment:
    """Return the alignment that a checkpoint holds."""
    rounds = [
        AlignmentRound(bin=int(r[0]), r1=r[1], shift_change=r[2], angle_change=r[3], n_refused=int(r[4]))
        for r in arrays["history"]
    ]
    return Alignment(
        **{name: arrays[name] for name in ("parameters", "start", "weights", "residuals", "mass")},
        history=tuple(rounds),
        support=arrays["support"].astype(np.bool_),
        support_voxel=support_voxel,
    )


def projection_arrays(stack: ProjectionStack) -> dict[str, Array]:
    """Return a stack as the arrays of ``volume.h5``, in the axis frame."""
    return {
        "projections/prepared": stack.prepared,
        "projections/weight": stack.weights,
        "projections/mass": stack.mass,
        "projections/n_residues": stack.n_residues,
        "projections/doubtful": stack.doubtful,
        "projections/tilt_deg": np.rad2deg(stack.tilts),
        "projections/number": stack.numbers,
    }


def alignment_arrays(alignment: Alignment, axis: float) -> dict[str, Array]:
    """Return an alignment as the arrays of ``volume.h5``, in the frame of the scan: turned back by ``axis`` rad.

    The angles are the same in both frames: they turn about the beam, the tilt axis, and the axis across both.
    """
    columns = ("bin", "r1", "shift_change", "angle_change", "n_refused")
    return {
        "alignment/shifts_angstrom": turn_vectors(alignment.shifts, axis),
        "alignment/start_shifts_angstrom": turn_vectors(alignment.start[:, :2], axis),
        "alignment/rotations": turn_rotation(np.stack([pose.rotation for pose in alignment.poses]), axis),
        "alignment/angles_deg": np.rad2deg(alignment.angles),
        "alignment/offsets": alignment.parameters[:, 5],
        "alignment/ramps": turn_vectors(alignment.parameters[:, 6:8], axis),
        "alignment/weights": alignment.weights,
        "alignment/residuals": alignment.residuals,
        "alignment/mass": alignment.mass,
        **{f"alignment/history_{c}": np.array([getattr(r, c) for r in alignment.history]) for c in columns},
    }
