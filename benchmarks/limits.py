"""What this machine can do at most: transforms a second by FFTW's patient plans, bytes a second of memory."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from hpcrec.backend.fft import aligned_empty, execute_address, inplace_plan_addresses
from hpcrec.backend.kernels.transforms import transform, transform_plan

_COPY_BYTES = 1 << 28
# Nine tenths of a core against one neighbour, who is not starved
_GROUP_NICE = -10


def machine(priority: bool = False, cores: int = 0) -> dict[str, object]:
    """Say what is measured on. ``priority`` asks for the highest one, ``cores`` keeps to the first so many.

    Both pass to programs started from here. Without priority, neighbours on the machine are measured too.
    """
    if cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if priority:
        _raise_priority()
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return {
        "cpu": cpu[0].split(":")[1].strip() if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _raise_priority() -> None:
    """Go before other programs; where sessions are scheduled as groups, leave this one's and go before others."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        group = Path("/proc/self/autogroup")
        if group.exists():
            if os.getpid() != os.getpgrp():
                os.setsid()
            group.write_text(str(_GROUP_NICE))
    except OSError:
        print("no right to raise the priority: neighbours on this machine will be measured too")


class Transforms:
    """In-place transforms of one pattern (n, n) complex64 in cache, alternately forward and backward."""

    def __init__(self, n: int) -> None:
        self._execute = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(execute_address())
        self._plans = inplace_plan_addresses(n, n)
        # Zeros stay zeros: the plans are not normalised
        self._wave = aligned_empty((n, n), np.complex64)
        self._wave[...] = 0

    def __call__(self, count: int) -> float:
        """Run ``count`` transforms; return the seconds they took."""
        at, start = self._wave.ctypes.data, time.perf_counter()
        for i in range(count):
            self._execute(self._plans[i % 2], at, at)
        return time.perf_counter() - start


class OwnTransforms:
    """The same by the transforms that the compiled kernels call."""

    def __init__(self, n: int) -> None:
        self._plan = transform_plan(n, n, 0)
        self._wave = aligned_empty((2 * n * n,), np.float32)
        self._wave[...] = 0

    def __call__(self, count: int) -> float:
        """Run ``count`` transforms; return the seconds they took."""
        start = time.perf_counter()
        for i in range(count):
            transform(self._plan, self._wave, i % 2 == 0)
        return time.perf_counter() - start


def _in_threads(works: list[Callable[[], float]]) -> float:
    """Return the wall time of all works, each in a thread of its own."""
    with ThreadPoolExecutor(len(works)) as pool:
        start = time.perf_counter()
        for done in [pool.submit(work) for work in works]:
            done.result()
        return time.perf_counter() - start


def transforms_per_second(n: int, cores: int = 1) -> float:
    """Return the transforms of (n, n) complex64 per second on ``cores`` threads; best of seven."""
    count = max(int(4e6 / n**2), 8)
    waves = [Transforms(n) for _ in range(cores)]
    works: list[Callable[[], float]] = [lambda wave=wave: wave(count) for wave in waves]  # type: ignore[misc]
    return cores * count / min(_in_threads(works) for _ in range(7))


@cache
def copied_bytes_per_second(cores: int = 1) -> float:
    """Return the bytes read and written per second by copies from memory to memory; best of seven."""
    pairs = [(np.ones(_COPY_BYTES // 8 // cores), np.zeros(_COPY_BYTES // 8 // cores)) for _ in range(cores)]
    works: list[Callable[[], float]] = [lambda a=a, b=b: np.copyto(b, a) or 0.0 for a, b in pairs]  # type: ignore[misc]
    return 2 * _COPY_BYTES / min(_in_threads(works) for _ in range(7))
