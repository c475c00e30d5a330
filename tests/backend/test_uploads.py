"""Copies to a GPU, by the stand-in whose streams lag behind: what is read or overwritten too early is wrong."""

import numpy as np
import pytest
from device_runtime import Stream

from hpcrec.backend import uploads
from hpcrec.backend.uploads import uploaded


def arrays(n, dtype=np.uint16):
    return [np.random.default_rng(i).integers(0, 200, (3 + i % 3, 4)).astype(dtype) for i in range(n)]


@pytest.mark.parametrize("n", [0, 1, 2, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.dtype(">u2"), np.float32])
def test_each_array_arrives_as_it_was_sent(gpus, n, dtype):
    sent = arrays(n, dtype)
    found = [there.get() for there in uploaded(gpus, iter(sent))]
    assert len(found) == n
    for there, wanted in zip(found, sent):
        assert there.dtype == wanted.dtype.newbyteorder("=")
        np.testing.assert_array_equal(there, wanted)


def test_the_next_is_on_its_way_while_one_is_used(gpus):
    """What the source has been asked for when an array is handed out: one more."""
    asked = []

    def source():
        for i, values in enumerate(arrays(4)):
            asked.append(i)
            yield values

    assert [len(asked) for _ in uploaded(gpus, source())] == [2, 3, 4, 4]


@pytest.mark.parametrize("missing", ["copied.synchronize", "wait_event"])
def test_the_stand_in_shows_what_does_not_wait(gpus, monkeypatch, missing):
    """A proof of the test: without a wait of the host or of the device, wrong arrays arrive."""
    if missing == "wait_event":
        monkeypatch.setattr(Stream, "wait_event", lambda self, event: None)
    else:
        monkeypatch.setattr(uploads._Slot, "send", send_at_once)
    sent = [np.full((3, 4), i, np.uint16) for i in range(6)]
    # Used late, as work on a device is: when the next two are on their way
    found = [there.get() for there in uploaded(gpus, iter(sent))]
    assert any((there != wanted).any() for there, wanted in zip(found, sent))


def send_at_once(self, values, stream):
    """As the slot does it, but for the wait until the buffer is free."""
    host = self.host[: values.nbytes].view(values.dtype).reshape(values.shape)
    there = self.device[: values.nbytes].view(values.dtype).reshape(values.shape)
    stream.add(lambda: there.set(host))
    host[...] = values + 1
    self.copied.record(stream)
    return there


def test_an_early_end_leaves_no_copy_under_way(gpus):
    stream = uploaded(gpus, iter(arrays(5)))
    next(stream)
    stream.close()
