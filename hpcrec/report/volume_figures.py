"""Figures of the volume: slices, spectrum, resolution, atoms."""

from __future__ import annotations

from typing import Any, Final

import matplotlib as mpl
import numpy as np

from hpcrec.analysis.atoms import AtomTable
from hpcrec.analysis.resolution import CONE_HALF_ANGLE, LastPeak
from hpcrec.backend.array import FloatArray
from hpcrec.report.canvas import MUTED, SERIES, Picture, bare, finish, grey_range, new_figure, scale_bar, style
from hpcrec.report.content import ResolutionView, VolumeView

_SECTIONS: Final = ((0, "z", "y–x"), (1, "y", "z–x"), (2, "x", "z–y"))
_MAX_3D: Final = 20_000


def orthoslices(view: VolumeView, unit: str) -> Picture:
    """Draw the three central slices and the three sums of the volume."""
    volume = np.asarray(view.volume)
    with style():
        figure = new_figure(9.2, 6.3)
        grid = figure.subplots(2, 3)
        middle = [n // 2 for n in volume.shape]
        cuts = [np.take(volume, middle[axis], axis) for axis, _, _ in _SECTIONS]
        sums = [volume.sum(axis=axis) * view.voxel_size for axis, _, _ in _SECTIONS]
        for row, (images, what) in enumerate(((cuts, "slice at"), (sums, "sum over"))):
            low, high = grey_range(images, 1.0, 99.9)
            for axes, image, (_, name, plane) in zip(grid[row], images, _SECTIONS):
                axes.imshow(image, cmap="magma", vmin=low, vmax=high)
                scale_bar(axes, image.shape, view.voxel_size, unit)
                bare(axes, f"{plane}: {what} {name}" + (" = 0" if row == 0 else ""))
        caption = "Central slices (top) and sums (bottom) of the volume. z is the beam at zero tilt, y the tilt axis."
        return finish(figure, caption, "Orthogonal slices and sums of the volume")


def volume_convergence(view: VolumeView) -> Picture | None:
    """Draw the residual of the volume's reconstruction against the iteration."""
    if view.convergence is None or len(view.convergence) < 2:
        return None
    with style():
        figure = new_figure(4.6, 2.6)
        axes = figure.subplots()
        axes.plot(np.arange(1, len(view.convergence) + 1), view.convergence, color=SERIES[0])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("iteration")
        axes.set_ylabel("R1 = Σ|p − PV| / Σ|p|")
        return finish(figure, "Residual of the volume's reconstruction.", "Convergence of the volume", "svg")


def power_spectra(view: VolumeView, resolution: float | None, unit: str) -> Picture:
    """Draw the logarithmic amplitude spectra of the three sums, with a circle at the half-bit resolution."""
    volume = np.asarray(view.volume)
    with style():
        figure = new_figure(9.2, 3.4)
        for axes, (axis, name, _) in zip(figure.subplots(1, 3), _SECTIONS):
            image = volume.sum(axis=axis).astype(np.float64)
            window = np.outer(*(np.hanning(n + 2)[1:-1] for n in image.shape))
            amplitude = np.abs(np.fft.fftshift(np.fft.fft2((image - image.mean()) * window)))
            log = np.log10(amplitude + 1e-6 * amplitude.max() + 1e-30)
            low, high = grey_range([log], 5.0, 99.97)
            edges = [0.5 / view.voxel_size] * 4
            extent = (-edges[0], edges[1], edges[2], -edges[3])
            axes.imshow(log, cmap="magma", vmin=low, vmax=high, extent=extent)
            left = [n for a, n, _ in _SECTIONS if a != axis]
            axes.set_title(f"k{left[0]}–k{left[1]} (sum over {name})")
            axes.grid(False)
            axes.set_xlabel(f"1/{unit}")
            if resolution:
                axes.add_patch(mpl.patches.Circle((0, 0), 1 / resolution, fill=False, ec="white", lw=0.9, ls="--"))
        caption = "Spectra of the volume's three sums (log amplitude)."
        caption += f" Dashed: half-bit resolution, {resolution:.2f} {unit}." if resolution else ""
        return finish(figure, caption, "Power spectra of the volume")


def correlation_figure(view: ResolutionView, unit: str) -> Picture | None:
    """Draw the shell correlation with its thresholds, and the conical ones beside it."""
    if view.overall is None and not view.directions:
        return None
    panels = [view.overall is not None, bool(view.directions)]
    with style():
        figure = new_figure(4.6 * sum(panels), 3.2)
        axes_list = list(np.atleast_1d(figure.subplots(1, sum(panels), sharey=True)))
        if view.overall is not None:
            _overall_panel(axes_list[0], view, unit)
        if view.directions:
            axes = axes_list[-1]
            for (name, curve), colour in zip(view.directions.items(), SERIES):
                crossing = curve.crossing("half_bit")
                mark = "≤ " if crossing.at_nyquist else ""
                axes.plot(
                    curve.frequency[1:],
                    curve.correlation[1:],
                    color=colour,
                    label=f"{name}: {mark}{crossing.resolution:.2f} {unit}",
                )
            axes.set_title("within 20° of an axis (half-bit)")
            axes.legend(loc="lower left", bbox_to_anchor=(0, 0.09))  # above zero
        for axes in axes_list:
            axes.set_ylim(-0.1, 1.05)
            axes.set_xlim(left=0)
            axes.axhline(0, color=MUTED, lw=0.8)
            axes.set_xlabel(f"spatial frequency (1/{unit})")
        axes_list[0].set_ylabel("Fourier shell correlation")
        caption = "Fourier shell correlation of two half sets with the thresholds of van Heel & Schatz (2005)."
        return finish(figure, caption, "Fourier shell correlation", "svg")


def _overall_panel(axes: Any, view: ResolutionView, unit: str) -> None:
    curve = view.overall
    assert curve is not None
    q = curve.frequency[1:]
    axes.plot(q, curve.correlation[1:], color=SERIES[0])
    axes.plot(q, curve.threshold("half_bit")[1:], color=SERIES[1], lw=1.0, label="half-bit")
    axes.plot(q, curve.threshold("one_bit")[1:], color=SERIES[2], lw=1.0, label="one-bit")
    axes.axhline(0.143, color=MUTED, lw=1.0, ls=":", label="0.143")
    crossing = curve.crossing("half_bit")
    mark = "≤ " if crossing.at_nyquist else ""
    axes.axvline(crossing.frequency, color=SERIES[1], lw=0.8, ls="--")
    axes.set_title(f"all directions: {mark}{crossing.resolution:.2f} {unit} (half-bit)")
    axes.legend(loc="upper right", bbox_to_anchor=(0.95, 1))  # beside Nyquist's line


def peak_spectra(view: ResolutionView, unit: str) -> Picture | None:
    """Draw the summed spectra with the last peak near each direction marked by an arc; for crystals only."""
    if not view.peaks:
        return None
    with style():
        figure = new_figure(min(3.1 * len(view.peaks), 9.2), 3.4)
        for axes, (name, peak) in zip(np.atleast_1d(figure.subplots(1, len(view.peaks))), view.peaks.items()):
            (_plane_spectrum if peak.spectrum.ndim == 2 else _line_spectrum)(axes, peak, unit)
            text = "no peak" if peak.resolution is None else f"{peak.resolution:.2f} {unit}"
            axes.set_title(f"{name}: {text}")
        return finish(figure, next(iter(view.peaks.values())).warning, "Last peaks of the power spectrum")


def _plane_spectrum(axes: Any, peak: LastPeak, unit: str) -> None:
    log = np.log10(peak.spectrum + 1e-30)
    low, high = grey_range([log], 5.0, 99.97)
    first, second = peak.frequencies
    extent = (float(second[0]), float(second[-1]), float(first[-1]), float(first[0]))
    axes.imshow(log, cmap="magma", vmin=low, vmax=high, extent=extent)
    axes.grid(False)
    left = [n for a, n, _ in _SECTIONS if a not in peak.axes]
    axes.set_xlabel(f"k{left[1]} (1/{unit})")
    axes.set_ylabel(f"k{left[0]} (1/{unit})")
    if peak.frequency is not None:
        half = 180.0 if peak.near is None else float(np.rad2deg(CONE_HALF_ANGLE))
        for middle in (90.0, 270.0) if peak.near == 0 else (0.0, 180.0):
            size = 2 * peak.frequency
            arc = mpl.patches.Arc((0, 0), size, size, theta1=middle - half, theta2=middle + half, color="white", lw=1.4)
            axes.add_patch(arc)


def _line_spectrum(axes: Any, peak: LastPeak, unit: str) -> None:
    half = peak.frequencies[0] > 0
    axes.semilogy(peak.frequencies[0][half], peak.spectrum[half], color=SERIES[0], lw=1.0)
    if peak.frequency is not None:
        axes.axvline(peak.frequency, color=MUTED, ls="--", lw=0.9)
    axes.set_xlabel(f"1/{unit}")
    axes.set_yticks([])
    axes.minorticks_off()


def atom_projections(atoms: AtomTable) -> Picture:
    """Draw the atoms along the three axes and in perspective, coloured by species."""
    names = _by_brightness(atoms)
    with style():
        figure = new_figure(9.2, 8.4)
        size = float(np.clip(15_000.0 / max(len(atoms), 1), 2.0, 40.0))
        for i, (axis, name, _) in enumerate(_SECTIONS):
            axes = figure.add_subplot(2, 2, i + 1)
            rows, columns = (k for k in range(3) if k != axis)
            for k, species in reversed(list(enumerate(names))):
                points = atoms.positions[atoms.species == species]
                axes.scatter(
                    points[:, columns], points[:, rows], s=size, color=SERIES[k % 6], lw=0, alpha=0.8, label=species
                )
            axes.set_aspect("equal")
            axes.invert_yaxis()
            axes.set_title(f"along {name}")
            axes.set_xlabel(f"{'zyx'[columns]} (Å)")
            axes.set_ylabel(f"{'zyx'[rows]} (Å)")
            if i == 0:
                handles, labels = axes.get_legend_handles_labels()
                axes.legend(handles[::-1], labels[::-1], loc="lower right", bbox_to_anchor=(1.01, 0.98), ncols=6)
        _perspective(figure.add_subplot(2, 2, 4, projection="3d"), atoms, names, size)
        counts = ", ".join(f"{n} {name}" for name, n in ((s, int((atoms.species == s).sum())) for s in names))
        return finish(figure, f"Traced atoms: {counts}.", "Traced atoms along three axes and in three dimensions")


def atom_histogram(atoms: AtomTable) -> Picture | None:
    """Draw the integrated intensities by species; well separated humps mean sure names."""
    if len(atoms) < 10:
        return None
    with style():
        figure = new_figure(5.6, 2.7)
        axes = figure.subplots()
        bins = np.linspace(0, float(atoms.intensity.max()) * 1.02, 90).tolist()
        for k, species in enumerate(_by_brightness(atoms)):
            chosen = atoms.intensity[atoms.species == species]
            axes.hist(chosen, bins, color=SERIES[k % 6], alpha=0.75, label=species)
        axes.set_xlabel("integrated intensity")
        axes.set_ylabel("atoms")
        axes.legend()
        return finish(figure, "Integrated intensity of the atoms of each species.", "Histogram of intensities", "svg")


def _by_brightness(atoms: AtomTable) -> list[str]:
    names = [str(name) for name in np.unique(atoms.species)]
    return sorted(names, key=lambda name: -float(np.median(atoms.intensity[atoms.species == name])))


def _perspective(axes: Any, atoms: AtomTable, names: list[str], size: float) -> None:
    keep = np.arange(len(atoms))[:: max(len(atoms) // _MAX_3D, 1)]
    for k, species in enumerate(names):
        points: FloatArray = atoms.positions[keep][atoms.species[keep] == species]
        axes.scatter(
            points[:, 2], points[:, 1], points[:, 0], s=size * (1.5 if k == 0 else 0.7), color=SERIES[k % 6], lw=0
        )
    axes.set_box_aspect(np.ptp(atoms.positions, axis=0)[::-1] + 1.0)
    axes.view_init(elev=18, azim=-62)
    for setter, name in ((axes.set_xlabel, "x"), (axes.set_ylabel, "y"), (axes.set_zlabel, "z")):
        setter(f"{name} (Å)")
    axes.set_title("perspective")
