import importlib
import os
import pkgutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from numba.core.dispatcher import Dispatcher

from hpcrec.backend import kernels
from hpcrec.backend.threads import THREAD_VARIABLES, Threads, available_threads, limit_libraries, own_cores, run_parts


@pytest.mark.parametrize("threads", [None, 1, 2, 7, 50])
def test_parts_cover_everything_once(threads):
    seen = []
    run_parts(lambda a, b: seen.extend(range(a, b)), 13, threads)
    assert sorted(seen) == list(range(13))
    run_parts(lambda a, b: seen.append((a, b)), 0, threads)
    assert seen[13:] in ([], [(0, 0)])


def test_faults_of_a_part_are_raised():
    def task(first, last):
        if first > 0:
            raise RuntimeError("second part")

    with pytest.raises(RuntimeError, match="second part"):
        run_parts(task, 4, 2)


def test_workers_with_one_thread_keep_to_it(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert available_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= available_threads() <= os.cpu_count()


@pytest.mark.parametrize(
    ("given", "taken", "told"),
    [
        (None, "1", False), ("", "1", False), ("3", "3", False), (" 4 ", "4", False), ("08", "8", False),
        ("4,2", "4", False), ("abc", "1", True), ("0", "1", True), ("-2", "1", True), ("1.5", "1", True),
        ("²", "1", True), ("100000", "1", True), (",2", "1", True),
    ],
)  # fmt: skip
def test_each_library_has_one_thread_unless_a_number_is_said(monkeypatch, given, taken, told):
    environment = {} if given is None else dict.fromkeys(THREAD_VARIABLES, given)
    faults = limit_libraries(environment)
    assert environment == dict.fromkeys(THREAD_VARIABLES, taken)
    assert [fault.split()[0] for fault in faults] == (list(THREAD_VARIABLES) if told else [])
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert available_threads() == len(os.sched_getaffinity(0))


@pytest.mark.skipif(len(own_cores()) < 2, reason="one core cannot become more")
def test_threads_begin_on_the_cores_that_their_caller_has_by_then():
    """In a thread of its own, whose mask ends with it."""

    def masks():
        first = min(own_cores())
        both = own_cores()
        found, threads = [], Threads(2)
        for cores in ({first}, both):
            os.sched_setaffinity(0, cores)
            found.append(set(threads.run([own_cores] * 2)))
        threads.n_threads = 3
        return found, [{frozenset({first})}, {both}], len(threads.shares(9))

    with ThreadPoolExecutor(1) as pool:
        found, expected, n_shares = pool.submit(masks).result()
    assert found == expected
    assert n_shares == 3


def test_compiled_functions_let_go_of_the_interpreter():
    """Else rank 0 would answer nobody while it computes, and threads would wait for one another."""
    names = [f"{kernels.__name__}.{found.name}" for found in pkgutil.iter_modules(kernels.__path__)]
    compiled = [o for name in names for o in vars(importlib.import_module(name)).values() if isinstance(o, Dispatcher)]
    assert len(compiled) > 50
    assert [o.__qualname__ for o in compiled if not o.targetoptions.get("nogil")] == []
