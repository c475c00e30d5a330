"""The plan: memory grows with the object, tiles need less, and a job that fits nowhere is refused with advice."""

from __future__ import annotations

import dataclasses
import itertools
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hpcrec.data.dataset import TiltSeries
from hpcrec.data.views import SeriesView
from hpcrec.engines import ENGINES
from hpcrec.engines.lsqml import LsqMl, LsqMlOptions
from hpcrec.errors import DeviceError
from hpcrec.geometry.grid import Grid, object_grid
from hpcrec.io.base import open_series
from hpcrec.run import plan
from hpcrec.run.config import load_job
from hpcrec.run.constrain import bytes_between_sweeps
from hpcrec.run.job import Job
from hpcrec.run.memory import GIB, MPI_GIB, base_memory, memory_limit, object_bytes, pattern_room, rank_memory
from hpcrec.run.plan import duration, make_plan, n_workers, tomography_seconds
from hpcrec.run.sharing import exchange_bytes, share_ranks
from hpcrec.run.start import common_grid, tilt_setup


@pytest.fixture
def series(tiny_job: Path) -> Iterator[TiltSeries]:
    with open_series(load_job(tiny_job)[0].data) as opened:
        yield opened


def job_with(path: Path, *changes: str) -> Job:
    return load_job(path, changes)[0]


# No checkpoint between sweeps, and so no copy of the object for one
ONE_SAVE = "ptychography.checkpoint_every=4"


def large_grid(series: TiltSeries, pixels: int) -> Grid:
    grid = object_grid(series.tilt(0).positions, series.pattern_shape, series.sampling)
    return dataclasses.replace(grid, shape=(pixels, pixels))


@pytest.fixture
def later_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries of later stages are in the process already, so that small objects have nothing beside them."""
    monkeypatch.setitem(sys.modules, "matplotlib", ModuleType("matplotlib"))


@pytest.mark.usefixtures("later_loaded")
def test_memory_grows_with_the_object_and_its_slices(tiny_job: Path, series: TiltSeries) -> None:
    lsqml = "ptychography.engine=lsqml"
    job = job_with(tiny_job, lsqml, ONE_SAVE)
    beside, update = LsqMl.copies(LsqMlOptions(), True)
    # A gradient and a weight of one thread
    copies = max(beside + 1.5, update)
    small, large = (rank_memory(job, series, large_grid(series, n), 1) for n in (1000, 4000))
    # complex64 copies of the 15 million pixels that the larger one has more
    assert large - small == pytest.approx(copies * 8 * (4000**2 - 1000**2) / GIB)
    sliced = job_with(tiny_job, lsqml, ONE_SAVE, "ptychography.slices=3", "ptychography.slice_thickness_angstrom=4")
    more = rank_memory(sliced, series, large_grid(series, 4000), 1) - large
    # The waves that a batch keeps of each slice take a thousandth of that
    assert more == pytest.approx(2 * copies * 8 * 4000**2 / GIB, rel=3e-3)
    double = job_with(tiny_job, lsqml, "ptychography.precision=double")
    assert rank_memory(double, series, large_grid(series, 4000), 1) > 1.9 * large
    assert rank_memory(job, series, large_grid(series, 4000), 1, base=1.5) == pytest.approx(large + 1.5)


def test_later_libraries_take_the_place_of_a_small_object(
    tiny_job: Path, series: TiltSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arrays are gone by then: the larger of both counts, not their sum."""
    job, grids = job_with(tiny_job), [large_grid(series, n) for n in (500, 6000)]
    monkeypatch.setitem(sys.modules, "matplotlib", ModuleType("matplotlib"))
    loaded = [rank_memory(job, series, grid, 1) for grid in grids]
    monkeypatch.delitem(sys.modules, "matplotlib")
    alone = [rank_memory(job, series, grid, 1) for grid in grids]
    assert loaded[0] < alone[0] < 0.1 < alone[1] == loaded[1]


@pytest.mark.usefixtures("later_loaded")
def test_windowed_sums_need_less(tiny_job: Path, series: TiltSeries) -> None:
    """One rank in compiled loops: object, and gradient and illumination of each thread."""
    small, large = (large_grid(series, n) for n in (1000, 4000))
    one = 8 * (4000**2 - 1000**2) / GIB

    def copies(size: int, threads: int, *changes: str) -> float:
        job = job_with(tiny_job, "ptychography.engine=epie", ONE_SAVE, *changes)
        needs = [rank_memory(job, series, grid, size, threads) for grid in (small, large)]
        return (needs[1] - needs[0]) / one

    assert copies(1, 1) == pytest.approx(2.5)
    assert copies(1, 3) == pytest.approx(5.5)
    assert copies(1, 3, "ptychography.kernel=array") == pytest.approx(3.6, rel=0.02)
    assert copies(1, 3, "detector.point_spread_pixels=1") == pytest.approx(3.6, rel=0.02)
    assert copies(2, 1) == pytest.approx(5), "an exchange of the sums"
    assert copies(1, 1, "ptychography.checkpoint_every=3") == pytest.approx(3.5), "written while sweeps go on"
    assert copies(2, 1, "ptychography.checkpoint_every=3") == pytest.approx(6)


def test_tiles_need_less_than_copies_of_the_whole_object(tiny_job: Path, series: TiltSeries) -> None:
    grid = large_grid(series, 4000)
    tiled = job_with(tiny_job, "parallel.exchange=tiled")
    copies = job_with(tiny_job, "parallel.exchange=replicated")
    assert rank_memory(tiled, series, grid, 1) == rank_memory(copies, series, grid, 1)
    assert rank_memory(tiled, series, grid, 4) < rank_memory(copies, series, grid, 4)
    sizes = [rank_memory(tiled, series, grid, size) for size in (2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] > sizes[0] / 4, "a tile has a halo"


def test_a_tiled_rank_copies_its_tile_for_a_checkpoint(tiny_job: Path, series: TiltSeries) -> None:
    """Object and momentum of a quarter, with halos, not of the whole; exit waves are not gathered either.

    The object is too large to be gathered in memory in the end, which would count for more.
    """
    grid = large_grid(series, 12000)

    def need(exchange: str, *changes: str) -> float:
        return rank_memory(job_with(tiny_job, f"parallel.exchange={exchange}", *changes), series, grid, 4)

    whole = 2 * 8 * 12000**2 / GIB
    copied = {kind: need(kind) - need(kind, ONE_SAVE) for kind in ("replicated", "tiled")}
    assert copied["replicated"] == pytest.approx(whole, rel=0.01)
    assert whole / 4 < copied["tiled"] < whole / 3.5
    waves = {kind: need(kind, "ptychography.engine=dm") - need(kind, "ptychography.engine=epie") for kind in copied}
    assert waves["tiled"] < waves["replicated"]


def test_interiors_that_are_computed_meanwhile_are_counted(tiny_job: Path, series: TiltSeries) -> None:
    """One and a half copies of a tile; where a job leaves the choice, for ranks of several hosts only."""
    grid, chosen = large_grid(series, 12000), ["parallel.exchange=tiled", "parallel.group_size=4", ONE_SAVE]

    def need(overlap: str) -> float:
        return rank_memory(job_with(tiny_job, *chosen, f"parallel.overlap={overlap}"), series, grid, 4)

    tile = 12000**2 / 4 * 8 / GIB
    assert need("auto") == need("never")
    assert 1.5 * tile < need("always") - need("never") < 1.6 * tile
    told = []
    for n_hosts in (1, 2):
        with pytest.raises(DeviceError) as refused:
            share_ranks(job_with(tiny_job, *chosen, "parallel.memory_gib_per_rank=1"), series, grid, 4, n_hosts=n_hosts)
        told.append(float(re.search(r"need ([\d.]+) GiB", str(refused.value))[1]))
    assert told[1] - told[0] == pytest.approx(1.5 * tile, abs=0.05)


@pytest.mark.parametrize("exchange", ["replicated", "tiled"])
@pytest.mark.parametrize("constraint", ["positive_phase.every=1", "ramp.every=1", "kz_filter.beta=1", "tv.weight=1"])
def test_what_constraints_need_between_sweeps_is_counted(
    tiny_job: Path, series: TiltSeries, constraint: str, exchange: str
) -> None:
    """Beside what an engine keeps, where that is more than an update; no result is gathered in memory."""
    grid, size = large_grid(series, 12000), 16
    chosen = [f"parallel.exchange={exchange}", "ptychography.slices=2", "ptychography.slice_thickness_angstrom=4"]
    chosen.append("ptychography.engine=lsqml")
    job = job_with(tiny_job, *chosen, f"constraints.{constraint}")
    free = rank_memory(job_with(tiny_job, *chosen), series, grid, size)
    held, update = object_bytes(job_with(tiny_job, *chosen), series, grid, size, compiled=True)
    beside = LsqMl.copies(LsqMlOptions(), False)[0]
    pixels = held / (beside * 2 * 8)
    between = bytes_between_sweeps(job, 12000.0**2, pixels, size, 2, 8)
    assert (between == 0) == constraint.startswith("positive")
    found = rank_memory(job, series, grid, size)
    assert found - free == pytest.approx(max(held + between - update, 0) / GIB, abs=1e-9)


def test_tiles_between_sweeps_shrink_with_the_ranks(tiny_job: Path) -> None:
    """An object of 16384² pixels and 20 slices, 40 GiB, with all that went through one rank once, on 256 ranks."""
    chosen = ["ptychography.slices=20", "ptychography.slice_thickness_angstrom=4", "constraints.kz_filter.beta=1"]
    job = job_with(tiny_job, *chosen, "constraints.ramp.every=1", "constraints.centre.every=1")
    needed = bytes_between_sweeps(job, 16384.0**2, (16384.0 / 16 + 200) ** 2, 256, 20, 8)
    assert 0.2 * GIB < needed < 1.5 * GIB


@pytest.mark.parametrize(("n_ranks", "expected"), [(1, 1), (2, 1), (3, 1), (6, 2), (7, 2), (9, 3)])
def test_no_rank_is_idle_when_there_are_fewer_tilts(
    tiny_job: Path, series: TiltSeries, n_ranks: int, expected: int
) -> None:
    """Three tilts."""
    assert share_ranks(job_with(tiny_job), series, common_grid(job_with(tiny_job), series), n_ranks).size == expected


def test_the_size_that_was_asked_for_is_taken_up_to_all_ranks(tiny_job: Path, series: TiltSeries) -> None:
    job = job_with(tiny_job, "parallel.group_size=3")
    assert share_ranks(job, series, common_grid(job, series), 8).size == 3
    assert share_ranks(job, series, common_grid(job, series), 2).size == 2


def test_groups_grow_until_memory_suffices(tiny_job: Path, series: TiltSeries) -> None:
    grid = large_grid(series, 4000)
    tiled = job_with(tiny_job, "parallel.exchange=tiled")
    base = base_memory(3)
    limit = base + (rank_memory(tiled, series, grid, 2) + rank_memory(tiled, series, grid, 3)) / 2
    limited = job_with(tiny_job, "parallel.exchange=tiled", f"parallel.memory_gib_per_rank={limit}")
    assert share_ranks(limited, series, grid, 3).size == 3


def test_a_job_that_fits_nowhere_is_refused_with_advice(tiny_job: Path, series: TiltSeries) -> None:
    job = job_with(tiny_job, "parallel.memory_gib_per_rank=0.5", "parallel.exchange=replicated")
    with pytest.raises(DeviceError) as caught:
        share_ranks(job, series, large_grid(series, 4000), 2)
    told = re.search(r"a rank would need ([0-9.]+) GiB, the limit is 0.5 GiB", str(caught.value))
    assert told is not None
    need = rank_memory(job, series, large_grid(series, 4000), 2, base=base_memory(2))
    assert float(told[1]) == pytest.approx(need, abs=0.1)
    assert "parallel.exchange = 'tiled'" in str(caught.value)
    assert caught.value.exit_code == 5


def test_tiles_are_chosen_where_whole_objects_do_not_fit(tiny_job: Path, series: TiltSeries) -> None:
    grid, base = large_grid(series, 4000), base_memory(4)
    whole, tile = (
        rank_memory(job_with(tiny_job, f"parallel.exchange={kind}"), series, grid, 4, base=base)
        for kind in ("replicated", "tiled")
    )
    between = job_with(tiny_job, f"parallel.memory_gib_per_rank={(whole + tile) / 2}", "parallel.group_size=4")
    found = share_ranks(between, series, grid, 4)
    assert (found.size, found.exchange) == (4, "tiled")
    assert re.fullmatch(
        r"with the whole object a rank would need [0-9.]+ of [0-9.]+ GiB, with a tile [0-9.]+", found.reason
    )
    assert found.job(between).parallel.exchange == "tiled"
    enough = job_with(tiny_job, f"parallel.memory_gib_per_rank={2 * whole}", "parallel.group_size=4")
    found = share_ranks(enough, series, grid, 4)
    assert (found.exchange, found.reason) == ("replicated", "")
    assert found.job(enough) is enough
    few = job_with(tiny_job, f"parallel.memory_gib_per_rank={tile / 4}")
    with pytest.raises(
        DeviceError, match=r"GiB with a tile of the object \([0-9.]+ with the whole object\), the limit is"
    ):
        share_ranks(few, series, grid, 4)


@pytest.mark.parametrize("exchange", ["auto", "replicated", "tiled"])
@pytest.mark.parametrize(("size", "n_ranks"), [(1, 1), (1, 4), (2, 4), (4, 4), (9, 4)])
def test_a_group_size_that_does_not_fit_is_refused_by_its_number(
    tiny_job: Path, series: TiltSeries, exchange: str, size: int, n_ranks: int
) -> None:
    chosen = f"parallel.group_size={size}", f"parallel.exchange={exchange}"
    job, grid = job_with(tiny_job, *chosen, "parallel.memory_gib_per_rank=0.5"), large_grid(series, 4000)
    with pytest.raises(DeviceError, match=rf"^with parallel.group_size = {size} a rank would need ") as caught:
        share_ranks(job, series, grid, n_ranks)
    told = re.search(
        r"would need ([0-9.]+) GiB.*, the limit is 0.5 GiB: .*; or set parallel.group_size = 'auto'$", str(caught.value)
    )
    assert told is not None
    kind = "replicated" if exchange == "replicated" else "tiled"
    needed = rank_memory(
        job_with(tiny_job, *chosen[:1], f"parallel.exchange={kind}"),
        series,
        grid,
        min(size, n_ranks),
        base=base_memory(n_ranks),
        limit=0.5,
    )
    assert float(told[1]) == pytest.approx(needed, abs=0.1)
    assert (
        share_ranks(job_with(tiny_job, *chosen, "parallel.memory_gib_per_rank=64"), series, grid, n_ranks).size <= size
    )


def test_what_was_asked_for_is_not_chosen_anew(tiny_job: Path, series: TiltSeries) -> None:
    grid = large_grid(series, 4000)
    for kind in ("replicated", "tiled"):
        found = share_ranks(job_with(tiny_job, f"parallel.exchange={kind}"), series, grid, 4)
        assert (found.exchange, found.reason) == (kind, "")


def test_ranks_of_several_hosts_choose_what_sends_less(tiny_job: Path, series: TiltSeries) -> None:
    """On one host they work as threads and send nothing."""
    job = job_with(tiny_job, "parallel.group_size=8", "parallel.memory_gib_per_rank=64")
    small, large = common_grid(job, series), large_grid(series, 4000)
    for grid, kind in ((small, "replicated"), (large, "tiled")):
        found = share_ranks(job, series, grid, 8, n_hosts=4)
        assert found.exchange == kind
        sent = {one: exchange_bytes(job, series, grid, 8, one) for one in ("replicated", "tiled")}
        assert (sent["tiled"] < sent["replicated"] / 2) == (kind == "tiled")
        assert f"{sent['tiled'] / 2**20:.3g} MiB for tiles" in found.reason
        assert share_ranks(job, series, grid, 8).reason == ""
    assert exchange_bytes(job, series, large, 16, "tiled") < exchange_bytes(job, series, large, 4, "tiled")


def test_ranks_share_the_memory_of_the_machine(tiny_job: Path) -> None:
    job = job_with(tiny_job)
    assert memory_limit(job, 1) == pytest.approx(4 * memory_limit(job, 4))
    assert memory_limit(job_with(tiny_job, "parallel.memory_gib_per_rank=3"), 4) == 3


def test_workers_are_asked_for_or_one_a_rank_and_core(tiny_job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "available_cores", lambda: 4)
    assert [n_workers(job_with(tiny_job), n) for n in (1, 3, 9)] == [1, 3, 4]
    assert n_workers(job_with(tiny_job, "parallel.workers=6"), 1) == 6


def test_the_plan_of_the_tiny_series(tiny_job: Path, series: TiltSeries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "measure_speed", lambda *_: 54.0)
    found = make_plan(job_with(tiny_job), series, 1)
    assert (found.n_tilts, found.n_positions, found.pattern_shape) == (3, 108, (32, 32))
    assert found.ptychography_seconds == pytest.approx(108 * 4 / 54.0)
    assert found.tomography_seconds == 0
    assert found.fits
    assert "ptychography about 8 s" in found.sentence(3)
    assert "ptychography about 3 s" in found.sentence(1)
    assert "tomography" not in found.sentence(3)
    assert not dataclasses.replace(found, memory_limit_gib=0.1).fits


@pytest.mark.parametrize("engine", ENGINES)
def test_the_speed_of_a_large_object_is_measured_without_it(tiny_job: Path, series: TiltSeries, engine: str) -> None:
    """Of one that would take 12 GiB."""
    job = job_with(tiny_job, f"ptychography.engine={engine}")
    grid = dataclasses.replace(common_grid(job, series), shape=(40_000, 40_000))
    setup = tilt_setup(job, series, 0, grid)
    tracemalloc.start()
    try:
        assert plan.measure_speed(job, series, setup, seconds=0.01) > 0
        assert tracemalloc.get_traced_memory()[1] < 1 << 28
    finally:
        tracemalloc.stop()


def test_ranks_that_join_are_planned_as_threads(tiny_job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tilt on four cores: four threads at the speed that is measured with four, or four ranks."""
    monkeypatch.setattr(plan, "available_cores", lambda: 4)
    monkeypatch.setattr(plan, "measure_speed", lambda job, series, setup, means: 50.0 * means.threads)
    one, many = "data.tilts=[1]", "parallel.group_size=4"
    found = []
    for changes in ((one,), (one, many), (one, "parallel.exchange=tiled")):
        job = job_with(tiny_job, *changes)
        with open_series(job.data) as single:
            found.append(make_plan(job, single, 4))
    assert [(p.crew, p.threads, p.group_size) for p in found] == [(4, 4, 4), (1, 1, 4), (1, 1, 4)]
    assert [p.ptychography_seconds for p in found] == pytest.approx([36 * 4 / 200.0] * 3)
    joined, apart, _ = found
    assert joined.memory_limit_gib == pytest.approx(4 * apart.memory_limit_gib)
    assert joined.memory_gib_per_rank < 4 * apart.memory_gib_per_rank


def test_speed_is_measured_and_tomography_counted(
    tiny_job: Path, series: TiltSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that ticks 0.1 s at each look: batches of 32 patterns, one projection."""
    ticks = itertools.count()
    monkeypatch.setattr(plan.time, "perf_counter", lambda: 0.1 * next(ticks))
    assert make_plan(job_with(tiny_job), series, 1).patterns_per_s == pytest.approx(32 / 0.1, rel=0.5)
    short, long = (
        job_with(tiny_job, f"tomography.fista.n_iterations={n}", "tomography.alignment.rounds=[1, 1]") for n in (1, 500)
    )
    assert (
        0
        < tomography_seconds(short, series, common_grid(short, series))
        < tomography_seconds(long, series, common_grid(long, series))
    )


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.4, "about 3 s"), (89, "about 89 s"), (90, "about 2 min"), (7200, "about 2.0 h")]
)
def test_time_spans_are_said_as_a_person_would(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_exit_waves_count(tiny_job: Path, series: TiltSeries) -> None:
    """Each pattern's 32² complex64 pixels in two modes, and the patterns a second time; rank 0 of a group saves all."""
    names = ["probe.modes=2", "parallel.group_size=1"]
    many = dataclasses.replace(series.facts, positions=(np.zeros((100_000, 2)),) * 3)
    big = SeriesView(series, many, {})
    grid = large_grid(series, 100)
    waves, patterns = 100_000 * 2 * 32**2 * 8, 100_000 * 32**2 * np.dtype(series.facts.dtype).itemsize
    jobs = [job_with(tiny_job, *names, f"ptychography.engine={engine}") for engine in ("gradient", "raar")]
    for size, copies in ((1, 2.0), (3, 2 / 3 + 1)):
        plain, more = (rank_memory(job, big, grid, size) for job in jobs)
        assert more - plain == pytest.approx((copies * waves + patterns / size) / GIB, rel=0.05)


def test_patterns_that_exceed_the_limit_are_batches_on_their_way(tiny_job: Path, series: TiltSeries) -> None:
    job = job_with(tiny_job)
    many = dataclasses.replace(series.facts, positions=(np.zeros((1_000_000, 2)),) * 3)
    big = SeriesView(series, many, {})
    grid, share = common_grid(job, series), 1_000_000 * 32**2 * 2 / GIB
    everything = rank_memory(job, big, grid, 1)
    work = everything - share
    assert 0 < work < 0.5
    for limit in (work + 0.9 * share, 0.1):
        assert rank_memory(job, big, grid, 1, limit=limit) < work + 0.1
    assert rank_memory(job, big, grid, 1, limit=2 * everything) == everything
    for limit, least in ((8.0, 0.5), (0.1, 0.0)):
        room = pattern_room(job_with(tiny_job, f"parallel.memory_gib_per_rank={limit}"), big, grid, 1, 1, 1)
        assert room / GIB == pytest.approx(max(limit - base_memory() - work, 0), abs=0.05)
        assert room / GIB >= least


def test_the_base_is_what_this_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resident memory of a fresh array counts; ranks of a group have MPI beside it, where it is not loaded yet."""
    before, array = base_memory(), np.ones(1 << 25)
    assert base_memory() - before == pytest.approx(0.25, abs=0.03)
    del array
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    assert base_memory(2) - base_memory(1) == pytest.approx(MPI_GIB, abs=0.005)


def test_a_limit_of_the_address_space_counts(tiny_job: Path) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2)\n"
        "from pathlib import Path; from hpcrec.run.config import load_job; from hpcrec.run.memory import memory_limit\n"
        "print(memory_limit(load_job(Path(sys.argv[1]))[0], 1))"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny_job], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 5.4
