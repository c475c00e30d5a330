"""Threads that meet in compiled loops: the same as barriers and counters of the standard library."""

import numpy as np
import pytest
from numba import njit

from hpcrec.backend.kernels.meeting import meet, take_one
from hpcrec.backend.threads import run_together


@njit(nogil=True)
def work(place, n_threads, meeting, rounds, seen, faults):
    """Count up, meet, look whether all others have counted as far, meet again."""
    for i in range(rounds):
        seen[place] = i + 1
        meet(meeting, n_threads)
        for other in range(n_threads):
            faults[place] += seen[other] != i + 1
        meet(meeting, n_threads)


@njit(nogil=True)
def take(meeting, n, owners):
    i = take_one(meeting)
    while i < n:
        owners[i] += 1
        i = take_one(meeting)


@pytest.mark.parametrize("n_threads", [1, 2, 3, 5])
def test_nobody_leaves_before_all_have_come(n_threads):
    """More threads than cores too; as often as counters need to come round."""
    rounds, meeting = 300, np.zeros(2, np.int64)
    seen, faults = np.zeros(n_threads, np.int64), np.zeros(n_threads, np.int64)
    run_together(lambda place: work(place, n_threads, meeting, rounds, seen, faults), n_threads)
    np.testing.assert_array_equal(seen, rounds)
    np.testing.assert_array_equal(faults, 0)
    assert meeting[0] == (2 * rounds * n_threads if n_threads > 1 else 0)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_every_piece_is_taken_once(n_threads):
    n, meeting = 20000, np.zeros(2, np.int64)
    owners = np.zeros((n_threads, n), np.int64)
    run_together(lambda place: take(meeting, n, owners[place]), n_threads)
    np.testing.assert_array_equal(owners.sum(axis=0), 1)
    # Every thread asked once more than there were pieces
    assert meeting[1] == n + n_threads
