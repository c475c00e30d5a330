"""Images moved between boxes, and work on whole rows and columns, on any number of ranks."""

import numpy as np
import pytest

from hpcrec.backend.fft import fft2, fftn, ifftn
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.parallel import transpose
from hpcrec.parallel.communicator import run_ranks
from hpcrec.parallel.exchange import EXCHANGES, make_exchange
from hpcrec.parallel.transpose import Pencils, all_boxes, move, row_blocks

WINDOW = (6, 5)
POSITIONS = np.random.default_rng(2).uniform(0, 12, (9, 2)) ** 1.3
GRID = object_grid(POSITIONS, WINDOW, (1.0, 1.0))
WHOLE = Box(0, GRID.shape[0], 0, GRID.shape[1])
IMAGES = np.random.default_rng(1).standard_normal((3, *GRID.shape)) + 1j
SIZES = [1, 2, 3, 5, 7, 11]


def pencils_of(kind, comm):
    exchange = make_exchange(kind, comm, POSITIONS, GRID, WINDOW, 1)
    return Pencils(comm, exchange.core, exchange.held, GRID.shape), exchange


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Pieces of less than a row, of some rows, and of more than one image; blocks of some rows."""
    monkeypatch.setattr(transpose, "BLOCK_BYTES", 16 * 3 * 70)


@pytest.mark.parametrize("piece", [1, 16 * 40, 16 * 500])
@pytest.mark.parametrize("size", SIZES)
def test_what_moves_arrives(monkeypatch, size, piece):
    monkeypatch.setattr(transpose, "PIECE_BYTES", piece)

    def one(comm):
        pencils, exchange = pencils_of("tiled", comm)
        assert pencils.held[comm.rank] == exchange.held
        for targets in (pencils.rows, pencils.columns, pencils.held):
            found = move(comm, IMAGES[:, *exchange.core.slices(WHOLE)], pencils.cores, targets)
            np.testing.assert_array_equal(found, IMAGES[:, *targets[comm.rank].slices(WHOLE)])
        for targets in (pencils.rows, pencils.columns):
            assert sum(box.shape[0] * box.shape[1] for box in targets) == np.prod(GRID.shape)
        real = IMAGES[:1].real.astype(np.float32)
        wider = pencils.with_next(real[:, *exchange.held.slices(WHOLE)])
        core = exchange.core
        wanted = real[:, core.y0 : core.y1 + 1, core.x0 : core.x1 + 1]
        assert core.empty or (wider.dtype == np.float32 and (wider == wanted).all())

    run_ranks(size, one)


@pytest.mark.parametrize("kind", EXCHANGES)
@pytest.mark.parametrize("size", SIZES)
def test_rows_and_columns_transform_the_whole(kind, size):
    """A spectrum made and multiplied by its place; halos that nobody owns are not read."""
    ky, kx = (np.arange(n) for n in GRID.shape)
    factor = 1 + ky[:, None] * kx / 100

    def one(comm):
        pencils, exchange = pencils_of(kind, comm)
        values = np.full((3, *exchange.held.shape), np.nan + 0j)
        inner = exchange.core.slices(exchange.held)
        if not exchange.core.empty:
            values[:, *inner] = IMAGES[:, *exchange.core.slices(WHOLE)]

        def columns(block, box):
            return ifftn(fftn(block, axes=(-2,)) * factor[box.slices(WHOLE)], axes=(-2,))

        found = pencils.through(values, lambda b, _: fftn(b, axes=(-1,)), columns, lambda b, _: ifftn(b, axes=(-1,)))
        wanted = ifftn(fft2(IMAGES) * factor, axes=(-2, -1))[:, *exchange.held.slices(WHOLE)]
        np.testing.assert_allclose(found, wanted, atol=1e-12)
        found = pencils.through(values, lambda b, box: b * box.y0, lambda b, _: b + 1)
        assert found.shape == values.shape

    run_ranks(size, one)


def test_blocks_cover_a_box():
    box, seen = Box(3, 20, 5, 9), np.zeros(GRID.shape, int)
    for block in row_blocks(box, 16 * 60):
        seen[block.slices(WHOLE)] += 1
        assert block.shape[0] * block.shape[1] * 16 * 60 <= max(transpose.BLOCK_BYTES, 4 * 16 * 60)
    assert seen.sum() == seen[box.slices(WHOLE)].sum() == 17 * 4
    assert list(row_blocks(Box(2, 2, 0, 5), 1)) == []


def test_ranks_know_all_boxes():
    found = run_ranks(3, lambda comm: all_boxes(comm, Box(comm.rank, 2, 1, 4)))
    assert found == [(Box(0, 2, 1, 4), Box(1, 2, 1, 4), Box(0, 0, 0, 0))] * 3
