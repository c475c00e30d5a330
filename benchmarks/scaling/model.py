"""The model: time, memory and bytes of a sweep over a tilt series, from the layout of tiles and named parameters.

A group of g ranks shares a tilt; P // g groups take the tilts in turn. One sweep of a tilt takes

    t = imbalance · n/(g r) + u c a + (1 − overlap) u (bytes / bandwidth + latency · messages + packing)

with n patterns at r a second in u updates, c seconds for each pixel of the a that a rank touches in an update (its own
box and that of the total). Batches are drawn from the whole scan, so that a rank's share of one varies like a binomial
number; the largest of g is about √(2 ln g) standard deviations above the mean. Reading the patterns once adds to the
first sweep. Bytes follow from rectangles: bisection as in :mod:`hpcrec.geometry.tiles`, windows that reach half their
width beyond them, and a margin. Shares that end within a row of the scan reach a step further, which is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from benchmarks.scaling.counting import reduction_bytes, reduction_messages

# complex64 gradient and float32 illumination, of each slice
FIELD_BYTES = 12
# Totals of loss, error and counts; of the boxes, types of numbers: float64, complex64, float32
_SUMS = 3
_BOX_ROW_BYTES = 2 * 6 * 8

ExchangeName = Literal["replicated", "tiled"]


@dataclass(frozen=True)
class Parameter:
    """A number of the model with its unit, and where it comes from."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a rank and its network do.

    patterns : a second, one rank; pixel_seconds : of a pixel of one slice in an update; bandwidth : bytes/s of a rank's
    messages; latency s of each; packing : s of what makes a message to a neighbour, and copying : of each of its bytes;
    overlap : share of the exchange that is hidden behind work; read : bytes/s of one rank, read_all of all together
    """

    patterns: float
    pixel_seconds: float
    bandwidth: float
    latency: float
    packing: float = 0.0
    copying: float = 0.0
    overlap: float = 0.0
    read: float = math.inf
    read_all: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Load:
    """A tilt series and how it is worked on.

    scan (rows, columns) of a tilt; step and window in pixels; margin of the halo in pixels; batch : patterns of an
    update; pattern_bytes : of one pattern in memory; sweeps : over which reading is spread; border : pixels of the
    object between the first window and the edge; jitter : pixels by which positions are off
    """

    name: str
    tilts: int
    scan: tuple[int, int]
    step: float
    window: int
    slices: int
    modes: int
    batch: int
    pattern_bytes: float
    margin: int = 8
    sweeps: int = 100
    border: int = 4
    jitter: float = 0.0

    @property
    def positions(self) -> int:
        """Patterns of a tilt."""
        return self.scan[0] * self.scan[1]

    @property
    def updates(self) -> int:
        """Updates of a sweep of a tilt."""
        return -(-self.positions // self.batch)

    @property
    def grid(self) -> tuple[float, float]:
        """Pixels of the object along y and x."""
        rows, columns = ((n - 1) * self.step + self.window + 2 * self.border + 1 for n in self.scan)
        return rows, columns


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What ranks of a group send and hold in an update, of one slice: means, and the most of any rank.

    own : pixels of a rank's box; total : pixels that it steps; held : pixels that it keeps; sent : pixels that it
    sends as it adds up, copies back; neighbours : messages of both rounds together
    """

    own: float
    total: float
    held: float
    most_held: float
    sent: float
    most_sent: float
    neighbours: float


@cache
def layout(
    grid: tuple[float, float], window: int, step: float, margin: int, border: int, size: int, jitter: float = 0.0
) -> Layout:
    """Return what tiles of a regular scan hold and send, ``size`` ranks."""
    inset = window / 2 + border
    first = np.array([inset, grid[0] - inset, inset, grid[1] - inset])
    # Of the positions; ranks at the edge of the scan own what lies beyond it too
    scanned = np.array(
        _bisected(first[0] - step / 2, first[1] + step / 2, first[2] - step / 2, first[3] + step / 2, size)
    )
    cores = scanned.copy()
    for side, edge, end in ((0, first[0] - step / 2, 0.0), (1, first[1] + step / 2, grid[0])):
        cores[np.isclose(cores[:, side], edge), side] = end
    for side, edge, end in ((2, first[2] - step / 2, 0.0), (3, first[3] + step / 2, grid[1])):
        cores[np.isclose(cores[:, side], edge), side] = end
    reach = (window - step) / 2 + jitter
    touched = _within(_grown(scanned, reach), grid)
    held = _within(_joined(_grown(touched, margin), cores), grid)
    sent, most, messages, total = _sent(cores, touched, held, grid, border)
    areas = _area(held)
    return Layout(
        own=float(_area(touched).mean()),
        total=total,
        held=float(areas.mean()),
        most_held=float(areas.max()),
        sent=sent,
        most_sent=most,
        neighbours=messages,
    )


def _sent(
    cores: np.ndarray, touched: np.ndarray, held: np.ndarray, grid: tuple[float, float], border: int
) -> tuple[float, float, float, float]:
    """Return pixels sent, mean and most, messages, and pixels of a rank's total."""
    lit = np.array([border, grid[0] - border, border, grid[1] - border])
    sent, messages, totals = np.zeros(len(cores)), np.zeros(len(cores)), np.zeros(len(cores))
    for rank, core in enumerate(cores):
        # Added to owners: what I touched of their cores; copied back: of mine what others hold
        added, copied = _overlap(touched[rank], cores), _overlap(_lit(core, lit), held)
        added[rank] = copied[rank] = 0
        sent[rank], messages[rank] = added.sum() + copied.sum(), (added > 0).sum() + (copied > 0).sum()
        totals[rank] = _overlap(_lit(held[rank], lit), lit[None])[0]
    return float(sent.mean()), float(sent.max()), float(messages.mean()), float(totals.mean())


def _lit(box: np.ndarray, lit: np.ndarray) -> np.ndarray:
    return np.array([max(box[0], lit[0]), min(box[1], lit[1]), max(box[2], lit[2]), min(box[3], lit[3])])


def _bisected(y0: float, y1: float, x0: float, x1: float, size: int) -> list[tuple[float, float, float, float]]:
    if size == 1:
        return [(y0, y1, x0, x1)]
    low, share = size // 2, (size // 2) / size
    if y1 - y0 >= x1 - x0:
        cut = y0 + (y1 - y0) * share
        return _bisected(y0, cut, x0, x1, low) + _bisected(cut, y1, x0, x1, size - low)
    cut = x0 + (x1 - x0) * share
    return _bisected(y0, y1, x0, cut, low) + _bisected(y0, y1, cut, x1, size - low)


def _grown(boxes: np.ndarray, by: float) -> np.ndarray:
    return boxes + np.array([-by, by, -by, by])


def _within(boxes: np.ndarray, grid: tuple[float, float]) -> np.ndarray:
    return np.clip(boxes, 0, [grid[0], grid[0], grid[1], grid[1]])


def _joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lower = np.array([True, False, True, False])
    return np.where(lower, np.minimum(a, b), np.maximum(a, b))


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    height = np.minimum(box[1], others[:, 1]) - np.maximum(box[0], others[:, 0])
    width = np.minimum(box[3], others[:, 3]) - np.maximum(box[2], others[:, 2])
    return np.maximum(height, 0) * np.maximum(width, 0)


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What a rank sends in an update: bytes, the mean and the most of any rank; messages.

    neighbours : messages to neighbours among them; swapped : bytes of these, the most of any rank
    """

    sent: float
    most: float
    messages: float
    neighbours: float = 0.0
    swapped: float = 0.0


def tiles(load: Load, size: int) -> Layout:
    """Return the layout of a load on a group of ``size`` ranks."""
    return layout(load.grid, load.window, load.step, load.margin, load.border, size, load.jitter)


def traffic(load: Load, exchange: ExchangeName, size: int) -> Traffic:
    """Return what a rank sends in an update."""
    if size == 1:
        return Traffic(sent=0.0, most=0.0, messages=0.0)
    small = 3 * 8 + load.window**2 * (8 * load.modes + 4)
    if exchange == "replicated":
        lit = (load.grid[0] - 2 * load.border) * (load.grid[1] - 2 * load.border)
        sent = reduction_bytes(lit * FIELD_BYTES * load.slices + small + 2 * 4 * 8, size)
        # Both fields, the boxes
        return Traffic(sent=sent, most=sent, messages=(_SUMS + 3) * reduction_messages(size))
    found, each = tiles(load, size), FIELD_BYTES * load.slices
    # The table of boxes of all ranks, the peak
    beside = reduction_bytes(small + size * _BOX_ROW_BYTES + 8, size)
    return Traffic(
        sent=found.sent * each + beside,
        most=found.most_sent * each + beside,
        messages=found.neighbours + (_SUMS + 2) * reduction_messages(size),
        neighbours=found.neighbours,
        swapped=found.most_sent * each,
    )


def batch_imbalance(load: Load, size: int) -> float:
    """Return the patterns of the fullest share of a batch over the mean share."""
    mean = load.positions / load.updates / size
    if size == 1:
        return 1.0
    # At least one pattern is somewhere; a share cannot exceed the batch
    most = mean + math.sqrt(2 * math.log(size) * mean * (1 - 1 / size))
    return min(max(most, 1.0), mean * size) / mean


PARTS = ("compute", "imbalance", "pixels", "packing", "bytes", "latency", "idle", "read")


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of one sweep over all tilts, on the rank that takes longest: work, the wait for the fullest share of each
    batch, the steps of the object, packing and exposed bytes and latency of messages, ranks that have no tilt left,
    reading.
    """

    compute: float
    imbalance: float
    pixels: float
    packing: float
    bytes: float
    latency: float
    idle: float
    read: float

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(getattr(self, name) for name in PARTS))

    @property
    def limit(self) -> str:
        """What costs most."""
        return max(PARTS, key=lambda name: float(getattr(self, name)))


def touched_pixels(load: Load, exchange: ExchangeName, size: int) -> float:
    """Return the pixels, over all slices, of a rank's own sums and of those it steps by, in an update."""
    found = tiles(load, size)
    lit = (load.grid[0] - 2 * load.border) * (load.grid[1] - 2 * load.border)
    return load.slices * (found.own + (found.total if exchange == "tiled" else lit))


def tilt_seconds(load: Load, rates: Rates, exchange: ExchangeName, size: int) -> Times:
    """Return the times of one sweep of one tilt on a group of ``size`` ranks, without reading."""
    compute, sent = load.positions / size / rates.patterns, traffic(load, exchange, size)
    exposed = (1 - rates.overlap) * load.updates
    return Times(
        compute=compute,
        imbalance=compute * (batch_imbalance(load, size) - 1),
        pixels=load.updates * rates.pixel_seconds * touched_pixels(load, exchange, size),
        packing=exposed * (rates.packing * sent.neighbours + rates.copying * sent.swapped),
        bytes=exposed * sent.most / rates.bandwidth,
        latency=exposed * rates.latency * sent.messages,
        idle=0.0,
        read=0.0,
    )


def sweep_seconds(load: Load, rates: Rates, exchange: ExchangeName, size: int, ranks: int) -> Times:
    """Return the times of a sweep of all tilts by groups of ``size`` of ``ranks`` ranks; idle: beyond an even share."""
    groups = max(ranks // size, 1)
    rounds, even = -(-load.tilts // groups), load.tilts * size / ranks
    one = tilt_seconds(load, rates, exchange, size)
    all_bytes = load.tilts * load.positions * load.pattern_bytes
    read = max(all_bytes / rates.read_all, rounds * load.positions * load.pattern_bytes / size / rates.read)
    parts = {name: even * float(getattr(one, name)) for name in PARTS[:6]}
    return Times(**parts, idle=(rounds - even) * one.total, read=read / load.sweeps)


def group_sizes(load: Load, ranks: int) -> list[int]:
    """Return the group sizes worth a look: those that leave the fewest ranks without a group."""
    return sorted({max(ranks // groups, 1) for groups in range(1, min(load.tilts, ranks) + 1)})
