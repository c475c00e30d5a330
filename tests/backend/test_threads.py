import os

import pytest

from hpcrec.backend.threads import available_threads, run_parts


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
