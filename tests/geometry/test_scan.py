"""Scans: the curve visits everything once, neighbours stay neighbours, shares are fair."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrec.geometry.scan import (
    half_scans,
    held_out_positions,
    hilbert_index,
    hilbert_order,
    interior_positions,
    raster_positions,
    split_positions,
)


def test_raster_is_centred_with_x_fastest():
    positions = raster_positions((3, 4), (0.5, 2.0), centre=(10.0, -1.0))
    assert positions.shape == (12, 2)
    np.testing.assert_allclose(positions.mean(axis=0), (10.0, -1.0))
    np.testing.assert_allclose(positions[1] - positions[0], (0.0, 2.0))
    np.testing.assert_allclose(positions[4] - positions[0], (0.5, 0.0))


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_hilbert_curve_steps_from_cell_to_neighbour(bits):
    side = 2**bits
    cells = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    index = hilbert_index(cells, bits)
    assert sorted(index) == list(range(side**2))
    path = cells[np.argsort(index)]
    assert (np.abs(np.diff(path, axis=0)).sum(axis=1) == 1).all()


def test_hilbert_order_of_a_raster_makes_short_steps():
    positions = raster_positions((37, 21), (1.0, 1.0))
    path = positions[hilbert_order(positions)]
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    assert steps.mean() < 1.5  # 1 on a full square of 2^n; a raster's flyback alone would give 1.9, random order 15


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(1, 70), st.integers(0, 2**31))
def test_split_owns_each_position_once_and_evenly(n_positions, n_shares, seed):
    positions = np.random.default_rng(seed).normal(size=(n_positions, 2))
    shares = split_positions(positions, n_shares)
    assert len(shares) == n_shares
    assert sorted(np.concatenate(shares)) == list(range(n_positions))
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1


def test_equal_positions_keep_their_order():
    assert hilbert_order(np.zeros((5, 2))).tolist() == [0, 1, 2, 3, 4]
    assert hilbert_order(np.zeros((0, 2))).shape == (0,)


def test_held_out_positions_lie_inside_and_spread():
    positions = raster_positions((30, 40), (1.0, 1.0)) + np.random.default_rng(0).uniform(-0.2, 0.2, (1200, 2))
    chosen = held_out_positions(positions, 0.02)
    assert len(chosen) == 24
    assert (np.diff(chosen) > 0).all()
    y, x = np.abs(positions[chosen]).T
    assert y.max() < 14.0
    assert x.max() < 19.0
    # Some in each quarter of the scan
    quarters = set(map(tuple, (positions[chosen] > 0).tolist()))
    assert len(quarters) == 4
    np.testing.assert_array_equal(chosen, held_out_positions(positions, 0.02))


@pytest.mark.parametrize(
    "positions", [np.zeros((0, 2)), np.zeros((1, 2)), np.stack([np.arange(9.0), np.arange(9.0)], 1), np.zeros((5, 2))]
)
def test_scans_without_inside_have_nothing_to_hold_out(positions):
    assert len(held_out_positions(positions, 0.1)) == 0
    assert not interior_positions(positions).any()


def test_positions_that_are_not_numbers_are_not_taken_for_a_line():
    positions = raster_positions((5, 5), (1.0, 1.0))
    positions[7] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        interior_positions(positions)


def test_nothing_is_held_out_unless_asked():
    assert len(held_out_positions(raster_positions((20, 20), (1.0, 1.0)), 0.0)) == 0


def test_half_scans_of_a_raster_are_a_checkerboard():
    positions = raster_positions((16, 16), (1.0, 1.0))
    first, second = half_scans(positions, np.arange(256))
    y, x = np.divmod(first, 16)
    assert len(set(((y + x) % 2).tolist())) == 1
    assert sorted([*first, *second]) == list(range(256))


def test_half_scans_split_what_they_are_given():
    positions = raster_positions((9, 11), (1.0, 1.3))
    given = np.setdiff1d(np.arange(99), [3, 50])
    first, second = half_scans(positions, given)
    assert sorted([*first, *second]) == given.tolist()
    assert abs(len(first) - len(second)) <= 1
    # Neither half has a hole: from each position the nearest one of the half is at most two steps away
    for half in (first, second):
        distance = np.linalg.norm(positions[:, None] - positions[None, half], axis=2).min(axis=1)
        assert distance.max() < 2.7


@pytest.mark.parametrize(
    ("weights", "counts"),
    [((1, 2, 1), [10, 20, 10]), ((1, 1e-9, 1), [20, 0, 20]), ((0, 0, 2), [0, 0, 40]), ((2, 2, 2), [14, 13, 13])],
)
def test_shares_follow_weights(weights, counts):
    positions = np.random.default_rng(3).normal(size=(40, 2))
    shares = split_positions(positions, 3, weights)
    assert [len(share) for share in shares] == counts
    np.testing.assert_array_equal(np.concatenate(shares), hilbert_order(positions))


def test_equal_weights_are_no_weights():
    positions = np.random.default_rng(3).normal(size=(41, 2))
    for a, b in zip(split_positions(positions, 7), split_positions(positions, 7, (0.3,) * 7), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("weights", [(1, 1), (1, -1, 1), (0, 0, 0), (1, np.nan, 1), (1, np.inf, 1)])
def test_weights_that_share_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="3 shares need as many finite weights"):
        split_positions(np.zeros((5, 2)), 3, weights)
