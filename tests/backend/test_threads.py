import os

import pytest

from hpcrec.backend.threads import THREAD_VARIABLES, available_threads, limit_libraries, run_parts


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
