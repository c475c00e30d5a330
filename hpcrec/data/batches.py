"""Which patterns are used together, and having them ready in time.

The list of batches is a property of the data set, the seed and the iteration, never of the number of ranks: each rank
works on its share of every batch.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Literal, Protocol, Self

import numpy as np

from hpcrec.backend.array import Array, IntArray
from hpcrec.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

BatchKind = Literal["random", "compact"]

_BLOCK_BYTES: Final = 64 << 20


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


class BatchReader:
    """The patterns of a rank's share: kept in memory if they fit, else read ahead by a thread.

    ``source`` is read-only; ``share`` (n,) indices this rank will ever ask for; patterns stay in the detector's type.
    ``memory_limit`` in bytes bounds what is kept; ``read_ahead`` batches wait ready if it does not suffice.
    """

    def __init__(self, source: PatternSource, share: IntArray, *, memory_limit: int, read_ahead: int = 2) -> None:
        if read_ahead < 1:
            raise ConfigError(f"read_ahead must be at least 1, got {read_ahead}")
        self._source = source
        self._share = np.unique(np.asarray(share, np.int64))
        self._read_ahead = read_ahead
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hpcrec-read")
        pattern_bytes = int(np.prod(source.pattern_shape)) * source.dtype.itemsize
        self.in_memory = len(self._share) * pattern_bytes <= memory_limit
        self._per_block = max(_BLOCK_BYTES // pattern_bytes, 1)
        self._kept: Array | None = None
        if not self.in_memory:
            logger.info("%d patterns exceed %d bytes of memory and are read ahead", len(self._share), memory_limit)

    def read(self, indices: IntArray) -> Array:
        """Return patterns (n, ky, kx) in the order of ``indices``; raises :class:`DataError` outside the share."""
        indices = np.asarray(indices, np.int64)
        if not self.in_memory:
            return self._source.read(indices)
        if self._kept is None:
            self._kept = self._load()
        where = np.searchsorted(self._share, indices)
        if len(indices) and (where.max() >= len(self._share) or not np.array_equal(self._share[where], indices)):
            raise DataError("a pattern outside this rank's share was asked for; the shares must cover the batches")
        patterns: Array = self._kept[where]
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
                    waiting.append(self._pool.submit(self._source.read, batch))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Stop the thread and give the memory back."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._kept = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _load(self) -> Array:
        kept = np.empty((len(self._share), *self._source.pattern_shape), self._source.dtype)
        for first in range(0, len(self._share), self._per_block):
            part = slice(first, first + self._per_block)
            kept[part] = self._source.read(self._share[part])
        return kept
