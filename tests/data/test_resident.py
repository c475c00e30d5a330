"""Patterns on a GPU, by the stand-in: all of them, or batch by batch."""

import numpy as np
import pytest

from hpcrec.backend.device import use_device
from hpcrec.data.batches import BatchReader
from hpcrec.data.resident import DeviceReader


class Source:
    """Patterns of 4 × 4 pixels that hold their number; it counts what is read."""

    n_positions, pattern_shape, dtype = 50, (4, 4), np.dtype(np.uint16)

    def __init__(self):
        self.read_patterns = 0

    def read(self, indices):
        self.read_patterns += len(indices)
        return np.broadcast_to(np.asarray(indices, np.uint16)[:, None, None], (len(indices), 4, 4)).copy()


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_batches_are_those_that_were_asked_for(gpus, tmp_path, room):
    source, share = Source(), np.arange(5, 45)
    on_host = BatchReader(source, share, memory_limit=1 << 20 if room else 0, scratch=tmp_path)
    on_host.per_block = 7
    reader = DeviceReader(on_host, share, use_device("gpu"), room)
    assert reader.resident == (room > 0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        batches = np.array_split(rng.permutation(share), 6)
        for batch, patterns in zip(batches, reader.iterate(batches), strict=True):
            assert isinstance(patterns, gpus.ndarray)
            np.testing.assert_array_equal(patterns.get()[:, 0, 0], batch)
    # Once each, whether they stay on the GPU or wait in the scratch file
    assert source.read_patterns == len(share)
    reader.close()


def test_an_empty_share_is_legal(gpus):
    nobody = np.arange(0)
    for room in (0, 1 << 20):
        reader = DeviceReader(BatchReader(Source(), nobody, memory_limit=1 << 20), nobody, use_device("gpu"), room)
        assert [patterns.shape for patterns in reader.iterate([nobody, nobody])] == [(0, 4, 4)] * 2
        reader.close()
