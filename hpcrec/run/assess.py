"""One pass over the patterns of a tilt: how well a state explains them, and which of them no update uses."""

from __future__ import annotations

import math
from functools import partial
from typing import Final

import numpy as np

from hpcrec.analysis.patterns import COLUMNS, PatternQuality, pattern_figures, pattern_quality
from hpcrec.backend.array import Array, FloatArray, IntArray, to_host
from hpcrec.backend.threads import Threads
from hpcrec.data.dataset import TiltScan
from hpcrec.data.resident import PatternReader
from hpcrec.errors import DataError
from hpcrec.geometry.scan import held_out_positions
from hpcrec.models.base import PtychographyState
from hpcrec.models.chain import good_pixels
from hpcrec.models.events import Events, dense
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.parallel.exchange import Exchange
from hpcrec.run.job import QualitySection
from hpcrec.run.start import TiltSetup
from hpcrec.run.watch import step

# Of modelled counts that a thread has at once: they stay in the caches
CHUNK_PIXELS: Final = 1 << 20


class Assessor:
    """Measures how well a state explains patterns; each rank looks at its own, in the order in which they lie.

    What a GPU models comes to the host, where figures are taken.
    """

    def __init__(
        self,
        model: PtychographyModel,
        scan: TiltScan,
        reader: PatternReader,
        exchange: Exchange,
        threads: int | Threads = 1,
    ) -> None:
        self._model, self._scan, self._reader, self._exchange = model, scan, reader, exchange
        self._threads = Threads(threads) if isinstance(threads, int) else threads

    def table(self, state: PtychographyState, indices: IntArray) -> FloatArray:
        """Return the table (position, column) of all positions, zero but at ``indices``; collective, same on all."""
        own = np.sort(self._exchange.share(indices))
        table = np.zeros((len(state.positions), len(COLUMNS)))
        size = max(CHUNK_PIXELS // math.prod(self._model.pattern_shape), 1) * self._threads.n_threads
        chunks = [own[i : i + size] for i in range(0, len(own), size)]
        for chunk, patterns in zip(chunks, self._reader.iterate(chunks)):
            step()
            parts = self._threads.shares(len(chunk))
            rows = self._threads.run([partial(self._figures, state, chunk[p], patterns[p]) for p in parts])
            table[chunk] = np.concatenate(rows)
        return self._exchange.communicator.sum(table)  # type: ignore[no-any-return]

    def _figures(self, state: PtychographyState, indices: IntArray, patterns: Array | Events) -> FloatArray:
        measured = to_host(dense(patterns))
        good = good_pixels(self._model.detector, measured, self._scan.read_good(indices))
        return pattern_figures(to_host(self._model.simulate(state, indices)), measured, good)

    def quality(self, state: PtychographyState, indices: IntArray) -> PatternQuality:
        """Return the figures of the patterns at ``indices`` together; collective."""
        return pattern_quality(self.table(state, indices), indices)


def held_out(section: QualitySection, setup: TiltSetup) -> IntArray:
    """Return the positions that no update uses; raises DataError where a scan has no inner positions to spare."""
    chosen = held_out_positions(setup.positions, section.hold_out)
    if section.hold_out and len(chosen) == 0:
        raise DataError(
            f"tilt {setup.number}: none of its {len(setup.positions)} positions lies deep enough inside the scan to "
            "be held out; set quality.hold_out = 0"
        )
    return chosen
