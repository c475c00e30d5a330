"""Arrays of single patterns come back in order, whatever the ranks that gave and take them."""

import numpy as np
import pytest

from hpcrec.parallel.communicator import SerialCommunicator, run_ranks
from hpcrec.parallel.patterns import gather_patterns, hand_out_patterns

VALUES = np.random.default_rng(0).normal(size=(11, 2, 3)).astype(np.complex64)


def share(comm):
    """Scattered positions; rank 1 of several has none."""
    owner = np.random.default_rng(1).integers(0, comm.size, 11)
    return np.flatnonzero(np.where(owner == 1, 0, owner) == comm.rank)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_what_is_handed_out_comes_back(size):
    def rank(comm):
        own = share(comm)
        mine = hand_out_patterns(comm, own, VALUES if comm.rank == 0 else None)
        np.testing.assert_array_equal(mine, VALUES[own])
        return gather_patterns(comm, own, mine)

    results = run_ranks(size, rank)
    np.testing.assert_array_equal(results[0], VALUES)
    assert results[1:] == [None] * (size - 1)


def test_one_rank_keeps_all():
    comm, own = SerialCommunicator(), np.arange(11)
    np.testing.assert_array_equal(gather_patterns(comm, own, hand_out_patterns(comm, own, VALUES)), VALUES)
