"""What the plan counts, against what NumPy allocates: copies of the object of every engine, readers, the assessment."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcrec.backend.array import Array, IntArray
from hpcrec.data import batches
from hpcrec.data.batches import BatchReader
from hpcrec.engines import ENGINES, engine_class
from hpcrec.engines.base import visit
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.parallel.communicator import SerialCommunicator
from hpcrec.parallel.exchange import make_exchange
from hpcrec.run import assess
from hpcrec.run.assess import Assessor

WINDOW, N = 32, 24


@pytest.fixture(scope="module", autouse=True)
def frozen() -> Iterator[None]:
    """Keep the collector from looking through all modules each time: 0.2 s, and there are 160 times."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def sweeps(
    side: int, name: str, windowed: bool, threads: int, options: dict[str, Any], compact: bool = False
) -> Callable[[], None]:
    """Return two sweeps in batches that all reach from corner to corner of an object of ``side`` pixels.

    ``compact``: each batch is at one place instead, and the last two are in the corners.
    """
    rng, shape = np.random.default_rng(0), (WINDOW, WINDOW)
    positions = rng.uniform(0, side - WINDOW, (N, 2))
    positions[:2] = [[0, 0], [side - WINDOW, side - WINDOW]]
    if compact:
        positions[2:] = np.repeat(rng.uniform(0, side - WINDOW, (11, 2)), 2, axis=0)
    grid = object_grid(positions, shape, (1.0, 1.0))
    model = PtychographyModel(shape, (1.0, 1.0), 0.02, threads=threads)
    kind = engine_class(name)
    engine = kind(model, kind.Options(**options))
    state = PtychographyState(
        obj=np.ones((1, *grid.shape), np.complex64),
        probe=10 * np.ones((1, *shape), np.complex64),
        positions=positions,
        grid=grid,
        box=Box(0, grid.shape[0], 0, grid.shape[1]),
        own=np.arange(N),
        visited=N,
        windowed=windowed,
    )
    patterns = rng.poisson(100, (N, *shape)).astype(np.uint16)
    exchange = make_exchange("replicated", SerialCommunicator(), positions, grid, shape)
    middle = np.arange(2, N)
    batches = [np.arange(N)] if kind.full_batch else [np.append([0, 1], part) for part in np.array_split(middle, 3)]
    if compact:
        batches = [*np.split(middle, 11), np.array([0]), np.array([1])]

    def run() -> None:
        engine.prepare(state)
        for _ in range(2):
            for i in batches:
                visit(engine, state, Batch(indices=i, patterns=patterns[i], n_global=len(i)), exchange.total)
            engine.finish_iteration(state)

    return run


def peak_bytes(work: Callable[[], Any]) -> int:
    """Return the most bytes that were allocated in a call."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def copies(name: str, windowed: bool, threads: int, options: dict[str, Any], compact: bool = False) -> float:
    """Return the copies of an object in an update, itself included: the slope between two sizes.

    ``compact``: the least of three peaks, of a large object beside which nothing else that this process allocates, or
    loads once, shows in the third digit (once that was 16 kB).
    """
    sides = (400, 2400) if compact else (400, 800)
    sweeps(64, name, windowed, threads, options, compact)()  # compiled, and loaded
    small, large = (
        min(peak_bytes(sweeps(side, name, windowed, threads, options, compact)) for _ in range(3 if compact else 1))
        for side in sides
    )
    # Ends of the grids: 4 pixels on either side; the object itself was there before
    return 1 + (large - small) / (8 * ((sides[1] + 8) ** 2 - (sides[0] + 8) ** 2))


CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ENGINES if name != "mpie"),
    ("mpie", {"patterns_per_kick": 8}),
    ("lsqml", {"object_update": "sweep"}),
    ("lsqml", {"momentum": 0.5}),
    ("gradient", {"method": "adam"}),
    ("lbfgs", {"history": 2}),
    ("epie", {"object_constraint": "amplitude_bound"}),
    ("gradient", {"object_constraint": "amplitude_bound"}),
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_engines_make_as_many_copies_as_they_say(name: str, options: dict[str, Any], threads: int) -> None:
    kind = engine_class(name)
    for windowed in (True, False):
        beside, update = kind.copies(kind.Options(**options), windowed)
        measured = copies(name, windowed, threads, options)
        assert max(beside + 1.5 * threads, update) == pytest.approx(measured, rel=0.08), windowed


COMPACT: list[tuple[str, dict[str, Any]]] = [
    ("lsqml", {"object_update": "sweep"}),
    ("lsqml", {}),
    ("gradient", {}),
    ("epie", {}),
    ("epie", {"object_constraint": "amplitude_bound"}),
    ("pie", {}),
    ("three_pie", {}),
    ("rpie", {}),
]


@pytest.mark.parametrize(("name", "options"), COMPACT)
def test_compact_batches_spare_the_copies_of_their_box(name: str, options: dict[str, Any]) -> None:
    kind = engine_class(name)
    chosen = kind.Options(**options)
    beside, update = kind.copies(chosen, False)
    kept_box, update_box = kind.box_copies(chosen, False)
    measured = {threads: copies(name, False, threads, options, compact=True) for threads in (1, 3)}
    for threads, found in measured.items():
        # Planned is a bound: of the arrays in an update, those of the box are not all told apart
        assert found < 1.03 * max(beside - kept_box, update - update_box)
        assert found < max(beside + 1.5 * threads, update) - 2.4
    # The plan names no array that is not there; of some engines none but the object, which was there before
    if beside - kept_box > 1:
        assert round(measured[1], 3) >= round(beside - kept_box, 3)


class Counts:
    """A source of 2048 patterns of 64² bytes."""

    pattern_shape, n_positions, dtype = (64, 64), 2048, np.dtype(np.uint8)

    def read(self, indices: IntArray) -> Array:
        return np.broadcast_to((indices % 7).astype(np.uint8)[:, None, None], (len(indices), 64, 64)).copy()

    def read_good(self, indices: IntArray) -> None:
        return None


def test_loading_takes_the_patterns_and_two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BLOCK_BYTES", 1 << 18)
    with BatchReader(Counts(), np.arange(2048), memory_limit=1 << 30) as reader:
        peak = peak_bytes(lambda: reader.read(np.arange(4)))
    assert peak < (2048 * 64**2) + 3 * (1 << 18)


def test_the_assessment_streams_and_never_widens_the_whole_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 MB of bytes, 32 MB as floats: read in the order of the file, a chunk at a time, with the same figures."""
    monkeypatch.setattr(assess, "CHUNK_PIXELS", 1 << 17)
    grid = object_grid(np.array([[0.0, 0.0], [90.0, 90.0]]), (64, 64), (1.0, 1.0))
    positions = np.random.default_rng(5).uniform(0, 90, (2048, 2))
    model = PtychographyModel((64, 64), (1.0, 1.0), 0.02)
    state = PtychographyState(
        obj=np.ones((1, *grid.shape), np.complex64),
        probe=np.ones((1, 64, 64), np.complex64),
        positions=positions,
        grid=grid,
        box=Box(0, grid.shape[0], 0, grid.shape[1]),
    )
    exchange = make_exchange("replicated", SerialCommunicator(), positions, grid, (64, 64))
    found, peaks, asked = [], [], []
    for limit, threads in ((1 << 30, 1), (0, 1), (0, 2)):
        with BatchReader(Counts(), np.arange(2048), memory_limit=limit, scratch=tmp_path) as reader:
            reader.read(np.arange(4))
            assessor = Assessor(model, Counts(), reader, exchange, threads)  # type: ignore[arg-type]
            assessor.table(state, np.arange(8))
            real = reader.read
            monkeypatch.setattr(reader, "read", lambda i, real=real: (asked.append(i), real(i))[1])
            peaks.append(peak_bytes(lambda a=assessor: found.append(a.table(state, np.arange(2048)))))
    assert max(peaks) < 8 << 20
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-6)
    np.testing.assert_array_equal(np.concatenate(asked), np.tile(np.arange(2048), 3))
    assert found[0][:, 3] == pytest.approx((np.arange(2048) % 7) * 64.0**2)
