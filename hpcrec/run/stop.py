"""Requests to stop: by a signal to any rank, or by a file; ranks agree on them between sweeps and leave together.

SIGTERM asks to stop, SIGUSR1 to stop and be started again; the same signal once more ends the job at once. A thread
hears them even while compiled code or MPI holds the main one, and writes ``DIR/stop`` for ranks that got no signal;
``stop`` written by hand does the same ("requeue" in it stands for SIGUSR1). A start removes the file.

Signals belong to the process, and so does what is asked here: nothing is asked unless :func:`listening`.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any, Final

import numpy as np

from hpcrec.errors import StoppedError, TimeUpError
from hpcrec.io.atomic import writing
from hpcrec.parallel import mpi
from hpcrec.parallel.communicator import Communicator

logger = logging.getLogger(__name__)

_LOOK_S: Final = 1.0
# Launchers forward what a scheduler has sent to the ranks as well
_SAME_S: Final = 2.0
# An exception that arrives within a callback of a library may be lost; so it comes again, after what leaving may take
_AGAIN_S: Final = 20.0
_POKE: Final = signal.SIGURG


class Request(IntEnum):
    """What is asked; where ranks were asked different things the larger counts."""

    NOTHING = 0
    REQUEUE = 1
    STOP = 2


_SIGNALS: Final = {signal.SIGTERM: Request.STOP, signal.SIGUSR1: Request.REQUEUE}


class _Listener:
    """What this process was asked, and the thread that hears it."""

    def __init__(self) -> None:
        self.request = Request.NOTHING
        self.file: Path | None = None
        self.interrupts = False
        self._raised = -_AGAIN_S
        self._heard: dict[int, float] = {}
        self._closing = False

    def hear(self, number: int) -> None:
        """Take a signal."""
        if number not in _SIGNALS:
            return
        now = time.monotonic()
        if now - self._heard.setdefault(number, now) > _SAME_S:
            sys.stderr.write(f"{signal.Signals(number).name} again: the job ends at once\n")
            mpi.end_at_once(_error(_SIGNALS[signal.Signals(number)]).exit_code)
        self.ask(_SIGNALS[signal.Signals(number)], signal.Signals(number).name)

    def ask(self, request: Request, by: str) -> None:
        """Take a request; the first rank tells of the first one."""
        if request and not self.request and not self.interrupts and mpi.starts_first(os.environ):
            sys.stderr.write(f"{by}: hpcrec stops after this sweep, with a checkpoint\n")
            sys.stderr.flush()
        self.request = max(self.request, request)

    def run(self, signals: int) -> None:
        """Hear signals from a pipe, and look for the file, until closed."""
        told = False
        while not self._closing:
            if select.select([signals], [], [], _LOOK_S)[0]:
                for number in os.read(signals, 64):
                    self.hear(number)
            if self.file is not None and not self.request:
                self._look(self.file)
            if self.file is not None and self.request and not told:
                told = True
                _write(self.file, self.request)
            if self.interrupts and self.request and time.monotonic() - self._raised > _AGAIN_S:
                signal.pthread_kill(threading.main_thread().ident or 0, _POKE)

    def _look(self, file: Path) -> None:
        with suppress(OSError):
            text = file.read_text(encoding="utf-8", errors="replace").strip()
            self.ask(Request.REQUEUE if text == "requeue" else Request.STOP, str(file))

    def close(self) -> None:
        """End the thread within :data:`_LOOK_S`."""
        self._closing = True

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Leave what the main thread is in, unless it writes a file."""
        if self.interrupts and self.request and not writing():
            self._raised = time.monotonic()
            raise _error(self.request)


_listener = _Listener()


def _write(file: Path, request: Request) -> None:
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(request.name.lower() + "\n")
    except FileExistsError:
        pass
    except OSError as fault:
        logger.warning("other ranks cannot be told to stop: %s", fault)


def _error(request: Request) -> StoppedError:
    if request == Request.REQUEUE:
        return TimeUpError("time is up: stopped after a checkpoint, to be started again: the same command goes on")
    return StoppedError("stopped on request after a checkpoint: the same command goes on")


def _heard_by_thread(number: int, frame: FrameType | None) -> None:
    """Without a handler in Python a signal would not come to the thread."""


@contextmanager
def listening() -> Iterator[None]:
    """Hear requests within the block; in another thread than the main one, those by file alone."""
    global _listener
    _listener = here = _Listener()
    try:
        with _hearing(here):
            yield
    finally:
        _listener = _Listener()


@contextmanager
def _hearing(here: _Listener) -> Iterator[None]:
    """Give the signals and a thread to a listener."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received, sent = os.pipe()
    os.set_blocking(sent, False)
    handlers: dict[int, Callable[..., Any]] = {**dict.fromkeys(_SIGNALS, _heard_by_thread), _POKE: here.interrupt}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    wakeup = signal.set_wakeup_fd(sent, warn_on_full_buffer=False)
    thread = threading.Thread(target=here.run, args=(received,), name="requests to stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        here.interrupts = False
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        here.close()
        os.write(sent, b"\0")
        thread.join()
        os.close(received)
        os.close(sent)


def watch_file(file: Path) -> None:
    """Look for requests in ``file`` from now on, and write those of this process there."""
    _listener.file = file


def interrupt(wanted: bool) -> None:
    """Let a request end what the main thread does at once, or (not ``wanted``) wait for :func:`leave_if_asked`."""
    _listener.interrupts = wanted


def agreed(group: Communicator) -> StoppedError | None:
    """Return with what error the ranks of a group are to leave, if any of them was asked; collective."""
    request = Request(int(group.max(np.array([_listener.request], np.int64))[0]))
    if not request:
        return None
    # Told by whoever was asked; this rank leaves now
    _listener.request = max(_listener.request, request)
    return _error(request)


def leave_if_asked(group: Communicator) -> None:
    """Raise :class:`StoppedError` on all ranks of a group if any of them was asked; collective."""
    error = agreed(group)
    if error is not None:
        raise error
