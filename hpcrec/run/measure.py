"""The analysis stage: resolution, atoms, comparison with a reference, and the figures of ``quality.json``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hpcrec.analysis.atoms import AtomTable, trace_atoms
from hpcrec.analysis.compare import AlignmentComparison, AtomComparison, compare_alignment, compare_atoms
from hpcrec.analysis.quality import QualityReport, TiltQuality, atom_quality, resolution_quality, summarise_tilts
from hpcrec.analysis.resolution import (
    crystal_resolution,
    directional_correlations,
    fourier_shell_correlation,
    soft_mask,
)
from hpcrec.backend.array import Array, FloatArray
from hpcrec.data.specimen import Specimen, specimen_from_atoms
from hpcrec.errors import DataError
from hpcrec.geometry.pose import angles_from_rotation, rotation_from_angles
from hpcrec.io.atoms import write_xyz
from hpcrec.io.checkpoint import save_checkpoint
from hpcrec.io.results import ProjectionStore, VolumeResult, read_volume
from hpcrec.io.truth import Truth, read_truth
from hpcrec.physics.scattering import atomic_number
from hpcrec.run.curves import correlation_arrays, peak_arrays
from hpcrec.run.directory import RunDirectory
from hpcrec.run.job import AnalysisSection, Job
from hpcrec.run.observers import Observer
from hpcrec.run.record import broken_limits, quality_path, read_quality_record
from hpcrec.tomography.turn import turn_rotation, turn_vectors

COARSEST_VOXELS = 20.0


def measure(job: Job, directory: RunDirectory, observer: Observer) -> None:
    """Measure what the run directory holds; write ``quality.json``, ``atoms.xyz`` and the curves for the report."""
    volume = read_volume(directory.volume) if job.tomography and directory.volume.exists() else None
    tilts = tilt_qualities(directory, volume)
    data_error, warnings = summarise_tilts(tilts)
    # Without a beam the data have pixel units only
    record: dict[str, Any] = {"length_unit": "Å" if job.beam else "px"}
    arrays: dict[str, Array] = {}
    parts: dict[str, Any] = {}
    if volume is not None:
        record["voxel_size"] = volume.voxel_size
        parts["projection_error"] = float(volume.arrays["convergence/r1"][-1])
        parts["resolution"] = _resolution(volume, arrays)
        if job.analysis is not None:
            truth = read_truth(Path(job.analysis.reference)) if job.analysis.reference else None
            parts["atoms"] = _atoms(job.analysis, volume, truth, directory, arrays, observer)
            comparison = _alignment_errors(volume, truth)
            if comparison is not None:
                record["alignment"] = _alignment_figures(comparison, _axis(volume))
    parts["broken_limits"] = limits_broken(job, directory)
    quality = QualityReport(tilts=tilts, data_error=data_error, warnings=warnings, **parts)
    for text in warnings:
        observer({"event": "warning", "text": text})
    save_checkpoint(directory.checkpoints / "analysis_000001.h5", arrays, {})
    directory.write_json(directory.quality, {**quality.to_dict(), **record})


def tilt_qualities(directory: RunDirectory, volume: VolumeResult | None) -> list[TiltQuality]:
    """Return the figures of each tilt."""
    names = {"mass": "alignment/mass", "residues": "projections/n_residues", "doubtful": "projections/doubtful"}
    found = {k: {} if volume is None else _by_number(volume, name) for k, name in names.items()}
    with ProjectionStore(directory.projections) as store:
        return [
            TiltQuality(
                index=tilt.tilt_index,
                tilt_deg=tilt.tilt_deg,
                data_error=float(tilt.data_error[-1]),
                mass=found["mass"].get(tilt.tilt_index),
                n_residues=_whole(found["residues"].get(tilt.tilt_index)),
                doubtful=bool(found["doubtful"].get(tilt.tilt_index)),
                **_recorded(read_quality_record(quality_path(directory.checkpoints, tilt.tilt_index)) or {}),
            )
            for tilt in store
        ]


def _recorded(record: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a tilt's record that the summary repeats."""
    used, held_out = record.get("used") or {}, record.get("held_out") or {}
    return {
        "held_out_error": held_out.get("data_error"),
        "r_factor": used.get("r_factor"),
        "deviance": used.get("deviance"),
        "log_likelihood": used.get("log_likelihood"),
        "mode_powers": record.get("mode_powers", ()),
        "drift": (record.get("drift") or {}).get("rms_angstrom"),
        "half_bit": (record.get("frc") or {}).get("half_bit_angstrom"),
    }


def limits_broken(job: Job, directory: RunDirectory) -> list[str]:
    """Return a sentence for each limit that one of the run's tilts breaks."""
    with ProjectionStore(directory.projections) as store:
        numbers = store.tilt_indices.tolist()
    records = ((n, read_quality_record(quality_path(directory.checkpoints, n))) for n in numbers)
    return [text for n, record in records for text in broken_limits(job.quality, n, record)]


def _by_number(volume: VolumeResult, name: str) -> dict[int, float]:
    return {int(n): float(v) for n, v in zip(volume.arrays["projections/number"], volume.arrays.get(name, ()))}


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _axis(volume: VolumeResult) -> float:
    """Return the in-plane angle (rad) of the tilt axis in the scan; the volume has it along y."""
    return float(np.deg2rad(np.asarray(volume.attributes.get("tilt_axis_deg", 0.0), np.float64)))


def _resolution(volume: VolumeResult, arrays: dict[str, Array]) -> Any:
    voxel = (volume.voxel_size,) * 3
    # The object fills its box: zeros around it keep the apodisation off its faces
    peaks = crystal_resolution(np.pad(volume.volume, [(n // 2, n // 2) for n in volume.volume.shape]), voxel)
    for name, peak in peaks.items():
        arrays |= peak_arrays(name, peak)
    if "halves/even" not in volume.arrays:
        return resolution_quality(None, None, peaks)
    even, odd = volume.arrays["halves/even"], volume.arrays["halves/odd"]
    mask = soft_mask(volume.volume)
    overall = fourier_shell_correlation(even, odd, voxel, mask)
    cones = directional_correlations(even, odd, voxel, mask)
    for name, curve in {"all": overall, **cones}.items():
        arrays |= correlation_arrays(name, curve)
    return resolution_quality(overall, cones, peaks)


def _atoms(
    section: AnalysisSection,
    volume: VolumeResult,
    truth: Truth | None,
    directory: RunDirectory,
    arrays: dict[str, Array],
    observer: Observer,
) -> Any:
    if section.atoms is None:
        return None
    try:
        traced = trace_atoms(volume.volume, volume.voxel_size, section.atoms)
    except DataError as fault:
        observer({"event": "warning", "text": str(fault)})
        return None
    atoms = replace(traced, positions=turn_vectors(traced.positions, _axis(volume)))
    named = specimen_of(atoms)
    write_xyz(
        directory.atoms,
        named,
        f"hpcrec {directory.path.name}; x y z in angstrom in the scan's frame, origin at the volume's centre",
    )
    arrays["atoms/positions"] = atoms.positions
    arrays["atoms/numbers"] = named.numbers
    arrays["atoms/confidence"] = atoms.confidence
    arrays["atoms/intensity"] = atoms.intensity
    return atom_quality(atoms, _compare(section, atoms, truth))


def _compare(section: AnalysisSection, atoms: AtomTable, truth: Truth | None) -> AtomComparison | None:
    if truth is None:
        return None
    model = truth.specimen
    return compare_atoms(
        atoms.positions,
        atoms.species,
        model.positions,
        np.array(model.symbols),
        tolerance=section.match_within_angstrom,
    )


def specimen_of(atoms: AtomTable) -> Specimen:
    """Return traced atoms as a specimen."""
    return specimen_from_atoms([atomic_number(str(s)) for s in atoms.species], atoms.positions)


def _alignment_errors(volume: VolumeResult, truth: Truth | None) -> AlignmentComparison | None:
    """Return the errors of the alignment, where the reference is a series with truth for the tilts used.

    Both are compared with the tilt axis along y, where the angles are those that the alignment refines.
    """
    if truth is None or truth.angles is None or truth.shifts is None:
        return None
    numbers = np.asarray(volume.arrays["projections/number"], np.int64)
    if numbers.max() >= len(truth.angles):
        return None
    axis = _axis(volume)
    return compare_alignment(
        turn_vectors(volume.arrays["alignment/shifts_angstrom"], -axis),
        np.deg2rad(volume.arrays["alignment/angles_deg"]),
        turn_vectors(truth.shifts[numbers], -axis),
        angles_about(axis, truth.angles[numbers], truth.axis),
    )


def angles_about(axis: float, angles: FloatArray, given_about: float) -> FloatArray:
    """Return (in_plane, tilt, out_of_plane) rad about the tilt axis at ``axis`` rad from those about ``given_about``.

    ``angles`` (tilt, 3); the rotation of the sample in front of the scan stays the same.
    """
    turns = [turn_rotation(rotation_from_angles(*found), given_about - axis) for found in angles]
    return np.array([angles_from_rotation(rotation) for rotation in turns])


def _alignment_figures(found: AlignmentComparison, axis: float) -> dict[str, Any]:
    """Return the figures of an alignment: shifts along the scan's y and x, angles about the tilt axis."""
    names = ("in_plane", "tilt", "out_of_plane")
    shift_errors = turn_vectors(found.shift_errors, axis)
    return {
        "shift_rms_yx_angstrom": [float(v) for v in np.sqrt((shift_errors**2).mean(axis=0))],
        "angle_rms_deg": {n: float(np.degrees(v)) for n, v in zip(names, found.angle_rms)},
    }


def summary(directory: RunDirectory) -> dict[str, str]:
    """Return the figures of a run as a person would read them, from ``quality.json``; empty if it is not there."""
    quality = directory.read_json(directory.quality)
    unit = quality.get("length_unit", "Å")
    rows: dict[str, str] = {}
    if quality.get("data_error") is not None:
        rows["data error Σ(|F|−√I)²/ΣI"] = f"{quality['data_error']:.4f} over {len(quality['tilts'])} tilt(s)"
    rows |= _tilt_rows(quality.get("tilts") or [], unit)
    if quality.get("projection_error") is not None:
        r1 = quality["projection_error"]
        # An empty volume has R1 = 1
        doubt = ": worse than an empty volume, do not trust it; look at the projections and their alignment"
        rows["projection error R1"] = f"{r1:.3f}" + (doubt if r1 >= 1 else "")
    rows |= _resolution_rows(quality.get("resolution") or {}, unit, COARSEST_VOXELS * quality.get("voxel_size", np.inf))
    alignment = quality.get("alignment")
    if alignment:
        y, x = alignment["shift_rms_yx_angstrom"]
        rows["shift errors (rms y, x)"] = f"{y:.3f}, {x:.3f} Å"
        rows["angle errors (rms)"] = ", ".join(f"{k} {v:.3f}°" for k, v in alignment["angle_rms_deg"].items())
    return rows | _atom_rows(quality.get("atoms") or {})


def _tilt_rows(tilts: list[dict[str, Any]], length_unit: str) -> dict[str, str]:
    rows = {}
    names = {
        "r_factor": ("R factor Σ|√Î−√I|/Σ√I", ""),
        "held_out_error": ("data error of held-out patterns", ""),
        "half_bit": ("resolution, FRC half-bit (half scans)", f" {length_unit}"),
    }
    for key, (name, unit) in names.items():
        values = [t[key] for t in tilts if t.get(key) is not None]
        if values:
            rows[name] = f"{np.median(values):.4g}{unit}, at worst {max(values):.4g}{unit}"
    return rows


def _resolution_rows(resolution: dict[str, Any], unit: str, coarsest: float) -> dict[str, str]:
    """Return the rows of a volume's resolution; what is above ``coarsest`` is the missing wedge's, not a figure."""
    rows = {}
    limited = resolution.get("at_nyquist") or []

    def length(value: float, name: str) -> str:
        if value > coarsest:
            return f"none up to {coarsest:.3g} {unit} (missing wedge)"
        return f"{value:.2f} {unit}" + (" (the voxel's limit)" if name in limited else "")

    if resolution.get("half_bit") is not None:
        rows["resolution, FSC half-bit (even/odd tilts)"] = length(resolution["half_bit"], "half_bit")
    for name, value in (resolution.get("half_bit_axes") or {}).items():
        rows[f"  along {name}"] = length(value, f"half_bit {name}")
    for name, value in (resolution.get("last_peak") or {}).items():
        rows[f"last peak of the power spectrum, {name}"] = "none" if value is None else f"{value:.2f} {unit}"
    return rows


def _atom_rows(atoms: dict[str, Any]) -> dict[str, str]:
    if not atoms:
        return {}
    rows = {"atoms": ", ".join(f"{n} {name}" for name, n in atoms["counts"].items())}
    comparison = atoms.get("comparison")
    if comparison:
        within = comparison["tolerance_angstrom"]
        for name, score in comparison["species"].items():
            if score["true"]:
                rows[f"{name} found within {within:g} Å of truth"] = (
                    f"{score['found']} of {score['true']} ({score['found_share']:.1%}), "
                    f"{score['missing']} missing, {score['wrong_species']} misnamed"
                )
        rows["false atoms"] = f"{comparison['false_share']:.1%}"
        z, y, x = comparison["rms_zyx_angstrom"]
        rows["rms displacement"] = f"{comparison['rms_angstrom']:.3f} Å (z {z:.3f}, y {y:.3f}, x {x:.3f})"
    return rows
