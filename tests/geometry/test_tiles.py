"""Boxes, and layouts: cores partition the grid, every position has one owner who holds its window."""

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


def check_layout(layout, positions, grid, window, n_ranks):
    owner_count = np.zeros(grid.shape, int)
    for core in layout.cores:
        if not core.empty:
            owner_count[core.slices(EMPTY_BOX)] += 1
    assert (owner_count == 1).all(), "the cores do not partition the grid"
    assert sorted(np.concatenate(layout.shares)) == list(range(len(positions)))
    counts = [len(share) for share in layout.shares]
    assert len(counts) == n_ranks
    assert max(counts) - min(counts) <= 1
    corners = window_corners(positions, grid, window)
    whole = Box(0, grid.shape[0], 0, grid.shape[1])
    for core, held, share in zip(layout.cores, layout.held, layout.shares):
        assert held.contains(core)
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
