"""The event log survives a crash, and progress reads as plain lines where there is no terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from hpcrec.errors import StorageError
from hpcrec.run.observers import EventLog, PlainProgress, make_progress, read_events

DONE = {"event": "tilt_done", "tilt": 3, "data_error": 0.012, "seconds": 2.0, "patterns_per_s": 1234.0}


def test_events_come_back_in_order_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log({"event": "note", "text": "a"})
    log(DONE)
    with log.path.open("a") as file:
        file.write('{"event": "sw')
    events = read_events(log.path)
    assert [e["event"] for e in events] == ["note", "tilt_done"]
    assert all("time" in e for e in events)
    assert read_events(tmp_path / "none.jsonl") == []


def test_after_a_cut_line_the_next_event_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "note"}\n{"event": "warning", "text": "tilt 3, 0.2 \xc3')  # cut within a letter
    log = EventLog(path)
    log(DONE)
    log({"event": "note", "text": "a"})
    assert [e["event"] for e in read_events(path)] == ["note", "tilt_done", "note"]


def test_a_log_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        EventLog(tmp_path / "missing" / "events.jsonl")({"event": "note", "text": "a"})


def test_plain_progress_tells_finished_tilts_and_rations_sweeps() -> None:
    console = Console(file=io.StringIO(), width=200)
    progress = make_progress(console, n_tilts=2)
    assert isinstance(progress, PlainProgress)
    sweep = {"event": "sweep", "tilt": 3, "iteration": 1, "loss": 1.0, "data_error": 0.1, "patterns_per_s": 10.0}
    for _ in range(5):
        progress(sweep)
    progress(DONE)
    progress({"event": "warning", "text": "tilt 3 is dim"})
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("sweep 1") == 1
    assert "tilt 3 done (1/2): data error 0.0120, 1234 patterns/s" in text
    assert "warning: tilt 3 is dim" in text
