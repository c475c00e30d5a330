"""The model against what was measured here, and its predictions for GPUs: Romanov's data set, a large X-ray object.

Rates of GPUs are predictions of a roofline, networks and files are assumptions; :data:`PARAMETERS` says which is which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.optimize import nnls

from benchmarks.scaling import measure
from benchmarks.scaling.model import (
    FIELD_BYTES,
    PARTS,
    ExchangeName,
    Load,
    Parameter,
    Rates,
    group_sizes,
    sweep_seconds,
    tiles,
    tilt_seconds,
    touched_pixels,
    traffic,
)
from benchmarks.scaling.problem import SAMPLING
from hpcrec.backend.array import Array, IntArray
from hpcrec.data.dataset import Identity, SeriesFacts, TiltSeries
from hpcrec.data.preprocess import DetectorFrame
from hpcrec.geometry.grid import Grid
from hpcrec.models.room import DEFAULT_BYTES
from hpcrec.run.job import Job, ParallelSection, PtychographySection
from hpcrec.run.memory import object_bytes

GPUS: Final = (1, 4, 32, 256, 4096)
NODE: Final = 8
EXCHANGES: Final[tuple[ExchangeName, ...]] = ("replicated", "tiled")
_PREDICTED: Final = "roofline of the kernels, predicted, not measured"
PARAMETERS: Final = {
    "patterns, 256², 5 slices": Parameter(186e3, "1/s and GPU", _PREDICTED),
    "patterns, 256², 1 slice": Parameter(932e3, "1/s and GPU", _PREDICTED),
    "bytes of a step": Parameter(40.0, "B a touched pixel", "arrays of the gradient engine, counted"),
    "memory bandwidth": Parameter(4.3e12 * 0.85, "B/s", "H200, streaming kernels; predicted, not measured"),
    "bandwidth in a node": Parameter(370e9, "B/s and GPU", "NVLink, assumed"),
    "bandwidth between nodes": Parameter(45e9, "B/s and GPU", "InfiniBand, assumed"),
    "latency": Parameter(5e-6, "s a message", "assumed"),
    "packing": Parameter(25e-6, "s a neighbour", "launches of kernels that make a message and add it, assumed"),
    "overlap": Parameter(0.0, "", "messages in flight are for processors; those of GPUs hide behind no work yet"),
    "reading": Parameter(2e9, "B/s and GPU", "assumed"),
    "reading, all": Parameter(100e9, "B/s", "parallel file system, assumed"),
    "GPU memory": Parameter(141e9, "B", "H200"),
    "updates of a sweep": Parameter(16, "", "assumed"),
    "sweeps of a run": Parameter(100, "", "assumed; reading is spread over them"),
}
ROMANOV: Final = Load(
    name="Romanov, 36 tilts of 800² × 256², 5 slices",
    tilts=36,
    scan=(800, 800),
    step=910 / 799,
    window=256,
    slices=5,
    modes=1,
    batch=800 * 800 // 16,
    # 110 GB in all: two bytes for each electron
    pattern_bytes=110e9 / (36 * 800 * 800),
    border=0,
)
# Three quarters of a window from position to position; two bytes a pixel, for X-rays fill the detector
XRAY: Final = Load(
    name="X-ray object of 100 000² pixels, 1 slice, 256²",
    tilts=1,
    scan=(1559, 1559),
    step=64.0,
    window=256,
    slices=1,
    modes=1,
    batch=-(-1559 * 1559 // 16),
    pattern_bytes=2 * 256**2,
    border=0,
)
RATE_OF: Final = {ROMANOV.name: "patterns, 256², 5 slices", XRAY.name: "patterns, 256², 1 slice"}


def gpu_rates(load: Load, size: int) -> Rates:
    """Return the rates of GPUs of which ``size`` share a tilt: a group in one node, or a larger one."""
    p = {name: parameter.value for name, parameter in PARAMETERS.items()}
    return Rates(
        patterns=p[RATE_OF[load.name]],
        pixel_seconds=p["bytes of a step"] / p["memory bandwidth"],
        bandwidth=p["bandwidth in a node" if size <= NODE else "bandwidth between nodes"],
        latency=p["latency"],
        packing=p["packing"],
        copying=4 / p["memory bandwidth"],
        overlap=p["overlap"],
        read=p["reading"],
        read_all=p["reading, all"],
    )


class _Series(TiltSeries):
    """A tilt series of which only shapes are known."""

    def __init__(self, load: Load) -> None:
        # One number that stands for all: places do not matter here
        positions = np.broadcast_to(np.zeros((1, 2)), (load.positions, 2))
        frame = DetectorFrame(stored=(load.window,) * 2, centre=(load.window // 2,) * 2, shape=(load.window,) * 2)
        super().__init__(
            SeriesFacts(
                tilt_angles=np.zeros(load.tilts),
                tilt_numbers=np.arange(load.tilts),
                positions=(positions,) * load.tilts,
                frame=frame,
                dtype=np.dtype(np.uint16),
                sampling=(1.0, 1.0),
                mask=None,
                raw_mask=None,
                probe=None,
                energy_ev=None,
                wavelength=None,
                identity=Identity(path=Path("model"), size=0, modified_ns=0, digest=""),
            )
        )

    def read_frames(self, tilt_number: int, indices: IntArray) -> Array:
        raise NotImplementedError("a model has no patterns")

    def close(self) -> None:
        """Nothing is open."""


def rank_bytes(load: Load, exchange: ExchangeName, size: int, *, compiled: bool = False) -> float:
    """Return the bytes of arrays of the object's size in an update, of a rank of a group, as a plan counts them."""
    job = Job(
        version=1,
        name="model",
        data=None,
        ptychography=PtychographySection(engine="gradient", slices=load.slices, batch_size=load.batch),
        parallel=ParallelSection(exchange=exchange, group_size=size, halo_margin_angstrom=float(load.margin)),
    )
    grid = Grid(shape=(round(load.grid[0]), round(load.grid[1])), sampling=(1.0, 1.0))
    return object_bytes(job, _Series(load), grid, size, compiled=compiled)[1]


def gpu_bytes(load: Load, exchange: ExchangeName, size: int) -> float:
    """Return the bytes of a GPU: the object in an update, the patterns of a share, room for waves."""
    patterns = load.positions / size * load.pattern_bytes
    return rank_bytes(load, exchange, size) + patterns + DEFAULT_BYTES


def smallest_bytes(load: Load, exchange: ExchangeName, size: int) -> float:
    """Return the bytes of a GPU that takes its patterns batch by batch."""
    return gpu_bytes(load, exchange, size) - load.pattern_bytes * load.positions / size * (1 - 2 / load.updates)


def predictions(load: Load, gpus: Sequence[int] = GPUS) -> list[dict[str, Any]]:
    """Return a row for each number of GPUs and exchange: as a job plans its groups, and by the best ones."""
    ideal = load.tilts * load.positions / gpu_rates(load, 1).patterns
    found = []
    for ranks in gpus:
        planned = max(1, ranks // load.tilts)
        for exchange in EXCHANGES if ranks > 1 else EXCHANGES[:1]:
            fits = {
                s: smallest_bytes(load, exchange, s) <= PARAMETERS["GPU memory"].value for s in group_sizes(load, ranks)
            }
            sizes = [s for s in fits if fits[s]]
            best = min(sizes, key=lambda s: _seconds(load, exchange, s, ranks), default=None)
            first = min((s for s in sizes if s >= planned), default=None)
            for groups, size in (("planned", first), ("best", best)):
                if size is None or (groups == "best" and best == first):
                    continue
                found.append(_prediction(load, exchange, size, ranks, groups, ideal))
            if not sizes:
                needed = min(smallest_bytes(load, exchange, s) for s in fits)
                row = {"GPUs": ranks, "exchange": exchange, "groups": "none fits", "GB a GPU": needed / 1e9}
                found.append(row | {"limit": "memory"})
    return found


def _seconds(load: Load, exchange: ExchangeName, size: int, ranks: int) -> float:
    return sweep_seconds(load, gpu_rates(load, size), exchange, size, ranks).total


def _prediction(load: Load, exchange: ExchangeName, size: int, ranks: int, groups: str, ideal: float) -> dict[str, Any]:
    rates = gpu_rates(load, size)
    times, sent = sweep_seconds(load, rates, exchange, size, ranks), traffic(load, exchange, size)
    hidden = sweep_seconds(load, replace(rates, overlap=1.0), exchange, size, ranks)
    whole = gpu_bytes(load, exchange, size) <= PARAMETERS["GPU memory"].value
    return {
        "GPUs": ranks,
        "exchange": exchange,
        "groups": groups,
        "a tilt": size,
        "sweep s": times.total,
        "efficiency": ideal / ranks / times.total,
        "if hidden": ideal / ranks / hidden.total,
        **{f"{name} s": getattr(times, name) for name in PARTS},
        "GB a GPU": (gpu_bytes if whole else smallest_bytes)(load, exchange, size) / 1e9,
        "patterns": "resident" if whole else "streamed",
        "MB a sweep": sent.most * load.updates * load.tilts * size / ranks / 1e6,
        "limit": times.limit,
    }


def load_of(row: dict[str, Any]) -> Load:
    """Return what a measured row was of."""
    rows, columns = row["scan"]
    return Load(
        name="measured",
        tilts=1,
        scan=(rows, columns),
        step=measure.STEP / SAMPLING,
        window=measure.N,
        slices=1,
        modes=1,
        batch=-(-row["patterns"] // row["updates"]),
        jitter=0.2 * measure.STEP / SAMPLING,
        pattern_bytes=2 * measure.N**2,
    )


def fitted(rows: Sequence[dict[str, Any]], pinged: Sequence[dict[str, Any]], most: int = 2) -> dict[str, Rates]:
    """Return the rates of a rank here by exchange, fitted to compute on up to ``most`` ranks, and to pings."""
    known = [row for row in rows if row["ranks"] <= most]
    left = [
        (
            row["patterns"] / row["ranks"],
            row["updates"] * touched_pixels(load_of(row), row["exchange"], row["ranks"]),
            row["updates"] * traffic(load_of(row), row["exchange"], row["ranks"]).swapped,
        )
        for row in known
    ]
    right = np.array([row["compute s"] for row in known])
    # Each row counts by its relative error; no cost is negative
    (per_pattern, per_pixel, copying), _ = nnls(np.array(left) / right[:, None], np.ones(len(known)))
    found = {}
    for exchange, kind in (("replicated", "sum s"), ("tiled", "swap s")):
        latency, bandwidth = measure.fitted_link(pinged, kind)
        found[exchange] = Rates(
            patterns=float(1 / per_pattern),
            pixel_seconds=float(per_pixel),
            copying=float(copying),
            bandwidth=bandwidth,
            latency=latency,
        )
    return found


def checks(rows: Sequence[dict[str, Any]], rates: dict[str, Rates]) -> list[dict[str, Any]]:
    """Return predicted over measured of each row; what is zero on both sides counts as 1."""
    found = []
    for row in rows:
        load, exchange, size = load_of(row), row["exchange"], row["ranks"]
        times, sent = tilt_seconds(load, rates[exchange], exchange, size), traffic(load, exchange, size)
        compute = times.compute + times.pixels + times.packing
        found.append(
            {
                "scaling": row["scaling"],
                "exchange": exchange,
                "ranks": size,
                "compute s": row["compute s"],
                "of compute": compute / row["compute s"],
                "wall s": row["wall s"],
                "of wall": None if row["wall s"] is None else times.total / row["wall s"],
                "kB sent": row["kB sent"],
                "of kB": _ratio(sent.sent * load.updates / 1e3, row["kB sent"]),
                "of most kB": _ratio(sent.most * load.updates / 1e3, row["most kB"]),
                "messages": row["messages"],
                "of messages": _ratio(sent.messages * load.updates, row["messages"]),
                "batch imbalance": row["batch imbalance"],
                "of imbalance": (1 + times.imbalance / times.compute) / row["batch imbalance"],
            }
        )
    return found


def memory_checks(rows: Sequence[dict[str, Any]], window: int, step: float) -> list[dict[str, Any]]:
    """Return predicted over measured memory of ranks, as :mod:`benchmarks.scaling.traffic` measures it."""
    found = []
    for row in rows:
        if row["ranks"] == 1 and row["exchange"] != "alone":
            continue
        exchange: ExchangeName = "tiled" if row["exchange"] == "tiled" else "replicated"
        side = int(round((row["grid"][0] - window) / step)) + 1
        load = Load(
            name="memory", tilts=1, scan=(side, side), step=step, window=window, slices=1, modes=1, batch=side**2,
            pattern_bytes=2 * window**2, jitter=0.2 * step,
        )  # fmt: skip
        objects = rank_bytes(load, exchange, row["ranks"], compiled=True)
        # The patterns themselves, and the batch of all of them
        predicted = (objects / 1e6 + 2 * row["patterns MB"]) / row["most MB"]
        held = tiles(load, row["ranks"]).most_held if exchange == "tiled" else math.prod(load.grid)
        found.append(
            {
                "exchange": row["exchange"],
                "ranks": row["ranks"],
                "most MB": row["most MB"],
                "of memory": predicted,
                "held of the object": row["held of the object"],
                "of held": held / math.prod(load.grid) / row["held of the object"],
            }
        )
    return found


def _ratio(predicted: float, measured: float) -> float:
    return predicted / measured if measured else (1.0 if predicted == 0 else math.inf)


def parameters(rates: dict[str, Rates]) -> list[dict[str, Any]]:
    """Return all parameters with their sources."""
    found = [
        {"parameter": name, "value": p.value, "unit": p.unit, "source": p.source} for name, p in PARAMETERS.items()
    ]
    for exchange, r in rates.items():
        fits = {
            "patterns": (r.patterns, "1/s"),
            "pixel": (r.pixel_seconds, "s"),
            "copying": (r.copying, "s a byte to neighbours"),
            "bandwidth": (r.bandwidth, "B/s"),
            "latency": (r.latency, "s a message"),
        }
        for name, (value, unit) in fits.items():
            source = "measured here, " + ("pings" if name in ("bandwidth", "latency") else "compute of 1 and 2 ranks")
            found.append({"parameter": f"{name} here, {exchange}", "value": value, "unit": unit, "source": source})
    return found + [
        {"parameter": "field bytes", "value": FIELD_BYTES, "unit": "B a pixel", "source": "arrays exchanged"}
    ]


def least_gpus(load: Load, exchange: ExchangeName, most: int = 1 << 14) -> int | None:
    """Return the least number of GPUs, a power of two, that can share one tilt; None if not even ``most`` can."""
    sizes = (1 << k for k in range(most.bit_length()))
    room = PARAMETERS["GPU memory"].value
    return next((size for size in sizes if smallest_bytes(load, exchange, size) <= room), None)
