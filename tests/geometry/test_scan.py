"""Scans: the curve visits everything once, neighbours stay neighbours, shares are fair."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcrec.geometry.scan import hilbert_index, hilbert_order, raster_positions, split_positions


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
