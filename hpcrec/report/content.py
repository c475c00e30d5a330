"""What a report shows: arrays and figures, filled by the caller. The report itself opens no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpcrec.analysis.atoms import AtomTable
from hpcrec.analysis.quality import QualityReport
from hpcrec.analysis.resolution import LastPeak, ShellCorrelation
from hpcrec.backend.array import Array, FloatArray, IntArray


@dataclass(frozen=True, kw_only=True)
class PatternView:
    """How well the patterns of one tilt are explained.

    ``positions`` (n, 2) Å, refined, and their ``moves`` (n, 2) from the given ones; ``residual`` (n,) data error of
    each pattern; ``held_out`` (k,) indices of patterns that no update used, ``held_out_error`` (iteration,) of these,
    empty without; ``frc`` of two half scans.
    """

    positions: FloatArray
    residual: FloatArray
    moves: FloatArray
    held_out: IntArray
    held_out_error: FloatArray
    frc: ShellCorrelation | None = None


@dataclass(frozen=True, kw_only=True)
class TiltView:
    """One tilt's ptychography; everything but ``index`` and ``phase`` may be missing.

    ``phase`` (y, x) rad, summed over slices; ``slices`` (slice, y, x) rad; ``sampling`` (dy, dx) Å, None if the data
    have pixel units only; ``probe`` (mode, y, x) complex with ``probe_sampling`` Å; ``data_error`` (iteration,);
    ``patterns`` how well they are explained.
    """

    index: int
    phase: FloatArray
    tilt_deg: float | None = None
    slices: FloatArray | None = None
    sampling: tuple[float, float] | None = None
    probe: Array | None = None
    probe_sampling: tuple[float, float] | None = None
    data_error: FloatArray | None = None
    patterns: PatternView | None = None


@dataclass(frozen=True, kw_only=True)
class AlignmentView:
    """The alignment of K tilts.

    ``tilt_deg`` (K,) nominal; ``shifts`` (K, 2) Å along the tilt axis and across; ``angle_corrections_deg`` (K, 3)
    in-plane, tilt minus nominal, out-of-plane; ``history`` (round,) residual, with ``bins`` (round,) pixels to one;
    ``residuals`` (K,) per projection; ``sums_before``, ``sums_after`` (K, x) projections summed along the tilt axis,
    before and after the shifts, with ``pixel_size`` Å.
    """

    tilt_deg: FloatArray
    shifts: FloatArray
    angle_corrections_deg: FloatArray | None = None
    history: FloatArray | None = None
    bins: FloatArray | None = None
    residuals: FloatArray | None = None
    sums_before: FloatArray | None = None
    sums_after: FloatArray | None = None
    pixel_size: float | None = None


@dataclass(frozen=True, kw_only=True)
class VolumeView:
    """The volume (z, y, x) with its ``voxel_size`` Å and the ``convergence`` (iteration,) of its solver."""

    volume: FloatArray
    voxel_size: float
    convergence: FloatArray | None = None


@dataclass(frozen=True, kw_only=True)
class ResolutionView:
    """Shell correlations: ``overall``, and ``directions`` by axis name; ``peaks`` of the spectrum, by direction."""

    overall: ShellCorrelation | None = None
    directions: Mapping[str, ShellCorrelation] = field(default_factory=dict)
    peaks: Mapping[str, LastPeak] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything on the page; parts that a run does not have are left out and their sections vanish.

    ``title``, ``subtitle`` plain text; ``warnings`` sentences shown on top (those of ``quality`` are added);
    ``provenance`` (versions, host, times, input hashes) and ``parameters`` (the job) nested mappings of plain values;
    ``timings`` seconds by stage; ``length_unit`` "Å", or "px" where the data have no other.
    """

    title: str
    subtitle: str = ""
    warnings: Sequence[str] = ()
    tilts: Sequence[TiltView] = ()
    alignment: AlignmentView | None = None
    volume: VolumeView | None = None
    resolution: ResolutionView | None = None
    atoms: AtomTable | None = None
    quality: QualityReport | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    length_unit: str = "Å"
