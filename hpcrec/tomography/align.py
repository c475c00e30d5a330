"""Joint alignment of a tilt series: a volume, and for each projection two shifts, three angles and a background.

The volume takes some FISTA steps at fixed poses, then every projection takes one Gauss–Newton step at the fixed volume;
from coarse pixels to fine. Literature: Levenberg–Marquardt after Nocedal & Wright (2006) ch. 10; the parameters after
Romanov et al., J. Phys. Mater. 8 (2025) 015005.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from hpcrec.backend.array import BoolArray, FloatArray, array_module, to_host
from hpcrec.engines.fista import Fista, FistaOptions
from hpcrec.engines.solvers import SlabState
from hpcrec.errors import ConfigError, DataError
from hpcrec.geometry.pose import Pose
from hpcrec.models.tomography import TomographyModel
from hpcrec.options import options
from hpcrec.tomography.executor import Executor, InlineExecutor
from hpcrec.tomography.mask import MaskOptions, fitting_shape, resize_mask, seen_mask, support_mask
from hpcrec.tomography.pose_step import N_PARAMETERS, StepLimits, background, pose_of, pose_step, remove_gauge
from hpcrec.tomography.reconstruct import iterate, model_norm
from hpcrec.tomography.slabs import SlabSaver, SlabVolume

logger = logging.getLogger(__name__)


@options
class AlignmentOptions:
    """Options of the alignment.

    bins: pixels joined to one, a scale each, from coarse to fine
    rounds: rounds of (volume, poses) at each scale, as many numbers as ``bins``
    volume_iterations: FISTA steps of the volume in a round; the first round of a scale takes three times as many
    blur_pixels: standard deviation of the volume's blobs in pixels of the scale
    tilt_sigma_deg: expected error of the nominal tilt angles; 0 = fixed
    in_plane_sigma_deg: expected rotation of an image in its plane; 0 = fixed
    out_of_plane_sigma_deg: expected rotation about the axis across tilt axis and beam, small for a stiff holder;
        0 = fixed
    shift_sigma_angstrom: expected shift left after the centre of mass; 0 = fixed
    offset_sigma_rad: expected constant left in the phase; 0 = fixed, as the preparation took it out in vacuum
    ramp_sigma_rad_per_angstrom: expected phase ramp; 0 = fixed
    angles_from_scale: index of the first scale that refines angles; the last scale always does
    step_cap_pixels: longest move of any point of the object in one round, in pixels of the scale
    centre_threshold: fraction of a projection's peak above which pixels count for its centre of mass
    """

    bins: tuple[int, ...] = (4, 2)
    rounds: tuple[int, ...] = (5, 12)
    volume_iterations: int = 4
    blur_pixels: float = 0.3
    tilt_sigma_deg: float = 0.5
    in_plane_sigma_deg: float = 0.5
    out_of_plane_sigma_deg: float = 0.1
    shift_sigma_angstrom: float = 1.0
    offset_sigma_rad: float = 0.0
    ramp_sigma_rad_per_angstrom: float = 0.01
    angles_from_scale: int = 1
    step_cap_pixels: float = 0.7
    centre_threshold: float = 0.1


@dataclass(frozen=True, kw_only=True)
class AlignmentRound:
    """One round: its ``bin``, the residual ``r1``, rms changes of shifts (Å) and angles (rad), steps refused."""

    bin: int
    r1: float
    shift_change: float
    angle_change: float
    n_refused: int


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The alignment of a tilt series.

    parameters : (projection, 8) float64: dy, dx (Å), in_plane, tilt, out_of_plane (rad), offset (rad), ramp_y, ramp_x
        (rad/Å)
    start : (projection, 8) the parameters before the first round (nominal angles, centres of mass)
    weights : (projection,) trust within [0, 1] from each projection's residual; a bad one is listed, not dropped
    residuals : (projection,) root mean square misfit in rad in the last round
    mass : (projection,) integral of the phase after the background is removed, rad Å²; equal for a stable sample
    history : one :class:`AlignmentRound` a round
    support : (z, y, x) boolean at ``support_voxel`` Å, where the object lies
    """

    parameters: FloatArray
    start: FloatArray
    weights: FloatArray
    residuals: FloatArray
    mass: FloatArray
    history: tuple[AlignmentRound, ...]
    support: BoolArray
    support_voxel: float

    @property
    def poses(self) -> tuple[Pose, ...]:
        """The refined pose of each projection."""
        return tuple(pose_of(p) for p in self.parameters)

    @property
    def shifts(self) -> FloatArray:
        """Shifts (projection, 2) = (dy, dx) in Å: where the image content lies relative to the volume's centre."""
        return self.parameters[:, :2]

    @property
    def angles(self) -> FloatArray:
        """Angles (projection, 3) = (in_plane, tilt, out_of_plane) in rad."""
        return self.parameters[:, 2:5]

    def without_background(self, stack: FloatArray, pixel_size: float) -> FloatArray:
        """Return ``stack`` (projection, y, x) minus each projection's offset and ramps."""
        shape = (stack.shape[1], stack.shape[2])
        return stack - np.stack([background(p, shape, pixel_size) for p in self.parameters])


def downsample(stack: FloatArray, factor: int) -> FloatArray:
    """Low-pass and take every ``factor``-th pixel of (…, y, x) such that the centre pixel n//2 stays the centre."""
    if factor == 1:
        return stack
    # σ = 0.45 of the new pixel leaves e^(−1) ≈ 0.37 of the amplitude at its Nyquist frequency.
    smooth = gaussian_filter(stack, (0,) * (stack.ndim - 2) + (0.45 * factor,) * 2, mode="nearest")
    return np.ascontiguousarray(smooth[(..., *(_centred(n, factor) for n in stack.shape[-2:]))], np.float32)


def _centred(n: int, factor: int) -> slice:
    below, above = (n // 2) // factor, (n - 1 - n // 2) // factor
    below, above = (below, below) if above >= below else (above + 1, above)
    return slice(n // 2 - below * factor, n // 2 + above * factor + 1, factor)


def centres_of_mass(stack: FloatArray, weights: FloatArray, pixel_size: float, threshold: float) -> FloatArray:
    """Return (projection, 2) = (y, x) in Å: the centre of what exceeds ``threshold`` times the peak of each image."""
    smooth = gaussian_filter(stack, (0, 2, 2)) * weights
    floor = threshold * np.percentile(smooth, 99.8, axis=(1, 2), keepdims=True)
    mass = np.maximum(smooth - floor, 0)
    total = mass.sum(axis=(1, 2), dtype=np.float64)
    if not np.all(total > 0):
        raise DataError(f"projections {np.flatnonzero(total <= 0).tolist()} hold no object above the background")
    y, x = ((np.arange(n) - n // 2) * pixel_size for n in stack.shape[1:])
    return np.stack([mass.sum(axis=2) @ y / total, mass.sum(axis=1) @ x / total], axis=1)


def _measure(model: TomographyModel, state: SlabState) -> FloatArray:
    projector, xp = model.projector(state.slab, state.support), array_module(state.volume)
    images = projector.forward(state.volume), projector.depth_moment(state.volume)
    return xp.stack(images)  # type: ignore[no-any-return]


def _trial(model: TomographyModel, state: SlabState) -> FloatArray:
    return model.projector(state.slab, state.support).forward(state.volume)


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """The data of one scale and the prior of the parameters at it."""

    data: FloatArray
    weights: FloatArray
    pixel_size: float
    expected: FloatArray
    centre: FloatArray
    options: AlignmentOptions
    executor: Executor
    n_slabs: int
    saver: SlabSaver | None

    def model(self, parameters: FloatArray, shape: tuple[int, int, int]) -> TomographyModel:
        return TomographyModel(
            volume_shape=shape,
            voxel_size=self.pixel_size,
            detector_shape=(self.data.shape[1], self.data.shape[2]),
            poses=tuple(pose_of(p) for p in parameters),
            blur=self.options.blur_pixels * self.pixel_size,
        )

    def corrected(self, parameters: FloatArray) -> FloatArray:
        shape = (self.data.shape[1], self.data.shape[2])
        return self.data - np.stack([background(p, shape, self.pixel_size) for p in parameters])


def _losses(model: TomographyModel, projected: FloatArray, data: FloatArray, weights: FloatArray) -> FloatArray:
    xp = array_module(projected)
    weighted = xp.sqrt(xp.asarray(weights)) * (projected - xp.asarray(data))
    return to_host(xp.sum(weighted * model.filtered(weighted), axis=(1, 2), dtype=np.float64))


def _propose(
    scale: _Scale,
    model: TomographyModel,
    volume: SlabVolume,
    parameters: FloatArray,
    damping: FloatArray,
    radius: float,
) -> tuple[FloatArray, FloatArray]:
    """Return the proposed parameters (projection, 8) and the losses (projection,) before the step."""
    images, moments = (model.smooth(s) for s in volume.sum(_measure, model))
    losses = _losses(model, images, scale.corrected(parameters), scale.weights)
    noise = np.sqrt(losses / np.maximum(scale.weights.sum(axis=(1, 2)), 1))
    limits = [
        StepLimits(
            expected=scale.expected,
            cap=scale.options.step_cap_pixels * scale.pixel_size,
            radius=radius,
            noise=float(v),
        )
        for v in noise
    ]
    k = len(parameters)
    steps = scale.executor.map(
        pose_step, [model] * k, images, moments, scale.data, scale.weights, parameters, scale.centre, damping, limits,
        [scale.executor.device] * k,
    )  # fmt: skip
    return parameters + np.stack(steps), losses


def _align_scale(
    scale: _Scale, parameters: FloatArray, support: BoolArray, n_rounds: int, report: Callable[[AlignmentRound], None]
) -> tuple[FloatArray, FloatArray, SlabVolume, TomographyModel]:
    """Run the rounds of one scale; return parameters, rms residuals, the volume and its model."""
    solver = Fista(FistaOptions(sparsity=0.0))
    model = scale.model(parameters, support.shape)
    volume = SlabVolume(model, scale.executor, scale.n_slabs, support, saver=scale.saver)
    norm = model_norm(model, scale.executor)
    radius, damping = _radius(support, scale.pixel_size), np.full(len(parameters), 1e-3)
    for i in range(n_rounds):
        count = scale.options.volume_iterations * (3 if i == 0 else 1)
        history = iterate(
            volume,
            solver,
            model,
            scale.corrected(parameters),
            scale.weights,
            n_iterations=count,
            norm=norm,
            scale=0.0,
        ).history
        proposed, before = _propose(scale, model, volume, parameters, damping, radius)
        trial_model = scale.model(proposed, support.shape)
        images = volume.sum(_trial, trial_model)
        after = _losses(model, model.smooth(images), scale.corrected(proposed), scale.weights)
        accepted = after < before
        damping = np.clip(np.where(accepted, damping / 2, damping * 4), 1e-4, 1e3)
        updated = remove_gauge(np.where(accepted[:, None], proposed, parameters), scale.centre)
        change = updated - parameters
        parameters, model = updated, scale.model(updated, support.shape)
        report(
            AlignmentRound(
                bin=0,
                r1=history[-1].r1,
                shift_change=float(np.sqrt(np.mean(change[:, :2] ** 2))),
                angle_change=float(np.sqrt(np.mean(change[:, 2:5] ** 2))),
                n_refused=int(np.sum(~accepted)),
            )
        )
    return parameters, history[-1].per_projection, volume, model


def robust_weights(residuals: FloatArray) -> FloatArray:
    """Return the trust (projection,) of projections: 1 up to three MAD above the median residual, then falling."""
    middle = np.median(residuals)
    limit = middle + 3 * 1.4826 * np.median(np.abs(residuals - middle))
    return np.asarray(np.minimum(1.0, (limit / np.maximum(residuals, 1e-30)) ** 2))


def _expected(options: AlignmentOptions, angles: bool) -> FloatArray:
    on = np.deg2rad(1.0) * angles
    return np.array(
        [
            options.shift_sigma_angstrom,
            options.shift_sigma_angstrom,
            options.in_plane_sigma_deg * on,
            options.tilt_sigma_deg * on,
            options.out_of_plane_sigma_deg * on,
            options.offset_sigma_rad,
            options.ramp_sigma_rad_per_angstrom,
            options.ramp_sigma_rad_per_angstrom,
        ]
    )


def start_parameters(
    stack: FloatArray, weights: FloatArray, pixel_size: float, tilts: FloatArray, threshold: float
) -> FloatArray:
    """Return (projection, 8) parameters from nominal ``tilts`` (rad) and centres of mass."""
    parameters = np.zeros((len(stack), N_PARAMETERS))
    parameters[:, :2] = centres_of_mass(stack, weights, pixel_size, threshold)
    parameters[:, 3] = tilts
    return parameters


def align(
    stack: FloatArray,
    weights: FloatArray,
    pixel_size: float,
    tilts: FloatArray,
    options: AlignmentOptions | None = None,
    *,
    mask: MaskOptions | None = None,
    start: FloatArray | None = None,
    n_slabs: int = 1,
    executor: Executor | None = None,
    saver: Callable[[str], SlabSaver] | None = None,
    callback: Callable[[AlignmentRound], None] | None = None,
) -> Alignment:
    """Align the projections of an isolated object.

    stack, weights : (projection, y, x) phase in rad and trust within [0, 1]; pixel_size Å; tilts (projection,) nominal
    angles in rad about y; mask: how the support is found after each scale; start (projection, 8) parameters instead of
    centres of mass. Work goes through ``executor`` in ``n_slabs`` slabs, which outlive its workers by ``saver(name)``
    of each scale; ``callback`` sees every round.
    """
    options = options or AlignmentOptions()
    if len(options.bins) != len(options.rounds) or not options.bins:
        raise ConfigError(f"alignment.rounds must hold one number for each of bins {options.bins}")
    if start is None:
        start = start_parameters(stack, weights, pixel_size, tilts, options.centre_threshold)
    history: list[AlignmentRound] = []
    parameters = start
    trust: FloatArray = np.ones(len(stack))
    voxel = pixel_size * options.bins[0]
    support: BoolArray | None = None
    for i, (factor, n_rounds) in enumerate(zip(options.bins, options.rounds)):
        scale = _scale_of(stack, weights, pixel_size, factor, trust, start, options, executor or InlineExecutor())
        scale = replace(
            scale,
            expected=_expected(options, i >= min(options.angles_from_scale, len(options.bins) - 1)),
            n_slabs=n_slabs,
            saver=saver(f"aligning-bin{factor}") if saver else None,
        )
        if support is None:
            shape = (scale.data.shape[2], scale.data.shape[1], scale.data.shape[2])
            here = seen_mask(scale.model(parameters, shape), scale.weights)
        else:
            here = resize_mask(support, fitting_shape(support, voxel, scale.pixel_size), voxel, scale.pixel_size)
        voxel = scale.pixel_size

        def report(found: AlignmentRound, factor: int = factor) -> None:
            history.append(replace(found, bin=factor))
            logger.info("alignment bin %d: R1 %.4f, shifts moved %.4f Å", factor, found.r1, found.shift_change)
            if callback is not None:
                callback(history[-1])

        parameters, residuals, volume, model = _align_scale(scale, parameters, here, n_rounds, report)
        trust = robust_weights(residuals)
        support = support_mask(model.density(volume.gather()), voxel, mask)
        if scale.saver is not None:
            scale.saver.remove()
    assert support is not None
    return Alignment(
        parameters=parameters,
        start=start,
        weights=trust,
        residuals=residuals,
        mass=scale.corrected(parameters).sum(axis=(1, 2), dtype=np.float64) * voxel**2,
        history=tuple(history),
        support=support,
        support_voxel=voxel,
    )


def _scale_of(
    stack: FloatArray,
    weights: FloatArray,
    pixel_size: float,
    factor: int,
    trust: FloatArray,
    centre: FloatArray,
    options: AlignmentOptions,
    executor: Executor,
) -> _Scale:
    small_weights = np.clip(downsample(weights, factor), 0, 1) * trust[:, None, None]
    return _Scale(
        data=np.asarray(downsample(stack, factor), np.float32),
        weights=np.asarray(small_weights, np.float32),
        pixel_size=pixel_size * factor,
        expected=_expected(options, angles=False),
        centre=centre,
        options=options,
        executor=executor,
        n_slabs=1,
        saver=None,
    )


def _radius(support: BoolArray, voxel: float) -> float:
    """Return the root mean square distance (Å) of the support from the centre: where a rotation's reach is measured."""
    z, y, x = (index - n // 2 for index, n in zip(np.nonzero(support), support.shape))
    return float(voxel * np.sqrt(np.mean(z**2 + y**2 + x**2)))
