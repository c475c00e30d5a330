"""The record of how good each tilt's ptychography is, and the limits that the job sets.

``checkpoints/tilt_0017.quality.json``, plain JSON numbers, null where a figure was not measured:

    tilt, tilt_deg          number in the input file, nominal angle
    sweeps, stopped_early   sweeps made; whether early_stop_tolerance ended them
    used, held_out          figures of the patterns that updates used and of those held out (null without): n_patterns,
                            data_error, r_factor, deviance, log_likelihood, see ``analysis/patterns.py``
    residual                median, p95 and max of the patterns' own data errors, worst_positions (the ten worst)
    mode_powers             share of the power in each probe mode
    drift                   rms_angstrom, max_angstrom, affine_rms_angstrom, mean_yx_angstrom, worst_position
    frc                     half_bit_angstrom, at_nyquist, of half scans; null without

The arrays behind it are in ``projections.h5``, ``tilts/0017/quality``, see ``io/results.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcrec.analysis.patterns import mode_powers, pattern_quality, position_drift, residuals
from hpcrec.analysis.resolution import ShellCorrelation
from hpcrec.backend.array import Array
from hpcrec.errors import DataError
from hpcrec.io.atomic import write_bytes
from hpcrec.run.job import QualitySection
from hpcrec.run.outcome import TiltOutcome

_N_WORST: Final = 10


def quality_record(found: TiltOutcome, frc: ShellCorrelation | None = None) -> dict[str, Any]:
    """Return the record of one tilt, as described above."""
    setup, table = found.setup, found.patterns
    used = np.setdiff1d(np.arange(len(table)), found.held_out)
    residual = residuals(table)
    drift = position_drift(found.positions, setup.positions)
    crossing = None if frc is None else frc.crossing("half_bit")
    return {
        "tilt": setup.number,
        "tilt_deg": math.degrees(setup.angle),
        "sweeps": len(found.loss),
        "stopped_early": found.stopped_early,
        "used": asdict(pattern_quality(table, used)),
        "held_out": asdict(pattern_quality(table, found.held_out)) if len(found.held_out) else None,
        "residual": {
            "median": float(np.median(residual)),
            "p95": float(np.percentile(residual, 95)),
            "max": float(residual.max()),
            "worst_positions": np.argsort(-residual, kind="stable")[:_N_WORST].tolist(),
        },
        "mode_powers": mode_powers(found.probe).tolist(),
        "drift": {
            "rms_angstrom": drift.rms,
            "max_angstrom": drift.largest,
            "affine_rms_angstrom": drift.affine_rms,
            "mean_yx_angstrom": list(drift.mean_yx),
            "worst_position": drift.worst,
        },
        "frc": None
        if crossing is None
        else {"half_bit_angstrom": crossing.resolution, "at_nyquist": crossing.at_nyquist},
    }


def quality_arrays(found: TiltOutcome, frc: ShellCorrelation | None = None) -> dict[str, Array]:
    """Return the arrays behind the record, by the names of ``tilts/0017/quality`` in ``projections.h5``."""
    arrays: dict[str, Array] = {
        "residual": residuals(found.patterns),
        "moves_angstrom": found.positions - found.setup.positions,
        "held_out": found.held_out,
        "held_out_error": found.held_out_error,
    }
    if frc is not None:
        arrays["frc"] = np.stack([frc.frequency, frc.correlation, frc.n_independent])
    return arrays


def quality_path(checkpoints: Path, number: int) -> Path:
    """Return where the record of a tilt lies."""
    return checkpoints / f"tilt_{number:04d}.quality.json"


def write_quality_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record atomically; what is not finite becomes null."""
    write_bytes(path, (json.dumps(_finite(record), indent=2, allow_nan=False) + "\n").encode())


def read_quality_record(path: Path) -> dict[str, Any] | None:
    """Return a record, None where there is none; raises DataError for a damaged one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as fault:
        raise DataError(
            f"{path}: is damaged ({fault}); remove it, and the tilt's .h5 beside it to do it again"
        ) from None
    return dict(found)


def broken_limits(section: QualitySection, number: int, record: Mapping[str, Any] | None) -> list[str]:
    """Return a sentence for each limit that a tilt breaks, or whose figure it lacks."""
    figures = {
        "max_data_error": ("used", "data_error", "data error"),
        "max_held_out_error": ("held_out", "data_error", "data error of the held-out patterns"),
        "max_r_factor": ("used", "r_factor", "R factor"),
        "max_deviance": ("used", "deviance", "deviance"),
        "max_drift_angstrom": ("drift", "rms_angstrom", "drift of the positions"),
        "max_resolution_angstrom": ("frc", "half_bit_angstrom", "resolution"),
    }
    broken = []
    for name, (part, key, words) in figures.items():
        limit = getattr(section, name)
        if limit is None:
            continue
        value = ((record or {}).get(part) or {}).get(key)
        if value is None:
            broken.append(f"tilt {number}: the {words} was not measured, quality.{name} = {limit:g} cannot be judged")
        elif value > limit:
            broken.append(f"tilt {number}: the {words} of {value:.4g} is above quality.{name} = {limit:g}")
    return broken


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
