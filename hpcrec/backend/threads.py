"""Threads of one process for compiled loops, which leave the interpreter's lock alone."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Final

THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Where libraries read, when they are loaded, how many threads they may start."""


class Threads:
    """A number of threads; with one, everything runs in the caller's own.

    ``n_threads`` may grow between two uses: new threads start on the cores that the caller has by then.
    """

    def __init__(self, n_threads: int = 1) -> None:
        self.n_threads = n_threads

    def shares(self, n: int) -> list[slice]:
        """Return how ``n`` things are shared: runs of nearly equal length, none empty; one empty run of nothing."""
        n_runs = max(min(self.n_threads, n), 1)
        edges = [i * n // n_runs for i in range(n_runs + 1)]
        return [slice(a, b) for a, b in zip(edges, edges[1:])]

    def run(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Return the results of calls, the first one made here; the first fault is raised when all have ended."""
        if len(calls) == 1:
            return [calls[0]()]
        pool = _pool(self.n_threads, own_cores())
        waiting = [pool.submit(call) for call in calls[1:]]

        def results() -> Iterator[Any]:
            try:
                yield calls[0]()
            finally:
                for future in waiting:
                    future.exception()
            for future in waiting:
                yield future.result()

        return list(results())


def run_together(task: Callable[[int], None], n_threads: int) -> None:
    """Run ``task(place)`` for all places at once, in threads that nothing else waits for: they may meet one another."""
    if n_threads == 1:
        task(0)
        return
    with ThreadPoolExecutor(n_threads - 1, thread_name_prefix="hpcrec-compute") as pool:
        others = [pool.submit(task, place) for place in range(1, n_threads)]
        task(0)
        for other in others:
            other.result()


@lru_cache(maxsize=4)
def _pool(n_threads: int, cores: frozenset[int]) -> ThreadPoolExecutor:
    """Return threads that begin on ``cores``, those of the caller: they keep what it has when they begin."""
    return ThreadPoolExecutor(n_threads - 1, thread_name_prefix="hpcrec-compute")


def own_cores() -> frozenset[int]:
    """Return the cores that this thread may use; none where the system does not say."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def available_threads() -> int:
    """Return OMP_NUM_THREADS if it is set, else how many cores this process may use.

    Workers of the tomography stage run with OMP_NUM_THREADS=1: there the processes share the cores.
    """
    chosen = _number(os.environ.get("OMP_NUM_THREADS", ""))
    if chosen is not None:
        return chosen
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_libraries(environment: MutableMapping[str, str]) -> list[str]:
    """Let each library start the threads that its variable says, else one; return a sentence for each that is wrong.

    To be called before the libraries are loaded: OpenBLAS takes what is no number for all cores without a word, others
    complain where no user would look. Of a list, which OpenMP allows, the first number stays: pyfftw knows no lists.
    """
    faults = []
    for name in THREAD_VARIABLES:
        given = environment.get(name, "")
        chosen = _number(given)
        if chosen is None and given.strip():
            faults.append(f"{name} is {given!r}, not a number of threads from 1 to 9999; 1 is used instead")
        environment[name] = str(chosen or 1)
    return faults


def _number(text: str) -> int | None:
    first = text.split(",")[0].strip()
    return int(first) if re.fullmatch("0*[1-9][0-9]{0,3}", first) else None


def run_parts(task: Callable[[int, int], None], n: int, threads: int | None = None) -> None:
    """Run ``task(first, last)`` over n things, split evenly among ``threads`` (default: those available)."""
    workers = Threads(threads or available_threads())
    workers.run([partial(task, part.start, part.stop) for part in workers.shares(n)])


@contextmanager
def worker_processes() -> Iterator[None]:
    """Let worker processes start with one thread a library, and deaf to a signal that launchers send to whole groups.

    Python's own helper process would die of it, and complain of what it then did not know.
    """
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    kept = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
