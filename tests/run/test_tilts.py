"""The ptychography stage: any number of ranks, interrupted or not, one answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from all_tilts import into, reconstruct_all

from hpcrec.data.dataset import TiltScan, TiltSeries
from hpcrec.engines import ENGINES, engine_class
from hpcrec.io.base import open_series
from hpcrec.io.results import read_tilt_result, tilt_path
from hpcrec.parallel import flight
from hpcrec.parallel.communicator import Communicator, SerialCommunicator, run_ranks
from hpcrec.refine import REFINEMENTS
from hpcrec.run.config import load_job
from hpcrec.run.job import Job
from hpcrec.run.means import Means
from hpcrec.run.runner import TiltRun
from hpcrec.run.start import common_grid
from hpcrec.run.tilts import reconstruct_tilts, unfinished_tilts
from hpcrec.run.trial import held_out, try_job

REFINE_ALL = [f"refine.{name}.start_iteration=1" for name in REFINEMENTS]
THREE_SLICES = ["ptychography.slices=3", "ptychography.slice_thickness_angstrom=4"]


def silent(event: Any) -> None:
    """Hear nothing."""


def objects(folder: Path, n_tilts: int = 3) -> list[np.ndarray]:
    return [read_tilt_result(tilt_path(folder, i)).obj for i in range(n_tilts)]


def reconstruct(job: Job, folder: Path, n_ranks: int) -> list[np.ndarray]:
    run_all(job, folder, n_ranks)
    return objects(folder)


def run_all(job: Job, folder: Path, n_ranks: int, notes: list[str] | None = None) -> None:
    reconstruct_all(job, folder, n_ranks, into([] if notes is None else notes))


@pytest.mark.parametrize("n_ranks", [2, 5])
@pytest.mark.parametrize("engine", ["epie", "lsqml"])
def test_ranks_join_on_a_tilt_and_do_not_change_the_answer(
    tiny_job: Path, tmp_path: Path, n_ranks: int, engine: str
) -> None:
    """One tilt for all: on one host they are threads of the first, which says so; asked for, they stay apart."""
    job, _ = load_job(tiny_job, ["data.tilts=[1]", f"ptychography.engine={engine}", "parallel.threads=1"])
    heard: dict[str, list[str]] = {}
    for name, asked in (("one", job), ("joined", job), ("apart", with_groups(job, n_ranks))):
        run_all(asked, tmp_path / name, 1 if name == "one" else n_ranks, heard.setdefault(name, []))
    text = f"{n_ranks} ranks work on each tilt as {n_ranks} threads of one of them"
    assert heard == {"one": [], "joined": [text], "apart": []}
    one, joined, apart = (read_tilt_result(tilt_path(tmp_path / name, 1)).obj for name in heard)
    for found in (joined, apart):
        assert np.linalg.norm(found - one) < 1e-5 * np.linalg.norm(one)


def with_groups(job: Job, size: int) -> Job:
    return dataclasses.replace(job, parallel=dataclasses.replace(job.parallel, group_size=size))


@pytest.mark.parametrize("n_ranks", [2, 3, 5])
@pytest.mark.parametrize(("exchange", "overlap"), [("replicated", "auto"), ("tiled", "auto"), ("tiled", "always")])
def test_ranks_do_not_change_the_answer(
    tiny_job: Path, tmp_path: Path, n_ranks: int, exchange: str, overlap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of 1 or more ranks, more ranks than tilts: single precision sums differ by round-off only, 1e-5."""
    flown, total = [], flight.Flight.total
    monkeypatch.setattr(flight, "FEW_PATTERNS", 1)
    monkeypatch.setattr(flight.Flight, "total", lambda *args: (flown.append(1), total(*args))[1])
    chosen = [f"parallel.exchange={exchange}", f"parallel.overlap={overlap}"]
    job, _ = load_job(tiny_job, [*chosen, f"parallel.group_size={min(n_ranks, 3)}"])
    one = reconstruct(job, tmp_path / "one", 1)
    assert not flown
    many = reconstruct(job, tmp_path / "many", n_ranks)
    assert bool(flown) == (overlap == "always")
    for a, b in zip(one, many):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)


def test_ranks_agree_on_what_is_refined(tiny_job: Path, tmp_path: Path) -> None:
    """Three ranks share each tilt; gains and damping are those of the whole scan. Double precision: round-off only."""
    settings = [*REFINE_ALL, *THREE_SLICES, "ptychography.precision=double", "refine.annealing.radius_angstrom=0.3"]
    job, _ = load_job(tiny_job, [*settings, "data.tilts=[1]", "parallel.group_size=3"])
    for n_ranks in (1, 3):
        folder = tmp_path / str(n_ranks)
        folder.mkdir()
        run_all(job, folder, n_ranks)
    one, three = (read_tilt_result(tilt_path(tmp_path / str(n), 1)) for n in (1, 3))
    assert set(one.refined) >= {"tilt", "position_tilt", "thickness", "aberrations", "coefficients", "intensity"}
    for name, values in {"object": one.obj, "probe": one.probe, "positions": one.positions, **one.refined}.items():
        other = {"object": three.obj, "probe": three.probe, "positions": three.positions, **three.refined}[name]
        np.testing.assert_allclose(other, values, atol=1e-8 * np.abs(values).max(), err_msg=name)


class Interrupted(Exception):
    """The process was killed."""


COMPACT = ("ptychography.lsqml.object_update=sweep", "ptychography.lsqml.momentum=0.4")
FLAT = [s for s in REFINE_ALL if not any(name in s for name in ("tilt", "thickness"))]


@pytest.mark.parametrize(("engine", "more"), [*((name, ()) for name in ENGINES), ("lsqml", COMPACT)])
def test_a_resumed_tilt_equals_an_uninterrupted_one(
    tiny_job: Path, tmp_path: Path, engine: str, more: tuple[str, ...]
) -> None:
    """All that engine and refinements remember is in the checkpoint, so the numbers are the same to the last bit."""
    states = ["ptychography.object_states=2", "refine.annealing.radius_angstrom=0.3"]
    sliced = FLAT if engine_class(engine).one_slice_only else [*REFINE_ALL, *THREE_SLICES]
    job, _ = load_job(tiny_job, [f"ptychography.engine={engine}", *sliced, *states, *more])
    with open_series(job.data) as series:
        whole = run_one(job, series, tmp_path / "whole")

        def die(event: Any) -> None:
            if event["event"] == "sweep" and event["iteration"] == 3:
                raise Interrupted

        with pytest.raises(Interrupted):
            run_one(job, series, tmp_path / "cut", die)
        heard: list[Any] = []
        again = run_one(job, series, tmp_path / "cut", heard.append)
    assert heard[0]["resumed_at"] == 2
    np.testing.assert_array_equal(again.obj, whole.obj)
    np.testing.assert_array_equal(again.probe, whole.probe)
    np.testing.assert_array_equal(again.positions, whole.positions)
    np.testing.assert_array_equal(again.data_error, whole.data_error)
    assert again.refined.keys() == whole.refined.keys()
    for name, values in whole.refined.items():
        np.testing.assert_array_equal(again.refined[name], values, err_msg=name)


@pytest.mark.parametrize(("engine", "more"), [*((name, ()) for name in ENGINES), ("lsqml", COMPACT)])
def test_a_trial_reconstructs_without_the_patterns_held_out(tiny_job: Path, engine: str, more: tuple[str, ...]) -> None:
    """A sweep is complete when all patterns shown have been seen: the object moves, and explains the others better."""
    job, _ = load_job(tiny_job, [f"ptychography.engine={engine}", "ptychography.iterations=2", *more])
    longer = dataclasses.replace(job, ptychography=dataclasses.replace(job.ptychography, iterations=6))
    with open_series(job.data) as series:
        short, long = (try_job(j, series, 1, np.arange(36), held_out(36)) for j in (job, longer))
    assert np.ptp(short.phase) > 0
    assert long.data_error < short.data_error
    assert long.held_error < short.held_error


def test_a_trial_leaves_bad_and_saturated_pixels_out(tiny_job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a pattern's own bad pixels hold, shown or held out; saturated ones do not count either."""

    def read_good(self: TiltScan, indices: Any) -> Any:
        good = np.ones((len(indices), *self.pattern_shape), bool)
        good[:, 3:9] = False
        return good

    monkeypatch.setattr(TiltScan, "read_good", read_good)
    job, _ = load_job(tiny_job, ["ptychography.iterations=2"])
    real, held, found = TiltScan.read, np.array([14, 21]), []
    for wrong in (0, 999):

        def read(self: TiltScan, indices: Any, wrong: int = wrong) -> Any:
            patterns = real(self, indices).copy()
            patterns[:, 3:9] = wrong
            return patterns

        monkeypatch.setattr(TiltScan, "read", read)
        monkeypatch.setattr("hpcrec.run.start.mean_pattern", lambda scan: real(scan, np.arange(36)).mean(axis=0))
        with open_series(job.data) as series:
            found.append(try_job(job, series, 1, np.arange(36), held))
            counts = real(series.tilt(1), held)
    np.testing.assert_array_equal(found[0].held_errors, found[1].held_errors)
    np.testing.assert_array_equal(found[0].held_counts, found[1].held_counts)
    limit = float(np.percentile(counts, 99))
    job, _ = load_job(tiny_job, ["ptychography.iterations=1", f"detector.saturation_counts={limit}"])
    with open_series(job.data) as series:
        cut = try_job(job, series, 1, np.arange(36), held)
    assert (cut.held_counts < found[1].held_counts).all()


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2)])
def test_a_tilt_resumes_on_other_ranks(tiny_job: Path, tmp_path: Path, before: int, after: int) -> None:
    """Exit waves too go from the ranks that had them to those that take over; single precision, 1e-4."""
    job, _ = load_job(tiny_job, ["ptychography.engine=dm", "probe.modes=2", "ptychography.dm.probe_start=1"])
    cut = dataclasses.replace(job, ptychography=dataclasses.replace(job.ptychography, iterations=3))
    (tmp_path / "whole").mkdir()
    with open_series(job.data) as series:

        def run(chosen: Job, folder: Path, n_ranks: int) -> Any:
            def rank(group: Communicator) -> Any:
                return TiltRun(chosen, series, common_grid(job, series), 1, group, folder, silent).run()

            folder.mkdir(exist_ok=True)
            return run_ranks(n_ranks, rank)[0]

        whole = run(job, tmp_path / "whole", 1)
        run(cut, tmp_path / "cut", before)
        again = run(job, tmp_path / "cut", after)
    assert np.linalg.norm(again.obj - whole.obj) < 1e-4 * np.linalg.norm(whole.obj)
    assert np.linalg.norm(again.probe - whole.probe) < 1e-4 * np.linalg.norm(whole.probe)


def run_one(job: Job, series: TiltSeries, folder: Path, hear: Any = silent) -> Any:
    folder.mkdir(exist_ok=True)
    return TiltRun(job, series, common_grid(job, series), 1, SerialCommunicator(), folder, hear).run()


def test_a_damaged_result_is_done_again(tiny_job: Path, tmp_path: Path) -> None:
    job, _ = load_job(tiny_job)
    before = reconstruct(job, tmp_path, 1)
    path = tilt_path(tmp_path, 2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with open_series(job.data) as series:
        assert unfinished_tilts(series, tmp_path) == [2]
    np.testing.assert_array_equal(reconstruct(job, tmp_path, 1)[2], before[2])


def test_the_number_of_slices_may_follow_the_tilt(tiny_job: Path, tmp_path: Path) -> None:
    """A particle of 8 Å in slices of 4 Å: 2 slices upright, and 8·(cos 40° + sin 40°) = 11.3 Å make 3."""
    changes = ["slices=auto", "slice_thickness_angstrom=4", "sample_thickness_angstrom=8", "iterations=1"]
    job, _ = load_job(tiny_job, [f"ptychography.{c}" for c in changes])
    assert [len(obj) for obj in reconstruct(job, tmp_path, 1)] == [3, 2, 3]


def test_tilts_keep_their_number_in_the_file(tiny_job: Path, tmp_path: Path) -> None:
    whole = reconstruct(load_job(tiny_job)[0], tmp_path / "whole", 1)
    job, _ = load_job(tiny_job, ["data.tilts=[2]"])
    with open_series(job.data) as series:
        (tmp_path / "part").mkdir()
        reconstruct_tilts(job, series, SerialCommunicator(), tmp_path / "part", silent)
    alone = read_tilt_result(tilt_path(tmp_path / "part", 2))
    assert np.linalg.norm(alone.obj - whole[2]) <= 1e-6 * np.linalg.norm(alone.obj)


def test_threads_and_whole_pixels_reach_the_sweeps(tiny_job: Path, tmp_path: Path) -> None:
    """Threads change nothing but round-off; the first sweeps take the nearest pixels, the last look at the tilt not."""
    job, _ = load_job(tiny_job, ["ptychography.iterations=4", "ptychography.whole_pixel_iterations=2"])
    errors, seen = [], []
    with open_series(job.data) as series:
        for threads in (1, 2):
            folder = tmp_path / str(threads)
            folder.mkdir()
            grid = common_grid(job, series)
            run = TiltRun(job, series, grid, 1, SerialCommunicator(), folder, silent, means=Means(threads=threads))
            sweep = run.sweep

            def spied(run: TiltRun = run, sweep: Any = sweep) -> None:
                sweep()
                seen.append(run.state.whole_pixels)

            run.sweep = spied  # type: ignore[method-assign]
            errors.append(run.run().data_error)
            assert not run.state.whole_pixels
    assert seen == [True, True, False, False] * 2
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-4)
