"""Who listens to a run: the event log and the progress display. Events are flat dicts with an ``event`` name.

Events of the ptychography stage: ``tilt_started`` (tilt, iterations, n_positions, resumed_at, slices), ``sweep`` (tilt,
iteration, loss, data_error, held_out_error where there are such patterns, seconds, patterns_per_s), ``part_sweep`` (the
same and part: of a coarse start or a half scan), ``tilt_done`` (tilt, data_error, seconds, patterns_per_s,
peak_memory_gib), ``cores_lent`` (tilt, iteration, threads from there on). Of all stages: ``stage_started`` (stage,
text), ``stage_progress`` (stage, done, total, text), ``stage_done`` (stage, seconds), ``warning`` (text), ``note``
(text).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hpcrec.errors import StorageError
from hpcrec.run.provenance import now

Event: TypeAlias = Mapping[str, Any]
Observer: TypeAlias = Callable[[Event], None]


class EventLog:
    """Append each event as a line of JSON to ``events.jsonl``, with its time.

    A line that a crash or a full disk cut short stays as it is; the next event begins a line of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cut = _ends_within_a_line(path)

    def __call__(self, event: Event) -> None:
        """Write one event."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._cut + json.dumps({"time": now(), **event}) + "\n")
            self._cut = False
        except OSError as fault:
            raise StorageError(
                f"cannot write {self.path}: {fault.strerror}; free some space, then start again"
            ) from None


def _ends_within_a_line(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return all events of a log; lines cut short by a crash are left out."""
    if not path.exists():
        return []
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


class PlainProgress:
    """Progress as plain lines, for logs of batch jobs: stages, finished tilts, and a sweep every ``interval`` s."""

    def __init__(self, console: Console, n_tilts: int, interval: float = 20.0) -> None:
        self.console, self.n_tilts, self.interval = console, n_tilts, interval
        self.done = 0
        self.last = 0.0
        self.started = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Print a line for an event worth one."""
        text = self._text(event)
        if text:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _text(self, event: Event) -> str:
        name = event["event"]
        if name == "tilt_done":
            self.done += 1
            left = (time.monotonic() - self.started) / self.done * (self.n_tilts - self.done)
            return (
                f"tilt {event['tilt']} done ({self.done}/{self.n_tilts}): data error {event['data_error']:.4f}, "
                f"{event['patterns_per_s']:.0f} patterns/s, about {left:.0f} s left"
            )
        if name in ("sweep", "part_sweep", "stage_progress"):
            if time.monotonic() - self.last < self.interval:
                return ""
            self.last = time.monotonic()
        return describe(event)

    def close(self) -> None:
        """Nothing to clean up."""


def describe(event: Event) -> str:
    """Return an event as a line of text; empty for those that need none."""
    match event["event"]:
        case "stage_started":
            return f"── {event['stage']}: {event['text']}"
        case "stage_done":
            return f"   {event['stage']} done in {event['seconds']:.1f} s"
        case "stage_progress":
            return f"   {event['stage']} {event['done']}/{event['total']} {event['text']}"
        case "sweep":
            return (
                f"   tilt {event['tilt']} sweep {event['iteration']}: loss {event['loss']:.4g}, "
                f"data error {event['data_error']:.4f}, {event['patterns_per_s']:.0f} patterns/s"
            )
        case "part_sweep":
            return f"   tilt {event['tilt']}, {event['part']}, sweep {event['iteration']}: loss {event['loss']:.4g}"
        case "warning":
            return f"warning: {event['text']}"
        case "note":
            return f"   {event['text']}"
    return ""


class BarProgress:
    """Progress bars for a terminal: the tilts, each tilt in work, and the steps of the later stages."""

    def __init__(self, console: Console, n_tilts: int) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
        )
        self.n_tilts = n_tilts
        self.tasks: dict[str, TaskID] = {}
        self.progress.start()

    def __call__(self, event: Event) -> None:
        """Move the bar an event belongs to."""
        name = event["event"]
        if name == "tilt_started":
            self._bar(f"tilt {event['tilt']}", event["iterations"])
        elif name == "sweep":
            text = f"error {event['data_error']:.4f}  {event['patterns_per_s']:.0f} patterns/s"
            self._move(f"tilt {event['tilt']}", event["iteration"], text)
        elif name == "tilt_done":
            self._remove(f"tilt {event['tilt']}")
            self.progress.advance(self._bar("tilts", self.n_tilts))
        elif name == "part_sweep":
            return
        elif name == "stage_progress":
            self._bar(event["stage"], event["total"])
            self._move(event["stage"], event["done"], event["text"])
        else:
            if name == "stage_done":
                self._remove(event["stage"])
            if name == "stage_started" and event["stage"] == "ptychography":
                self._bar("tilts", self.n_tilts)
            text = describe(event)
            if text:
                self.console.print(text, highlight=False, markup=False)

    def _bar(self, name: str, total: int) -> TaskID:
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=total, text="")
        return self.tasks[name]

    def _move(self, name: str, done: int, text: str) -> None:
        if name in self.tasks:
            self.progress.update(self.tasks[name], completed=done, text=text)

    def _remove(self, name: str) -> None:
        if name in self.tasks:
            self.progress.remove_task(self.tasks.pop(name))

    def close(self) -> None:
        """Take the bars off the screen."""
        self.progress.stop()


def make_progress(console: Console, n_tilts: int) -> PlainProgress | BarProgress:
    """Return bars on a terminal, plain lines anywhere else."""
    return BarProgress(console, n_tilts) if console.is_terminal else PlainProgress(console, n_tilts)
