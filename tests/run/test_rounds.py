"""Rounds: every tilt once, every rank in a group, larger groups at the end where they are allowed; one answer."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from all_tilts import into, reconstruct_all

from hpcrec.backend.device import PROCESSOR, Device
from hpcrec.io.base import open_series
from hpcrec.io.results import read_tilt_result, tilt_path
from hpcrec.run import rounds as rounds_module
from hpcrec.run.config import load_job
from hpcrec.run.job import Job
from hpcrec.run.memory import rank_memory
from hpcrec.run.rounds import Round, rounds, rounds_of
from hpcrec.run.start import common_grid


def formed(n_tilts: int, n_ranks: int, size: int = 1, most: int = 99) -> list[tuple[int, tuple[int, ...]]]:
    found = rounds(range(n_tilts), n_ranks, size, lambda larger: larger <= most)
    assert [i for one in found for i in one.tilts] == list(range(n_tilts))
    assert all(sum(one.sizes) == n_ranks for one in found)
    return [(len(one.tilts), one.sizes) for one in found]


@pytest.mark.parametrize(
    ("n_tilts", "n_ranks", "size", "expected"),
    [
        (3, 2, 1, [(2, (1, 1)), (1, (2,))]),
        (5, 4, 1, [(4, (1, 1, 1, 1)), (1, (4,))]),
        (11, 4, 1, [(8, (1, 1, 1, 1)), (3, (2, 1, 1))]),
        (12, 4, 1, [(12, (1, 1, 1, 1))]),
        (5, 5, 2, [(4, (2, 3)), (1, (5,))]),
        (3, 5, 1, [(3, (2, 2, 1))]),
        (1, 4, 4, [(1, (4,))]),
        (0, 3, 1, [(0, (1, 1, 1))]),
        (7, 1, 1, [(7, (1,))]),
    ],
)
def test_the_last_tilts_are_for_all_ranks(n_tilts: int, n_ranks: int, size: int, expected: Any) -> None:
    assert formed(n_tilts, n_ranks, size) == expected


def test_groups_grow_no_further_than_they_may() -> None:
    assert formed(5, 4, most=3) == [(4, (1, 1, 1, 1)), (1, (2, 2))], "as large as allowed, all ranks alike"
    assert formed(5, 4, most=1) == [(5, (1, 1, 1, 1))]


def test_ranks_follow_one_another_in_groups() -> None:
    assert [Round(tilts=(), sizes=(2, 1, 3)).group_of(rank) for rank in range(6)] == [0, 0, 1, 2, 2, 2]


def sizes_of(path: Path, device: Device, *changes: str, pixels: int = 60) -> list[tuple[int, ...]]:
    job, _ = load_job(path, changes)
    with open_series(job.data) as series:
        grid = dataclasses.replace(common_grid(job, series), shape=(pixels, pixels))
        return [one.sizes for one in rounds_of(job, series, grid, [0, 1, 2], 2, 1, 1, device)]


TILED, ALL = "parallel.exchange=tiled", "ptychography.batch_size=36"
APART, SHARED = [(1, 1)], [(1, 1), (2,)]


def test_who_forms_groups_anew(tiny_job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where cores are lent, sizes asked for, or batches too small for messages, groups stay."""
    assert sizes_of(tiny_job, PROCESSOR, TILED, ALL) == APART
    monkeypatch.setattr(rounds_module, "_WORTH_A_MESSAGE", 18)
    assert sizes_of(tiny_job, PROCESSOR, TILED, ALL) == SHARED
    assert sizes_of(tiny_job, PROCESSOR, ALL) == APART
    assert sizes_of(tiny_job, PROCESSOR, TILED, ALL, "parallel.group_size=1") == APART
    assert sizes_of(tiny_job, PROCESSOR, TILED, "ptychography.batch_size=35") == APART


def test_groups_formed_anew_fit_the_memory(tiny_job: Path, monkeypatch: pytest.MonkeyPatch, gpus: ModuleType) -> None:
    """Messages need copies of what they sum, which one rank alone does not: more memory, not less."""
    monkeypatch.setattr(rounds_module, "_WORTH_A_MESSAGE", 1)
    monkeypatch.setattr(rounds_module, "base_memory", lambda n_ranks: 0.0)
    few = "parallel.exchange=replicated", "ptychography.engine=epie"
    job, _ = load_job(tiny_job, few)
    with open_series(job.data) as series:
        grid = dataclasses.replace(common_grid(job, series), shape=(1000, 1000))
        monkeypatch.setitem(sys.modules, "matplotlib", ModuleType("matplotlib"))
        one, two = (rank_memory(job, series, grid, size) for size in (1, 2))
    assert one < two
    for limit, expected in (((one + two) / 2, APART), (1.01 * two, SHARED)):
        assert sizes_of(tiny_job, PROCESSOR, *few, f"parallel.memory_gib_per_rank={limit}", pixels=1000) == expected
    for n_bytes, expected in ((1, APART), (1 << 33, SHARED)):
        gpu = Device(kind="gpu", module=gpus, number=0, pool_bytes=n_bytes)
        assert sizes_of(tiny_job, gpu, "parallel.device=gpu") == expected


def objects(job: Job, folder: Path, n_ranks: int, notes: list[str]) -> list[np.ndarray]:
    reconstruct_all(job, folder, n_ranks, into(notes))
    return [read_tilt_result(tilt_path(folder, i)).obj for i in range(3)]


@pytest.mark.parametrize(("n_ranks", "text"), [(2, "the last 1 tilt(s): 2 ranks work on each"), (5, None)])
@pytest.mark.parametrize("exchange", ["replicated", "tiled"])
def test_groups_formed_anew_do_not_change_the_answer(
    tiny_job: Path, tmp_path: Path, n_ranks: int, text: str | None, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three tilts, by messages; single precision sums differ by round-off only, 1e-5."""
    monkeypatch.setattr(rounds_module, "_WORTH_A_MESSAGE", 1)
    job, _ = load_job(tiny_job, ["ptychography.engine=lsqml", f"parallel.exchange={exchange}"])
    notes: list[str] = []
    expected, found = (objects(job, tmp_path / str(n), n, notes) for n in (1, n_ranks))
    assert notes == ([] if text is None else [text])
    for a, b in zip(expected, found):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)


def test_gpus_share_the_last_tilt(
    tiny_job: Path, tmp_path: Path, gpus: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the stand-in for CuPy: two ranks on two GPUs, three tilts; double precision."""
    monkeypatch.setattr(rounds_module, "_WORTH_A_MESSAGE", 1)
    words = ["ptychography.precision=double", "ptychography.batch_size=9", "parallel.device=gpu"]
    job, _ = load_job(tiny_job, words)
    notes: list[str] = []
    expected, found = (objects(job, tmp_path / str(n), n, notes) for n in (1, 2))
    assert notes[-1] == "the last 1 tilt(s): 2 ranks work on each"
    for a, b in zip(expected, found):
        assert np.abs(a - b).max() <= 1e-9 * np.abs(a).max()
