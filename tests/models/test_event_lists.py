"""Counted electrons as events: nothing is lost on the way there and back, on the host and on a device's stand-in."""

from dataclasses import replace

import numpy as np
import pytest
from test_ptychography import case

from hpcrec.backend.array import array_module, to_host
from hpcrec.errors import DataError
from hpcrec.models import events as events_module
from hpcrec.models.events import Events, dense, event_bytes, events_of, joined, largest_total, smaller
from hpcrec.models.line import losses_along
from hpcrec.models.placement import batch_beside


def sparse_counts(n, shape, dtype=np.uint8, seed=1):
    """Counts of which pattern 1 has none and pattern 2 many on one pixel."""
    counts = np.random.default_rng(seed).poisson(0.04, (n, *shape)).astype(dtype)
    if n > 2:
        counts[1] = 0
        counts[2, 3, shape[1] - 1] = np.iinfo(dtype).max if np.dtype(dtype).itemsize < 4 else 70000
    return counts


@pytest.fixture(params=["host", "device"])
def on(request, cupy):
    """What puts an array where events are to be made."""
    return np.asarray if request.param == "host" else cupy.asarray


@pytest.mark.parametrize("shape", [(128, 128), (192, 192), (256, 256), (512, 512), (96, 64), (50, 33), (7, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_nothing_is_lost(on, shape, dtype):
    counts = sparse_counts(4, shape, dtype)
    found = events_of(on(counts))
    assert found.shape == counts.shape
    assert found.edges.dtype == (np.uint32 if counts[2].sum() > 65535 else np.uint16)
    again = found.dense()
    assert array_module(again) is array_module(on(counts))
    assert again.dtype == counts.dtype
    np.testing.assert_array_equal(to_host(again), counts)
    np.testing.assert_array_equal(to_host(found.counts), counts.sum(axis=(1, 2)))


def test_bytes_in_the_other_order_are_read():
    counts = sparse_counts(3, (32, 32), np.uint16).astype(">u2")
    np.testing.assert_array_equal(events_of(counts).dense(), counts)


def test_an_event_is_a_byte_in_the_order_of_tiles():
    """Tile (1, 2) of 3 × 4 tiles, pixel (5, 9) of it, hit three times, and the first pixel of the last tile."""
    counts = np.zeros((1, 48, 64), np.uint8)
    counts[0, 21, 41], counts[0, 32, 48] = 3, 1
    found = events_of(counts)
    np.testing.assert_array_equal(found.places, [5 * 16 + 9] * 3 + [0])
    np.testing.assert_array_equal(found.edges, [[0] * 7 + [3] * 5 + [4]])
    np.testing.assert_array_equal(found.starts, [0])


@pytest.mark.parametrize("counts", [np.zeros((0, 32, 32), np.uint8), np.zeros((3, 32, 32), np.uint8)])
def test_no_electron_at_all(on, counts):
    found = events_of(on(counts))
    assert len(found.places) == 0
    np.testing.assert_array_equal(to_host(found.dense()), counts)
    assert largest_total(found) == largest_total(on(counts)) == 0


ROWS = [slice(1, 4), slice(None, None, 2), np.array([4, 0, 0, 2]), np.array([True, False, True, True, False])]


@pytest.mark.parametrize("rows", ROWS)
def test_patterns_are_taken_as_rows_of_an_array(on, rows):
    counts = sparse_counts(5, (48, 40), np.uint16)
    found = events_of(on(counts))
    for taken in (found.take(rows), found[rows], found[rows].packed(), found[::-1][::-1][rows]):
        np.testing.assert_array_equal(to_host(taken.dense()), counts[rows])
        assert taken.nbytes == event_bytes(on(counts[rows]))
    assert found.take(rows).places is found.places
    assert len(found.take(rows).packed().places) == counts[rows].sum()
    assert largest_total(found[rows]) == largest_total(on(counts[rows])) == counts[rows].sum(axis=(1, 2)).max()


def test_chunks_of_a_dense_array_make_no_difference(monkeypatch):
    counts = sparse_counts(5, (32, 40))
    monkeypatch.setattr(events_module, "_ROOM_BYTES", 2 * 8 * 256 * 2 * 3)
    np.testing.assert_array_equal(events_of(counts)[[4, 3, 2, 1, 0]].dense(), counts[::-1])


def test_events_move_between_host_and_device(cupy):
    counts = sparse_counts(6, (48, 48))
    there = events_of(counts)[2:5].on(cupy)
    assert all(isinstance(a, cupy.ndarray) for a in (there.starts, there.edges, there.places))
    assert len(there.places) == counts[2:5].sum()
    assert there.on(cupy) is there
    np.testing.assert_array_equal(there.on(np).dense(), counts[2:5])


def test_the_smaller_form_is_taken():
    few, many = sparse_counts(2, (256, 256)), np.full((2, 256, 256), 9, np.uint8)
    assert event_bytes(few) == events_of(few).nbytes < few.nbytes
    assert event_bytes(many) == events_of(many).nbytes > many.nbytes
    assert isinstance(smaller(few), Events)
    assert smaller(many) is many
    # The case that the form is made for: 2400 electrons on 256² pixels
    counts = np.random.default_rng(2).multinomial(2400, np.full(1 << 16, 1 / (1 << 16))).astype(np.uint8)
    assert event_bytes(counts.reshape(1, 256, 256)) == 2400 + 2 * 257 + 8


def test_what_is_no_count_is_refused():
    with pytest.raises(DataError, match="integers, got float32"):
        events_of(np.zeros((1, 16, 16), np.float32))
    with pytest.raises(DataError, match="none below 0, got -1"):
        events_of(np.full((1, 16, 16), -1, np.int16))


@pytest.mark.parametrize("kernel", ["array", "compiled"])
def test_a_model_on_the_host_takes_events_as_arrays(kernel):
    """Gradients, errors, cleaned patterns, saturated pixels and losses along a line are those of dense counts."""
    model, state, batch = case(2, 1, "amplitude", True, precision="single", kernel=kernel, saturation=200.0)
    state.obj, state.probe = state.obj.astype(np.complex64), state.probe.astype(np.complex64)
    counts = np.minimum(batch.patterns, 255).astype(np.uint8)
    counts[0, 2:5, 3:6] = 250
    as_array, as_events = (replace(batch, patterns=p) for p in (counts, events_of(counts)))
    np.testing.assert_array_equal(model.good(as_events), model.good(as_array))
    assert not model.good(as_events).all()
    np.testing.assert_array_equal(model.clean(as_events), model.clean(as_array))
    np.testing.assert_array_equal(model.pattern_errors(state, as_events), model.pattern_errors(state, as_array))
    found, wanted = (model.gradients(state, b, ("probe",)) for b in (as_events, as_array))
    for name in ("obj", "illumination", "probe", "loss", "error", "counts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    along = [losses_along(model, state, b, 0 * state.obj, 0 * state.probe, [0.0]) for b in (as_events, as_array)]
    np.testing.assert_array_equal(*along)


def test_events_become_an_array_beside_an_object_unless_asked_for(cupy):
    model, state, batch = case(1, 1, "amplitude", False)
    counts = np.minimum(batch.patterns, 255).astype(np.uint8)
    given, like = replace(batch, patterns=events_of(counts)), cupy.asarray(state.obj)
    there = batch_beside(like, given)
    assert isinstance(there.patterns, cupy.ndarray)
    np.testing.assert_array_equal(there.patterns.get(), counts)
    kept = batch_beside(like, given, events=True).patterns
    assert isinstance(kept, Events)
    assert isinstance(kept.places, cupy.ndarray)
    np.testing.assert_array_equal(dense(batch_beside(state.obj, given).patterns), counts)


@pytest.mark.parametrize("crowded", [False, True])
def test_parts_are_joined(cupy, crowded):
    """Of host or device, with edges of the widest type that one of them has."""
    rng = np.random.default_rng(7)
    counts = rng.poisson(0.2, (9, 40, 24)).astype(np.uint16)
    if crowded:
        counts[6, 3, 5] = 65535
        counts[6, 3, 6] = 2
    for on in (np, cupy):
        parts = [events_of(on.asarray(counts[a:b])) for a, b in ((0, 4), (4, 5), (5, 9))]
        parts[0] = parts[0].take(np.array([3, 2, 1, 0]))
        whole = joined(parts)
        assert whole.edges.dtype == (np.uint32 if crowded else np.uint16)
        found = whole.dense()
        np.testing.assert_array_equal(found if on is np else found.get(), np.concatenate([counts[3::-1], counts[4:]]))
