"""Running Dask schedulers that a job names: their addresses, which of them are safe to use, and what libraries say."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hpcrec.errors import ConfigError, ParallelError

NO_JOBQUEUE: Final = (
    "parallel.cluster = 'jobqueue' needs the library dask-jobqueue, which is not installed: "
    "pip install 'hpcrec[jobqueue]', or set parallel.cluster = 'local'"
)
_ENCRYPTED: Final = ("tls", "wss", "inproc")

# They print tracebacks of what is lost with a worker or a scheduler
_TALKATIVE: Final = ("asyncio", "tornado.application", "distributed", "distributed.client", "distributed.core")


@contextmanager
def quietly() -> Iterator[None]:
    """Leave it to hpcrec's own errors to tell what is lost with a worker or a scheduler."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)


def hear_of_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Let the client's loop keep to itself that nobody awaits results any more: it may say so at any later time."""
    if type(context.get("exception")).__name__ != "AllExit":
        loop.default_exception_handler(context)


def lost(what: str, name: str) -> str:
    """Return what to do where workers are lost during the task ``name``."""
    return (
        f"{what} during {name!r}: start the same command again to continue; "
        "if they ran out of memory, ask for more of it or for fewer workers (parallel.workers)"
    )


def check_encrypted(scheduler: str) -> None:
    """Raise ConfigError for a scheduler on another host whose traffic anybody there could read, and forge."""
    for fault in open_faults(_address(scheduler)):
        raise ConfigError(fault)


def open_faults(address: str) -> list[str]:
    """Return what is wrong with the address of a scheduler whose traffic others could read; nothing where none can."""
    protocol, _, place = address.rpartition("://")
    host = place.rpartition(":")[0].strip("[]")
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host in ("", "localhost")
    if protocol in _ENCRYPTED or here:
        return []
    return [
        f"parallel.scheduler: {address} is on another host and not encrypted, so whoever reaches it can run "
        "programs there: start it with tls:// and give its credentials in Dask's configuration, or set "
        "parallel.unencrypted_scheduler = true on a network that you trust"
    ]


def _address(scheduler: str) -> str:
    """Return a scheduler's address, if need be from its file; the file may yet be missing."""
    if not scheduler.endswith(".json"):
        return scheduler
    try:
        return str(json.loads(Path(scheduler).read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError) as fault:
        raise ParallelError(f"no Dask scheduler wrote its address to {scheduler} ({fault})") from None


def about_tls(scheduler: str) -> str:
    """Return what more to check where a scheduler speaks TLS."""
    if not scheduler.startswith("tls://"):
        return ""
    return ", and the credentials in Dask's configuration (distributed.comm.tls)"
