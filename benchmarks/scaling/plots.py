"""Figures of what was measured and predicted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.scaling.model import PARTS, ExchangeName, Rates, tilt_seconds, traffic
from benchmarks.scaling.predict import EXCHANGES, PARAMETERS, load_of

COLOURS: Final = {"replicated": "tab:orange", "tiled": "tab:blue", "alone": "tab:green"}
Rows = Sequence[dict[str, Any]]


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _ranks_axis(axes: Any, label: str, ticks: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ticks), [str(n) for n in ticks])
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)


def measured(rows: Rows, rates: dict[str, Rates], path: Path) -> Path:
    """Compute, bytes and messages of ranks here: measured points on the lines of the model."""
    figure, grid = plt.subplots(2, 3, figsize=(13, 7.5), sharex=True)
    columns = (
        ("compute s", "processor seconds a sweep,\nrank with most"),
        ("kB sent", "kB sent a rank and sweep"),
        ("messages", "messages sent a rank and sweep"),
    )
    for line, scaling in zip(grid, ("strong", "weak"), strict=True):
        for axes, (name, label) in zip(line, columns, strict=True):
            for exchange in EXCHANGES:
                chosen = [r for r in rows if r["scaling"] == scaling and r["exchange"] == exchange]
                ranks = [r["ranks"] for r in chosen]
                told = [_model(r, rates, exchange)[name] for r in chosen]
                axes.plot(ranks, told, "-", color=COLOURS[exchange], label=f"model, {exchange}")
                axes.plot(ranks, [r[name] for r in chosen], "o", color=COLOURS[exchange], label=f"measured, {exchange}")
            _ranks_axis(axes, "ranks", sorted({r["ranks"] for r in rows}))
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
            axes.set_title(f"{scaling} scaling")
    grid[0, 0].legend(fontsize=8)
    return _save(figure, path)


def _model(row: dict[str, Any], rates: dict[str, Rates], exchange: ExchangeName) -> dict[str, float]:
    load, size = load_of(row), row["ranks"]
    times, sent = tilt_seconds(load, rates[exchange], exchange, size), traffic(load, exchange, size)
    return {
        "compute s": times.compute + times.pixels + times.packing,
        "kB sent": sent.sent * load.updates / 1e3,
        "messages": sent.messages * load.updates,
    }


def memory(rows: Rows, path: Path) -> Path:
    """Memory of a rank here, beside a line that falls as 1/ranks."""
    figure, axes = plt.subplots(figsize=(6, 4.5))
    for exchange in ("replicated", "tiled"):
        chosen = [r for r in rows if r["exchange"] == exchange]
        ranks = np.array([r["ranks"] for r in chosen])
        axes.plot(ranks, [r["most MB"] for r in chosen], "o-", color=COLOURS[exchange], label=f"measured, {exchange}")
        if exchange == "tiled":
            axes.plot(
                ranks, chosen[0]["most MB"] * ranks[0] / ranks, "k--", lw=1, label="1/ranks, from the first point"
            )
    _ranks_axis(axes, "ranks", sorted({r["ranks"] for r in rows}))
    axes.set_yscale("log")
    axes.set_ylabel("resident memory of the largest rank\nbeyond the process, MB")
    axes.legend(fontsize=8)
    return _save(figure, path)


def predicted(name: str, rows: Rows, path: Path) -> Path:
    """Time of a sweep and its parts, efficiency and memory of GPUs: predictions."""
    figure, grid = plt.subplots(1, 3, figsize=(15, 4.8))
    beyond, rows = ([r for r in rows if (r["groups"] == "none fits") is away] for away in (True, False))
    shown = {e: _shortest([r for r in rows if r["exchange"] == e]) for e in EXCHANGES}
    shown = {e: found for e, found in shown.items() if found}
    ticks = sorted({r["GPUs"] for r in (*beyond, *rows)})
    for exchange in EXCHANGES:
        needed = [r for r in beyond if r["exchange"] == exchange]
        if needed:
            gpus, gigabytes = [r["GPUs"] for r in needed], [r["GB a GPU"] for r in needed]
            grid[2].plot(gpus, gigabytes, "x", color=COLOURS[exchange], label=f"would be needed, {exchange}")
    for exchange, found in shown.items():
        gpus = [r["GPUs"] for r in found]
        for axes, key in zip(grid[::2], ("sweep s", "GB a GPU"), strict=True):
            axes.plot(gpus, [r[key] for r in found], "s-", color=COLOURS[exchange], label=f"predicted, {exchange}")
    first = rows[0]
    ideal = first["efficiency"] * first["sweep s"] * first["GPUs"]
    grid[0].plot(ticks, [ideal / n for n in ticks], "k--", lw=1, label="work alone, evenly shared")
    grid[0].set_ylabel("seconds of a sweep over all tilts")
    grid[2].axhline(PARAMETERS["GPU memory"].value / 1e9, color="k", lw=1, ls=":", label="memory of an H200")
    grid[2].set_ylabel("memory of a GPU, GB")
    for axes in grid[::2]:
        axes.set_yscale("log")
        _ranks_axis(axes, "GPUs", ticks)
        axes.legend(fontsize=8)
    last = shown.get("tiled") or next(iter(shown.values()))
    below, places = np.zeros(len(last)), np.arange(len(last))
    for part in PARTS:
        share = np.array([r[f"{part} s"] / r["sweep s"] for r in last])
        grid[1].bar(places, share, bottom=below, label=part, width=0.7)
        below += share
    labels = [f"{r['GPUs']}\n({r['a tilt']} a tilt)" for r in last]
    grid[1].set_xticks(places, labels)
    grid[1].set_xlabel("GPUs")
    grid[1].set_ylabel(f"share of the time, {last[-1]['exchange']}")
    grid[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(f"{name}: predicted, not measured")
    return _save(figure, path)


def _shortest(rows: Rows) -> list[dict[str, Any]]:
    return [
        min((r for r in rows if r["GPUs"] == n), key=lambda r: r["sweep s"]) for n in sorted({r["GPUs"] for r in rows})
    ]
