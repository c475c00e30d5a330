import os
import threading
import time

import numpy as np
import pytest

from hpcrec.data import batches
from hpcrec.data.batches import BatchReader, compact_extents, global_batches
from hpcrec.data.spool import Spool
from hpcrec.errors import ConfigError, DataError, StorageError
from hpcrec.geometry.scan import hilbert_order


class Source:
    """Patterns that say their own index, with a count of what was read."""

    pattern_shape = (4, 4)
    dtype = np.dtype(np.uint16)

    def __init__(self, n_positions, fail_at=None, delay=0.0):
        self.n_positions, self.fail_at, self.delay = n_positions, fail_at, delay
        self.calls = []

    def read(self, indices):
        self.calls.append((threading.current_thread().name, len(indices)))
        time.sleep(self.delay)
        if self.fail_at is not None and self.fail_at in indices:
            raise DataError(f"position {self.fail_at} is damaged")
        return np.broadcast_to(np.asarray(indices, np.uint16)[:, None, None], (len(indices), 4, 4)).copy()


@pytest.mark.parametrize("size", [1, 7, 64, 300, 400])
def test_compact_batches_reach_no_further_than_told(size):
    rng = np.random.default_rng(3)
    raster = np.stack(np.meshgrid(np.arange(20.0), 2.5 * np.arange(15.0), indexing="ij"), -1).reshape(-1, 2)
    positions = raster + rng.uniform(-0.3, 0.3, raster.shape)
    told = compact_extents(positions, size)
    largest = np.prod(told + 4, axis=1).max()
    found = []
    for iteration in range(200):
        order = hilbert_order(positions)
        sets = global_batches(300, size, seed=1, tilt=0, iteration=iteration, kind="compact", order=order)
        found += [np.prod(np.ptp(positions[one], axis=0) + 4) for one in sets]
    assert max(found) <= largest
    # One that is made is as large, or nearly where sizes are rounded
    assert max(found) > 0.9 * largest


@pytest.mark.parametrize("kind", ["random", "compact"])
@pytest.mark.parametrize(("n", "size"), [(10, 3), (7, 7), (5, 100), (1, 1), (101, 10)])
def test_each_position_is_in_one_batch_of_the_right_size(kind, n, size):
    batches = global_batches(n, size, seed=1, tilt=2, iteration=3, kind=kind, order=np.arange(n))
    assert sorted(np.concatenate(batches)) == list(range(n))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


def test_batches_depend_on_seed_tilt_and_iteration_only():
    def lists(**changed):
        chosen = {"seed": 1, "tilt": 2, "iteration": 3, **changed}
        return [batch.tolist() for batch in global_batches(50, 8, **chosen)]

    assert lists() == lists()
    assert all(lists() != lists(**{key: 9}) for key in ("seed", "tilt", "iteration"))


def test_compact_batches_are_neighbours_and_random_ones_are_not():
    order = np.random.default_rng(77).permutation(100)
    place = np.argsort(order)
    compact = global_batches(100, 10, seed=0, tilt=0, iteration=0, kind="compact", order=order)
    for batch in compact:
        steps = np.diff(np.sort(place[batch]))
        assert (steps != 1).sum() <= 1  # one jump where the curve's end meets its beginning
    random = global_batches(100, 10, seed=0, tilt=0, iteration=0)
    assert max((np.diff(np.sort(place[batch])) != 1).sum() for batch in random) > 5


def test_impossible_batches_are_refused():
    with pytest.raises(ConfigError, match="batch_size"):
        global_batches(5, 0, seed=0, tilt=0, iteration=0)
    with pytest.raises(ConfigError, match="curve"):
        global_batches(5, 2, seed=0, tilt=0, iteration=0, kind="compact")


def test_a_share_that_fits_is_read_once_and_kept():
    source = Source(20)
    with BatchReader(source, np.arange(1, 20, 2), memory_limit=10 * 32) as reader:
        assert reader.in_memory
        for _ in range(3):
            patterns = list(reader.iterate([np.array([19, 1]), np.array([], int), np.array([5])]))
        assert [p[:, 0, 0].tolist() for p in patterns] == [[19, 1], [], [5]]
        assert sum(n for _, n in source.calls) == 10
        assert patterns[0].dtype == np.uint16
        with pytest.raises(DataError, match="share"):
            reader.read(np.array([2]))
        with pytest.raises(DataError, match="share"):
            reader.read(np.array([20]))


def test_a_share_that_does_not_fit_is_read_ahead_by_a_thread():
    source = Source(20, delay=0.02)
    batches = [np.array([i, i + 1]) for i in range(0, 20, 2)]
    with BatchReader(source, np.arange(20), memory_limit=19 * 32) as reader:
        assert not reader.in_memory
        iterator = reader.iterate(batches)
        first = next(iterator)
        deadline = time.monotonic() + 2
        while len(source.calls) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(source.calls) >= 2  # read while the caller held the first batch
        rest = list(iterator)
    assert [p[0, 0, 0] for p in (first, *rest)] == list(range(0, 20, 2))
    assert {name.startswith("hpcrec-read") for name, _ in source.calls} == {True}


def test_an_error_while_reading_ahead_comes_at_its_batch():
    source = Source(20, fail_at=4)
    with BatchReader(source, np.arange(20), memory_limit=0) as reader:
        iterator = reader.iterate([np.array([0]), np.array([2]), np.array([4]), np.array([6])])
        assert next(iterator)[0, 0, 0] == 0
        assert next(iterator)[0, 0, 0] == 2
        with pytest.raises(DataError, match="position 4"):
            next(iterator)


def test_an_abandoned_iteration_does_not_block_closing():
    reader = BatchReader(Source(1000, delay=0.01), np.arange(1000), memory_limit=0)
    next(reader.iterate(np.arange(1000)[:, None]))
    start = time.monotonic()
    reader.close()
    assert time.monotonic() - start < 1.0


def test_what_exceeds_the_memory_is_sorted_into_a_file_once(tmp_path):
    source = Source(40)
    batches = [np.array([31, 2]), np.array([], int), np.array([5, 39, 0])]
    share = np.array([39, 31, 0, 2, 5, 7])
    with BatchReader(source, share, memory_limit=64, scratch=tmp_path) as reader:
        for _ in range(3):
            patterns = list(reader.iterate(batches))
            assert [p[:, 0, 0].tolist() for p in patterns] == [[31, 2], [], [5, 39, 0]]
        assert sum(n for _, n in source.calls) == len(share)
        assert patterns[0].dtype == np.uint16
        assert (reader.read(np.array([7])) == 7).all()
        with pytest.raises(DataError, match="share"):
            reader.read(np.array([1]))
    assert not list(tmp_path.iterdir())


def test_the_file_is_filled_block_by_block(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "BLOCK_BYTES", 100)
    source = Source(20)
    with BatchReader(source, np.arange(20), memory_limit=64, scratch=tmp_path) as reader:
        assert (reader.read(np.array([3, 4, 5, 1, 0, 19, 18, 19]))[:, 0, 0] == [3, 4, 5, 1, 0, 19, 18, 19]).all()
    assert max(n for _, n in source.calls) == 3, "three patterns of 32 bytes"


def test_neighbours_in_the_file_are_read_at_once(tmp_path, monkeypatch):
    spool = Spool(tmp_path, (4, 4), np.dtype(np.uint16))
    spool.append(np.arange(10 * 16, dtype=np.uint16).reshape(10, 4, 4))
    real, sizes = os.preadv, []

    def preadv(file, buffers, start):
        sizes.append(len(buffers[0]))
        # A kernel may give less than was asked for
        return real(file, [buffers[0][:50]], start)

    monkeypatch.setattr(os, "preadv", preadv)
    rows = np.array([2, 3, 4, 8, 7])
    assert (spool.read(rows)[:, 0, 0] == 16 * rows).all()
    assert sizes == [96, 46, 32, 32]
    with pytest.raises(StorageError, match="lost patterns"):
        spool.read(np.array([9, 10]))
    assert spool.read(np.zeros(0, np.int64)).shape == (0, 4, 4)
    spool.close()


def test_a_fault_of_the_source_is_told_when_the_file_is_filled(tmp_path):
    with (
        BatchReader(Source(20, fail_at=4), np.arange(20), memory_limit=0, scratch=tmp_path) as reader,
        pytest.raises(DataError, match="position 4"),
    ):
        list(reader.iterate([np.array([0])]))


def test_a_scratch_folder_that_takes_no_file(tmp_path):
    with (
        BatchReader(Source(20), np.arange(20), memory_limit=0, scratch=tmp_path / "none") as reader,
        pytest.raises(StorageError, match="No such file.*parallel.scratch"),
    ):
        reader.read(np.array([0]))
