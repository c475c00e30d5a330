import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from hpcrec.errors import DataError
from hpcrec.geometry.pose import Pose
from hpcrec.models.tomography import TomographyModel
from hpcrec.tomography.mask import MaskOptions, fitting_shape, resize_mask, seen_mask, soft_edge, support_mask

VOXEL = 0.6


def atoms_in_a_box(half=6.0, spacing=1.8, shape=(46, 44, 48)):
    volume = np.zeros(shape, np.float32)
    line = np.arange(-half, half + 0.1, spacing)
    for z in line:
        for y in line:
            for x in line:
                volume[tuple(np.rint(np.array([z, y, x]) / VOXEL).astype(int) + np.array(shape) // 2)] = 1.0
    return gaussian_filter(volume, 0.8)


def extent(mask, axis):
    index = np.nonzero(mask)[axis]
    return (index.min() - mask.shape[axis] // 2) * VOXEL, (index.max() - mask.shape[axis] // 2) * VOXEL


def test_support_is_the_solid_plus_margin():
    volume = atoms_in_a_box()
    margins = {}
    for margin in (0.0, 2.0, 4.0):
        mask = support_mask(volume, VOXEL, MaskOptions(margin_angstrom=margin))
        margins[margin] = extent(mask, 1)[1]
        assert mask[23, 22, 24]
        assert mask[volume > 0.5 * volume.max()].all() or margin == 0.0
    assert abs(margins[0.0] - 6.0) < 1.0  # the half-height of the smoothed solid, to a voxel and a half
    assert margins[2.0] - margins[0.0] == pytest.approx(2.0, abs=VOXEL)
    assert margins[4.0] - margins[0.0] == pytest.approx(4.0, abs=VOXEL)


def test_smaller_pieces_are_dropped_and_gaps_closed():
    volume = atoms_in_a_box()
    clean = support_mask(volume, VOXEL)
    spoilt = volume.copy()
    spoilt[20:28, 19:26, :3] = volume.max()  # an artefact at the edge of the field, 5 Å from the object
    spoilt[21:26, 20:25, 22:27] = 0.0  # a hole inside
    found = support_mask(spoilt, VOXEL)
    assert found[23, 22, 24]
    assert not found[23, 22, 0]
    assert np.mean(found != clean) < 0.02
    with pytest.raises(DataError, match="constant"):
        support_mask(np.zeros((8, 8, 8), np.float32), VOXEL)


@pytest.mark.parametrize("new_size", [0.3, 0.6, 0.45])
def test_resized_masks_keep_their_place(new_size):
    mask = np.zeros((20, 21, 22), bool)
    mask[8:17, 3:12, 10:15] = True
    shape = fitting_shape(mask, VOXEL, new_size)
    resized = resize_mask(mask, shape, VOXEL, new_size)
    assert resized.sum() * new_size**3 == pytest.approx(mask.sum() * VOXEL**3, rel=0.25)  # whole voxels
    for axis in range(3):
        old = np.nonzero(mask)[axis].mean() - mask.shape[axis] // 2
        new = np.nonzero(resized)[axis].mean() - shape[axis] // 2
        assert new * new_size == pytest.approx(old * VOXEL, abs=new_size)
    for axis, n in enumerate(shape):
        edges = np.take(resized, [0, n - 1], axis)
        assert not edges.any()


def test_only_what_most_projections_see():
    poses = tuple(Pose.from_tilt(t) for t in np.linspace(-0.5, 0.5, 5))
    model = TomographyModel(volume_shape=(12, 12, 24), voxel_size=1.0, detector_shape=(12, 24), poses=poses)
    weights = np.zeros((5, 12, 24), np.float32)
    weights[:, :, 6:18] = 1.0
    seen = seen_mask(model, weights)
    assert seen[6, 6, 12]
    assert not seen[6, 6, 2]
    assert not seen[6, 6, 22]


def test_soft_edge_is_a_window():
    mask = np.zeros((20, 20, 20), bool)
    mask[5:15, 5:15, 5:15] = True
    window = soft_edge(mask, 0.5, 0.7)
    assert window.max() <= 1.0 + 1e-6
    assert window[10, 10, 10] > 0.98
    assert 0.3 < window[10, 10, 14] < 0.7
