"""Boxes, and layouts: cores partition the grid, every position has one owner who holds its window."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrec.geometry.grid import Grid, object_grid
from hpcrec.geometry.scan import raster_positions
from hpcrec.geometry.tiles import EMPTY_BOX, Box, bounding_box, tile_layout, window_corners

small = st.integers(-6, 12)
boxes = st.builds(Box, small, small, small, small)


def pixels(box):
    return {(y, x) for y in range(box.y0, box.y1) for x in range(box.x0, box.x1)}


@given(boxes, boxes)
def test_box_arithmetic_is_that_of_pixel_sets(a, b):
    assert pixels(a.intersect(b)) == pixels(a) & pixels(b)
    assert pixels(a) | pixels(b) <= pixels(a.union(b))
    assert a.contains(b) == (pixels(b) <= pixels(a))
    assert a.empty == (not pixels(a))
    assert pixels(a.grow(0)) == pixels(a)


def test_slices_index_an_array_on_the_outer_box():
    outer, inner = Box(3, 10, -2, 6), Box(4, 6, 0, 5)
    y, x = np.mgrid[3:10, -2:6]
    assert y[inner.slices(outer)].tolist() == [[4] * 5, [5] * 5]
    assert x[inner.slices(outer)][0].tolist() == [0, 1, 2, 3, 4]


def test_grow_and_bounding_box_of_nothing_are_empty():
    assert bounding_box(np.zeros((0, 2), int), (4, 4)).empty
    assert EMPTY_BOX.grow(3).empty
    assert Box(1, 2, 3, 4).grow(2) == Box(-1, 4, 1, 6)


def test_window_is_centred_on_the_rounded_pixel():
    grid = Grid(shape=(40, 40), sampling=(0.5, 0.25), origin=(-5.0, -4.0))
    corners = window_corners(np.array([[0.1, 0.1], [-0.4, 0.3]]), grid, (8, 5))
    assert corners.tolist() == [[10 - 4, 16 - 2], [9 - 4, 17 - 2]]


def check_layout(layout, positions, grid, window, n_ranks, weights=None):
    owner_count = np.zeros(grid.shape, int)
    for core in layout.cores:
        if not core.empty:
            owner_count[core.slices(EMPTY_BOX)] += 1
    assert (owner_count == 1).all(), "the cores do not partition the grid"
    assert sorted(np.concatenate(layout.shares)) == list(range(len(positions)))
    counts = [len(share) for share in layout.shares]
    assert len(counts) == n_ranks
    if weights is None:
        assert max(counts) - min(counts) <= 1
    else:
        # Each of the cuts above a share rounds to a whole position
        wanted = np.array(weights) / sum(weights) * len(positions)
        assert np.abs(counts - wanted).max() <= 1 + np.log2(n_ranks)
    corners = window_corners(positions, grid, window)
    whole = Box(0, grid.shape[0], 0, grid.shape[1])
    for core, held, reached, share in zip(layout.cores, layout.held, layout.reached, layout.shares):
        assert held.contains(reached)
        assert reached.contains(core)
        assert held.contains(bounding_box(corners[share], window))
        assert whole.contains(held)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 17), st.integers(0, 6), st.integers(0, 2**31), st.booleans())
def test_layout_of_any_positions(n_positions, n_ranks, margin, seed, in_a_line):
    rng = np.random.default_rng(seed)
    positions = rng.uniform(-12.0, 12.0, (n_positions, 2)) * (1.0, 0.0 if in_a_line else 1.0)
    window, sampling = (7, 10), (0.5, 0.4)
    frame = np.concatenate([positions, np.zeros((1, 2))])
    grid = object_grid(frame, window, sampling)
    layout = tile_layout(positions, grid, window, n_ranks, margin)
    check_layout(layout, positions, grid, window, n_ranks)


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 6])
def test_layout_of_a_raster_keeps_halos_narrow(n_ranks):
    window, margin = (8, 8), 2
    positions = raster_positions((24, 24), (1.0, 1.0))
    grid = object_grid(positions, window, (0.5, 0.5))
    layout = tile_layout(positions, grid, window, n_ranks, margin)
    check_layout(layout, positions, grid, window, n_ranks)
    for core, held in zip(layout.cores, layout.held):
        # a cut runs through one scan row at most: half a window + one scan step (2 pixels) + the margin on each side
        assert core.grow(4 + 2 + margin).contains(held)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40),
    st.lists(st.one_of(st.floats(0.1, 10), st.sampled_from([0.0, 1e-12, 1.0])), min_size=1, max_size=17),
    st.integers(0, 2**31),
)
def test_layout_of_any_weights(n_positions, weights, seed):
    """Some ranks of no weight, and more ranks than positions."""
    weights[seed % len(weights)] = 1.0
    positions = np.random.default_rng(seed).uniform(-12.0, 12.0, (n_positions, 2))
    window = (7, 10)
    grid = object_grid(np.concatenate([positions, np.zeros((1, 2))]), window, (0.5, 0.4))
    layout = tile_layout(positions, grid, window, len(weights), 2, weights=weights, reach=Box(2, 4, 3, 8))
    check_layout(layout, positions, grid, window, len(weights), weights)


def test_cuts_follow_weights():
    positions = raster_positions((24, 24), (1.0, 1.0))
    grid = object_grid(positions, (8, 8), (0.5, 0.5))
    layout = tile_layout(positions, grid, (8, 8), 3, 2, weights=(1, 2, 1))
    check_layout(layout, positions, grid, (8, 8), 3, (1, 2, 1))
    assert [len(share) for share in layout.shares] == [144, 288, 144]
    areas = [core.shape[0] * core.shape[1] for core in layout.cores]
    assert areas[1] > 1.4 * max(areas[0], areas[2])
    for n_ranks in (1, 3, 7):
        plain, even = (tile_layout(positions, grid, (8, 8), n_ranks, 2, weights=w) for w in (None, (0.7,) * n_ranks))
        assert (plain.cores, plain.held) == (even.cores, even.held)
        assert all((a == b).all() for a, b in zip(plain.shares, even.shares))
    with pytest.raises(ValueError, match="3 shares need as many"):
        tile_layout(positions, grid, (8, 8), 3, 2, weights=(0, 0, 0))


def test_halos_are_cut_to_what_the_probe_reaches():
    positions = raster_positions((24, 24), (1.0, 1.0))
    grid = object_grid(positions, (16, 16), (0.5, 0.5))
    whole = tile_layout(positions, grid, (16, 16), 2, 1)
    assert whole.reached == whole.held
    assert tile_layout(positions, grid, (16, 16), 2, 1, reach=Box(0, 16, 0, 16)).reached == whole.held
    cut = tile_layout(positions, grid, (16, 16), 2, 1, reach=Box(6, 11, 0, 16))
    assert (cut.cores, cut.held) == (whole.cores, whole.held)
    # The lower tile's windows reach 6 pixels less far up, the upper one's 5 less far down
    assert cut.reached[1] == Box(whole.held[1].y0 + 6, *dataclasses.astuple(whole.held[1])[1:])
    assert cut.reached[0].y1 == whole.held[0].y1 - 5


@given(st.lists(st.integers(0, 9), min_size=8, max_size=8))
def test_what_lies_around_a_box_is_cut_into_boxes(edges):
    outer, inner = Box(*edges[:4]), Box(*edges[4:])
    seen = np.zeros((9, 9), int)
    for box in outer.without(inner):
        assert not box.empty
        seen[box.slices(EMPTY_BOX)] += 1
    wanted = np.zeros((9, 9), int)
    if not outer.empty:
        wanted[outer.slices(EMPTY_BOX)] = 1
    both = outer.intersect(inner)
    if not both.empty:
        wanted[both.slices(EMPTY_BOX)] = 0
    np.testing.assert_array_equal(seen, wanted)
