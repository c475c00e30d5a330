"""Figures of the ptychography and the alignment: phases, probes, errors, shifts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import matplotlib as mpl
import numpy as np

from hpcrec.analysis.quality import TiltQuality
from hpcrec.backend.array import FloatArray
from hpcrec.report.canvas import (
    MUTED,
    SERIES,
    Picture,
    bare,
    complex_image,
    finish,
    grey_range,
    legend_above,
    new_figure,
    scale_bar,
    style,
)
from hpcrec.report.content import AlignmentView, TiltView

_MAX_TILES: Final = 12
_MAX_MODES: Final = 6
_MAX_SIDE: Final = 700


def phase_montage(tilts: Sequence[TiltView]) -> Picture:
    """Draw the phases of up to twelve evenly chosen tilts, or all slices of a single tilt, on one colour scale."""
    if len(tilts) == 1:
        return _single_tilt(tilts[0])
    picks = [tilts[i] for i in np.unique(np.linspace(0, len(tilts) - 1, min(_MAX_TILES, len(tilts))).astype(int))]
    caption = f"Phase of {len(picks)} of {len(tilts)} tilts, summed over the slices; one colour scale."
    labels = [f"tilt {t.index}" if t.tilt_deg is None else f"{t.tilt_deg:+.1f}°" for t in picks]
    return _tiles([t.phase for t in picks], labels, [t.sampling for t in picks], caption)


def _single_tilt(tilt: TiltView) -> Picture:
    images, labels = [tilt.phase], [""]
    if tilt.slices is not None and len(tilt.slices) > 1:
        images += list(tilt.slices[: _MAX_TILES - 1])
        labels = ["sum of slices", *(f"slice {i + 1}" for i in range(len(images) - 1))]
    return _tiles(images, labels, [tilt.sampling] * len(images), "Phase of the object.", shared=len(images) == 1)


def _tiles(
    images: list[FloatArray],
    labels: list[str],
    samplings: list[tuple[float, float] | None],
    caption: str,
    shared: bool = True,
) -> Picture:
    columns = min(len(images), 4)
    rows = -(-len(images) // columns)
    aspect = float(np.mean([image.shape[0] / image.shape[1] for image in images]))
    width = 9.2 if columns > 1 else 5.6
    with style():
        figure = new_figure(width, min((width / columns * aspect + 0.25) * rows, 14.0))
        grid = figure.subplots(rows, columns, squeeze=False)
        low, high = grey_range(images)
        for axes in grid.flat:
            axes.set_visible(False)
        for axes, image, label, sampling in zip(grid.flat, images, labels, samplings):
            axes.set_visible(True)
            step = max(1, -(-max(image.shape) // _MAX_SIDE))
            small = image[::step, ::step]
            limits = (low, high) if shared else grey_range([image])
            drawn = axes.imshow(small, cmap="magma", vmin=limits[0], vmax=limits[1])
            scale_bar(axes, small.shape, None if sampling is None else sampling[1] * step)
            bare(axes, label)
        if shared:
            figure.colorbar(drawn, ax=grid, shrink=0.5, pad=0.01, label="phase (rad)").outline.set_visible(False)
        return finish(figure, caption, "Phase images of the object")


def probe_modes(tilt: TiltView) -> Picture | None:
    """Draw the probe's modes of one tilt, hue for phase and brightness for modulus, with their share of the power."""
    if tilt.probe is None:
        return None
    probe = np.asarray(tilt.probe)
    power = (np.abs(probe) ** 2).sum(axis=(1, 2))
    shares = power / max(float(power.sum()), 1e-30)
    shown = probe[:_MAX_MODES]
    with style():
        figure = new_figure(min(2.3 * len(shown), 9.2), 2.55)
        for axes, mode, share in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, shares):
            axes.imshow(complex_image(mode))
            pixel = None if tilt.probe_sampling is None else tilt.probe_sampling[1]
            scale_bar(axes, mode.shape, pixel)
            bare(axes, f"{share:.1%}")
        name = f"tilt {tilt.index}" if tilt.tilt_deg is None else f"the tilt of {tilt.tilt_deg:+.1f}°"
        caption = f"Probe modes of {name} with their share of the power; hue is the phase, brightness the modulus."
        return finish(figure, caption, "Probe modes")


def error_curves(tilts: Sequence[TiltView]) -> Picture | None:
    """Draw the data error against the sweep for every tilt, coloured by angle."""
    curves = [(t.tilt_deg, np.asarray(t.data_error)) for t in tilts if t.data_error is not None and len(t.data_error)]
    if not curves:
        return None
    with style():
        figure = new_figure(6.2, 3.1)
        axes = figure.subplots()
        angles = np.array([0.0 if angle is None else angle for angle, _ in curves])
        norm = mpl.colors.Normalize(float(angles.min()), float(angles.max()) + 1e-9)
        for angle, (_, curve) in zip(angles, curves):
            colour = SERIES[0] if len(curves) == 1 else mpl.colormaps["viridis"](norm(angle))
            axes.plot(np.arange(1, len(curve) + 1), curve, color=colour, lw=1.0 if len(curves) > 1 else 1.6)
        every = np.concatenate([curve for _, curve in curves])
        if (every > 0).all() and every.max() > 4 * every.min():
            axes.set_yscale("log")
        axes.set_xlabel("sweep")
        axes.set_ylabel("data error Σ(|F| − √I)² / ΣI")
        if len(curves) > 1:
            scale = mpl.cm.ScalarMappable(norm, "viridis")
            figure.colorbar(scale, ax=axes, label="tilt (°)", pad=0.02).outline.set_visible(False)
        whose = " of each tilt" if len(curves) > 1 else ""
        return finish(figure, f"Data error{whose} against the sweep.", "Data error curves", "svg")


def tilt_quality(tilts: Sequence[TiltQuality], unit: str) -> Picture | None:
    """Draw the final data error and the summed phase (mass) of every tilt."""
    if len(tilts) < 2:
        return None
    x = np.array([t.index if t.tilt_deg is None else t.tilt_deg for t in tilts], np.float64)
    panels = [
        ("data error", np.array([np.nan if t.data_error is None else t.data_error for t in tilts])),
        (f"summed phase (rad·{unit}²)", np.array([np.nan if t.mass is None else t.mass for t in tilts])),
    ]
    panels = [(label, y) for label, y in panels if np.isfinite(y).any()]
    if not panels:
        return None
    doubtful = np.array([t.doubtful for t in tilts])
    with style():
        figure = new_figure(4.6 * len(panels), 2.6)
        for axes, (label, y) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels):
            axes.plot(x, y, "o-", ms=3.5, lw=0.8, color=SERIES[0])
            if doubtful.any():
                axes.plot(x[doubtful], y[doubtful], "o", ms=6, mfc="none", color=SERIES[1], label="doubtful phase")
                legend_above(axes)
            axes.set_ylim(0, 1.15 * float(np.nanmax(y)) or 1.0)
            axes.set_title(label)
            axes.set_xlabel("tilt number" if tilts[0].tilt_deg is None else "tilt (°)")
        caption = (
            "Per tilt: final data error, and the sum of the phase, which an isolated particle keeps at every tilt."
        )
        return finish(figure, caption, "Data error and mass per tilt", "svg")


def alignment_figure(alignment: AlignmentView, unit: str) -> Picture:
    """Draw shifts, angle corrections and residuals per tilt, and the residual per round, as far as they are known."""
    x = np.asarray(alignment.tilt_deg)
    panels = ["shifts"]
    panels += ["angles"] if alignment.angle_corrections_deg is not None else []
    panels += ["residuals"] if alignment.residuals is not None else []
    panels += ["history"] if alignment.history is not None and len(alignment.history) > 1 else []
    columns = 2 if len(panels) > 1 else 1
    with style():
        figure = new_figure(9.2 if columns == 2 else 5.6, 2.6 * -(-len(panels) // columns))
        grid = np.ravel(figure.subplots(-(-len(panels) // columns), columns, squeeze=False))
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes, name in zip(grid, panels):
            _alignment_panel(axes, name, x, alignment, unit)
        return finish(figure, "What the alignment found for each tilt.", "Alignment per tilt", "svg")


def _alignment_panel(axes: mpl.axes.Axes, name: str, x: FloatArray, alignment: AlignmentView, unit: str) -> None:
    if name == "history":
        history = np.asarray(alignment.history)
        bins = np.ones(len(history)) if alignment.bins is None else np.asarray(alignment.bins)
        # Residuals of one resolution say nothing of another's
        for size, colour in zip(dict.fromkeys(bins.tolist()), SERIES):
            rounds = np.flatnonzero(bins == size)
            label = "full resolution" if size == 1 else f"1/{size:g} resolution"
            axes.plot(rounds, history[rounds], "o-", ms=3.5, color=colour, label=label)
        legend_above(axes)
        axes.set_title("residual per round")
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        return
    curves: dict[str, tuple[str, FloatArray | None, tuple[str, ...]]] = {
        "shifts": (f"shift ({unit})", alignment.shifts, ("along the axis, dy", "across, dx")),
        "angles": ("angle correction (°)", alignment.angle_corrections_deg, ("in-plane", "tilt", "out-of-plane")),
        "residuals": ("residual per projection", alignment.residuals, ()),
    }
    title, values, labels = curves[name]
    columns = np.atleast_2d(np.asarray(values).T)
    for column, label, colour in zip(columns, labels or ("",), SERIES):
        axes.plot(x, column, "o-", ms=3, lw=0.9, color=colour, label=label)
    axes.set_title(title)
    axes.set_xlabel("nominal tilt (°)")
    if labels:
        axes.axhline(0, color=MUTED, lw=0.8)
        legend_above(axes)
    else:
        axes.set_ylim(bottom=0)


def sinogram_figure(alignment: AlignmentView, unit: str) -> Picture | None:
    """Draw the projections summed along the tilt axis, before and after alignment: traces become smooth curves."""
    pairs = [("as measured", alignment.sums_before), ("aligned", alignment.sums_after)]
    shown = [(label, np.asarray(sums)) for label, sums in pairs if sums is not None]
    if not shown:
        return None
    with style():
        figure = new_figure(4.6 * len(shown), 2.8)
        low, high = grey_range([sums for _, sums in shown])
        for axes, (label, sums) in zip(np.atleast_1d(figure.subplots(1, len(shown), sharey=True)), shown):
            half = 0.5 * sums.shape[1] * (alignment.pixel_size or 1.0)
            extent = (-half, half, len(sums) - 0.5, -0.5)
            axes.imshow(sums, cmap="magma", vmin=low, vmax=high, aspect="auto", extent=extent)
            axes.set_title(label)
            axes.set_xlabel(f"x ({unit})" if alignment.pixel_size else "x (px)")
            axes.grid(False)
            ticks = np.unique(np.linspace(0, len(sums) - 1, 7).astype(int))
            axes.set_yticks(ticks, [f"{alignment.tilt_deg[i]:.0f}°" for i in ticks])
        return finish(figure, "Projections summed along the tilt axis, one row a tilt.", "Sinogram before and after")
