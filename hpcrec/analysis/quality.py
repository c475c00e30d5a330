"""The figures that say how good a run is, gathered in one frozen record: the content of ``quality.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from hpcrec.analysis.atoms import AtomTable
from hpcrec.analysis.compare import AtomComparison
from hpcrec.analysis.resolution import LastPeak, ShellCorrelation
from hpcrec.backend.array import Array

_MASS_SPREAD = 0.15
_HIGH_ERROR = 3.0


@dataclass(frozen=True, kw_only=True)
class TiltQuality:
    """Ptychography of one tilt: ``data_error`` Σ(|F| − √I)²/ΣI, its ``mass`` rad·Å², and doubts.

    ``held_out_error`` the data error of patterns that no update used; ``r_factor`` Σ|√Î − √I|/Σ√I, ``deviance`` per
    good pixel and ``log_likelihood`` of the patterns used; ``mode_powers`` shares of the probe's modes; ``drift`` rms
    distance (Å) of refined positions from the given ones; ``half_bit`` resolution (Å) of the ring correlation of two
    half scans.
    """

    index: int
    tilt_deg: float | None = None
    data_error: float | None = None
    mass: float | None = None
    n_residues: int | None = None
    doubtful: bool = False
    held_out_error: float | None = None
    r_factor: float | None = None
    deviance: float | None = None
    log_likelihood: float | None = None
    mode_powers: Sequence[float] = ()
    drift: float | None = None
    half_bit: float | None = None


@dataclass(frozen=True, kw_only=True)
class ResolutionQuality:
    """Resolution in Å; None where a figure was not measured.

    ``half_bit``, ``one_bit``, ``fsc_0143`` from the shell correlation; ``half_bit_axes`` (z, y, x) from 20° cones;
    ``at_nyquist`` names of figures limited by the voxel; ``last_peak`` per direction, for crystals only.
    """

    half_bit: float | None = None
    one_bit: float | None = None
    fsc_0143: float | None = None
    half_bit_axes: Mapping[str, float] = field(default_factory=dict)
    at_nyquist: Sequence[str] = ()
    last_peak: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AtomQuality:
    """``counts`` per species, median ``confidence``, number of ``doubtful`` atoms (confidence < 0.9).

    ``comparison`` holds found, missing, false, wrong per species and the rms displacement, when a model was given.
    """

    counts: Mapping[str, int]
    confidence: float
    doubtful: int
    comparison: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class QualityReport:
    """All figures of a run; every part may be missing.

    ``data_error`` counts-weighted or mean over the tilts; ``projection_error`` Σ|p − P V|/Σ|p| over all projections
    (R1) and ``held_out_error`` the same for projections left out of the reconstruction; ``broken_limits`` a sentence
    for each limit of the job that a tilt breaks.
    """

    tilts: Sequence[TiltQuality] = ()
    data_error: float | None = None
    projection_error: float | None = None
    held_out_error: float | None = None
    resolution: ResolutionQuality | None = None
    atoms: AtomQuality | None = None
    warnings: Sequence[str] = ()
    broken_limits: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, numbers and strings for a JSON file; what is not finite becomes None."""
        plain: dict[str, Any] = _plain(self)
        return plain


def summarise_tilts(tilts: Sequence[TiltQuality]) -> tuple[float | None, list[str]]:
    """Return the mean data error and the warnings about single tilts.

    Warned of: doubtful unwrapping, a data error above three times the median, and masses that scatter by more than
    15 %: the projected phase of an isolated particle has the same sum at every tilt, so a spread shows lost low
    frequencies, damage or a field too small.
    """
    errors = np.array([t.data_error for t in tilts if t.data_error is not None], np.float64)
    warnings = [f"tilt {t.index}: too many phase residues, unwrapping is doubtful" for t in tilts if t.doubtful]
    if len(errors):
        limit = _HIGH_ERROR * float(np.median(errors))
        warnings += [
            f"tilt {t.index}: data error {t.data_error:.3g} is more than {_HIGH_ERROR:g} × the median"
            for t in tilts
            if t.data_error is not None and t.data_error > limit
        ]
    masses = np.array([t.mass for t in tilts if t.mass is not None], np.float64)
    if len(masses) > 2 and masses.std() > _MASS_SPREAD * abs(masses.mean()):
        warnings.append(
            f"the summed phase varies by {masses.std() / abs(masses.mean()):.0%} (rms) from tilt to tilt; it should be "
            "the same for an isolated particle"
        )
    return (float(errors.mean()) if len(errors) else None), warnings


def resolution_quality(
    overall: ShellCorrelation | None,
    directions: Mapping[str, ShellCorrelation] | None = None,
    peaks: Mapping[str, LastPeak] | None = None,
) -> ResolutionQuality:
    """Gather the figures of shell correlations and last peaks."""
    crossings = {} if overall is None else {name: overall.crossing(name) for name in ("half_bit", "one_bit", "0.143")}
    cones = {name: curve.crossing("half_bit") for name, curve in (directions or {}).items()}
    limited = [name for name, c in crossings.items() if c.at_nyquist]
    limited += [f"half_bit {name}" for name, c in cones.items() if c.at_nyquist]
    return ResolutionQuality(
        half_bit=crossings["half_bit"].resolution if crossings else None,
        one_bit=crossings["one_bit"].resolution if crossings else None,
        fsc_0143=crossings["0.143"].resolution if crossings else None,
        half_bit_axes={name: c.resolution for name, c in cones.items()},
        at_nyquist=limited,
        last_peak={name: peak.resolution for name, peak in (peaks or {}).items()},
    )


def atom_quality(atoms: AtomTable, comparison: AtomComparison | None = None) -> AtomQuality:
    """Gather the figures of traced atoms, with those of a comparison to a model where there is one."""
    return AtomQuality(
        counts=atoms.counts(),
        confidence=float(np.median(atoms.confidence)) if len(atoms) else float("nan"),
        doubtful=int((atoms.confidence < 0.9).sum()),
        comparison=None if comparison is None else comparison_figures(comparison),
    )


def comparison_figures(comparison: AtomComparison) -> dict[str, Any]:
    """Return the figures of a comparison as a plain dict: counts and shares per species, rms in Å, motion removed."""
    species = {
        name: {
            "true": s.n_true,
            "found": s.found,
            "wrong_species": s.wrong_species,
            "missing": s.missing,
            "false": s.n_false,
            "found_share": s.found_share,
            "false_share": s.false_share,
        }
        for name, s in comparison.species.items()
    }
    return {
        "tolerance_angstrom": comparison.tolerance,
        "species": species,
        "false_share": comparison.false_share,
        "rms_angstrom": comparison.rms,
        "rms_zyx_angstrom": list(comparison.rms_axes),
        "removed_shift_zyx_angstrom": comparison.registration.shift.tolist(),
        "removed_rotation_deg": float(np.degrees(comparison.registration.angle)),
    }


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(_listed(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _listed(value: Array | np.generic) -> Any:
    return value.tolist()
