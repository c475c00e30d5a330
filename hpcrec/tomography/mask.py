"""The support of an object from a low-resolution volume of it."""

from __future__ import annotations

import numpy as np
import skimage
from scipy.ndimage import distance_transform_edt, gaussian_filter, label

from hpcrec.backend.array import BoolArray, FloatArray
from hpcrec.errors import DataError
from hpcrec.models.tomography import TomographyModel
from hpcrec.options import options


@options
class MaskOptions:
    """Options of the support mask.

    smooth_angstrom: standard deviation of the Gaussian that turns atoms into a solid
    threshold: fraction of Otsu's threshold above which a voxel belongs to the object
    close_angstrom: gaps up to twice this width are closed
    margin_angstrom: how far the support reaches beyond the object
    """

    smooth_angstrom: float = 1.8
    threshold: float = 1.1
    close_angstrom: float = 2.5
    margin_angstrom: float = 2.0


def support_mask(volume: FloatArray, voxel_size: float, options: MaskOptions | None = None) -> BoolArray:
    """Return the support (z, y, x): smooth, threshold (Otsu), keep the largest piece, close, grow by the margin.

    ``volume`` (z, y, x); ``voxel_size`` Å. Distances are Euclidean, so growing and shrinking are balls.
    """
    options = options or MaskOptions()
    smooth = gaussian_filter(volume, options.smooth_angstrom / voxel_size, mode="constant")
    if not smooth.max() > smooth.min():
        raise DataError("the volume is constant: there is no object to put a support around")
    solid = smooth > options.threshold * skimage.filters.threshold_otsu(smooth)
    pieces, n_pieces = label(solid)
    if n_pieces > 1:
        # Before closing, which would join artefacts at the edge of the field to the object.
        solid = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    width = options.close_angstrom / voxel_size
    pad = int(np.ceil(max(width, options.margin_angstrom / voxel_size))) + 1
    grown = distance_transform_edt(~np.pad(solid, pad)) <= width
    inside = distance_transform_edt(grown)
    # Erosion by the closing width less the margin, or growth where the margin is wider.
    change = width - options.margin_angstrom / voxel_size
    kept = inside > change if change >= 0 else distance_transform_edt(~grown) <= -change
    return np.ascontiguousarray(kept[pad:-pad, pad:-pad, pad:-pad])


def seen_mask(model: TomographyModel, weights: FloatArray, share: float = 0.5) -> BoolArray:
    """Return the voxels (z, y, x) whose mean trust over the projections is above ``share`` of the best voxel's.

    ``weights`` (projection, y, x) within [0, 1]. What most projections do not see is decided by artefacts alone.
    """
    mean = model.projector((0, model.volume_shape[1])).adjoint(weights)
    return np.asarray(mean > share * mean.max())


def resize_mask(support: BoolArray, shape: tuple[int, int, int], voxel_size: float, new_size: float) -> BoolArray:
    """Return ``support`` (z, y, x) with voxels of ``voxel_size`` Å on a grid of ``shape`` with ``new_size`` Å.

    Nearest voxel, centres n//2 on each other; beyond the old grid nothing is supported.
    """
    result, index, inside = np.zeros(shape, np.bool_), [], []
    for n, n_old in zip(shape, support.shape):
        position = np.rint((np.arange(n) - n // 2) * new_size / voxel_size).astype(int) + n_old // 2
        inside.append(np.flatnonzero((position >= 0) & (position < n_old)))
        index.append(position[inside[-1]])
    result[np.ix_(*inside)] = support[np.ix_(*index)]
    return result


def fitting_shape(support: BoolArray, voxel_size: float, new_size: float) -> tuple[int, int, int]:
    """Return the smallest even (z, y, x) shape of ``new_size`` Å voxels, centred at n//2, that holds ``support``
    with a voxel to spare.
    """
    shape = []
    for positions, n in zip(np.nonzero(support), support.shape):
        reach = max(n // 2 - int(positions.min()), int(positions.max()) - n // 2) + 0.5
        shape.append(2 * int(np.ceil(reach * voxel_size / new_size)) + 4)
    return shape[0], shape[1], shape[2]


def soft_edge(support: BoolArray, voxel_size: float, width_angstrom: float = 1.0) -> FloatArray:
    """Return the support with a Gaussian edge, float32 within [0, 1]: a window for Fourier shells."""
    return np.asarray(gaussian_filter(support.astype(np.float32), width_angstrom / voxel_size), np.float32)
