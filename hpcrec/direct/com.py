"""Centre of mass of the patterns: differential phase contrast, its integral (iCOM), and what its curl tells.

For a thin phase object the mean frequency of a pattern is k̄(R) = (|P|² ⋆ ∇φ)(R) / 2π: Müller-Caspary et al.,
Ultramicroscopy 178, 62 (2017); Lazić, Bosch & Lazar, Ultramicroscopy 160, 265 (2016).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.spatial import cKDTree

from hpcrec.backend.array import Array, BoolArray, FloatArray
from hpcrec.backend.fft import fftn, ifftn
from hpcrec.direct.raster import Raster

_CHUNK: Final = 256
_NEIGHBOURS: Final = 9


def mean_frequency(
    patterns: Array, detector_sampling: tuple[float, float], mask: BoolArray | None = None
) -> FloatArray:
    """Return the mean frequency k̄ (…, 2) in 1/Å as (y, x) of patterns (…, ky, kx).

    Patterns keep their type and are widened a few at a time; zero frequency at [0, 0]; ``detector_sampling``
    (dky, dkx) in 1/Å; ``mask`` (ky, kx), True = good. A pattern without counts gives zero.
    """
    ny, nx = patterns.shape[-2:]
    ky = np.fft.fftfreq(ny, 1 / (ny * detector_sampling[0]))
    kx = np.fft.fftfreq(nx, 1 / (nx * detector_sampling[1]))
    good = np.ones((ny, nx)) if mask is None else mask.astype(np.float64)
    weights = np.stack([good, good * ky[:, None], good * kx[None, :]], axis=-1).reshape(-1, 3)
    flat = patterns.reshape(-1, ny * nx)
    sums = np.concatenate([flat[i : i + _CHUNK].astype(np.float64) @ weights for i in range(0, len(flat), _CHUNK)])
    means = sums[:, 1:] / np.where(sums[:, :1] > 0, sums[:, :1], np.inf)
    found: FloatArray = means.reshape(*patterns.shape[:-2], 2)
    return found


def centre_of_mass(
    patterns: Array, detector_sampling: tuple[float, float], mask: BoolArray | None = None
) -> FloatArray:
    """Return :func:`mean_frequency` less its mean over the scan, which is the beam's own tilt or a centring error."""
    found = mean_frequency(patterns, detector_sampling, mask)
    found -= found.reshape(-1, 2).mean(axis=0)
    return found


def icom_phase(field: FloatArray, raster: Raster, *, periodic: bool = False, high_pass: float = 0.0) -> FloatArray:
    """Return the phase φ (rows, columns) float32 rad whose gradient is 2π times the field.

    φ̂(q) = q·F[k̄] / (i |q|²), zero at q = 0. ``field`` (rows, columns, 2) in 1/Å on the raster. Unless ``periodic``,
    the field is mirrored at the raster's edges, so that no step wraps around. ``high_pass`` q₀ in 1/Å damps slow
    waves by |q|²/(|q|² + q₀²).
    """
    rows, columns = raster.shape
    # Along the raster's own axes a gradient is g = V k̄ per step, and mirrors without mixing
    steps: FloatArray = np.asarray(field, np.float64) @ raster.vectors.T
    if not periodic:
        steps = _mirrored(_mirrored(steps, 0), 1)
    wide = Raster(shape=(steps.shape[0], steps.shape[1]), vectors=raster.vectors, order=raster.order)
    q = wide.frequencies()
    q2 = np.sum(q**2, axis=-1)
    spectrum = fftn((steps @ np.linalg.inv(raster.vectors).T).astype(np.complex64), axes=(0, 1))
    damping = 1j * (q2 + high_pass**2)
    damping[0, 0] = 1.0
    phase = ifftn(np.sum(q * spectrum, axis=-1) / damping, axes=(0, 1))
    return np.asarray(phase.real[:rows, :columns], np.float32)


def _mirrored(steps: FloatArray, axis: int) -> FloatArray:
    """Append the mirror image of a field whose integral is even along ``axis``: that component changes sign."""
    mirror = np.flip(steps, axis).copy()
    mirror[..., axis] *= -1
    return np.concatenate([steps, mirror], axis=axis)


def field_gradients(positions: FloatArray, field: FloatArray) -> FloatArray:
    """Return ∂field_a/∂R_b (position, a, b) of a field (position, 2) at any positions (position, 2) in Å.

    A plane through each position's nine nearest (itself included) by least squares; zero where they lie on a line.
    """
    count = min(_NEIGHBOURS, len(positions))
    near = cKDTree(positions).query(positions, count)[1].reshape(len(positions), count)
    offsets = positions[near] - positions[near].mean(axis=1, keepdims=True)
    values = field[near] - field[near].mean(axis=1, keepdims=True)
    normal = np.einsum("nib,nic->nbc", offsets, offsets)
    flat = np.abs(np.linalg.det(normal)) <= 1e-6 * np.trace(normal, axis1=1, axis2=2) ** 2
    normal[flat] = np.eye(2)
    found = np.einsum("nia,nib,nbc->nac", values, offsets, np.linalg.inv(normal))
    found[flat] = 0
    return np.asarray(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class CurlEvidence:
    """What the curl says of one handedness of the detector.

    ``angle`` rad in [0, π): turn of the field, from x towards y, that leaves the least curl; ``curl_share`` its
    Σcurl² over Σ(curl² + div²): near 0 for the right handedness, near ½ where nothing can be told.
    """

    angle: float
    curl_share: float


def least_curl(positions: FloatArray, field: FloatArray) -> CurlEvidence:
    """Return the rotation of the field that makes it curl-free, as the gradient of a phase is.

    ``positions`` (position, 2) Å, ``field`` (position, 2) in any unit, both (y, x). Turned by β the field has the curl
    cos β·c + sin β·d of the curl c and divergence d found, so the best β is an eigenvector of a 2 × 2 matrix. Any
    angle holds up to π: a field and its negative are both free of curl.
    """
    slopes = field_gradients(positions, field)
    curl = slopes[:, 0, 1] - slopes[:, 1, 0]  # ∂v_y/∂x − ∂v_x/∂y
    divergence = slopes[:, 0, 0] + slopes[:, 1, 1]
    values, vectors = np.linalg.eigh(np.array([[curl @ curl, curl @ divergence], [0, divergence @ divergence]]), "U")
    c, s = vectors[:, 0]
    total = float(values.sum())
    return CurlEvidence(
        angle=float(np.arctan2(s, c) % np.pi), curl_share=float(values[0]) / total if total > 0 else 0.5
    )
