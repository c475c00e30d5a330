"""From a run directory to its report: gather what it holds and hand it to the page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hpcrec.analysis.atoms import AtomTable
from hpcrec.analysis.quality import QualityReport
from hpcrec.backend.array import Array
from hpcrec.io.atomic import write_bytes
from hpcrec.io.checkpoint import latest_good
from hpcrec.io.results import ProjectionStore, TiltResult, VolumeResult, read_volume
from hpcrec.physics.scattering import chemical_symbols
from hpcrec.report.content import AlignmentView, PatternView, ReportContent, ResolutionView, TiltView, VolumeView
from hpcrec.report.page import render_report
from hpcrec.run.config import from_plain
from hpcrec.run.curves import correlations, peaks
from hpcrec.run.directory import RunDirectory, frozen_job
from hpcrec.run.observers import read_events
from hpcrec.tomography.turn import turn_vectors


def write_report(directory: RunDirectory) -> None:
    """Write ``report.html`` from the run directory; parts that are not there are left out."""
    write_bytes(directory.report, render_report(report_content(directory)).encode())


def report_content(directory: RunDirectory) -> ReportContent:
    """Return what the page shows."""
    job = frozen_job(directory.job)
    volume = read_volume(directory.volume) if directory.volume.exists() else None
    found = latest_good(directory.checkpoints, "analysis")
    curves = {} if found is None else found.arrays
    quality = directory.read_json(directory.quality)
    events = read_events(directory.events)
    tilts: list[TiltView] = []
    if directory.projections.exists():
        with ProjectionStore(directory.projections) as store:
            n_states = job.get("ptychography", {}).get("object_states", 1)
            tilts = [tilt_view(tilt, "beam" in job, n_states) for tilt in store]
    if volume is not None:
        tilts = _with_prepared(tilts, volume)
    return ReportContent(
        title=str(job.get("name", directory.path.name)),
        subtitle=f"run directory {directory.path.name}",
        warnings=list(dict.fromkeys(e["text"] for e in events if e["event"] == "warning")),
        tilts=tilts,
        alignment=None if volume is None else alignment_view(volume),
        volume=None if volume is None else _volume_view(volume),
        resolution=resolution_view(curves, volume) if curves and volume is not None else None,
        atoms=atom_table(curves),
        quality=from_plain(QualityReport, quality) if quality else None,
        parameters=job,
        provenance=_short(directory.read_json(directory.provenance)),
        timings=_stage_seconds(events),
        length_unit="Å" if "beam" in job else "px",
    )


def _stage_seconds(events: list[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of each stage, of all times that it came to its end: a continued run adds to what was done."""
    seconds: dict[str, float] = {}
    for event in events:
        if event["event"] == "stage_done":
            seconds[event["stage"]] = seconds.get(event["stage"], 0.0) + event["seconds"]
    return seconds


def tilt_view(tilt: TiltResult, has_units: bool, n_states: int = 1) -> TiltView:
    """Return one tilt for the page: wrapped phases of the slices of all states, their sum, the probe, the error curve.

    Of several object states, which share the counts, the sum is the mean over them.
    """
    slices = np.angle(tilt.obj).astype(np.float32)
    return TiltView(
        index=tilt.tilt_index,
        phase=slices.sum(axis=0) / np.float32(n_states),
        tilt_deg=tilt.tilt_deg,
        slices=slices,
        sampling=tilt.sampling if has_units else None,
        probe=tilt.probe,
        probe_sampling=tilt.sampling if has_units else None,
        data_error=tilt.data_error,
        patterns=pattern_view(tilt),
    )


def pattern_view(tilt: TiltResult) -> PatternView | None:
    """Return how well a tilt's patterns are explained; None for results that do not say."""
    arrays = tilt.quality
    if "residual" not in arrays:
        return None
    nyquist = 0.5 / max(tilt.sampling)
    return PatternView(
        positions=tilt.positions,
        residual=arrays["residual"],
        moves=arrays["moves_angstrom"],
        held_out=arrays["held_out"],
        held_out_error=arrays["held_out_error"],
        frc=correlations({"fsc/frc": arrays["frc"]}, nyquist)["frc"] if "frc" in arrays else None,
    )


def _with_prepared(tilts: list[TiltView], volume: VolumeResult) -> list[TiltView]:
    """Show the prepared projections in place of the raw sums where there are any."""
    prepared = dict(zip(volume.arrays["projections/number"].tolist(), volume.arrays["projections/prepared"]))
    pixel = (volume.voxel_size, volume.voxel_size)
    return [
        replace(t, phase=prepared[t.index], sampling=t.sampling and pixel) if t.index in prepared else t for t in tilts
    ]


def alignment_view(volume: VolumeResult) -> AlignmentView:
    """Return the alignment for the page, with the projections' sums along the tilt axis before and after."""
    arrays = volume.arrays
    axis = float(np.deg2rad(np.asarray(volume.attributes.get("tilt_axis_deg", 0.0), np.float64)))
    shifts, nominal = turn_vectors(arrays["alignment/shifts_angstrom"], -axis), arrays["projections/tilt_deg"]
    corrections = arrays["alignment/angles_deg"].copy()
    corrections[:, 1] -= nominal
    sums = arrays["projections/prepared"].sum(axis=1)
    return AlignmentView(
        tilt_deg=nominal,
        shifts=shifts,
        angle_corrections_deg=corrections,
        history=arrays["alignment/history_r1"],
        bins=arrays["alignment/history_bin"],
        residuals=arrays["alignment/residuals"],
        sums_before=sums,
        sums_after=_moved(sums, -shifts[:, 1] / volume.voxel_size),
        pixel_size=volume.voxel_size,
    )


def _moved(lines: Array, pixels: Array) -> Array:
    """Return each line (n, x) moved by its number of pixels, linearly interpolated, zero outside."""
    x = np.arange(lines.shape[1])
    return np.stack([np.interp(x - p, x, line, left=0, right=0) for line, p in zip(lines, pixels)])


def _volume_view(volume: VolumeResult) -> VolumeView:
    return VolumeView(volume=volume.volume, voxel_size=volume.voxel_size, convergence=volume.arrays["convergence/r1"])


def resolution_view(curves: dict[str, Array], volume: VolumeResult) -> ResolutionView:
    """Return the correlations and spectra that the analysis stage kept."""
    fsc = correlations(curves, 0.5 / volume.voxel_size)
    return ResolutionView(overall=fsc.pop("all", None), directions=fsc, peaks=peaks(curves))


def atom_table(curves: dict[str, Array]) -> AtomTable | None:
    """Return the traced atoms that the analysis stage kept."""
    if "atoms/positions" not in curves:
        return None
    return AtomTable(
        positions=curves["atoms/positions"],
        species=np.array(chemical_symbols())[curves["atoms/numbers"] - 1],
        intensity=curves["atoms/intensity"],
        confidence=curves["atoms/confidence"],
    )


def _short(provenance: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the page shows elsewhere."""
    return {k: v for k, v in provenance.items() if k not in ("job", "outputs")}
