"""What must hold after a fault: how the struck attempt ended, what was done twice, and what the run directory holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.chaos.series import CHECKPOINT_EVERY, ITERATIONS
from hpcrec import errors
from hpcrec.io.results import read_volume

LARGEST_DIFFERENCE: Final = 1e-5
_SENTENCE: Final = re.compile(r"^(?:(?:rank \d+|error|stopped):|rank \d+ \(process) .+", re.MULTILINE)
_WARNING: Final = re.compile(r"^warning: .+", re.MULTILINE)
# What mpiexec says of ranks that died
_BANNER: Final = re.compile(r"BAD TERMINATION|APPLICATION TERMINATED|EXIT STRING|YOUR APPLICATION|mpiexec@|proxy")


def signal_codes(name: str) -> set[int]:
    """Return the exit codes that ``hpcrec.errors`` documents for "SIGTERM" or "SIGUSR1"; none if it does not."""
    lines = (errors.__doc__ or "").splitlines()
    return {int(m[1]) for line in lines if name in line and (m := re.search(r"exit code +(\d+)", line))}


def allowed_codes(kind: str) -> set[int] | None:
    """Return the exit codes with which the struck job may end (0: it went on to its end); None for any but 0."""
    if kind == "full-disk":
        return {0, errors.StorageError.exit_code}
    if kind in ("kill-worker", "kill-remote-worker", "kill-nanny", "kill-scheduler", "hung-rank"):
        return {0, errors.ParallelError.exit_code}
    # What mpiexec itself does with a signal, and answers, is its own affair
    codes = signal_codes(f"SIG{kind.removesuffix('-rank').upper()}") if kind in ("term-rank", "usr1-rank") else set()
    return {0} | codes if codes else None


def sentence(text: str) -> str:
    """Return what the job said of its end, or of how it went on; else a word for the launcher's banner."""
    told = _SENTENCE.findall(text) or _WARNING.findall(text)
    return told[-1].strip() if told else "(launcher's banner)" if _BANNER.search(text) else ""


def end_faults(kind: str, code: int | None, text: str, missed: bool) -> list[str]:
    """Return what was wrong with the end of the struck attempt; ``missed``: it was over before the strike."""
    faults = []
    if "Traceback (most recent call last)" in text:
        faults.append("traceback")
    if missed or code is None:
        return faults
    allowed = allowed_codes(kind)
    if allowed is not None and code not in allowed:
        faults.append(f"exit code {code}, expected {' or '.join(map(str, sorted(allowed)))}")
    if allowed is not None and code and not _SENTENCE.search(text):
        faults.append("no sentence")
    if allowed is None and code == 0 and kind.startswith("kill-"):
        faults.append("exit code 0 of a killed job")
    return faults


def lost_sweeps(events: list[dict[str, Any]]) -> dict[int, int]:
    """Return for each tilt that was continued how many of its sweeps, at most, were done once more."""
    reached: dict[int, int] = {}
    lost: dict[int, int] = {}
    for event in events:
        tilt = event.get("tilt")
        if event.get("event") == "tilt_started" and tilt in reached:
            lost[tilt] = max(lost.get(tilt, 0), reached[tilt] - event["resumed_at"])
        elif event.get("event") == "sweep":
            reached[int(event["tilt"])] = event["iteration"]
    return lost


def aligned_again(events: list[dict[str, Any]]) -> bool:
    """Whether rounds of alignment were done after the volume had been begun."""
    texts = [str(e.get("text", "")) for e in events if e.get("event") == "stage_progress"]
    first = next((i for i, text in enumerate(texts) if text.startswith("volume")), len(texts))
    return any(text.startswith("aligning") for text in texts[first:])


def loss_faults(damaged: str, events: list[dict[str, Any]]) -> list[str]:
    """Return what was lost beyond the last checkpoint, or beyond the one before where the last was damaged."""
    most, excused = CHECKPOINT_EVERY, -1
    if damaged.startswith("sweeps_"):
        most = 2 * CHECKPOINT_EVERY
    if damaged.startswith("tilt_"):
        excused = int(damaged.removeprefix("tilt_").split(".")[0])
    faults = [
        f"tilt {tilt}: {n} sweeps lost"
        for tilt, n in lost_sweeps(events).items()
        if n > (ITERATIONS if tilt == excused else most)
    ]
    # The alignment belongs to its projections: where those or it were damaged it may come again
    if aligned_again(events) and not damaged:
        faults.append("aligned again")
    return faults


def contents(folder: Path) -> set[str]:
    """Return the names of all files of a run directory, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def volume_difference(out: Path, undisturbed: Path) -> float:
    """Return |v − u| / |u| of the two volumes."""
    found, wanted = (read_volume(folder / "volume.h5").volume for folder in (out, undisturbed))
    if found.shape != wanted.shape:
        return float("inf")
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def result_faults(out: Path, undisturbed: Path, difference: float) -> list[str]:
    """Return how the finished run differs from the undisturbed one: volume, files, FFTW's plans."""
    faults = []
    if not difference <= LARGEST_DIFFERENCE:
        faults.append(f"volume differs by {difference:.1e}")
    have, want = contents(out), contents(undisturbed)
    if have - want:
        faults.append(f"left over: {', '.join(sorted(have - want))}")
    if want - have:
        faults.append(f"missing: {', '.join(sorted(want - have))}")
    plans = Path("checkpoints") / "fftw_wisdom"
    if (out / plans).exists() and (out / plans).read_bytes() != (undisturbed / plans).read_bytes():
        faults.append("other FFTW plans")
    return faults
