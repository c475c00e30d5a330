"""One fault from start to end: the struck attempt, the damage, the restarts, the judgement."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.chaos import strikes, verdict
from benchmarks.chaos.attempt import Attempt, Follower, wait_for, wait_for_end
from benchmarks.chaos.dask_cluster import DaskCluster, dask_cluster
from benchmarks.chaos.faults import KINDS, Fault
from benchmarks.chaos.series import Ranks, environment, make_series, run_command
from hpcrec.run.observers import read_events

HANG_S: Final = 60.0  # without an event, and without an end
COMPILE_S: Final = 900.0  # of the undisturbed run, which may have to compile every kernel first
START_S: Final = 180.0  # of an attempt that nothing has struck: processes of a busy machine start slowly
GONE_S: Final = 10.0  # for processes to follow their parents
RESTARTS: Final = 3


@dataclass
class Course:
    """What happened: filled in as it does. ``seconds`` from the strike to the end of the struck attempt.

    ``shm_mib`` : shared memory that was left behind; it is told, not judged, because MPI's library makes it
    """

    fault: Fault
    struck: str = ""
    seconds: float | None = None
    code: int | None = None
    sentence: str = ""
    damaged: str = ""
    lost: int = 0
    restarts: int = 0
    difference: float | None = None
    shm_mib: float = 0.0
    faults: list[str] = field(default_factory=list)

    def row(self) -> dict[str, object]:
        """Return it as a row of the table."""
        fault = self.fault
        where = f"{fault.moment}, {fault.ranks}"
        return {
            "n": fault.index,
            "fault": fault.kind,
            "where": where + (f": {self.struck}" if self.struck else ""),
            "damage": self.damaged,
            "s to end": None if self.seconds is None else round(self.seconds, 1),
            "code": self.code,
            "sentence": self.sentence,
            "lost": self.lost,
            "restarts": self.restarts,
            "difference": self.difference,
            "MiB shm left": self.shm_mib,
            "verdict": "FAILED: " + "; ".join(self.faults) if self.faults else "ok",
        }


class Chaos:
    """The series, the undisturbed runs of it, and the faults struck into others; all below ``folder``."""

    def __init__(self, folder: Path, hang_s: float = HANG_S) -> None:
        self.folder, self.hang_s = folder, hang_s
        self.job = make_series(folder)
        self.environment = environment(folder)
        self._undisturbed: dict[Ranks, Path] = {}
        self._plans = b""

    def undisturbed(self, ranks: Ranks) -> Path:
        """Return the run directory of the job without a fault; made when first asked for."""
        if ranks not in self._undisturbed:
            home = self.folder / f"undisturbed-{ranks}"
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            began = time.monotonic()
            code, text, _ = self._finish(home / "out", home, ranks, "run", remote=False, patience=COMPILE_S)
            if code != 0:
                raise RuntimeError(f"the undisturbed run ended with {code}, see {home}:\n{text[-2000:]}")
            print(f"undisturbed, {ranks}: {time.monotonic() - began:.1f} s", flush=True)
            self._undisturbed[ranks] = home / "out"
            self._plans = self._cached_plans()
        return self._undisturbed[ranks]

    def _cached_plans(self) -> bytes:
        files = sorted(path for path in (self.folder / "cache").rglob("*") if path.is_file())
        return b"".join(path.name.encode() + path.read_bytes() for path in files)

    def run(self, fault: Fault) -> Course:
        """Strike one fault and return its course; the run directory of one that failed is kept."""
        undisturbed = self.undisturbed(fault.ranks)
        home = self.folder / f"fault-{fault.index:03d}-{fault.kind}"
        shutil.rmtree(home, ignore_errors=True)
        course = Course(fault)
        with strikes.disk(home / "disk", small=fault.kind == "full-disk") as place:
            out = place.folder / "out"
            self._disturb(course, out, home, place)
            place.release()
            course.damaged = strikes.damage(fault, out)
            self._restart(course, out, home)
            self._judge(course, out, undisturbed)
            if course.faults and place.mounted:
                shutil.copytree(out, home / "out", dirs_exist_ok=True)
        if not course.faults:
            shutil.rmtree(home)
        return course

    @contextmanager
    def _cluster(self, home: Path, name: str, remote: bool) -> Iterator[DaskCluster | None]:
        if not remote:
            yield None
            return
        with dask_cluster(self.environment, home, name) as cluster:
            yield cluster

    def _disturb(self, course: Course, out: Path, home: Path, place: strikes.Disk) -> None:
        """Start, strike, and watch the end."""
        fault = course.fault
        with self._cluster(home, "struck", KINDS[fault.kind].remote) as cluster:
            command = run_command(self.job, out, fault.ranks, cluster.address if cluster else "")
            events = Follower(out / "events.jsonl")
            shared: set[Path] = set()
            with Attempt(command, self.environment, home, "struck") as attempt:
                if wait_for(fault.moment, attempt, events, START_S):
                    shared = attempt.shared_memory()
                    course.struck = strikes.strike(fault, attempt, cluster, place)
                elif attempt.code is None:
                    course.faults.append("hang before the strike")
                if not course.struck:
                    course.struck = "MISSED"
                began = time.monotonic()
                if wait_for_end(attempt, events, self.hang_s):
                    course.seconds = time.monotonic() - began
                else:
                    course.faults.append(f"hang: no event for {time.monotonic() - events.heard:.0f} s")
                course.code = attempt.code
                if course.code is not None and not attempt.gone(GONE_S):
                    course.faults.append(f"left running: {'; '.join(sorted(set(attempt.kill())))[:200]}")
                text = attempt.text
        course.shm_mib = _given_back(shared)
        course.sentence = verdict.sentence(text)
        course.faults += verdict.end_faults(fault.kind, course.code, text, course.struck == "MISSED")

    def _restart(self, course: Course, out: Path, home: Path) -> None:
        """Start again until it is done. A job that nothing damaged must say nothing of tracebacks either."""
        code = course.code
        while code != 0 and course.restarts < RESTARTS:
            course.restarts += 1
            name = f"restart-{course.restarts}"
            fault = course.fault
            code, text, ended = self._finish(out, home, fault.ranks, name, remote=KINDS[fault.kind].remote)
            found = [] if ended else ["restarted: hang"]
            if ended and code:
                told = verdict.sentence(text).replace(f"{out}/", "")
                found.append(f"restarted: exit code {code}, {told}")
            if "Traceback (most recent call last)" in text:
                found.append("restarted: traceback")
            course.faults += [one for one in found if one not in course.faults]
        # What is damaged after the job was done is found by the next start
        if code == 0 and course.damaged and not course.restarts:
            course.faults.append("nothing to restart: the job was done before the damage")

    def _finish(
        self, out: Path, home: Path, ranks: Ranks, name: str, *, remote: bool, patience: float = START_S
    ) -> tuple[int | None, str, bool]:
        """Start the job and wait for its end; return exit code, what it wrote, and whether it ended by itself."""
        with self._cluster(home, name, remote) as cluster:
            command = run_command(self.job, out, ranks, cluster.address if cluster else "")
            events = Follower(out / "events.jsonl")
            with Attempt(command, self.environment, home, name) as attempt:
                ended = wait_for_end(attempt, events, patience, limit=2 * COMPILE_S)
                return attempt.code, attempt.text, ended

    def _judge(self, course: Course, out: Path, undisturbed: Path) -> None:
        events = read_events(out / "events.jsonl")
        course.lost = max(verdict.lost_sweeps(events).values(), default=0)
        course.faults += verdict.loss_faults(course.damaged, events)
        if (out / "volume.h5").exists():
            course.difference = verdict.volume_difference(out, undisturbed)
            course.faults += verdict.result_faults(out, undisturbed, course.difference)
        else:
            course.faults.append("no volume")
        if self._cached_plans() != self._plans:
            course.faults.append("the cache of FFTW plans changed")


def _given_back(shared: set[Path]) -> float:
    """Remove what is left of an attempt's shared memory once its processes are gone; return how many MiB that was."""
    left = [path for path in shared if path.exists()]
    size = sum(path.stat().st_blocks * 512 for path in left)
    for path in left:
        path.unlink(missing_ok=True)
    return round(size / 2**20, 2)
