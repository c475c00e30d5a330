"""Figures of how well patterns are explained: residual maps, held-out errors, moves, mode powers, ring correlations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np

from hpcrec.analysis.quality import TiltQuality
from hpcrec.report.canvas import (
    INK,
    MUTED,
    SERIES,
    Picture,
    finish,
    grey_range,
    legend_above,
    length_text,
    new_figure,
    nice_length,
    style,
)
from hpcrec.report.content import PatternView, TiltView

_MAX_MAPS: Final = 6
_MAX_DOTS: Final = 20_000
_MAX_ARROWS: Final = 900
_MAX_RINGS: Final = 200


def residual_maps(tilts: Sequence[TiltView]) -> Picture | None:
    """Draw where in the scan patterns are badly explained, for up to six tilts on one colour scale."""
    known = [(t, t.patterns) for t in tilts if t.patterns is not None and len(t.patterns.residual)]
    if not known:
        return None
    picks = [known[i] for i in np.unique(np.linspace(0, len(known) - 1, min(_MAX_MAPS, len(known))).astype(int))]
    columns = min(len(picks), 3)
    rows = -(-len(picks) // columns)
    with style():
        figure = new_figure(3.05 * columns + 1.1, 2.9 * rows)
        grid = figure.subplots(rows, columns, squeeze=False)
        low, high = grey_range([p.residual for _, p in picks], 1.0, 99.0)
        for axes in np.ravel(grid)[len(picks) :]:
            axes.set_visible(False)
        for axes, (tilt, patterns) in zip(np.ravel(grid), picks):
            drawn = _residual_map(axes, patterns, _unit(tilt), low, high)
            axes.set_title(_label(tilt))
        figure.colorbar(drawn, ax=grid, shrink=0.7, pad=0.02, label="data error").outline.set_visible(False)
        caption = "Data error of each pattern, at its place in the scan"
        caption += "; rings are patterns that no update used." if any(len(p.held_out) for _, p in picks) else "."
        return finish(figure, caption, "Residual maps")


def _residual_map(axes: Any, patterns: PatternView, unit: str, low: float, high: float) -> Any:
    every = max(-(-len(patterns.residual) // _MAX_DOTS), 1)
    y, x = patterns.positions[::every].T
    size = float(np.clip(15_000 / max(len(y), 1), 0.6, 60.0))
    drawn = axes.scatter(x, y, c=patterns.residual[::every], s=size, marker="s", lw=0, cmap="viridis")
    drawn.set_clim(low, high)
    held_out = patterns.held_out[:: max(-(-len(patterns.held_out) // _MAX_RINGS), 1)]
    y, x = patterns.positions[held_out].T
    axes.scatter(x, y, s=1.6 * size, marker="o", facecolors="none", edgecolors="#d1602b", lw=0.9)
    _map_axes(axes, unit)
    return drawn


def _unit(tilt: TiltView) -> str:
    """Return the unit of length: pixels where the data have no other."""
    return "Å" if tilt.sampling else "px"


def _map_axes(axes: Any, unit: str) -> None:
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.grid(False)
    axes.locator_params(axis="x", nbins=4)  # X-ray scans lie at six-digit Å: more labels run into one another
    axes.set_xlabel(f"x ({unit})")
    axes.set_ylabel(f"y ({unit})")


def held_out_curves(tilts: Sequence[TiltView]) -> Picture | None:
    """Draw the data error of the patterns used and of those held out against the sweep."""
    shown = [t for t in tilts if t.patterns is not None and len(t.patterns.held_out_error) and t.data_error is not None]
    if not shown:
        return None
    with style():
        figure = new_figure(6.2, 3.0)
        axes = figure.subplots()
        width = 1.6 if len(shown) == 1 else 0.9
        for i, tilt in enumerate(shown):
            assert tilt.patterns is not None
            for values, colour, name in (
                (tilt.data_error, SERIES[0], "patterns used"),
                (tilt.patterns.held_out_error, SERIES[1], "held out"),
            ):
                curve = np.asarray(values)
                axes.plot(
                    np.arange(1, len(curve) + 1), curve, color=colour, lw=width, alpha=0.8, label=None if i else name
                )
        axes.set_yscale("log")
        axes.set_xlabel("sweep")
        axes.set_ylabel("data error")
        legend_above(axes)
        caption = "Data error of patterns used (during the sweep) and held out (after it); a held-out error that rises "
        return finish(figure, caption + "while the other falls tells of overfitting.", "Held-out error", "svg")


def drift_figure(tilts: Sequence[TiltView]) -> Picture | None:
    """Draw how refined positions moved in the middle tilt, and the rms move of every tilt."""
    moved = [(t, t.patterns) for t in tilts if t.patterns is not None and np.any(t.patterns.moves)]
    if not moved:
        return None
    tilt, patterns = moved[len(moved) // 2]
    with style():
        figure = new_figure(9.2 if len(moved) > 1 else 5.0, 3.6)
        panels = np.ravel(figure.subplots(1, 2 if len(moved) > 1 else 1, squeeze=False))
        _moves_panel(panels[0], patterns, _unit(tilt))
        panels[0].set_title(_label(tilt))
        if len(moved) > 1:
            x = [t.index if t.tilt_deg is None else t.tilt_deg for t, _ in moved]
            rms = [float(np.sqrt(np.mean(np.sum(p.moves**2, axis=1)))) for _, p in moved]
            panels[1].plot(x, rms, "o-", ms=3.5, lw=0.8, color=SERIES[0])
            panels[1].set_ylim(bottom=0)
            panels[1].set_title(f"rms move ({_unit(tilt)})")
            panels[1].set_xlabel("tilt number" if tilt.tilt_deg is None else "tilt (°)")
        return finish(figure, "How refined positions moved from the given ones.", "Moves of the positions")


def _moves_panel(axes: Any, patterns: PatternView, unit: str) -> None:
    every = max(-(-len(patterns.moves) // _MAX_ARROWS), 1)
    start = (patterns.positions - patterns.moves)[::every]
    moves = patterns.moves[::every]
    longest = float(np.hypot(*moves.T).max())
    extent = float(np.ptp(patterns.positions, axis=0).max())
    scale = longest / max(1.5 * extent / np.sqrt(len(moves)), 1e-9)
    arrows = axes.quiver(
        start[:, 1], start[:, 0], moves[:, 1], moves[:, 0], angles="xy", scale_units="xy", scale=scale, color=INK,
        width=0.003,
    )  # fmt: skip
    length = nice_length(longest)
    axes.quiverkey(arrows, 0.86, 1.04, length, length_text(length, unit), labelpos="E", coordinates="axes")
    _map_axes(axes, unit)


def mode_power_figure(tilts: Sequence[TiltQuality]) -> Picture | None:
    """Draw the share of the power in each probe mode, for every tilt."""
    known = [t for t in tilts if len(t.mode_powers) > 1]
    if not known:
        return None
    n_modes = max(len(t.mode_powers) for t in known)
    powers = np.array([[*t.mode_powers, *[np.nan] * (n_modes - len(t.mode_powers))] for t in known])
    with style():
        figure = new_figure(5.6, 2.6)
        axes = figure.subplots()
        if len(known) == 1:
            axes.bar(np.arange(n_modes) + 1, powers[0], color=SERIES[0], width=0.7)
            axes.set_xlabel("mode")
            axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        else:
            x = [t.index if t.tilt_deg is None else t.tilt_deg for t in known]
            for i, colour in zip(range(n_modes), SERIES):
                axes.plot(x, powers[:, i], "o-", ms=3, lw=0.9, color=colour, label=f"mode {i + 1}")
            axes.set_xlabel("tilt number" if known[0].tilt_deg is None else "tilt (°)")
            legend_above(axes)
        axes.set_yscale("log")
        axes.set_ylabel("share of the power")
        return finish(figure, "Power of the probe's modes.", "Mode powers", "svg")


def ring_correlations(tilts: Sequence[TiltView]) -> Picture | None:
    """Draw the Fourier ring correlation of the half scans of every tilt, with the half-bit threshold."""
    known = [(t, t.patterns.frc) for t in tilts if t.patterns is not None and t.patterns.frc is not None]
    if not known:
        return None
    with style():
        figure = new_figure(6.2, 3.1)
        axes = figure.subplots()
        for i, (tilt, curve) in enumerate(known):
            crossing = curve.crossing("half_bit")
            mark = "≤ " if crossing.at_nyquist else ""
            text = f"{_label(tilt)}: {mark}{crossing.resolution:.2f} {_unit(tilt)}"
            label = text if len(known) <= len(SERIES) else None
            colour = SERIES[i] if label else mpl.colormaps["viridis"](i / len(known))
            axes.plot(curve.frequency[1:], curve.correlation[1:], color=colour, lw=1.0, label=label)
        axes.plot(curve.frequency[1:], curve.threshold("half_bit")[1:], color=MUTED, lw=1.0, ls="--", label="half-bit")
        axes.axhline(0, color=MUTED, lw=0.8)
        axes.set_ylim(-0.1, 1.05)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"spatial frequency (1/{_unit(known[0][0])})")
        axes.set_ylabel("Fourier ring correlation")
        axes.legend()
        caption = (
            "Fourier ring correlation of two half scans of each tilt, with the threshold of van Heel & Schatz (2005)."
        )
        return finish(figure, caption, "Fourier ring correlation", "svg")


def _label(tilt: TiltView) -> str:
    return f"tilt {tilt.index}" if tilt.tilt_deg is None else f"{tilt.tilt_deg:+.1f}°"
