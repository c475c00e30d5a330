"""Both exchanges give the direct sum of random partials, on any number of ranks, with empty shares."""

import numpy as np
import pytest

from hpcrec.errors import ParallelError
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.scan import raster_positions
from hpcrec.geometry.tiles import EMPTY_BOX, Box, bounding_box, window_corners
from hpcrec.models.partial import Field, Partial
from hpcrec.parallel.communicator import SerialCommunicator, ThreadedCommunicator, run_ranks
from hpcrec.parallel.exchange import EXCHANGES, make_exchange

WINDOW = (6, 9)
SAMPLING = (0.5, 0.4)
POSITIONS = raster_positions((9, 7), (1.3, 1.1)) + np.random.default_rng(0).normal(scale=0.2, size=(63, 2))
GRID = object_grid(POSITIONS, WINDOW, SAMPLING)
WHOLE = Box(0, GRID.shape[0], 0, GRID.shape[1])
SIZES = [1, 2, 3, 5]
MARGIN = 2


def pattern_values(index):
    """What the pattern at one position contributes: known from its index alone."""
    rng = np.random.default_rng(index)
    numerator = rng.normal(size=(2, *WINDOW)) + 1j * rng.normal(size=(2, *WINDOW))
    return numerator.astype(np.complex64), rng.random((2, *WINDOW)).astype(np.float32), rng.random(3)


def partial_of(indices, positions=POSITIONS):
    """Return the partial of some patterns as an engine makes it: fields on the touched box, sums of full length."""
    corners = window_corners(positions[indices], GRID, WINDOW)
    box = bounding_box(corners, WINDOW)
    numerator, weight = np.zeros((2, *box.shape), np.complex64), np.zeros((2, *box.shape), np.float32)
    small, steps = np.zeros(3), np.zeros(len(positions), np.float32)
    for index, corner in zip(indices, corners):
        patch = Box(corner[0], corner[0] + WINDOW[0], corner[1], corner[1] + WINDOW[1]).slices(box)
        values = pattern_values(index)
        numerator[(..., *patch)] += values[0]
        weight[(..., *patch)] += values[1]
        small += values[2]
        steps[index] = index
    return Partial(
        {"numerator": Field(box, numerator), "weight": Field(box, weight)},
        {"loss": small, "count": np.array([len(indices)], np.int64), "steps": steps},
    )


def batches():
    rng = np.random.default_rng(5)
    yield np.arange(len(POSITIONS))
    yield rng.permutation(len(POSITIONS))[:20]
    yield np.array([31])  # one pattern: all other ranks have an empty share
    yield np.zeros(0, int)  # nobody has anything


def check_totals(kind, comm):
    """Compare the totals of some batches with the direct sum on one rank; also run under MPI by test_mpi.py."""
    exchange = make_exchange(kind, comm, POSITIONS, GRID, WINDOW, MARGIN)
    for indices in batches():
        share = exchange.share(indices)
        counts = comm.gather(sorted(share.tolist()))
        if counts is not None:
            assert sorted(sum(counts, [])) == sorted(indices.tolist())
        direct = partial_of(indices)
        total = exchange.total(partial_of(share), ("weight",))
        assert sorted(total.fields) == ["numerator", "weight"]
        for name, field in total.fields.items():
            expected = direct.fields[name]
            box = expected.box.intersect(exchange.held)
            assert field.box == (EMPTY_BOX if box.empty else box)
            assert field.values.dtype == expected.values.dtype
            if not box.empty:
                # single precision, at most some 30 terms of size 1 in another order
                np.testing.assert_allclose(field.values, expected.values[(..., *box.slices(expected.box))], atol=2e-5)
        for name, value in total.sums.items():
            assert value.dtype == direct.sums[name].dtype
            np.testing.assert_allclose(value, direct.sums[name], rtol=1e-13)  # double precision, few terms
        highest = direct.fields["weight"].values.max() if len(indices) else 0.0
        assert total.peaks == {"weight": pytest.approx(highest, rel=1e-5)}


def check_place_and_whole(kind, comm):
    """Hand out an object and gather it again: the identity, and halos hold what the neighbours' cores hold."""
    exchange = make_exchange(kind, comm, POSITIONS, GRID, WINDOW, MARGIN)
    rng = np.random.default_rng(3)
    obj = (rng.normal(size=(2, *GRID.shape)) + 1j * rng.normal(size=(2, *GRID.shape))).astype(np.complex64)
    held = exchange.place(obj if comm.rank == 0 else None)
    assert held.dtype == obj.dtype
    np.testing.assert_array_equal(held, obj[(..., *exchange.held.slices(WHOLE))])
    back = exchange.whole(held)
    if comm.rank == 0:
        np.testing.assert_array_equal(back, obj)
    else:
        assert back is None
    check_by_images(exchange, comm, obj)


def check_by_images(exchange, comm, obj):
    """Each image is seen whole, once in all, and comes back to all that hold parts of it."""
    several = np.stack([obj, 2 * obj, 3 * obj, 4j * obj])
    seen = []

    def work(image):
        assert image.shape == GRID.shape
        seen.append(complex(image[0, 0]))
        return np.roll(image, 5, axis=1) + 1

    found = exchange.by_images(several[(..., *exchange.held.slices(WHOLE))], work)
    wanted = np.roll(several, 5, axis=-1) + np.complex64(1)
    np.testing.assert_array_equal(found, wanted[(..., *exchange.held.slices(WHOLE))])
    counts = comm.gather(seen)
    if counts is not None:
        assert sorted(sum(counts, []), key=abs) == sorted(several[..., 0, 0].ravel().tolist(), key=abs)
        assert max(map(len, counts)) <= -(-8 // comm.size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", EXCHANGES)
def test_totals_are_the_direct_sum(kind, size):
    run_ranks(size, lambda comm: check_totals(kind, comm))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", EXCHANGES)
def test_place_and_whole_are_inverse(kind, size):
    run_ranks(size, lambda comm: check_place_and_whole(kind, comm))


@pytest.mark.parametrize("piece_bytes", [1, 200, 1000])
def test_objects_travel_in_pieces(monkeypatch, piece_bytes):
    """Less than a row, some rows, more than a core's; rank 0 gathers where it is told to."""
    sent = []

    class Noted(ThreadedCommunicator):
        def swap(self, outgoing, incoming):
            sent.extend(a.nbytes for a in outgoing.values())
            super().swap(outgoing, incoming)

    def check(comm):
        comm = Noted(comm._group, comm.rank)
        check_place_and_whole("tiled", comm)
        exchange = make_exchange("tiled", comm, POSITIONS, GRID, WINDOW, MARGIN)
        made = []

        def room(shape, dtype):
            made.append(np.full(shape, np.nan, dtype))
            return made[-1]

        found = exchange.whole(np.full((2, 1, *exchange.held.shape), comm.rank, np.float32), room)
        if comm.rank == 0:
            assert found is made[0]
            assert found.shape == (2, 1, *GRID.shape)
            assert set(np.unique(found)) == {0, 1, 2}
        assert len(made) == (comm.rank == 0)

    monkeypatch.setattr("hpcrec.parallel.tiled.PIECE_BYTES", piece_bytes)
    run_ranks(3, check)
    assert max(sent) <= max(piece_bytes, GRID.shape[1] * 8)


@pytest.mark.parametrize("kind", EXCHANGES)
def test_more_ranks_than_positions(kind):
    few = POSITIONS[:3]

    def total(comm):
        exchange = make_exchange(kind, comm, few, GRID, WINDOW, MARGIN)
        found = exchange.total(partial_of(exchange.share(np.arange(3)), few), ("weight",))
        return exchange.whole(np.zeros((1, *exchange.held.shape))), found.sums["count"][0]

    results = run_ranks(5, total)
    assert results[0][0].shape == (1, *GRID.shape)
    assert [count for _, count in results] == [3] * 5


@pytest.mark.parametrize("kind", EXCHANGES)
def test_share_follows_the_curve_whatever_the_order_asked(kind):
    exchange = make_exchange(kind, SerialCommunicator(), POSITIONS, GRID, WINDOW, MARGIN)
    shuffled = np.random.default_rng(1).permutation(len(POSITIONS))
    np.testing.assert_array_equal(exchange.share(shuffled), exchange.share(np.arange(len(POSITIONS))))


def test_halos_agree_with_the_owners_bit_by_bit():
    def held_total(comm):
        exchange = make_exchange("tiled", comm, POSITIONS, GRID, WINDOW, MARGIN)
        return exchange.total(partial_of(exchange.share(np.arange(len(POSITIONS))))).fields["numerator"]

    fields = run_ranks(4, held_total)
    for i, a in enumerate(fields):
        for b in fields[i + 1 :]:
            common = a.box.intersect(b.box)
            if not common.empty:
                same = a.values[(..., *common.slices(a.box))] == b.values[(..., *common.slices(b.box))]
                assert same.all()


def test_only_neighbours_and_touched_boxes_travel():
    sent = []

    def exchange_one_pattern(comm):
        exchange = make_exchange("tiled", comm, POSITIONS, GRID, WINDOW, 0)
        partial = partial_of(exchange.share(np.array([0])))
        swap = comm.swap
        comm.swap = lambda out, into: (sent.extend(a.nbytes for a in out.values()), swap(out, into))[1]
        exchange.total(partial)

    run_ranks(3, exchange_one_pattern)
    window_bytes = 2 * WINDOW[0] * WINDOW[1] * (8 + 4)
    assert sum(sent) <= 2 * window_bytes  # position 0 lies in a corner: its window has at most one neighbour each way


@pytest.mark.parametrize("kind", EXCHANGES)
def test_positions_that_leave_are_told_on_all_ranks(kind):
    def move(comm):
        exchange = make_exchange(kind, comm, POSITIONS, GRID, WINDOW, MARGIN)
        exchange.update_positions(POSITIONS + 0.4)  # one pixel: inside every halo and the grid's margin
        try:
            exchange.update_positions(POSITIONS * 1.5)
        except ParallelError as error:
            return str(error)

    messages = run_ranks(3, move)
    assert len(set(messages)) == 1
    assert ("halo_margin" if kind == "tiled" else "margin of the object grid") in messages[0]


def test_touching_beyond_the_halo_is_an_error():
    def touch(comm):
        exchange = make_exchange("tiled", comm, POSITIONS, GRID, WINDOW, 0)
        exchange.total(partial_of(np.arange(len(POSITIONS))))

    with pytest.raises(ParallelError, match="halo"):
        run_ranks(2, touch)


def test_fields_of_different_types_are_refused():
    def mixed(comm):
        exchange = make_exchange("tiled", comm, POSITIONS, GRID, WINDOW, MARGIN)
        dtype = np.complex128 if comm.rank else np.complex64
        exchange.total(Partial({"a": Field(EMPTY_BOX, np.zeros((1, 0, 0), dtype))}, {}))

    with pytest.raises(ParallelError, match="different types"):
        run_ranks(2, mixed)


@pytest.mark.parametrize("kind", EXCHANGES)
def test_not_a_number_reaches_everybody(kind):
    def poison(comm):
        exchange = make_exchange(kind, comm, POSITIONS, GRID, WINDOW, MARGIN)
        partial = partial_of(exchange.share(np.arange(len(POSITIONS))))
        if comm.rank == 1:
            partial.fields["weight"].values[...] = np.nan
        return exchange.total(partial, ("weight",)).peaks["weight"]

    assert np.isnan(run_ranks(3, poison)).all()


def test_a_complex_field_has_no_peak():
    exchange = make_exchange("replicated", SerialCommunicator(), POSITIONS, GRID, WINDOW)
    with pytest.raises(TypeError, match="complex"):
        exchange.total(partial_of(np.arange(3)), ("numerator",))


def test_ranks_that_hold_nothing_gather_and_hand_out_too():
    """More ranks than the object has pixels along an axis: some cores and held boxes are empty."""
    few = POSITIONS[:1]
    grid = object_grid(few, WINDOW, SAMPLING, 0)

    def back_and_forth(comm):
        exchange = make_exchange("tiled", comm, few, grid, WINDOW, MARGIN)
        whole = np.arange(np.prod(grid.shape), dtype=np.float32).reshape(1, *grid.shape)
        held = exchange.place(whole if comm.rank == 0 else None)
        found = exchange.whole(exchange.by_images(held, lambda image: image + 1))
        return held.size, None if found is None else (found == whole + 1).all()

    results = run_ranks(40, back_and_forth)
    assert results[0][1]
    assert min(size for size, _ in results) == 0


def noted(comm):
    """Return the rank with a list ``sent`` of the bytes that it swaps."""
    comm.sent, swap = [], comm.swap
    comm.swap = lambda out, into: (comm.sent.extend(a.nbytes for a in out.values()), swap(out, into))[1]
    return comm


REACH = Box(2, 5, 3, 6)


def cut_total(comm, reach, dark):
    """Return the total of all patterns under an exchange with this reach; ``dark`` clears what lies beyond REACH."""
    exchange = make_exchange("tiled", noted(comm), POSITIONS, GRID, WINDOW, 0, reach)
    share = exchange.share(np.arange(len(POSITIONS)))
    corners = window_corners(POSITIONS[share], GRID, WINDOW)
    box = bounding_box(corners, WINDOW)
    values = np.zeros((2, *box.shape))
    for index, (y, x) in zip(share, corners):
        patch = pattern_values(index)[1].astype(float)
        if dark:
            patch[:, : REACH.y0] = patch[:, REACH.y1 :] = patch[..., : REACH.x0] = patch[..., REACH.x1 :] = 0
        values[(..., *Box(y, y + WINDOW[0], x, x + WINDOW[1]).slices(box))] += patch
    total = exchange.total(Partial({"a": Field(box, values)}, {}), ("a",))
    return exchange, total.fields["a"], total.peaks["a"], sum(comm.sent)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_halos_without_light_need_not_travel(size):
    """Nothing lies beyond the reach: the cut totals are those of whole windows, bit by bit, as far as they reach."""
    plain = run_ranks(size, lambda comm: cut_total(comm, None, True))
    found = run_ranks(size, lambda comm: cut_total(comm, REACH, True))
    for rank, ((exchange, whole, peak, _), (_, cut, its_peak, _)) in enumerate(zip(plain, found)):
        assert cut.box == whole.box
        assert its_peak == peak
        kept = found[rank][0].layout.reached[rank].intersect(cut.box)
        inside = (..., *kept.slices(cut.box))
        np.testing.assert_array_equal(cut.values[inside], whole.values[inside])
        beyond = cut.values.copy()
        beyond[inside] = 0
        assert not beyond.any()
        assert exchange.held == found[rank][0].held
    assert sum(sent for *_, sent in found) < 0.75 * sum(sent for *_, sent in plain)


@pytest.mark.parametrize("size", [2, 5])
def test_a_reach_of_the_whole_window_cuts_nothing(size):
    plain = run_ranks(size, lambda comm: cut_total(comm, None, False))
    found = run_ranks(size, lambda comm: cut_total(comm, Box(0, WINDOW[0], 0, WINDOW[1]), False))
    for (_, a, _, sent), (_, b, _, its_sent) in zip(plain, found):
        np.testing.assert_array_equal(a.values, b.values)
        assert sent == its_sent


@pytest.mark.parametrize("kind", EXCHANGES)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_what_lies_beyond_a_cut_is_fetched(kind, size):
    """Cores and what the probe reaches are up to date, the rest is old; without a cut nothing travels."""
    obj = np.random.default_rng(3).normal(size=(2, *GRID.shape))

    def fetch(comm, reach):
        exchange = make_exchange(kind, noted(comm), POSITIONS, GRID, WINDOW, 0, reach)
        true = obj[(..., *exchange.held.slices(WHOLE))]
        values = true.copy()
        if kind == "tiled":
            values[...] = -7
            box = exchange.layout.reached[comm.rank]
            values[(..., *box.slices(exchange.held))] = obj[(..., *box.slices(WHOLE))]
        exchange.refresh(values)
        np.testing.assert_array_equal(values, true)
        return sum(comm.sent)

    assert not any(run_ranks(size, lambda comm: fetch(comm, None)))
    sent = run_ranks(size, lambda comm: fetch(comm, REACH))
    assert any(sent) == (kind == "tiled" and size > 1)
