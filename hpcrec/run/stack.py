"""From ``projections.h5`` to a stack of phase projections on one grid, the tilt axis along y."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hpcrec.backend.array import Array, FloatArray, to_host
from hpcrec.backend.device import library
from hpcrec.errors import ConfigError, DataError
from hpcrec.io.results import ProjectionStore
from hpcrec.run.cluster import DaskExecutor
from hpcrec.run.job import TomographySection
from hpcrec.run.observers import Observer
from hpcrec.tomography.align import downsample
from hpcrec.tomography.denoise import DenoiseOptions, denoise
from hpcrec.tomography.prepare import PreparedProjection, PrepareOptions, prepare_projection
from hpcrec.tomography.turn import turn_image, turn_weight


@dataclass(frozen=True, kw_only=True)
class ProjectionStack:
    """Phase projections on one detector grid, turned so that the tilt axis lies along y (the axis frame).

    The centre of the scan is pixel n//2: the turn leaves it in place, and the axis goes through it.

    prepared, used (tilt, y, x) rad, ``used`` after denoising; weights (tilt, y, x); tilts rad; pixel_size Å;
    centre (y, x) Å of pixel n//2 in scan coordinates; axis rad, the in-plane angle of the tilt axis in the scan, from
    y: r_scan = Rz(axis) r; mass (tilt,) rad·Å²; n_residues (tilt,) phase vortices; doubtful (tilt,) whether they are
    too many.
    """

    prepared: FloatArray
    used: FloatArray
    weights: FloatArray
    tilts: FloatArray
    numbers: Array
    pixel_size: float
    centre: tuple[float, float]
    axis: float
    mass: FloatArray
    n_residues: Array
    doubtful: Array


@dataclass(frozen=True, kw_only=True)
class _TiltPlace:
    """Where one tilt's projection lies: its angle in rad, grid, and the middle of its scan (y, x) in Å."""

    number: int
    tilt: float
    shape: tuple[int, int]
    sampling: tuple[float, float]
    origin: tuple[float, float]
    middle: tuple[float, float]

    @property
    def centre(self) -> tuple[int, int]:
        """The pixel nearest to the middle of the scan."""
        y, x = (round((m - o) / d) for m, o, d in zip(self.middle, self.origin, self.sampling))
        return y, x


def gather_stack(path: Path, section: TomographySection, executor: DaskExecutor, observer: Observer) -> ProjectionStack:
    """Prepare, denoise and turn every tilt on the workers and put the projections on one square-pixel grid.

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
    images = _images(prepared, tilts[0].centre, section, executor)
    rows, columns = _field(images.weights, images.centre, dy, section)

    def cut(stack: list[FloatArray]) -> FloatArray:
        return downsample(np.stack(stack)[:, rows, columns].astype(np.float32), section.binning)

    return ProjectionStack(
        prepared=cut(images.phases),
        used=cut(images.used),
        weights=np.clip(cut(images.weights), 0, 1),
        tilts=np.array([t.tilt for t in tilts]),
        numbers=np.array([t.number for t in tilts]),
        pixel_size=dy * section.binning,
        centre=(tilts[0].origin[0] + dy * tilts[0].centre[0], tilts[0].origin[1] + dx * tilts[0].centre[1]),
        axis=float(np.deg2rad(section.tilt_axis_deg)),
        mass=np.array([p.mass for p in prepared]),
        n_residues=np.array([p.n_residues for p in prepared]),
        doubtful=np.array([p.doubtful for p in prepared], np.uint8),
    )


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


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Every tilt's prepared phase, the phase to use, and the weight (y, x); ``centre`` is the scan's pixel."""

    phases: list[FloatArray]
    used: list[FloatArray]
    weights: list[FloatArray]
    centre: tuple[int, int]


def _images(
    prepared: list[PreparedProjection], centre: tuple[int, int], section: TomographySection, executor: DaskExecutor
) -> _Images:
    """Denoise, then turn: a turn correlates the noise of neighbouring pixels, which the denoisers take as white."""
    n, phases, weights = len(prepared), [p.phase for p in prepared], [p.weight for p in prepared]
    denoised = section.denoise.method != "none"
    used = executor.map(_denoised, phases, [section.denoise] * n, [executor.device] * n) if denoised else phases
    if section.tilt_axis_deg % 360 == 0:
        return _Images(phases=phases, used=used, weights=weights, centre=centre)
    angle = -float(np.deg2rad(section.tilt_axis_deg))
    found = executor.map(turn_weight, weights, [angle] * n, [centre] * n)
    weights = [weight for weight, _ in found]
    phases = executor.map(_turned, phases, weights, [angle] * n, [centre] * n)
    used = executor.map(_turned, used, weights, [angle] * n, [centre] * n) if denoised else phases
    return _Images(phases=phases, used=used, weights=weights, centre=found[0][1])


def _denoised(phase: FloatArray, options: DenoiseOptions, device: Literal["cpu", "gpu"]) -> FloatArray:
    """Return one tilt's phase denoised on a device, brought to the host; all else of a stack's making is the host's."""
    return to_host(denoise(library(device).asarray(phase), options))


def _turned(phase: FloatArray, weight: FloatArray, angle: float, centre: tuple[int, int]) -> FloatArray:
    """Return one tilt's phase turned; zero where its turned ``weight`` is."""
    return turn_image(phase, angle, centre)[0] * (weight > 0)


def _field(
    weights: list[FloatArray], centre: tuple[int, int], pixel: float, section: TomographySection
) -> tuple[slice, slice]:
    """Return rows and columns of the field to reconstruct: the asked extent, or all that any tilt has seen.

    The field is centred on the scan; its sides are whole numbers of voxels.
    """
    seen = np.max(weights, axis=0) > 0
    cuts = []
    for axis, extent in enumerate(section.field_angstrom):
        middle, size = centre[axis], seen.shape[axis]
        if extent > 0:
            half = int(np.ceil(extent / 2 / pixel))
        else:
            inside = np.flatnonzero(seen.any(axis=1 - axis))
            half = max(middle - int(inside[0]), int(inside[-1]) - middle)
        half = min(half, middle, size - 1 - middle)
        cuts.append(slice(middle - half, middle + half + 1))
    return cuts[0], cuts[1]
