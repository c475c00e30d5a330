from pathlib import Path

import numpy as np
import pytest

from hpcrec.errors import ConfigError, DataError
from hpcrec.io.layout import find_layout, read_runs, scan_positions

HERE = Path("data.h5")


@pytest.mark.parametrize(
    ("shape", "layout", "n_angles", "n_tilts", "scan"),
    [
        ((6, 8, 8), "auto", None, 1, (6,)),
        ((3, 6, 8, 8), "auto", 3, 3, (6,)),
        ((1, 6, 8, 8), "auto", None, 1, (6,)),
        ((3, 6, 8, 8), "auto", 1, 1, (3, 6)),
        ((3, 6, 8, 8), "row,column", None, 1, (3, 6)),
        ((2, 3, 6, 8, 8), "auto", 2, 2, (3, 6)),
    ],
)
def test_layout_of_leading_axes(shape, layout, n_angles, n_tilts, scan):
    found = find_layout(HERE, shape, layout, n_angles)
    assert (found.n_tilts, found.scan_shape, found.frame_shape) == (n_tilts, scan, (8, 8))
    assert found.n_positions == np.prod(scan)


@pytest.mark.parametrize(
    ("shape", "layout", "n_angles", "error", "words"),
    [
        ((8, 8), "auto", None, DataError, "3, 4 or 5 axes"),
        ((3, 6, 8, 8), "auto", None, ConfigError, "set layout"),
        ((3, 6, 8, 8), "auto", 5, DataError, "5 tilt angles"),
        ((6, 8, 8), "tilt,position", 1, DataError, "needs 4 axes"),
        ((0, 8, 8), "auto", None, DataError, "nothing in them"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(shape, layout, n_angles, error, words):
    with pytest.raises(error, match=words):
        find_layout(HERE, shape, layout, n_angles)


def test_positions_may_be_shared_or_per_tilt_and_have_more_columns():
    scan = find_layout(HERE, (3, 2, 5, 8, 8), "auto", 3)
    xyz = np.arange(30.0).reshape(10, 3)
    shared = scan_positions(HERE, xyz, scan, (1, 0), None)
    assert len(shared) == 3
    np.testing.assert_array_equal(shared[2], xyz[:, [1, 0]])
    raster = scan_positions(HERE, xyz.reshape(2, 5, 3), scan, (0, 1), None)
    np.testing.assert_array_equal(raster[1], xyz[:, :2])
    each = np.arange(60.0).reshape(3, 10, 2)
    np.testing.assert_array_equal(scan_positions(HERE, each, scan, (0, 1), None)[2], each[2])


def test_a_raster_without_positions_is_centred():
    scan = find_layout(HERE, (2, 3, 8, 8), "row,column", None)
    positions = scan_positions(HERE, None, scan, (0, 1), (2.0, 1.0))[0]
    np.testing.assert_array_equal(positions, [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]])
    with pytest.raises(ConfigError, match="scan_step_angstrom"):
        scan_positions(HERE, None, scan, (0, 1), None)


def test_wrong_positions_are_refused():
    scan = find_layout(HERE, (3, 10, 8, 8), "auto", 3)
    with pytest.raises(DataError, match=r"shape \(9, 2\).*has 10 patterns"):
        scan_positions(HERE, np.zeros((9, 2)), scan, (0, 1), None)
    with pytest.raises(DataError, match="2 columns"):
        scan_positions(HERE, np.zeros((10, 2)), scan, (0, 2), None)
    broken = np.zeros((3, 10, 2))
    broken[1, 4, 0] = np.nan
    with pytest.raises(DataError, match="position 4 of tilt 1"):
        scan_positions(HERE, broken, scan, (0, 1), None)
    with pytest.raises(DataError, match="real numbers"):
        scan_positions(HERE, np.zeros((10, 2), complex), scan, (0, 1), None)


@pytest.mark.parametrize(
    ("scan_shape", "chunk", "longest"),
    [((97,), (10,), 3), ((97,), (1,), 100), ((9, 11), (2, 4), 2), ((9, 11), (1, 1), 5)],
)
def test_block_reads_serve_every_index_and_touch_each_chunk_once(scan_shape, chunk, longest):
    stored = np.arange(np.prod(scan_shape)).reshape(scan_shape)
    indices = np.random.default_rng(1).integers(0, stored.size, 40)  # unordered, some twice
    got = np.full(40, -1)
    touched = []
    for part, block, inside in read_runs(indices, scan_shape, chunk, longest):
        got[part] = stored[block][inside]
        spans = [range(s.start // c, (s.stop - 1) // c + 1) for s, c in zip(block, chunk)]
        assert len(spans[-1]) <= longest
        touched += [(a, b) for a in spans[0] for b in spans[-1]]
    np.testing.assert_array_equal(got, indices)
    assert len(touched) == len(set(touched))


def test_a_whole_scan_is_one_block():
    runs = list(read_runs(np.arange(50)[::-1], (50,), (7,), 100))
    assert len(runs) == 1
    assert runs[0][1] == (slice(0, 50),)
