"""A volume outlives the workers and the run that make it: not a bit of the result changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
from dask.sizeof import sizeof

import hpcrec.run.cluster as cluster_module
from hpcrec.engines.solvers import Solver, solver_class
from hpcrec.errors import WorkersLostError
from hpcrec.geometry.pose import Pose, rotation_from_angles
from hpcrec.models.tomography import Misfit, TomographyModel
from hpcrec.run.cluster import RECOVERIES, WATCH_SECONDS, DaskExecutor, cluster
from hpcrec.run.slabs import SlabFiles, problem_key
from hpcrec.tomography.executor import InlineExecutor, add_in_pairs
from hpcrec.tomography.reconstruct import Reconstruction, reconstruct
from hpcrec.tomography.slabs import SlabVolume

pytestmark = pytest.mark.timeout(400)

SHAPE = (20, 24, 20)
N_SLABS, N_ITERATIONS, EVERY = 5, 9, 3


def model() -> TomographyModel:
    poses = tuple(
        Pose(rotation=rotation_from_angles(0.01, t, -0.02), shift=(0.2, -0.1)) for t in np.linspace(-1.2, 1.2, 9)
    )
    return TomographyModel(volume_shape=SHAPE, voxel_size=0.4, detector_shape=(28, 26), poses=poses, blur=0.2)


def solver(name: str = "fista") -> Solver:
    return solver_class(name)(solver_class(name).Options(n_iterations=N_ITERATIONS))


def measured() -> np.ndarray:
    truth = np.random.default_rng(1).random(SHAPE, dtype=np.float32)
    return model().smooth(model().projector((0, SHAPE[1])).forward(truth))


def support() -> np.ndarray:
    inside = np.ones(SHAPE, bool)
    inside[:3] = False
    return inside


def files(folder: Path, name: str = "volume", key: str = "key") -> SlabFiles:
    folder.mkdir(exist_ok=True)
    return SlabFiles(folder=folder, name=name, key=key, every=EVERY)


def volume_by(
    executor: Any, saver: SlabFiles | None, hear: Callable[[int, Misfit], None] | None = None, name: str = "fista"
) -> Reconstruction:
    data = measured()
    return reconstruct(
        model(),
        data,
        np.ones_like(data),
        solver(name),
        support=support(),
        n_slabs=N_SLABS,
        executor=executor,
        saver=saver,
        callback=hear,
    )


def same(a: Reconstruction, b: Reconstruction) -> bool:
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("volume", "coefficients", "r1", "per_projection"))


@pytest.fixture(scope="module")
def undisturbed() -> Reconstruction:
    return volume_by(InlineExecutor(), None)


@pytest.fixture
def executor() -> Iterator[DaskExecutor]:
    """Two workers of their own: what a test kills may come back late on a busy machine."""
    TOLD.clear()
    with cluster(2) as fresh:
        fresh.told = TOLD.append
        yield fresh


TOLD: list[str] = []


def strike(executor: DaskExecutor, how: int = signal.SIGKILL, at: int = 4) -> Callable[[int, Misfit], None]:
    """Return what ends one worker before an iteration, once; its slabs are the only ones of their kind."""
    done: list[int] = []

    def hear(i: int, _: Misfit) -> None:
        if i == at and not done:
            done.append(min(executor.client.run(os.getpid).values()))
            os.kill(done[0], how)

    return hear


def test_sums_in_pairs_keep_their_order() -> None:
    for n in range(1, 12):
        words = [chr(ord("a") + i) for i in range(n)]
        assert add_in_pairs(words, lambda a, b: [x + y for x, y in zip(a, b)]) == "".join(words)
    grouped = add_in_pairs(list("abcde"), lambda a, b: [f"({x}{y})" for x, y in zip(a, b)])
    assert grouped == "(((ab)(cd))e)"


@pytest.mark.parametrize("n_workers", [3])
def test_the_number_of_workers_changes_no_bit(undisturbed: Reconstruction, n_workers: int) -> None:
    with cluster(n_workers) as executor:
        assert same(volume_by(executor, None), undisturbed)


def test_one_stack_an_iteration_comes_to_the_driver(executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the volume, and not a stack from each slab."""
    volume, received = SlabVolume(model(), executor, N_SLABS, support()), []
    fetch = executor.client._gather_remote

    async def counted(*arguments: Any, **options: Any) -> Any:
        found = await fetch(*arguments, **options)
        received.append(sum(map(sizeof, found["data"].values())))
        return found

    monkeypatch.setattr(executor.client, "_gather_remote", counted)
    stack = volume.project(model())
    assert stack.nbytes <= sum(received) < 1.1 * stack.nbytes + 200


def test_slabs_stay_on_their_workers(executor: DaskExecutor) -> None:
    volume = SlabVolume(model(), executor, N_SLABS)

    def places() -> list[tuple[str, ...]]:
        where = executor.client.who_has(volume.states)
        return [tuple(where[handle.key]) for handle in volume.states]

    executor.client.gather(executor.keep(len, [b"x"]))
    volume.project(model())
    before = places()
    assert len(set(before)) == 2
    residual = np.ones((9, 28, 26), np.float32)
    for _ in range(4):
        volume.update(solver(), model(), residual, solver().scalars(None, 1.0, 100.0, 0.0))
    volume.project(model())
    assert places() == before


@pytest.mark.parametrize("name", ["fista", "resire"])
def test_a_killed_worker_changes_no_bit(executor: DaskExecutor, tmp_path: Path, name: str) -> None:
    found = volume_by(executor, files(tmp_path), strike(executor), name)
    assert executor.generation >= 1
    assert "brought back" in TOLD[0]
    assert same(found, volume_by(InlineExecutor(), None, name=name))


def test_a_worker_killed_before_anything_is_saved(
    executor: DaskExecutor, tmp_path: Path, undisturbed: Reconstruction
) -> None:
    assert same(volume_by(executor, files(tmp_path), strike(executor, at=1)), undisturbed)
    assert executor.generation >= 1


def test_a_worker_killed_while_it_works(executor: DaskExecutor, tmp_path: Path, undisturbed: Reconstruction) -> None:
    """Not between iterations: the task that is lost was running."""
    timers = []

    def kill(pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def hear(i: int, _: Misfit) -> None:
        if i in (2, 5):
            # Not by asking the workers: the first may just have died
            pid = max(nanny.pid or 0 for nanny in executor.client.cluster.workers.values())
            timers.append(Timer(0.02 * i, kill, (pid,)))
            timers[-1].start()

    assert same(volume_by(executor, files(tmp_path), hear), undisturbed)
    for timer in timers:
        timer.join()
    assert executor.generation >= 1


def test_without_saved_slabs_a_loss_is_an_error(executor: DaskExecutor) -> None:
    with pytest.raises(WorkersLostError):
        volume_by(executor, None, strike(executor))


def test_workers_that_die_again_and_again_are_given_up(executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that kills its worker each time, as one that needs too much memory would."""
    monkeypatch.setattr(cluster_module, "ALONE_SECONDS", 300.0)  # a busy machine starts processes slowly
    with pytest.raises(WorkersLostError):
        executor.map(end_here, [1])
    assert len(TOLD) == RECOVERIES


def end_here(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_hangs_counts_as_lost_within_a_minute(
    executor: DaskExecutor, tmp_path: Path, undisturbed: Reconstruction, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (cluster_module.SILENT_LOOKS + 1) * WATCH_SECONDS < 45
    stop, struck, noticed = strike(executor, signal.SIGSTOP, at=2), [], []
    executor.told = lambda text: noticed.append((time.monotonic(), text))

    def hear(i: int, misfit: Misfit) -> None:
        stop(i, misfit)
        if i == 2:
            struck.append(time.monotonic())

    assert same(volume_by(executor, files(tmp_path), hear), undisturbed)
    moment, text = noticed[0]
    assert "hung" in text
    assert moment - struck[0] < 60


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_slabs import files, volume_by
from hpcrec.run.cluster import cluster

def hear(i, _):
    if i == 7:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    with cluster(2) as executor:
        volume_by(executor, files(Path(sys.argv[2])), hear)
"""


def test_a_killed_driver_is_continued(executor: DaskExecutor, tmp_path: Path, undisturbed: Reconstruction) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path / "saved")], timeout=300, check=False
    )
    assert done.returncode == -signal.SIGKILL
    seen: list[int] = []
    assert same(volume_by(executor, files(tmp_path / "saved"), lambda i, _: seen.append(i)), undisturbed)
    assert seen == [6, 7, 8], "of seven iterations the one after the last save is done again"
    seen.clear()
    assert same(volume_by(InlineExecutor(), files(tmp_path / "saved"), lambda i, _: seen.append(i)), undisturbed)
    assert seen == [], "all is there"


def saved_until(folder: Path, last: int) -> None:
    """Leave what a run leaves that ends before an iteration."""

    def end(i: int, _: Misfit) -> None:
        if i == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        volume_by(InlineExecutor(), files(folder), end)


def test_a_damaged_slab_sends_back_to_the_states_before(tmp_path: Path, undisturbed: Reconstruction) -> None:
    saved_until(tmp_path, 7)
    newest = tmp_path / "volume-slab0002_000006.h5"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    newest.write_bytes(content)
    seen: list[int] = []
    assert same(volume_by(InlineExecutor(), files(tmp_path), lambda i, _: seen.append(i)), undisturbed)
    assert seen[0] == 3


def test_states_of_another_problem_are_not_taken(tmp_path: Path) -> None:
    saved_until(tmp_path, 7)
    seen: list[int] = []
    volume_by(InlineExecutor(), files(tmp_path, key="another"), lambda i, _: seen.append(i))
    assert seen == list(range(N_ITERATIONS))
    data = measured()
    keys = {problem_key("a", data), problem_key("b", data), problem_key("a", 2 * data), problem_key("a", data[:3])}
    assert len(keys) == 4
    assert problem_key("a", data.copy()) in keys


def test_few_files_are_left_and_then_none(tmp_path: Path) -> None:
    (tmp_path / "tilt_0001.h5").touch()
    files(tmp_path, "even-tilts")
    volume_by(InlineExecutor(), files(tmp_path))
    assert len(list(tmp_path.glob("volume-slab*"))) == 2 * N_SLABS
    assert len(list(tmp_path.glob("volume-progress*"))) == 2
    files(tmp_path).remove()
    assert [path.name for path in tmp_path.iterdir()] == ["tilt_0001.h5"]
