"""Signs of life: each rank gives them in a file of its own and looks after others; a rank that is gone ends the job.

A thread writes what the rank's main thread does, every few seconds: so a rank that computes or waits for long still
gives signs, and one that was stopped, or whose machine is lost, gives none. The ranks of a machine look after one
another in a ring, and so do all ranks; of any that are gone, one has a neighbour who notices. Those on the same machine
also look whether the process uses its processor, for compiled code may keep the thread from running.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Literal

from hpcrec.errors import ParallelError, StorageError
from hpcrec.parallel import mpi
from hpcrec.parallel.communicator import Communicator

logger = logging.getLogger(__name__)

_BEAT_S: Final = 5.0
_BEATS_WITHIN_PATIENCE: Final = 8
# Of the patience: for a rank on whose machine nobody else can look at its process
_FAR: Final = 3.0
# Ranks that all wait for one another, none of which computes
_NOBODY_S: Final = 600.0
_RECORD_BYTES: Final = 1024
_MOST_LINES: Final = 32
_LEAVE_S: Final = 0.02
_SAY_S: Final = 1.0  # a launcher forwards what ranks wrote only until it hears of the end
_PACKAGE: Final = str(Path(__file__).parents[1]) + os.sep
_WAITING: Final = tuple(f"parallel{os.sep}{name}.py" for name in ("mpi", "queue", "flight"))
# States of a process in /proc: suspended, traced, dead
_STOPPED: Final = "Tt"
_DEAD: Final = "ZXx"

Record = Mapping[str, Any]


@dataclass
class _Doing:
    """What the main thread does: in words, and how many steps it has done of that."""

    text: str = "starts"
    patient: bool = True
    steps: int = 0


_doing = _Doing()


def now(text: str, *, patient: bool = False) -> None:
    """Tell what this rank does from now on; ``patient``: it may take any time without :func:`step`."""
    _doing.text, _doing.patient = text, patient
    _doing.steps += 1


def step() -> None:
    """Tell that this rank has got on with it."""
    _doing.steps += 1


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank runs: machine and process, and when that began (clock ticks; None where it cannot be seen)."""

    rank: int
    host: str
    pid: int
    began: int | None

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


@dataclass
class _Peer:
    """A rank that this one looks after."""

    place: Place
    near: bool
    beat: int = -1
    ticks: int = -1
    alive: float = field(default_factory=time.monotonic)


class Watch:
    """Gives signs of life of this rank and looks after others, within a ``with`` block; making it is collective.

    ``folder`` : shared by all ranks, made and removed by the first
    ``patience_s`` : without signs of life, after which a rank counts as gone; 0: for ever
    ``stall_s`` : within one step, after which a rank counts as lost in an endless loop; 0: for ever. Where all wait
        and none computes, ten minutes are enough

    What is found is told on standard error, with where each rank is, and the job ends with the exit code of
    :class:`ParallelError`. One rank alone needs nobody.
    """

    def __init__(self, world: Communicator, folder: Path, patience_s: float, stall_s: float) -> None:
        self._rank, self._folder = world.rank, folder
        self._patience_s, self._stall_s = max(patience_s, 0.0), max(stall_s, 0.0)
        self._beat_s = min(_BEAT_S, self._patience_s / _BEATS_WITHIN_PATIENCE) or _BEAT_S
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._left = False
        if world.size == 1 or not (self._patience_s or self._stall_s):
            return
        if world.rank == 0:
            _make_folder(folder)
        here = Place(rank=world.rank, host=os.uname().nodename, pid=os.getpid(), began=_began(os.getpid()))
        self._places: list[Place] = world.broadcast(world.gather(here))
        self._file = os.open(_path(folder, world.rank), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        self._main = threading.get_ident()
        self._beats, self._steps = 0, -1
        self._moved = self._last = time.monotonic()
        self._position: tuple[str, float] = ("", self._moved)
        self._peers = _peers(self._places, here)
        self._write()
        world.barrier()
        self._thread = threading.Thread(target=self._run, name="signs of life", daemon=True)
        self._thread.start()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if self._thread is not None:
            self._left = True
            self._write()
            if error is None:
                self._await_peers()
            self._closing.set()
            self._thread.join()
            os.close(self._file)
            if self._rank == 0:
                shutil.rmtree(self._folder, ignore_errors=True)
        return False

    def _await_peers(self) -> None:
        """Look after others until they leave too: a rank that is suspended now would hold up MPI's own end."""
        while self._folder.exists():
            records = [read_record(self._folder, peer.place.rank) for peer in self._peers]
            if all(record is not None and record["left"] for record in records):
                return
            time.sleep(_LEAVE_S)

    def _run(self) -> None:
        while not self._closing.wait(self._beat_s):
            try:
                self._tick()
            except OSError as fault:
                logger.warning("no signs of life can be given or read: %s", fault)
                return

    def _tick(self) -> None:
        moment = time.monotonic()
        if moment - self._last > 3 * self._beat_s:
            # This rank was suspended itself, likely with all others
            for peer in self._peers:
                peer.alive = moment
            self._moved = moment
        self._last = moment
        self._beats += 1
        self._write()
        for peer in self._peers:
            found = self._fault(peer, moment)
            if found:
                self._end(peer.place, found)
        self._find_deadlock()

    def _write(self) -> None:
        """Write this rank's record in one piece."""
        text = json.dumps(self._record())
        os.pwrite(self._file, text[:_RECORD_BYTES].ljust(_RECORD_BYTES).encode("ascii"), 0)

    def _record(self) -> dict[str, Any]:
        """Return what the main thread does, where it is, since when, and since when it has done no step."""
        moment = time.monotonic()
        if _doing.steps != self._steps:
            self._steps, self._moved = _doing.steps, moment
        where, waits = position(sys._current_frames().get(self._main))
        mark = f"{_doing.steps} {where.partition(' < ')[2] if waits else where}"
        if mark != self._position[0]:
            self._position = (mark, moment)
        return {
            "pid": os.getpid(),
            "beat": self._beats,
            "left": self._left,
            "doing": _doing.text[:200],
            "patient": _doing.patient,
            "where": where[:400],
            "waits": waits,
            "there_s": round(moment - self._position[1], 1),
            "idle_s": round(moment - self._moved, 1),
        }

    def _fault(self, peer: _Peer, moment: float) -> str:
        """Return what is wrong with a rank, nothing where all is well."""
        record = read_record(self._folder, peer.place.rank)
        if record is not None and record["left"]:
            peer.alive = moment
            return ""
        if record is not None and record["beat"] != peer.beat:
            peer.beat, peer.alive = record["beat"], moment
            stalls = self._stall_s and not record["patient"] and not record["waits"]
            late = stalls and record["idle_s"] > self._stall_s
            return f"has got no further for {record['idle_s']:.0f} s" if late else ""
        if not self._patience_s:
            return ""
        state, ticks = _pulse(peer.place) if peer.near else ("", -1)
        if (state and state not in _STOPPED + _DEAD and ticks != peer.ticks) or state == "D":
            peer.ticks, peer.alive = ticks, moment
        silent = moment - peer.alive
        if silent < self._patience_s * (1.0 if peer.near else _FAR):
            return ""
        reason = "its process is suspended" if state and state in _STOPPED else "its process hangs"
        if state and state in _DEAD:
            reason = "its process has died"
        if not peer.near:
            reason = "its process, its machine or the way there is lost"
        return f"has given no sign of life for {silent:.0f} s: {reason}"

    def _find_deadlock(self) -> None:
        """End the job where every rank waits for another, and has for long."""
        own, limit = self._record(), min(self._stall_s, _NOBODY_S)
        if not limit or not _stuck(own, limit):
            return
        records = [read_record(self._folder, place.rank) for place in self._places]
        if all(record is not None and _stuck(record, limit) for record in records):
            self._end(self._places[self._rank], f"and all others wait for one another, for {own['there_s']:.0f} s")

    def _end(self, place: Place, fault: str) -> None:
        """Tell what was found and where each rank is, once, and end the job."""
        try:
            os.close(os.open(self._folder / "found", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            sys.stderr.write("\n".join([f"{place} {fault}; the job ends", *self._report(place), ""]))
            sys.stderr.flush()
            time.sleep(_SAY_S)
        except FileExistsError:
            time.sleep(3 * _SAY_S)
        finally:
            mpi.end_at_once(ParallelError.exit_code)

    def _report(self, gone: Place) -> list[str]:
        """Return a line for each rank: what it does and where it is; of the one that is gone, what it told last."""
        lines = []
        for place in self._places[:_MOST_LINES]:
            record = self._record() if place.rank == self._rank else read_record(self._folder, place.rank)
            last = "when last heard: " if place == gone != self._places[self._rank] else ""
            lines.append(f"  {place}: {last}{_told(record)}")
        if len(self._places) > _MOST_LINES:
            lines.append(f"  and {len(self._places) - _MOST_LINES} more ranks")
        return lines


def _make_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except OSError as fault:
        raise StorageError(f"cannot make {folder}: {fault.strerror}; choose another --out") from None


def _peers(places: list[Place], here: Place) -> list[_Peer]:
    """Return whom a rank looks after: the next on its machine whose process it sees, and the next of all."""
    after = [*places[here.rank + 1 :], *places[: here.rank]]
    near = [p for p in after if p.host == here.host and p.began is not None and _began(p.pid) == p.began]
    peers = [_Peer(near[0], near=True)] if near else []
    return peers if near and near[0] == after[0] else [*peers, _Peer(after[0], near=after[0] in near)]


def _stuck(record: Record, limit: float) -> bool:
    waits = record["waits"] and not record["patient"] and not record["left"]
    return bool(waits) and float(record["there_s"]) > limit


def _told(record: Record | None) -> str:
    if record is None:
        return "has told nothing"
    if record["left"]:
        return "has left"
    verb = "waits" if record["waits"] else "is"
    return f"{record['doing']}; {verb} in {record['where'] or 'code of other packages'} for {record['there_s']:.0f} s"


def read_record(folder: Path, rank: int) -> Record | None:
    """Return the last sign of life of a rank; None where there is none, or it is just being written."""
    try:
        record: dict[str, Any] = json.loads(_path(folder, rank).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return record


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank:05d}.json"


def position(frame: FrameType | None) -> tuple[str, bool]:
    """Return where a thread is, in functions of this package, and whether it waits for other ranks."""
    frames = []
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PACKAGE):
            frames.append(frame)
        frame = frame.f_back
    if not frames:
        return "", False
    waits = frames[0].f_code.co_filename.endswith(_WAITING)
    callers = [f for f in frames if not f.f_code.co_filename.endswith(_WAITING)]
    names = [frames[0].f_code.co_qualname] if waits else []
    for f in callers[: 2 if waits else 3]:
        names.append(f"{f.f_code.co_qualname} ({f.f_code.co_filename.removeprefix(_PACKAGE)}:{f.f_lineno})")
    return " < ".join(names), waits


def _pulse(place: Place) -> tuple[str, int]:
    """Return the state of a process on this machine, X where it is gone, and the clock ticks it has used."""
    fields = _stat(place.pid)
    if fields is None or int(fields[19]) != place.began:
        return "X", -1
    return fields[0], int(fields[11]) + int(fields[12])


def _began(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on; None where there is no such process, or no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
