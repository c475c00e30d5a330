"""Poses: where the sample stands in front of the beam for one tilt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcrec.backend.array import FloatArray


def rotation_about(axis: str, angle: float) -> FloatArray:
    """Return the active right-handed rotation matrix in components (x, y, z) about ``"x"``, ``"y"`` or ``"z"``."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    c, s = np.cos(angle), np.sin(angle)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def tilt_rotation(tilt: float, axis_angle: float = 0.0) -> FloatArray:
    """Return R = Rz(a) Ry(t) Rz(−a): a tilt by ``tilt`` rad about an axis at in-plane angle ``axis_angle`` from y."""
    return rotation_about("z", axis_angle) @ rotation_about("y", tilt) @ rotation_about("z", -axis_angle)


def rotation_from_angles(in_plane: float, tilt: float, out_of_plane: float) -> FloatArray:
    """Return R = Rz(in_plane) Ry(tilt) Rx(out_of_plane), all in rad; the sequence used by the alignment."""
    return rotation_about("z", in_plane) @ rotation_about("y", tilt) @ rotation_about("x", out_of_plane)


def angles_from_rotation(rotation: FloatArray) -> tuple[float, float, float]:
    """Invert :func:`rotation_from_angles` for |tilt| < 90°: return (in_plane, tilt, out_of_plane) in rad."""
    tilt = float(np.arcsin(np.clip(-rotation[2, 0], -1.0, 1.0)))
    in_plane = float(np.arctan2(rotation[1, 0], rotation[0, 0]))
    out_of_plane = float(np.arctan2(rotation[2, 1], rotation[2, 2]))
    return in_plane, tilt, out_of_plane


@dataclass(frozen=True, kw_only=True)
class Pose:
    """One tilt: ``rotation`` 3×3 in (x, y, z), r_lab = R r_sample; ``shift`` (dy, dx) in Å on the detector."""

    rotation: FloatArray
    shift: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def from_tilt(cls, tilt: float, axis_angle: float = 0.0) -> Pose:
        """Return the pose of a single-axis tilt in rad."""
        return cls(rotation=tilt_rotation(tilt, axis_angle))
