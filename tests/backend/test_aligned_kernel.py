"""The sums of rows, and the projection along rows that is made of them, against NumPy."""

import numpy as np
import pytest
from numba import njit

from hpcrec.backend.kernels.aligned import back_project_aligned, is_aligned, project_aligned
from hpcrec.backend.kernels.projection import projection_matrix
from hpcrec.backend.kernels.rows import add_rows, add_rows_plain, aligned_zeros, row_of


@njit
def call(target, to, source, starts, weights, first, last, width):
    add_rows(target, to, source, starts, weights, first, last, width)


@njit
def middle(array):
    return row_of(array, 5, 4).sum()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [16, 32, 48, 64])
def test_sum_of_rows_equals_the_twin(dtype, width):
    rng = np.random.default_rng(width)
    source, starts = rng.normal(size=500).astype(dtype), rng.integers(0, 500 - width, 30)
    weights, found = rng.normal(size=30).astype(dtype), rng.normal(size=100).astype(dtype)
    expected = found.copy()
    call(found, 7, source, starts, weights, 3, 27, width)
    add_rows_plain(expected, 7, source, starts, weights, 3, 27, width)
    np.testing.assert_allclose(found, expected, rtol=0, atol=100 * np.finfo(dtype).eps)  # sums of 24 terms of size 1
    call(found, 7, source, starts, weights, 5, 5, width)
    np.testing.assert_allclose(found, expected, rtol=0, atol=100 * np.finfo(dtype).eps)


def test_views_without_checks_see_the_right_elements():
    array = np.arange(12.0).reshape(3, 4)
    assert middle(array) == 5 + 6 + 7 + 8


def test_aligned_zeros_begin_on_a_cache_line():
    for shape in ((1,), (3, 5), (7, 11, 13)):
        found = aligned_zeros(shape, np.float32)
        assert found.ctypes.data % 64 == 0
        assert found.shape == shape
        assert not found.any()


def aligned_maps(tilts, shape, detector, shift):
    """Maps (projection, 4, 4) of turns about y; the depth of row 3 in pixels."""
    maps = np.zeros((len(tilts), 4, 4))
    for a, t in zip(maps, tilts):
        c, s = np.cos(t), np.sin(t)
        a[0, [0, 2]], a[3, [0, 2]], a[1, 1] = (c, s), (-s, c), 1
        a[[0, 3], 3] = -a[[0, 3], :3] @ [shape[2] // 2, 0, shape[0] // 2]
        a[:2, 3] += detector[1] // 2 + shift[1], detector[0] // 2 - shape[1] // 2 + shift[0]
    return maps


# one block of rows, more than one tile, several blocks of rows; the detector is smaller, larger, shifted
CASES = [((7, 9, 11), (9, 10), (0.3, -0.2)), ((20, 5, 35), (8, 30), (2.5, 0.5)), ((4, 130, 6), (120, 9), (-3.7, 1.1))]


@pytest.mark.parametrize(("shape", "detector", "shift"), CASES)
@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("moment", [False, True])
def test_projection_equals_the_numpy_twin(shape, detector, shift, degree, moment):
    rng = np.random.default_rng(0)
    # More than go back at a time
    tilts = np.array([-1.5, -np.pi / 4, -0.3, 0.0, 0.6, np.pi / 4, np.pi / 2, *np.linspace(-1.4, 1.3, 8)])
    maps = aligned_maps(tilts, shape, detector, shift)
    assert all(is_aligned(a, shape) for a in maps)
    volume = rng.normal(size=shape)
    low = rng.integers(0, shape[1], (shape[0], shape[2]))
    ranges = np.stack([low, np.minimum(low + rng.integers(0, shape[1] + 1, low.shape), shape[1])], axis=-1)
    rows = np.arange(shape[1])[None, :, None]
    inside = (rows >= ranges[:, None, :, 0]) & (rows < ranges[:, None, :, 1])
    found = project_aligned(volume, ranges, maps, degree, moment, 0.7, detector, 2)
    columns = (shape[0], shape[2], shape[1])
    images = rng.normal(size=found.shape)
    back, expected_back = back_project_aligned(images, ranges, maps, degree, 0.7, shape, 2), 0
    for image, given, a in zip(found, images, maps):
        matrix = 0.7 * projection_matrix(columns, a, degree, moment, (1, detector[1], detector[0]))
        expected = matrix @ (volume * inside).transpose(0, 2, 1).ravel()
        # float64 sums of up to 300 terms of size 30
        np.testing.assert_allclose(image.T.ravel(), expected, atol=1e-11)
        expected_back = expected_back + matrix.T @ given.T.ravel()
    if not moment:
        expected_back = expected_back.reshape(columns).transpose(0, 2, 1) * inside
        np.testing.assert_allclose(back, expected_back, atol=1e-11)


def test_threads_change_no_bit():
    shape, detector = (40, 70, 37), (66, 50)
    maps = aligned_maps(np.linspace(-1.2, 1.3, 7), shape, detector, (0.4, 0.1))
    volume = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    ranges = np.zeros((40, 37, 2), np.int64)
    ranges[..., 1] = 70
    stacks = [project_aligned(volume, ranges, maps, 2, False, 1.0, detector, n) for n in (1, 2, 5)]
    backs = [back_project_aligned(stacks[0], ranges, maps, 2, 1.0, shape, n) for n in (1, 2, 5)]
    for stack, back in zip(stacks[1:], backs[1:]):
        np.testing.assert_array_equal(stack, stacks[0])
        np.testing.assert_array_equal(back, backs[0])


def test_what_is_not_aligned():
    straight = aligned_maps([0.4], (9, 9, 9), (9, 9), (0, 0))[0]
    for row, column, change in ((0, 1, 1e-3), (1, 0, 1e-3), (1, 2, 1e-3), (1, 1, 1e-2), (0, 0, 1e-2)):
        turned = straight.copy()
        turned[row, column] += change
        assert not is_aligned(turned, (9, 9, 9))
