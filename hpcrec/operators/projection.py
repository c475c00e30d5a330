"""Projections of a volume at any pose, with exact adjoint, depth bins and the images Gauss–Newton alignment needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from hpcrec.backend import projector
from hpcrec.backend.array import BoolArray, FloatArray, IntArray, array_module, to_host
from hpcrec.backend.kernels.aligned import back_project_aligned, is_aligned, project_aligned
from hpcrec.backend.kernels.projection import BORDER, back_project, project
from hpcrec.backend.kernels.volume import derivative_images
from hpcrec.backend.threads import run_parts
from hpcrec.errors import ConfigError
from hpcrec.geometry.pose import Pose, angles_from_rotation, rotation_about, rotation_from_angles
from hpcrec.operators.base import LinearOperator

_DEGREES = {"linear": 1, "quadratic": 2}


class Projector(LinearOperator):
    """Integrals of a volume along the beam at many poses: P_k(y, x) = ∫ V(R_kᵀ r) dz, shifted on the detector.

    A voxel at r (components x, y, z, zero at index n//2 of each axis) projects to the first two components of
    R r + shift and is spread there with a B-spline of degree 1 or 2. The spline adds 1/6 or 1/4 pixel² of variance, the
    same at every angle; degree 2 (default) keeps the comb ripple near 45° below 2 %. Sums are kept exactly: ΣP·pixel² =
    ΣV·voxel³ for an object inside the field. With degree 1, poses of 0° and 90° are plain sums.

    volume_shape : (z, y, x) voxels of the whole volume
    voxel_size : Å, cubic; a volume in rad/Å gives projections in rad
    detector_shape : (y, x) pixels, zero at n//2
    poses : one :class:`Pose` a projection
    n_bins : depth bins along the beam (1: plain tomography); voxels beyond the outer bins count in the outer bins
    bin_thickness : Å; default the volume's depth / n_bins. The bins are centred at depth zero
    slab : rows [y0, y1) of the volume held here; arrays passed in have these rows only. Projections of slabs add up
    pixel_size : Å, default ``voxel_size``
    support : boolean (z, rows of the slab, x), on host or device; voxels before the first and after the last True of
        each (z, x) column are taken as zero and get zero from the adjoint. Default all
    threads : threads of one call, which change no bit of the result; default those of the process
    dtype : of volumes and projections; on a device float32 alone

    Volumes and projections live on the host or on a device, results live beside them. On a device the kernels of
    :mod:`hpcrec.backend.projector` run, whose weights are those of the host to 10⁻⁶ pixels.

    Poses that turn about y only, with pixels as large as voxels and one bin, take the fast way of
    :mod:`hpcrec.backend.kernels.aligned`.

    Literature: Long, Fessler, Balter, IEEE TMI 29 (2010) 1839 (footprints); Momey et al., IEEE TIP 24 (2015)
    (B-spline footprints).
    """

    def __init__(
        self,
        volume_shape: tuple[int, int, int],
        voxel_size: float,
        detector_shape: tuple[int, int],
        poses: Sequence[Pose],
        *,
        n_bins: int = 1,
        bin_thickness: float | None = None,
        slab: tuple[int, int] | None = None,
        pixel_size: float | None = None,
        support: BoolArray | None = None,
        footprint: Literal["linear", "quadratic"] = "quadratic",
        threads: int | None = None,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> None:
        y0, y1 = slab if slab is not None else (0, volume_shape[1])
        if not 0 <= y0 <= y1 <= volume_shape[1]:
            raise ConfigError(f"slab must lie within the {volume_shape[1]} rows of the volume, got {slab}")
        self.slab = (y0, y1)
        self.volume_shape = (volume_shape[0], y1 - y0, volume_shape[2])
        self.whole_shape = volume_shape
        self.voxel_size = float(voxel_size)
        self.pixel_size = float(pixel_size or voxel_size)
        self.detector_shape = detector_shape
        self.poses = tuple(poses)
        self.n_bins = n_bins
        self.bin_thickness = bin_thickness or volume_shape[0] * self.voxel_size / n_bins
        self.threads = threads
        bins = (n_bins,) if n_bins > 1 else ()
        self.domain, self.range = self.volume_shape, (len(self.poses), *bins, *detector_shape)
        self.dtype = np.dtype(dtype)
        self._degree = _DEGREES[footprint]
        self._scale = self.voxel_size**3 / self.pixel_size**2
        self._affine = np.array([self._map(pose) for pose in self.poses], np.float64).reshape(-1, 4, 4)
        if support is not None and support.shape != self.volume_shape:
            raise ConfigError(f"support must have the slab's shape {self.volume_shape}, got {support.shape}")
        self._support = support
        self._of_device: IntArray | None = None
        alike = [n_bins == 1 and is_aligned(affine, self.volume_shape) for affine in self._affine]
        self._straight, self._turned = np.flatnonzero(alike), np.flatnonzero(~np.array(alike, np.bool_))

    @classmethod
    def example(cls) -> Projector:
        """Return a small projector for the shared adjoint test."""
        poses = [Pose(rotation=rotation_from_angles(0.02, t, -0.01), shift=(0.3, -0.7)) for t in (-1.1, 0.2, 0.8)]
        return cls((9, 8, 10), 0.5, (7, 11), poses, n_bins=2)

    def _map(self, pose: Pose) -> FloatArray:
        """Return the affine map of voxel index (ix, iy, iz, 1) to pixel x, pixel y, bin coordinate and depth (Å)."""
        n_z, n_y, n_x = self.whole_shape
        centre = np.array([n_x // 2, n_y // 2 - self.slab[0], n_z // 2])
        lengths = np.zeros((4, 4))
        lengths[[0, 1, 3], :3] = pose.rotation * self.voxel_size
        lengths[:, 3] = -lengths[:, :3] @ centre + (pose.shift[1], pose.shift[0], 0.0, 0.0)
        affine = np.empty((4, 4))
        affine[:2] = lengths[:2] / self.pixel_size
        affine[:2, 3] += (self.detector_shape[1] // 2, self.detector_shape[0] // 2)
        affine[2] = lengths[3] / self.bin_thickness
        affine[2, 3] += (self.n_bins - 1) / 2
        affine[3] = lengths[3]
        return affine

    @cached_property
    def _ranges(self) -> IntArray:
        """First and one-past-last y (z, x, 2) of each column of voxels."""
        n_z, n_y, n_x = self.volume_shape
        if self._support is not None:
            return to_host(_column_ranges(self._support))
        ranges = np.empty((n_z, n_x, 2), np.int64)
        ranges[..., 0], ranges[..., 1] = 0, n_y
        return ranges

    def _ranges_beside(self, a: FloatArray) -> IntArray | None:
        """Return the ranges as the kernels of a device take them, where ``a`` lives; made once."""
        if self._support is not None and self._of_device is None:
            xp = array_module(a)
            self._of_device = xp.ascontiguousarray(_column_ranges(xp.asarray(self._support)), np.int32)
        return self._of_device

    def _on_device(self, chosen: IntArray, a: FloatArray) -> projector.Geometry:
        """Return what a device's kernels know of some of the poses, all straight or all turned, for ``a``."""
        if self.dtype != np.float32:
            raise ConfigError(f"projections on a device are float32, not {self.dtype}")
        return projector.Geometry(
            affine=self._affine[chosen],
            aligned=chosen is self._straight,
            degree=self._degree,
            scale=self._scale,
            volume_shape=self.volume_shape,
            detector_shape=self.detector_shape,
            n_bins=self.n_bins,
            ranges=self._ranges_beside(a),
        )

    def _project_on_device(self, volume: FloatArray, moment: bool) -> FloatArray:
        xp, ways = array_module(volume), [w for w in (self._straight, self._turned) if len(w) > 0]
        if volume.size == 0 or not ways:
            return xp.zeros(self.range, self.dtype)  # type: ignore[no-any-return]
        volume = xp.ascontiguousarray(volume, self.dtype)
        parts = [projector.project(volume, self._on_device(way, volume), moment) for way in ways]
        if len(parts) == 1:
            return parts[0].reshape(self.range)
        stack = xp.empty((len(self.poses), *parts[0].shape[1:]), self.dtype)
        for way, part in zip(ways, parts):
            stack[xp.asarray(way)] = part
        return stack.reshape(self.range)  # type: ignore[no-any-return]

    def _back_project_on_device(self, stack: FloatArray) -> FloatArray:
        """Return the adjoint for ``stack`` (projection, bin, y, x)."""
        xp, ways = array_module(stack), [w for w in (self._straight, self._turned) if len(w) > 0]
        if 0 in self.volume_shape or not ways:
            return xp.zeros(self.volume_shape, self.dtype)  # type: ignore[no-any-return]
        stack = xp.ascontiguousarray(stack, self.dtype)
        if len(ways) == 1:
            return projector.back_project(stack, self._on_device(ways[0], stack))
        one, other = (projector.back_project(stack[xp.asarray(way)], self._on_device(way, stack)) for way in ways)
        return one + other

    def _splat(self, volume: FloatArray, moment: bool) -> FloatArray:
        if volume.shape != self.volume_shape:
            raise ConfigError(f"the volume must have the slab's shape {self.volume_shape}, got {volume.shape}")
        if array_module(volume) is not np:
            return self._project_on_device(volume, moment)
        volume = np.ascontiguousarray(volume, self.dtype)
        if len(self._turned) == 0:
            return self._splat_straight(volume, moment)
        stack = np.empty((len(self.poses), self.n_bins, *self.detector_shape), self.dtype)
        stack[self._turned] = self._splat_turned(volume, moment)
        if len(self._straight) > 0:
            stack[self._straight, 0] = self._splat_straight(volume, moment)
        return stack if self.n_bins > 1 else stack[:, 0]

    def _splat_straight(self, volume: FloatArray, moment: bool) -> FloatArray:
        affine = self._affine[self._straight]
        return project_aligned(
            volume, self._ranges, affine, self._degree, moment, self._scale, self.detector_shape, self.threads
        )

    def _splat_turned(self, volume: FloatArray, moment: bool) -> FloatArray:
        """Return (turned projection, bin, y, x)."""
        columns = np.ascontiguousarray(volume.transpose(0, 2, 1))
        height, width = self.detector_shape
        affine = self._affine[self._turned]
        images = np.zeros((len(affine), self.n_bins, width + 2 * BORDER, height + 2 * BORDER), self.dtype)

        def task(first: int, last: int) -> None:
            part = slice(first, last)
            project(columns, self._ranges, affine[part], self._degree, moment, images[part])

        run_parts(task, len(affine), self.threads)
        inner = images[:, :, BORDER:-BORDER, BORDER:-BORDER].transpose(0, 1, 3, 2)
        return np.asarray(inner * self.dtype.type(self._scale))

    def apply(self, a: FloatArray) -> FloatArray:
        """Return :meth:`forward` of ``a``."""
        return self.forward(a)

    def forward(self, volume: FloatArray) -> FloatArray:
        """Project ``volume`` (z, rows, x): return (projection, [bin,] y, x)."""
        return self._splat(volume, moment=False)

    def depth_moment(self, volume: FloatArray) -> FloatArray:
        """Project the volume weighted by each voxel's depth R r|_z in Å: (projection, [bin,] y, x)."""
        return self._splat(volume, moment=True)

    def adjoint(self, b: FloatArray) -> FloatArray:
        """Apply the exact transpose of :meth:`forward` to ``b`` (projection, [bin,] y, x): (z, rows, x)."""
        height, width = self.detector_shape
        shape = (len(self.poses), self.n_bins, height, width)
        if b.size != np.prod(shape):
            raise ConfigError(f"the stack must have the shape {shape}, got {b.shape}")
        if array_module(b) is not np:
            return self._back_project_on_device(b.reshape(shape))
        stack = np.ascontiguousarray(b.reshape(shape), self.dtype)
        if len(self._straight) == 0:
            return self._gather_turned(stack)
        images = stack[self._straight, 0] if len(self._turned) > 0 else stack[:, 0]
        affine, volume_shape = self._affine[self._straight], self.volume_shape
        volume = back_project_aligned(
            images, self._ranges, affine, self._degree, self._scale, volume_shape, self.threads
        )
        return volume + self._gather_turned(stack[self._turned]) if len(self._turned) > 0 else volume

    def _gather_turned(self, stack: FloatArray) -> FloatArray:
        """Return the adjoint of the turned projections (turned projection, bin, y, x)."""
        height, width = self.detector_shape
        padded = np.zeros((*stack.shape[:2], width + 2 * BORDER, height + 2 * BORDER), self.dtype)
        padded[:, :, BORDER:-BORDER, BORDER:-BORDER] = stack.transpose(0, 1, 3, 2) * self.dtype.type(self._scale)
        n_z, n_y, n_x = self.volume_shape
        columns, affine = np.zeros((n_z, n_x, n_y), self.dtype), self._affine[self._turned]

        def task(first: int, last: int) -> None:
            back_project(padded, self._ranges[first:last], affine, self._degree, first, columns[first:last])

        run_parts(task, n_z, self.threads)
        return np.ascontiguousarray(columns.transpose(0, 2, 1))


def _column_ranges(support: BoolArray) -> IntArray:
    """Return first and one-past-last True y (z, x, 2) of each column of ``support`` (z, y, x), zeros where none is."""
    xp, filled = array_module(support), support.any(axis=1)
    last = support.shape[1] - support[:, ::-1].argmax(axis=1)
    ends = [xp.where(filled, support.argmax(axis=1), 0), xp.where(filled, last, 0)]
    return xp.ascontiguousarray(xp.stack(ends, axis=-1))  # type: ignore[no-any-return]


def turning_axes(rotation: FloatArray) -> FloatArray:
    """Return the lab axes (3, xyz) about which in_plane, tilt and out_of_plane of :func:`angles_from_rotation` turn."""
    in_plane, tilt, _ = angles_from_rotation(rotation)
    after_tilt = rotation_about("z", in_plane)
    return np.array([[0.0, 0.0, 1.0], after_tilt[:, 1], (after_tilt @ rotation_about("y", tilt))[:, 0]])


def pose_jacobian(
    image: FloatArray, moment: FloatArray, pose: Pose, pixel_size: float, threads: int | None = None
) -> FloatArray:
    """Return the derivatives (5, y, x) of a projection by dy, dx (per Å), in_plane, tilt, out_of_plane (per rad).

    ``image`` (y, x) is the projection and ``moment`` the depth moment of the same pose. Moving a density with the
    velocity d changes it by −∇·(V d); turning about the lab axis n moves r by d = n × r, so with the projection P and
    the depth moment D, ∂P = −∂x(n_y D − n_z y P) − ∂y(n_z x P − n_x D): two images give all five derivatives. x and y
    count from the pose's own shift, about which the sample turns.
    """
    middle = (float(pose.shift[0]), float(pose.shift[1]))
    images = derivative_images(image, moment, turning_axes(pose.rotation), middle, pixel_size, threads)
    return images.astype(np.float32, copy=False)


def operator_norm(apply_normal: Callable[[Any], Any], start: FloatArray, n_steps: int = 15) -> float:
    """Return ‖A‖² as the largest eigenvalue of AᵀA by power iteration from ``start``; a bound from below, ~1 % low."""
    vector, value = start, float(np.linalg.norm(start))
    for _ in range(n_steps):
        vector = apply_normal(vector / value)
        value = float(np.linalg.norm(vector))
    return value
