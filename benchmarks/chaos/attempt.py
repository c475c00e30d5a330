"""One start of a command and all processes that come of it: found by a mark in their environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from benchmarks.chaos.faults import Moment

MARK: Final = "HPCREC_CHAOS_ATTEMPT"
POLL_S: Final = 0.005
LOOK_S: Final = 0.1


class Attempt:
    """A started command in a session of its own; what it writes goes to ``NAME.out`` and ``NAME.err`` in ``folder``.

    Use it as a context manager: whatever is left of it at the end is killed.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], folder: Path, name: str) -> None:
        self.mark = uuid.uuid4().hex
        self.output, self.errors = folder / f"{name}.out", folder / f"{name}.err"
        self.started = time.monotonic()
        with self.output.open("wb") as out, self.errors.open("wb") as err:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**environment, MARK: self.mark},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs, negative if a signal ended it."""
        return self.process.poll()

    @property
    def text(self) -> str:
        """What it wrote so far, standard error last."""
        return "\n".join(path.read_text(errors="replace") for path in (self.output, self.errors))

    def members(self) -> list[int]:
        """Return the ids of all living processes that came of it, whatever group they are in."""
        self.process.poll()
        return [pid for pid in _processes() if _environment(pid).get(MARK) == self.mark]

    def ranks(self) -> dict[int, int]:
        """Return the process ids of the ranks; a rank's own children carry its number too."""
        numbered = {pid: int(e["PMI_RANK"]) for pid in self.members() if "PMI_RANK" in (e := _environment(pid))}
        return {rank: pid for pid, rank in numbered.items() if _parent(pid) not in numbered}

    def workers(self) -> list[int]:
        """Return the ids of Dask's worker processes: those that a nanny, or rank 0 in its place, spawned."""
        return sorted(pid for pid in self.members() if "multiprocessing.spawn" in _command(pid))

    def shared_memory(self) -> set[Path]:
        """Return the named pieces of shared memory that its processes hold: they outlive processes that are killed."""
        lines = (line for pid in self.members() for line in _maps(pid) if "/dev/shm/" in line)
        return {Path(line[line.index("/dev/shm/") :]) for line in lines if not line.endswith("(deleted)")}

    def kill(self) -> list[str]:
        """Kill what is left of it, and return the commands of what there was."""
        found: dict[int, str] = {}
        while members := self.members():
            for pid in members:
                found.setdefault(pid, _command(pid))
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self.process.wait()
        return list(found.values())

    def gone(self, patience: float) -> bool:
        """Wait until no process is left, at most ``patience`` s; whether that came true."""
        deadline = time.monotonic() + patience
        while self.members():
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_S)
        return True


class Follower:
    """Reads an event log as it grows; whole lines only."""

    def __init__(self, path: Path) -> None:
        self.path, self._offset = path, path.stat().st_size if path.exists() else 0
        self.heard = time.monotonic()

    def news(self) -> list[dict[str, Any]]:
        """Return the events since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            block = file.read()
        whole = block[: block.rfind(b"\n") + 1]
        self._offset += len(whole)
        if whole:
            self.heard = time.monotonic()
        return list(_events(whole))


def _events(block: bytes) -> Iterator[dict[str, Any]]:
    for line in block.splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def wait_for(moment: Moment, attempt: Attempt, events: Follower, patience: float) -> bool:
    """Wait for a moment of the attempt; False if it ended before, or told nothing for ``patience`` s."""
    begun = attempt.started
    if moment.stage != "start":
        while not any(_is(moment, event) for event in events.news()):
            if attempt.code is not None or time.monotonic() - events.heard > patience:
                return False
            time.sleep(POLL_S)
        begun = time.monotonic()
    time.sleep(max(begun + moment.delay - time.monotonic(), 0))
    return attempt.code is None


def _is(moment: Moment, event: dict[str, Any]) -> bool:
    name, text = event.get("event"), str(event.get("text", ""))
    if moment.stage == "sweep":
        return name == "sweep" and (event["tilt"], event["iteration"]) == (moment.tilt, moment.number)
    if moment.stage == "workers":
        return name == "stage_started" and event["stage"] == "tomography"
    begins = "aligning" if moment.stage == "alignment" else "volume"
    return name == "stage_progress" and event["done"] == moment.number and text.startswith(begins)


def wait_for_end(attempt: Attempt, events: Follower, silence: float, limit: float = 600.0) -> bool:
    """Wait for the end; False if no event came for ``silence`` s, or the end not within ``limit`` s."""
    began = events.heard = time.monotonic()
    while attempt.code is None:
        events.news()
        if time.monotonic() - events.heard > silence or time.monotonic() - began > limit:
            return False
        time.sleep(POLL_S)
    return True


def wait_until(true: Callable[[], bool], patience: float) -> bool:
    """Wait until something holds, at most ``patience`` s; whether it came to hold."""
    deadline = time.monotonic() + patience
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _environment(pid: int) -> dict[str, str]:
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # ended meanwhile, or another user's
        return {}
    return dict(part.decode(errors="replace").partition("=")[::2] for part in content.split(b"\0") if b"=" in part)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _maps(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        return []


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
