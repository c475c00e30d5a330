"""Patterns on a GPU, by the stand-in: all of them, or batch by batch."""

import numpy as np
import pytest

from hpcrec.backend.device import use_device
from hpcrec.data.batches import BatchReader
from hpcrec.data.resident import DeviceReader
from hpcrec.models.events import Events, dense


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
    # Once each, whether they stay on the GPU or wait in the scratch file, and where they do not fit a block to see
    # whether their electrons would
    assert source.read_patterns == len(share) + (0 if room else 7)
    reader.close()


class Electrons(Source):
    """Patterns of 32 × 32 pixels with three electrons, one more of them at the pixel of the pattern's number."""

    pattern_shape, dtype = (32, 32), np.dtype(np.uint8)

    def read(self, indices):
        patterns = np.zeros((len(indices), 32, 32), np.uint8)
        patterns[:, 3, 4], patterns[:, 9, 30] = 2, 1
        patterns[np.arange(len(indices)), 20, np.asarray(indices) % 32] += 1
        return patterns


@pytest.mark.parametrize(
    ("room", "welcome", "resident", "kind"),
    [
        (1 << 20, False, True, "array"),  # arrays fit
        (1 << 20, True, True, "events"),  # and so do events, which take less
        (4000, False, True, "events"),  # arrays do not fit, events do
        (100, True, False, "array"),  # nothing does
    ],
)
def test_counted_electrons_stay_as_events(gpus, tmp_path, room, welcome, resident, kind):
    share = np.arange(50)
    on_host = BatchReader(Electrons(), share, memory_limit=1 << 20, scratch=tmp_path)
    on_host.per_block = 7
    reader = DeviceReader(on_host, share, use_device("gpu"), room, events=welcome)
    assert reader.resident == resident
    batches = np.array_split(np.random.default_rng(0).permutation(share), 6)
    for batch, patterns in zip(batches, reader.iterate(batches), strict=True):
        assert isinstance(patterns, Events) == (kind == "events")
        np.testing.assert_array_equal(dense(patterns).get(), Electrons().read(batch))


def test_what_is_no_count_stays_an_array(gpus):
    class Floats(Electrons):
        dtype = np.dtype(np.float32)

        def read(self, indices):
            return super().read(indices).astype(np.float32)

    reader = DeviceReader(BatchReader(Floats(), np.arange(9), memory_limit=0), np.arange(9), use_device("gpu"), 3000)
    assert not reader.resident


def test_an_empty_share_is_legal(gpus):
    nobody = np.arange(0)
    for room in (0, 1 << 20):
        reader = DeviceReader(BatchReader(Source(), nobody, memory_limit=1 << 20), nobody, use_device("gpu"), room)
        assert [patterns.shape for patterns in reader.iterate([nobody, nobody])] == [(0, 4, 4)] * 2
        reader.close()
