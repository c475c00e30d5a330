"""Messages in flight: shares are divided into border and interior, and what travels does so beside the computing."""

import threading
import time
from functools import partial

import numpy as np
import pytest

from hpcrec.errors import ParallelError
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.scan import raster_positions
from hpcrec.geometry.tiles import Box, bounding_box, window_corners
from hpcrec.models.base import Batch
from hpcrec.models.partial import Field, Partial
from hpcrec.parallel.communicator import SerialCommunicator, run_ranks
from hpcrec.parallel.exchange import make_exchange
from hpcrec.parallel.flight import FEW_PATTERNS, make_flight

WINDOW, MARGIN = (16, 12), 2
POSITIONS = raster_positions((16, 12), (5.0, 5.0)) + np.random.default_rng(2).uniform(-0.5, 0.5, (192, 2))
GRID = object_grid(POSITIONS, WINDOW, (0.5, 0.5))
ALL = np.arange(len(POSITIONS))
SIZES = [2, 3, 5]


def tiles(comm):
    return make_exchange("tiled", comm, POSITIONS, GRID, WINDOW, MARGIN)


def batch_of(own, indices=ALL):
    patterns = own[:, None, None] + np.zeros((len(own), 2, 2), np.int64)
    return Batch(own, patterns, n_global=len(indices), of_all=indices)


def light(positions, kind, batch):
    """Add each pattern's number to the pixels of its window, and one to each to be counted."""
    corners = window_corners(positions[batch.indices], GRID, WINDOW)
    box = bounding_box(corners, WINDOW)
    values, counts = np.zeros(box.shape, kind), np.zeros(box.shape)
    for (y, x), pattern in zip(corners - [box.y0, box.x0], batch.patterns):
        values[y : y + WINDOW[0], x : x + WINDOW[1]] += 1 + pattern[0, 0]
        counts[y : y + WINDOW[0], x : x + WINDOW[1]] += 1
    sums = {"n": np.array([float(len(batch.indices))]), "counts": batch.patterns[:, 0, 0].sum(dtype=float)[None]}
    return Partial({"light": Field(box, values), "counts": Field(box, counts)}, sums)


@pytest.mark.parametrize("size", SIZES)
def test_a_share_is_divided_by_what_others_hold(size):
    moved = POSITIONS + np.random.default_rng(3).uniform(-0.9, 0.9, POSITIONS.shape)

    def rank(comm):
        exchange = tiles(comm)
        flight = make_flight(exchange, "always")
        own = flight.order(exchange.share(ALL), POSITIONS)
        others = [box for i, box in enumerate(exchange.layout.held) if i != comm.rank]
        for positions in (POSITIONS, moved):
            border, interior = flight._parts_of(batch_of(own), positions)
            np.testing.assert_array_equal(np.concatenate([border.indices, interior.indices]), own)
            np.testing.assert_array_equal(border.patterns[:, 0, 0], border.indices)
            np.testing.assert_array_equal(interior.patterns[:, 0, 0], interior.indices)
            for y, x in window_corners(positions[interior.indices], GRID, WINDOW):
                window = Box(y, y + WINDOW[0], x, x + WINDOW[1])
                assert all(window.intersect(box).empty for box in others)
            if positions is POSITIONS:
                assert exchange.touches_others(positions[border.indices]).all()
        return sorted(own), len(interior.indices)

    found = run_ranks(size, rank)
    assert sorted(sum((own for own, _ in found), [])) == list(ALL)
    assert sum(n for _, n in found) > len(ALL) / 5, "or nothing goes on beside the messages"


@pytest.mark.parametrize("indices", [ALL, ALL[::7], ALL[:5], ALL[-1:]], ids=len)
@pytest.mark.parametrize("size", SIZES)
def test_totals_are_those_of_undivided_shares(size, indices):
    """Of a few patterns most ranks have none."""
    run_ranks(size, lambda comm: check_totals(comm, indices))


def check_totals(comm, indices=ALL):
    """Compare divided and undivided shares; whole numbers, so to the bit."""
    exchange = tiles(comm)
    flight, own = make_flight(exchange, "always"), exchange.share(indices)
    batch = batch_of(flight.order(own, POSITIONS), indices)
    found = flight.total(partial(light, POSITIONS, np.complex128), batch, POSITIONS, ("counts",))
    same = exchange.total(light(POSITIONS, np.complex128, batch_of(own, indices)), ("counts",))
    assert found.fields.keys() == same.fields.keys()
    for name, field in same.fields.items():
        assert found.fields[name].box == field.box
        np.testing.assert_array_equal(found.fields[name].values, field.values)
    assert {name: float(a[0]) for name, a in found.sums.items()} == {n: float(a[0]) for n, a in same.sums.items()}
    assert found.sums["n"][0] == len(indices)
    assert found.peaks == same.peaks
    assert found.peaks["counts"] >= 1


def test_the_interior_is_computed_while_messages_travel():
    """They arrive only after it was begun: who waited for them before would wait for ever."""

    def rank(comm):
        exchange, begun = tiles(comm), threading.Event()
        flight = make_flight(exchange, "always")
        swap, threads = flight._aside.communicator.swap, []

        def late(outgoing, incoming):
            threads.append(threading.current_thread())
            assert begun.wait(60)
            swap(outgoing, incoming)

        flight._aside.communicator.swap = late

        def accumulate(batch):
            if batch.part == 1:
                begun.set()
            return light(POSITIONS, float, batch)

        total = flight.total(accumulate, batch_of(flight.order(exchange.share(ALL), POSITIONS)), POSITIONS)
        assert len(threads) == 2
        assert threading.current_thread() not in threads
        return total.sums["n"][0]

    assert run_ranks(3, rank) == [len(POSITIONS)] * 3


@pytest.mark.parametrize("part", [0, 1])
def test_a_part_that_fails_ends_all_ranks(part):
    def rank(comm):
        exchange = tiles(comm)
        flight = make_flight(exchange, "always")

        def accumulate(batch):
            if comm.rank == 1 and batch.part == part:
                raise ParallelError("no such share")
            return light(POSITIONS, float, batch)

        flight.total(accumulate, batch_of(flight.order(exchange.share(ALL), POSITIONS)), POSITIONS)

    began = time.monotonic()
    with pytest.raises(ParallelError, match="no such share"):
        run_ranks(3, rank, timeout=60)
    assert time.monotonic() - began < 60


def test_messages_that_fail_are_raised_where_they_are_awaited():
    """Windows beyond the halo, of one rank; all learn of it."""
    far = POSITIONS.copy()
    far[0] += 30.0

    def rank(comm):
        exchange = tiles(comm)
        flight = make_flight(exchange, "always")
        batch = batch_of(flight.order(exchange.share(ALL), POSITIONS))
        with pytest.raises(ParallelError, match="moved out of the halo"):
            flight.total(partial(light, far, float), batch, far)
        return True

    assert run_ranks(3, rank) == [True] * 3


def test_only_tiles_of_several_ranks_take_flight():
    assert make_flight(make_exchange("tiled", SerialCommunicator(), POSITIONS, GRID, WINDOW, MARGIN), "always") is None
    replicated = run_ranks(
        2, lambda comm: make_flight(make_exchange("replicated", comm, POSITIONS, GRID, WINDOW, MARGIN), "always")
    )
    assert replicated == [None, None]

    def lacking(comm):
        comm.concurrent = False
        return make_flight(tiles(comm), "always")

    assert run_ranks(2, lacking) == [None, None]


@pytest.mark.parametrize(
    ("overlap", "hosts", "flies"),
    [("auto", "aa", False), ("auto", "ab", True), ("always", "aa", True), ("never", "ab", False)],
)
def test_by_default_only_messages_between_hosts_do(overlap, hosts, flies, monkeypatch):
    names = threading.local()
    monkeypatch.setattr("hpcrec.parallel.flight.platform.node", lambda: names.own)

    def rank(comm):
        names.own = hosts[comm.rank]
        return make_flight(tiles(comm), overlap) is not None

    assert run_ranks(2, rank) == [flies] * 2


def test_small_batches_are_not_divided():
    def rank(comm):
        flight = make_flight(tiles(comm), "always")
        few, enough = ALL[: 3 * FEW_PATTERNS - 1], ALL[: 3 * FEW_PATTERNS]
        return flight.pays(batch_of(few, few)), flight.pays(batch_of(ALL[:2], enough))

    assert run_ranks(3, rank) == [(False, True)] * 3
