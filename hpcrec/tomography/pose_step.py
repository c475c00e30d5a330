"""One Gauss–Newton step of one projection's pose and background, and the freedoms that no step may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from hpcrec.backend.array import Array, FloatArray, array_module, to_host
from hpcrec.backend.device import library
from hpcrec.geometry.pose import Pose, rotation_from_angles
from hpcrec.models.tomography import TomographyModel
from hpcrec.operators.projection import pose_jacobian, turning_axes

# Order of the parameters of one projection: dy, dx (Å), in_plane, tilt, out_of_plane (rad), offset (rad),
# ramp along y and x (rad/Å).
N_PARAMETERS = 8
N_POSE = 5


@dataclass(frozen=True, kw_only=True)
class StepLimits:
    """What holds a step back.

    ``expected`` (8,) standard deviations of the parameters around ``centre`` (8,), zero = fixed; ``cap`` Å: the longest
    way any point at ``radius`` Å from the axis may move in one step; ``noise`` rad: the error of a pixel.
    """

    expected: FloatArray
    cap: float
    radius: float
    noise: float


def pose_of(parameters: Array) -> Pose:
    """Return the pose of (…8) parameters."""
    dy, dx, in_plane, tilt, out_of_plane = (float(p) for p in parameters[:N_POSE])
    return Pose(rotation=rotation_from_angles(in_plane, tilt, out_of_plane), shift=(dy, dx))


def background(parameters: Array, shape: tuple[int, int], pixel_size: float) -> FloatArray:
    """Return offset + ramps (y, x) in rad of (…8) parameters; zero ramp at the centre pixel."""
    y, x = ((np.arange(n) - n // 2) * pixel_size for n in shape)
    offset, ramp_y, ramp_x = parameters[N_POSE:]
    return np.asarray(offset + ramp_y * y[:, None] + ramp_x * x[None, :], np.float32)


def _columns(image: FloatArray, moment: FloatArray, parameters: Array, pixel_size: float) -> FloatArray:
    xp = array_module(image)
    y, x = (xp.asarray(((np.arange(n) - n // 2) * pixel_size).astype(np.float32)) for n in image.shape)
    flat = xp.stack([xp.ones_like(image), y[:, None] + 0 * image, x[None, :] + 0 * image])
    return xp.concatenate([pose_jacobian(image, moment, pose_of(parameters), pixel_size), flat])  # type: ignore[no-any-return]


def pose_step(
    model: TomographyModel,
    image: FloatArray,
    moment: FloatArray,
    data: FloatArray,
    weights: FloatArray,
    parameters: FloatArray,
    centre: FloatArray,
    damping: float,
    limits: StepLimits,
    device: Literal["cpu", "gpu"] = "cpu",
) -> FloatArray:
    """Return the step (8,) that lowers this projection's misfit at a fixed volume: Levenberg–Marquardt with priors.

    image, moment, data, weights : (y, x) projection and depth moment of the volume, measurement, trust
    parameters, centre : (8,) present values and the values the priors pull to
    device : where the work is done; images are copied to the current GPU, parameters and step are the host's
    Solves (Jᵀ W^½ F W^½ J / σ² + μ diag + Σ⁻²) p = −Jᵀ W^½ F W^½ r / σ² − Σ⁻² (parameters − centre).
    """
    xp = library(device)
    image, moment, data, weights = (xp.asarray(a) for a in (image, moment, data, weights))
    root = xp.sqrt(weights)
    columns = _columns(image, moment, parameters, model.voxel_size) * root
    under = xp.asarray(background(parameters, model.detector_shape, model.voxel_size))
    residual = (image + under - data) * root
    filtered = model.filtered(columns).reshape(N_PARAMETERS, -1).astype(np.float64)
    variance = max(limits.noise, 1e-12) ** 2
    normal = to_host(filtered @ columns.reshape(N_PARAMETERS, -1).astype(np.float64).T) / variance
    gradient = to_host(filtered @ residual.ravel().astype(np.float64)) / variance
    free = limits.expected > 0
    prior = 1 / limits.expected[free] ** 2
    matrix = normal[np.ix_(free, free)] + np.diag(damping * np.diag(normal)[free] + prior)
    step = np.zeros(N_PARAMETERS)
    step[free] = np.linalg.solve(matrix, -gradient[free] - prior * (parameters - centre)[free])
    way = float(np.hypot(step[0], step[1]) + limits.radius * np.linalg.norm(step[2:N_POSE]))
    return step * min(1.0, limits.cap / max(way, 1e-12))


def remove_gauge(parameters: FloatArray, reference: FloatArray) -> FloatArray:
    """Return the parameters (projection, 8) without common translation and rotation relative to ``reference``.

    A translation T of the sample shifts each image by (R T)_{y,x}; a rotation q of the sample turns each pose by R q.
    Both change nothing but the place of the volume, so their least-squares share of the change is taken out.
    """
    rotations = [pose_of(p).rotation for p in reference]
    change = parameters - reference
    shifts = np.concatenate([r[[1, 0]] for r in rotations])
    translation = np.linalg.lstsq(shifts, change[:, :2].ravel(), rcond=None)[0]
    turns = np.concatenate([np.linalg.solve(turning_axes(r).T, r) for r in rotations])
    rotation = np.linalg.lstsq(turns, change[:, 2:N_POSE].ravel(), rcond=None)[0]
    result = parameters.copy()
    result[:, :2] -= (shifts @ translation).reshape(-1, 2)
    result[:, 2:N_POSE] -= (turns @ rotation).reshape(-1, 3)
    return result
