"""Which patterns are used together, and having them ready in time.

The list of batches is a property of the data set, the seed and the iteration, never of the number of ranks: each rank
works on its share of every batch.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Final, Literal, Protocol, Self

import numpy as np
from scipy.ndimage import maximum_filter1d, minimum_filter1d

from hpcrec.backend.array import Array, FloatArray, IntArray
from hpcrec.data.spool import Spool
from hpcrec.errors import ConfigError, DataError
from hpcrec.geometry.scan import hilbert_order

logger = logging.getLogger(__name__)

BatchKind = Literal["random", "compact"]

# Patterns pass from the file to where they are kept in blocks
BLOCK_BYTES: Final = 16 << 20
READ_AHEAD: Final = 2


class PatternSource(Protocol):
    """What patterns are read from, e.g. a ``TiltScan``."""

    @property
    def n_positions(self) -> int:
        """How many patterns there are."""

    @property
    def pattern_shape(self) -> tuple[int, int]:
        """Shape (ky, kx) of a pattern."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of the patterns."""

    def read(self, indices: IntArray) -> Array:
        """Return patterns (n, ky, kx)."""


def global_batches(
    n_positions: int,
    batch_size: int,
    *,
    seed: int,
    tilt: int,
    iteration: int,
    kind: BatchKind = "random",
    order: IntArray | None = None,
) -> list[IntArray]:
    """Return the batches of one sweep: index arrays that hold each position once, the same on every rank.

    Sizes differ by one at most and do not exceed ``batch_size``. "random" spreads a batch over the whole scan.
    "compact" gives neighbours: it cuts ``order`` (position,), positions along a space-filling curve, into pieces that
    begin elsewhere in each iteration, and shuffles the pieces (sets of Odstrčil et al., Opt. Express 26, 3108 (2018)).
    """
    if n_positions < 1 or batch_size < 1:
        raise ConfigError(
            f"expected at least one position and a batch_size of at least 1, got {n_positions}, {batch_size}"
        )
    generator = np.random.default_rng((seed, tilt, iteration))
    n_batches = -(-n_positions // batch_size)
    if kind == "random":
        return np.array_split(generator.permutation(n_positions), n_batches)
    if order is None or len(order) != n_positions:
        raise ConfigError(f"compact batches need the order of all {n_positions} positions along a curve")
    pieces = np.array_split(np.roll(order, int(generator.integers(n_positions))), n_batches)
    return [pieces[i] for i in generator.permutation(n_batches)]


def compact_extents(positions: FloatArray, batch_size: int) -> FloatArray:
    """Return how far apart (n, 2) the positions (n, 2) of each compact batch of ``batch_size`` lie, wherever it begins.

    The curve's beginning follows its end; no batch of :func:`global_batches` is larger than one of these.
    """
    points = positions[hilbert_order(positions)]
    size = min(batch_size, len(points))
    highest, lowest = (f(points, size, axis=0, mode="wrap") for f in (maximum_filter1d, minimum_filter1d))
    return np.asarray(highest - lowest)


class BatchReader:
    """The patterns of a rank's share: kept in memory if they fit, else in a scratch file and read ahead by a thread.

    ``source`` is read-only; ``share`` (n,) indices this rank will ever ask for; patterns stay in the detector's type.
    ``memory_limit`` in bytes bounds what is kept; beyond it patterns go to a file in the folder ``scratch`` on first
    use (None: they are read from the source again and again), and ``read_ahead`` batches wait ready: none should then
    have many more patterns than ``per_block``.
    """

    def __init__(
        self,
        source: PatternSource,
        share: IntArray,
        *,
        memory_limit: int,
        scratch: Path | None = None,
        read_ahead: int = READ_AHEAD,
    ) -> None:
        if read_ahead < 1:
            raise ConfigError(f"read_ahead must be at least 1, got {read_ahead}")
        self._source = source
        self._share = np.unique(np.asarray(share, np.int64))
        self._read_ahead = read_ahead
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hpcrec-read")
        self.in_memory = self.nbytes(len(self._share)) <= memory_limit
        self.per_block = max(BLOCK_BYTES // self.nbytes(1), 1)
        self._scratch = scratch
        self._kept: Array | None = None
        self._spool: Spool | None = None
        self._filling = Lock()
        if not self.in_memory:
            where = f"kept in {scratch}" if scratch else "read again in each sweep"
            logger.info("%d patterns exceed %d bytes of memory and are %s", len(self._share), memory_limit, where)

    def read(self, indices: IntArray) -> Array:
        """Return patterns (n, ky, kx) in the order of ``indices``; raises :class:`DataError` outside the share."""
        indices = np.asarray(indices, np.int64)
        if not self.in_memory and self._scratch is None:
            return self._source.read(indices)
        rows = self._rows(indices)
        if not self.in_memory:
            return self._spooled().read(rows)
        if self._kept is None:
            self._kept = self._load()
        patterns: Array = self._kept[rows]
        return patterns

    def iterate(self, batches: Iterable[IntArray]) -> Iterator[Array]:
        """Yield the patterns of each batch in turn, the next ones being read meanwhile; errors come at their batch."""
        if self.in_memory:
            yield from (self.read(batch) for batch in batches)
            return
        waiting: deque[Future[Array]] = deque()
        remaining = iter(batches)
        try:
            while True:
                while len(waiting) < self._read_ahead and (batch := next(remaining, None)) is not None:
                    waiting.append(self._pool.submit(self.read, batch))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def iterate_rows(self, batches: Iterable[IntArray]) -> Iterator[tuple[Array, IntArray]]:
        """As :meth:`iterate`, but yield patterns and which of them are the batch's: what is in memory is not copied."""
        if not self.in_memory:
            yield from ((patterns, np.arange(len(patterns))) for patterns in self.iterate(batches))
            return
        for batch in batches:
            rows = self._rows(np.asarray(batch, np.int64))
            if self._kept is None:
                self._kept = self._load()
            yield self._kept, rows

    def nbytes(self, n: int) -> int:
        """Return the bytes of ``n`` patterns."""
        return n * math.prod(self._source.pattern_shape) * self._source.dtype.itemsize

    def source_blocks(self, blocks: Iterable[IntArray]) -> Iterator[Array]:
        """Yield the patterns of ``blocks`` straight from the source, kept nowhere: for whoever keeps them himself."""
        return (self._source.read(block) for block in blocks)

    def close(self) -> None:
        """Stop the thread and give memory and file back."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._kept = None
        if self._spool is not None:
            self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _rows(self, indices: IntArray) -> IntArray:
        """Return the places of patterns in this rank's share."""
        rows = np.searchsorted(self._share, indices)
        if len(indices) and (rows.max() >= len(self._share) or not np.array_equal(self._share[rows], indices)):
            raise DataError("a pattern outside this rank's share was asked for; the shares must cover the batches")
        return rows

    def _blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield the share piece by piece, in the order of the source."""
        for first in range(0, len(self._share), self.per_block):
            part = slice(first, first + self.per_block)
            yield part, self._source.read(self._share[part])

    def _load(self) -> Array:
        kept = np.empty((len(self._share), *self._source.pattern_shape), self._source.dtype)
        for part, patterns in self._blocks():
            kept[part] = patterns
        return kept

    def _spooled(self) -> Spool:
        with self._filling:
            if self._spool is None:
                assert self._scratch is not None
                spool = Spool(self._scratch, self._source.pattern_shape, self._source.dtype)
                for _, patterns in self._blocks():
                    spool.append(patterns)
                self._spool = spool
            return self._spool
