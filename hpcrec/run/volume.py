"""The tomography stage: prepare, denoise, align, reconstruct; on Dask workers or in this process."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcrec.backend.array import Array, FloatArray
from hpcrec.engines.solvers import Solver, solver_class
from hpcrec.errors import ConfigError, DataError
from hpcrec.geometry.pose import Pose
from hpcrec.io.checkpoint import latest_good, save_checkpoint
from hpcrec.io.results import ProjectionStore, VolumeResult, write_volume
from hpcrec.models.tomography import TomographyModel
from hpcrec.run.cluster import DaskExecutor
from hpcrec.run.directory import RunDirectory
from hpcrec.run.job import Job, TomographySection
from hpcrec.run.observers import Observer
from hpcrec.tomography.align import Alignment, AlignmentRound, align, downsample
from hpcrec.tomography.denoise import denoise
from hpcrec.tomography.mask import fitting_shape, resize_mask
from hpcrec.tomography.prepare import PreparedProjection, PrepareOptions, prepare_projection
from hpcrec.tomography.reconstruct import Reconstruction, reconstruct

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProjectionStack:
    """Phase projections on one detector grid whose pixel n//2 is the centre of the scan.

    prepared, used (tilt, y, x) rad, ``used`` after denoising; weights (tilt, y, x); tilts rad; pixel_size Å;
    centre (y, x) Å of pixel n//2 in scan coordinates; mass (tilt,) rad·Å²; doubtful tilts by number.
    """

    prepared: FloatArray
    used: FloatArray
    weights: FloatArray
    tilts: FloatArray
    numbers: Array
    pixel_size: float
    centre: tuple[float, float]
    mass: FloatArray
    doubtful: list[int]


def reconstruct_volume(job: Job, key: str, directory: RunDirectory, executor: DaskExecutor, observer: Observer) -> None:
    """Turn ``projections.h5`` into ``volume.h5``; ``key`` tells whether a saved alignment belongs to these settings."""
    section = job.tomography
    assert section is not None
    stack = gather_stack(directory.projections, section, executor, observer)
    for number in stack.doubtful:
        observer({"event": "warning", "text": f"tilt {number}: phase vortices make its unwrapping doubtful"})
    alignment = _aligned(stack, section, key, directory, executor, observer)
    shape = _volume_shape(stack, section, alignment)
    solver = _solver(section)
    data = alignment.without_background(stack.used, stack.pixel_size).astype(np.float32)
    weights = (stack.weights * alignment.weights[:, None, None]).astype(np.float32)

    def solve(picks: Array, name: str) -> Reconstruction:
        return _solve(shape, stack, alignment, data, weights, picks, solver, executor, observer, name)

    everything = np.arange(len(data))
    whole = solve(everything, "volume")
    arrays: dict[str, Array] = {
        "convergence/r1": whole.r1,
        "convergence/per_projection": whole.per_projection,
        **alignment_arrays(alignment, stack),
        "projections/prepared": stack.prepared,
        "projections/weight": stack.weights,
        "projections/aligned": data,
        "projections/mass": stack.mass,
        "projections/tilt_deg": np.rad2deg(stack.tilts),
        "projections/number": stack.numbers,
    }
    if section.denoise.method != "none":
        arrays["projections/denoised"] = stack.used
    model = _model(shape, stack, tuple(alignment.poses), solver)
    parts = executor.map(_reproject, [model] * executor.n_workers, *_row_slabs(whole.coefficients, executor.n_workers))
    arrays["projections/reprojected"] = model.smooth(sum(parts))
    if section.half_sets:
        arrays["halves/even"] = solve(everything[::2], "even tilts").volume
        arrays["halves/odd"] = solve(everything[1::2], "odd tilts").volume
    attributes = {"centre_angstrom": stack.centre, "solver": section.solver, "unit": "rad/angstrom"}
    write_volume(
        directory.volume,
        VolumeResult(volume=whole.volume, voxel_size=stack.pixel_size, arrays=arrays, attributes=attributes),
    )


def gather_stack(path: Path, section: TomographySection, executor: DaskExecutor, observer: Observer) -> ProjectionStack:
    """Prepare and denoise every tilt on the workers and put the projections on one square-pixel grid.

    The workers read their tilts from ``path`` (``projections.h5``) themselves.
    """
    with ProjectionStore(path) as store:
        n, (dy, dx) = store.n_tilts, store.sampling
    if not np.isclose(dy, dx, rtol=1e-6):
        raise ConfigError(
            f"tomography needs square pixels, the projections have {dy:.4g} × {dx:.4g} Å: set data.window to a square"
        )
    observer({"event": "stage_progress", "stage": "tomography", "done": 0, "total": n, "text": "preparing"})
    found = executor.map(_prepare, [path] * n, range(n), [section.prepare] * n)
    tilts, prepared = [tilt for tilt, _ in found], [projection for _, projection in found]
    _check_alike(tilts)
    smooth = executor.map(denoise, [p.phase for p in prepared], [section.denoise] * n)
    weights = np.stack([p.weight for p in prepared])
    rows, columns = _field(tilts[0], weights, section)

    def cut(images: list[FloatArray]) -> FloatArray:
        return downsample(np.stack(images)[:, rows, columns].astype(np.float32), section.binning)

    origin = tilts[0].origin
    return ProjectionStack(
        prepared=cut([p.phase for p in prepared]),
        used=cut(smooth),
        weights=np.clip(cut([p.weight for p in prepared]), 0, 1),
        tilts=np.array([t.tilt for t in tilts]),
        numbers=np.array([t.number for t in tilts]),
        pixel_size=dy * section.binning,
        centre=(
            origin[0] + dy * (rows.start + (rows.stop - rows.start) // 2),
            origin[1] + dx * (columns.start + (columns.stop - columns.start) // 2),
        ),
        mass=np.array([p.mass for p in prepared]),
        doubtful=[t.number for t, p in zip(tilts, prepared) if p.doubtful],
    )


@dataclass(frozen=True, kw_only=True)
class _TiltPlace:
    """Where one tilt's projection lies: its angle in rad, grid, and the middle of its scan (y, x) in Å."""

    number: int
    tilt: float
    shape: tuple[int, int]
    sampling: tuple[float, float]
    origin: tuple[float, float]
    middle: tuple[float, float]


def _prepare(path: Path, i_tilt: int, options: PrepareOptions) -> tuple[_TiltPlace, PreparedProjection]:
    """Read and prepare one tilt; runs on a worker."""
    with ProjectionStore(path) as store:
        tilt = store.tilt(i_tilt)
    middle = (tilt.positions.min(axis=0) + tilt.positions.max(axis=0)) / 2
    place = _TiltPlace(
        number=tilt.tilt_index,
        tilt=float(np.deg2rad(tilt.tilt_deg)),
        shape=(tilt.obj.shape[-2], tilt.obj.shape[-1]),
        sampling=tilt.sampling,
        origin=tilt.origin,
        middle=(float(middle[0]), float(middle[1])),
    )
    return place, prepare_projection(tilt.obj, tilt.illumination, tilt.sampling, options)


def _check_alike(tilts: list[_TiltPlace]) -> None:
    for tilt in tilts[1:]:
        if tilt.shape != tilts[0].shape or not np.allclose(tilt.origin, tilts[0].origin):
            raise DataError(f"tilt {tilt.number} lies on another grid than tilt {tilts[0].number}: do not mix runs")


def _field(tilt: _TiltPlace, weights: FloatArray, section: TomographySection) -> tuple[slice, slice]:
    """Return rows and columns of the field to reconstruct: the asked extent, or all that any tilt has seen.

    The field is centred on the scan; its sides are whole numbers of voxels.
    """
    seen = weights.max(axis=0) > 0
    cuts = []
    for axis, extent in enumerate(section.field_angstrom):
        centre = round((tilt.middle[axis] - tilt.origin[axis]) / tilt.sampling[axis])
        size = seen.shape[axis]
        if extent > 0:
            half = int(np.ceil(extent / 2 / tilt.sampling[axis]))
        else:
            inside = np.flatnonzero(seen.any(axis=1 - axis))
            half = max(centre - inside[0], inside[-1] - centre)
        half = min(half, centre, size - 1 - centre)
        cuts.append(slice(centre - half, centre + half + 1))
    return cuts[0], cuts[1]


def _volume_shape(stack: ProjectionStack, section: TomographySection, alignment: Alignment) -> tuple[int, int, int]:
    """Return (z, y, x) voxels: what holds the object's support, or the whole field at the asked thickness."""
    if section.thickness_angstrom == 0:
        return fitting_shape(alignment.support, alignment.support_voxel, stack.pixel_size)
    _, ny, nx = stack.prepared.shape
    return int(round(section.thickness_angstrom / stack.pixel_size)) | 1, ny, nx


def _solver(section: TomographySection) -> Solver:
    made: Solver = solver_class(section.solver)(getattr(section, section.solver))  # type: ignore[call-arg]
    return made


def _model(
    shape: tuple[int, int, int], stack: ProjectionStack, poses: tuple[Pose, ...], solver: Solver
) -> TomographyModel:
    return TomographyModel(
        volume_shape=shape,
        voxel_size=stack.pixel_size,
        detector_shape=(stack.prepared.shape[1], stack.prepared.shape[2]),
        poses=poses,
        blur=solver.options.blur_angstrom,
    )


def _solve(
    shape: tuple[int, int, int],
    stack: ProjectionStack,
    alignment: Alignment,
    data: FloatArray,
    weights: FloatArray,
    picks: Array,
    solver: Solver,
    executor: DaskExecutor,
    observer: Observer,
    name: str,
) -> Reconstruction:
    """Reconstruct from some of the projections."""
    total = solver.options.n_iterations

    def hear(i: int, misfit: Any) -> None:
        text = f"{name}, R1 {misfit.r1:.4f}"
        observer({"event": "stage_progress", "stage": "tomography", "done": i + 1, "total": total, "text": text})

    poses = alignment.poses
    return reconstruct(
        _model(shape, stack, tuple(poses[i] for i in picks), solver),
        data[picks],
        weights[picks],
        solver,
        support=resize_mask(alignment.support, shape, alignment.support_voxel, stack.pixel_size),
        n_slabs=executor.n_workers,
        executor=executor,
        callback=hear,
    )


def _aligned(
    stack: ProjectionStack,
    section: TomographySection,
    key: str,
    directory: RunDirectory,
    executor: DaskExecutor,
    observer: Observer,
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
        n_slabs=executor.n_workers,
        executor=executor,
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


def alignment_arrays(alignment: Alignment, stack: ProjectionStack) -> dict[str, Array]:
    """Return an alignment as the arrays of ``volume.h5``."""
    columns = ("bin", "r1", "shift_change", "angle_change", "n_refused")
    return {
        "alignment/shifts_angstrom": alignment.shifts,
        "alignment/start_shifts_angstrom": alignment.start[:, :2],
        "alignment/rotations": np.stack([pose.rotation for pose in alignment.poses]),
        "alignment/angles_deg": np.rad2deg(alignment.angles),
        "alignment/offsets": alignment.parameters[:, 5],
        "alignment/ramps": alignment.parameters[:, 6:8],
        "alignment/weights": alignment.weights,
        "alignment/residuals": alignment.residuals,
        "alignment/mass": alignment.mass,
        **{f"alignment/history_{c}": np.array([getattr(r, c) for r in alignment.history]) for c in columns},
    }


def _row_slabs(volume: FloatArray, n_slabs: int) -> tuple[list[tuple[int, int]], list[FloatArray]]:
    edges = np.linspace(0, volume.shape[1], n_slabs + 1).astype(int)
    slabs = [(int(a), int(b)) for a, b in zip(edges, edges[1:])]
    return slabs, [np.ascontiguousarray(volume[:, a:b]) for a, b in slabs]


def _reproject(model: TomographyModel, slab: tuple[int, int], volume: FloatArray) -> FloatArray:
    return model.projector(slab).forward(volume)
