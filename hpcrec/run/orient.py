"""The orientation doctor: which flip of the frames and which turn of the scan explain the patterns best.

Curl and parallax (``run/evidence.py``) name the turn, the handedness and the lens; short reconstructions of a block of
the scan, scored on patterns that they were not shown, decide between all eight flips. What cannot be told stands in
``direct/orientation.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import scipy

from hpcrec.backend.array import FloatArray, IntArray
from hpcrec.direct.lens import LensFit, astigmatism_of
from hpcrec.direct.orientation import FLIPS, Contest, Orientation, certainty, contest, orientation_of
from hpcrec.errors import ConfigError, DivergedError
from hpcrec.io.base import open_series
from hpcrec.run.config import check_job
from hpcrec.run.evidence import FieldEvidence, field_evidence
from hpcrec.run.job import Job
from hpcrec.run.optics import chosen_slices
from hpcrec.run.picks import compact_subset, tilt_index
from hpcrec.run.trial import Trial, held_out, try_job

logger = logging.getLogger(__name__)

Side = Literal["frames", "positions"]
BATCH: Final = 16
_SAME_TURN: Final = np.radians(1.0)  # as well as a turn is measured
_TURN_STEPS: Final = tuple(np.radians([8.0, 4.0, 2.0, 1.0]))
_NEAR_TURN: Final = np.radians(10.0)
_TOLD: Final = 3.0  # standard errors


@dataclass(frozen=True, kw_only=True)
class Lens:
    """Values of the job's [probe]: defocus (positive: underfocus) and astigmatism in Å, its angle in degrees."""

    defocus: float
    astigmatism: float = 0.0
    angle_deg: float = 0.0
    measured: bool = False

    def options(self) -> dict[str, Any]:
        """Return the keys of the job's [probe]."""
        return {
            "defocus_angstrom": round(self.defocus, 2),
            "astigmatism_angstrom": round(self.astigmatism, 2),
            "astigmatism_angle_deg": round(self.angle_deg, 1),
        }


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One explanation.

    ``orientation`` and the keys of [data] that set it; ``lens``, None where the probe is not computed from one;
    ``trial``, None where it diverged.
    """

    orientation: Orientation
    options: dict[str, Any]
    lens: Lens | None
    trial: Trial | None

    @property
    def label(self) -> str:
        """What is flipped or exchanged, by the names of the keys."""
        columns = [f"columns {c}" for c in [self.options.get("position_columns")] if c is not None]
        return " + ".join([*columns, *(name for name, on in self.options.items() if on is True)]) or "as stored"

    @property
    def error(self) -> float:
        """Σ(|F| − √I)² / ΣI of the patterns held out, infinite where the trial diverged."""
        return np.inf if self.trial is None else self.trial.held_error


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What the doctor found.

    ``ranking`` the best candidate of each flip, best first; ``lead`` of the first over the best other flip;
    ``sure`` "certain", "likely" or "cannot tell", ``because`` in a sentence; ``block`` the tables for the job file.
    """

    tilt: int
    side: Side
    evidence: FieldEvidence
    ranking: tuple[Candidate, ...]
    lead: Contest
    sure: str
    because: str
    notes: tuple[str, ...]
    block: dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What all trials share: the user's job, the one that trials start from, and the block of the scan."""

    given: Job
    job: Job
    side: Side
    i_tilt: int
    subset: IntArray
    held: IntArray

    def attempt(self, orientation: Orientation, lens: Lens | None) -> Candidate:
        """Reconstruct with an orientation and a lens; a wrong one may diverge."""
        options = orientation_options(self.given, self.side, orientation)
        probe = self.job.probe if lens is None else replace(self.job.probe, **lens.options())
        job = replace(self.job, data=replace(self.job.data, **options), probe=probe)
        trial = None
        with open_series(job.data) as series:
            try:
                trial = try_job(job, series, self.i_tilt, self.subset, self.held)
            except DivergedError as fault:
                logger.info("%s, %s: %s", orientation.describe(), lens, fault)
        return Candidate(orientation=orientation, options=options, lens=lens, trial=trial)


def examine(
    raw: Mapping[str, Any],
    tilt: int | None = None,
    *,
    side: Side | None = None,
    turns: Sequence[float] = (),
    n_positions: int = 256,
    iterations: int = 12,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Return the diagnosis of the raw tables of a job.

    ``tilt`` is its number in the input file, default the one nearest to zero. ``side`` says what the block moves: the
    frames, or the positions (the default where the file brings the probe or the field is near: frames then stay as
    stored).
    ``turns`` rad are tried beside those of the job and the evidence; where no lens was fitted, the best one is
    improved. ``n_positions`` in the middle of the scan are reconstructed for ``iterations`` sweeps per candidate;
    ``progress(n_done, n)`` hears of it. Raises :class:`ConfigError` for a job at fault or too few positions.
    """
    given = check_job(raw)
    side = _side(given, side)
    job = check_job(_base_tables(raw, side, iterations))
    with open_series(job.data) as series:
        i_tilt = tilt_index(series, tilt)
        scan = series.tilt(i_tilt)
        if scan.n_positions < 9:
            raise ConfigError(f"tilt {scan.number} has {scan.n_positions} positions; the doctor needs at least 9")
        evidence = field_evidence(job, series, i_tilt)
        subset = compact_subset(scan.positions, min(n_positions, scan.n_positions))
        number = scan.number
    held = held_out(len(subset))
    shared = Examination(given=given, job=job, side=side, i_tilt=i_tilt, subset=subset, held=held)
    plans = candidates(given, side, evidence, turns)
    tried = []
    for done, plan in enumerate(plans):
        tried.append(shared.attempt(*plan))
        if progress is not None:
            progress(done + 1, len(plans))
    if not evidence.lens:
        tried.append(_better_turn(shared, min(tried, key=lambda c: c.error)))
    return _judge(given, side, number, evidence, tried)


def candidates(
    given: Job, side: Side, evidence: FieldEvidence, turns: Sequence[float] = ()
) -> list[tuple[Orientation, Lens | None]]:
    """Return what is tried: eight flips with the turns (rad) that job, caller and evidence name, and their lenses."""
    found = []
    for flip in FLIPS:
        own = float(np.radians(given.data.scan_rotation_deg))
        kept = [-own if side == "positions" and flip.mirrored else own]
        for rotation in [*turns, *(orientation_of(turn).rotation for turn in evidence.turns(flip.mirrored))]:
            if all(abs(rotation - other) > _SAME_TURN for other in kept):
                kept.append(rotation)
        for rotation in kept:
            orientation = replace(flip, rotation=rotation)
            found += [(orientation, lens) for lens in _lenses(given, side, evidence, orientation)]
    return found


def _better_turn(shared: Examination, best: Candidate) -> Candidate:
    """Return the best candidate, turned a little wherever that explains the held-out patterns clearly better."""
    for step in _TURN_STEPS:
        for sign in (1, -1):
            rotation = best.orientation.rotation + sign * step
            other = shared.attempt(replace(best.orientation, rotation=rotation), best.lens)
            if _compare(other, best).sigmas > _TOLD:
                best = other
                break
    return best


def _lenses(given: Job, side: Side, evidence: FieldEvidence, orientation: Orientation) -> list[Lens | None]:
    """Return the job's lens, or both signs of the measured defocus where the job has none; and the measured lens.

    A measured lens belongs to the turn that it was measured with. Its sign of defocus must be the job's.
    """
    probe = given.probe
    if probe.source == "file" or (probe.source == "patterns" and not probe.defocus_angstrom):
        return [None]
    own = Lens(
        defocus=probe.defocus_angstrom,
        astigmatism=probe.astigmatism_angstrom,
        angle_deg=probe.astigmatism_angle_deg,
    )
    fit = evidence.lens.get(orientation.mirrored)
    if fit is None:
        return [own]
    found: list[Lens | None] = [own]
    if not own.defocus:
        best = max(evidence.lens.values(), key=lambda f: f.explained)
        found = [Lens(defocus=sign * abs(best.c10)) for sign in (1.0, -1.0)]
    alignment = float(np.vdot(fit.turn, orientation.turn)) / 2  # cos of the angle between the two
    if abs(alignment) > np.cos(_NEAR_TURN):
        measured = measured_lens(fit if alignment > 0 else fit.conjugate(), orientation, side)
        if not own.defocus or measured.defocus * own.defocus > 0:
            found.append(measured)
    return found


def measured_lens(fit: LensFit, orientation: Orientation, side: Side) -> Lens:
    """Return a fitted lens in the frame of the patterns as the job will see them."""
    d = orientation.flip if side == "frames" else np.eye(2)
    c12, phi12 = astigmatism_of(d @ fit.hessian @ d.T)
    return Lens(defocus=-fit.c10, astigmatism=c12, angle_deg=float(np.degrees(phi12)), measured=True)


def _side(given: Job, asked: Side | None) -> Side:
    """Return what the block is to move; columns can be exchanged only where the job itself names the positions."""
    movable = getattr(given.data, "positions", None) is not None
    if asked == "positions" and not movable:
        raise ConfigError("positions can be moved where data.positions names them only; let the block move the frames")
    if asked is not None:
        return asked
    return "positions" if movable and (given.probe.source == "file" or given.detector.field == "near") else "frames"


def _base_tables(raw: Mapping[str, Any], side: Side, iterations: int) -> dict[str, Any]:
    """Return the job's tables without flips of ``side``, turn and later stages, with the engine of the trials."""
    tables = {k: dict(v) if isinstance(v, Mapping) else v for k, v in raw.items()}
    for later in ("refine", "tomography", "analysis", "parallel"):
        tables.pop(later, None)
    data, section = tables["data"], tables.setdefault("ptychography", {})
    data["scan_rotation_deg"] = 0.0
    if side == "frames":
        data.update(Orientation().frame_options())
    section.update(engine="lsqml", iterations=iterations, batch_size=BATCH, batch_kind="random")
    return tables


def orientation_options(given: Job, side: Side, orientation: Orientation) -> dict[str, Any]:
    """Return the keys of [data] that set an orientation."""
    if side == "frames":
        return dict(orientation.frame_options())
    data = given.data
    return dict(orientation.position_options(data.position_columns, (data.flip_position_y, data.flip_position_x)))


def _judge(given: Job, side: Side, number: int, evidence: FieldEvidence, tried: list[Candidate]) -> Diagnosis:
    """Rank the candidates, and say how sure the first is."""
    ranking = _best_of_each(tried)
    if ranking[0].trial is None:
        raise DivergedError("every trial reconstruction diverged; check the data's units and the probe")
    first, notes = ranking[0], list(evidence.notes)
    if given.probe.source == "file" and side == "frames":
        notes.append("the file's probe was not flipped with the frames: move the positions if the file holds them")
    half_turned = first.orientation.conjugate.describe()
    partner = next(c for c in ranking if c.orientation.describe() == half_turned)
    open_sign = False
    if given.detector.field == "far" and certainty(_compare(first, partner)) == "cannot tell":
        open_sign = True
        notes.append(
            f"'{first.label}' and '{partner.label}' explain the patterns equally, as "
            "object and complex conjugate do in a thin sample; "
        )
        if given.beam is not None and given.beam.kind == "electron":
            if _brightness(partner) > _brightness(first):
                first, partner = partner, first
            notes[-1] += "the one with bright atoms (positive phase) was taken: give the sign of the defocus"
        else:
            notes[-1] += "one of the two was taken: give the sign of the defocus"
    elif given.detector.field == "far" and given.probe.defocus_angstrom and chosen_slices(given) == 1:
        notes.append(
            "the sign of probe.defocus_angstrom decides between an orientation and its half turn: be sure of it"
        )
    ordered = [first, *(c for c in ranking if c is not first)]
    rivals = [c for c in ordered[1:] if not (open_sign and c is partner)]
    lead = _compare(first, rivals[0])
    sure = certainty(lead)
    because = (
        f"held-out patterns have {lead.ratio:.2f} times the error with the next best flip "
        f"({rivals[0].label}), {lead.sigmas:.1f} standard errors more"
        if rivals[0].trial is not None
        else "the reconstructions with all other flips diverged"
    )
    if open_sign and sure == "certain":
        sure, because = "likely", because + ", but the half turn of the frames fits as well"
    if evidence.mirrored is not None and evidence.mirrored != first.orientation.mirrored:
        notes.append("curl or parallax prefer the other handedness: look at the data")
        sure = "cannot tell" if sure == "cannot tell" else "likely"
    block: dict[str, dict[str, Any]] = {"data": dict(first.options)}
    if first.lens is not None:
        block["probe"] = dict(first.lens.options())
    return Diagnosis(
        tilt=number,
        side=side,
        evidence=evidence,
        ranking=tuple(ordered),
        lead=lead,
        sure=sure,
        because=because,
        notes=tuple(notes),
        block=block,
    )


def _best_of_each(tried: list[Candidate]) -> list[Candidate]:
    """Return the best turn and lens of each flip, best first."""
    best: dict[str, Candidate] = {}
    for candidate in tried:
        name = candidate.orientation.describe()
        if name not in best or candidate.error < best[name].error:
            best[name] = candidate
    return sorted(best.values(), key=lambda c: c.error)


def _compare(first: Candidate, second: Candidate) -> Contest:
    """Return how far the first leads; whatever diverged has lost."""
    if first.trial is None:
        return Contest(ratio=0.0, sigmas=-np.inf)
    if second.trial is None:
        return Contest(ratio=np.inf, sigmas=np.inf)
    return contest(first.trial.held_errors, second.trial.held_errors)


def _brightness(candidate: Candidate) -> float:
    """Return the skewness of the phase: positive for bright atoms on a dark ground."""
    phase: FloatArray = candidate.trial.phase if candidate.trial is not None else np.zeros(2)
    return float(scipy.stats.skew(phase, axis=None))
