"""A whole run: every file is there, doing it again changes nothing, and what is interrupted is continued."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcrec.errors import StorageError
from hpcrec.io.results import ProjectionStore, read_volume
from hpcrec.run import cluster, pipeline, volume
from hpcrec.run.observers import read_events

pytestmark = pytest.mark.timeout(180)

EVERY_FILE = {
    "atoms.xyz", "checkpoints", "events.jsonl", "job.toml", "projections.h5",
    "provenance.json", "quality.json", "report.html", "volume.h5", "volume.mrc",
}  # fmt: skip
AFTER_PTYCHOGRAPHY = {"checkpoints", "events.jsonl", "job.toml", "projections.h5", "provenance.json"}
AFTER_TOMOGRAPHY = AFTER_PTYCHOGRAPHY | {"volume.h5", "volume.mrc"}
AFTER_ANALYSIS = AFTER_TOMOGRAPHY | {"atoms.xyz", "quality.json"}
# These tell of times, so they differ from run to run
TELLS_TIMES = {"events.jsonl", "provenance.json", "report.html"}
Command = Callable[..., int]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in TELLS_TIMES]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def written(folder: Path) -> dict[str, int]:
    """Return when the costly results were written."""
    paths = [folder / "projections.h5", folder / "volume.h5", *folder.glob("checkpoints/tilt_*.h5")]
    return {path.name: path.stat().st_mtime_ns for path in paths}


def voxels(folder: Path) -> np.ndarray:
    return read_volume(folder / "volume.h5").volume


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def heard(folder: Path, event: str) -> list[dict[str, Any]]:
    return [e for e in read_events(folder / "events.jsonl") if e["event"] == event]


def test_a_whole_run_leaves_every_file(whole_run: Path) -> None:
    assert names(whole_run) == EVERY_FILE
    assert {"tilt_0000.h5", "tilt_0001.h5", "tilt_0002.h5"} <= names(whole_run / "checkpoints")
    assert not list(whole_run.rglob("sweeps_*")), "checkpoints of finished tilts are removed"
    quality = json.loads((whole_run / "quality.json").read_text())
    assert len(quality["tilts"]) == 3
    assert quality["resolution"]["half_bit"] > 0
    assert sum(quality["atoms"]["counts"].values()) == int((whole_run / "atoms.xyz").read_text().split()[0])
    assert quality["atoms"]["comparison"]["species"]["Co"]["true"] == 24
    assert [e["stage"] for e in heard(whole_run, "stage_done")] == ["ptychography", "tomography", "analysis", "report"]


def test_the_same_command_again_changes_nothing(
    whole_job: Path, whole_run: Path, hpcrec: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole_run, out)
    before, times = digests(out), written(out)
    assert hpcrec("run", whole_job, "--out", out) == 0
    assert written(out) == times
    assert digests(out) == before
    assert "tomography: done before, kept" in [e["text"] for e in heard(out, "note")]


def test_a_changed_section_redoes_the_later_stages_only(
    whole_run: Path, hpcrec: Command, scheduler: str, tmp_path: Path
) -> None:
    """The run directory itself is the target, as a user would continue it."""
    out = tmp_path / "out"
    shutil.copytree(whole_run, out)
    before, times = digests(out), written(out)
    changes = ("--set", "tomography.fista.n_iterations=3", "--set", f"parallel.scheduler={scheduler}")
    assert hpcrec("run", out, *changes, "--until", "analysis") == 0
    after = digests(out)
    kept = {name for name, time in written(out).items() if time == times[name]}
    assert kept == set(times) - {"volume.h5"}
    assert after["volume.h5"] != before["volume.h5"]
    assert after["quality.json"] != before["quality.json"]
    assert len(read_volume(out / "volume.h5").arrays["convergence/r1"]) == 3


def test_a_run_stops_after_the_stage_it_is_told(
    whole_job: Path, whole_run: Path, hpcrec: Command, scheduler: str, tmp_path: Path
) -> None:
    """Stage by stage, with workers of a running scheduler, it comes to what one command with its own workers finds."""
    out = tmp_path / "out"
    assert hpcrec("run", whole_job, "--out", out, "--until", "ptychography") == 0
    assert names(out) == AFTER_PTYCHOGRAPHY
    change = f"parallel.scheduler={scheduler}"
    assert hpcrec("run", whole_job, "--out", out, "--until", "tomography", "--set", change) == 0
    assert names(out) == AFTER_TOMOGRAPHY
    assert hpcrec("run", whole_job, "--out", out, "--until", "analysis") == 0
    assert names(out) == AFTER_ANALYSIS
    # One slab or two: sums in another order, single precision
    assert distance(voxels(out), voxels(whole_run)) < 1e-5


def test_dropped_tilts_leave_and_come_back(whole_run: Path, hpcrec: Command, tmp_path: Path) -> None:
    """Nothing is reconstructed anew; what later stages read follows the list."""
    out = tmp_path / "out"
    shutil.copytree(whole_run, out)
    for dropped, kept in (([1], [0, 2]), ([], [0, 1, 2])):
        assert hpcrec("run", out, "--until", "ptychography", "--set", f"data.drop_tilts={dropped}") == 0
        with ProjectionStore(out / "projections.h5") as store:
            assert store.tilt_indices.tolist() == kept
    assert len(heard(out, "tilt_done")) == 3, "those of the first run"


def test_damaged_projections_are_gathered_anew_and_stray_checkpoints_go(
    whole_run: Path, hpcrec: Command, tmp_path: Path
) -> None:
    """What a kill can leave: the projections are made of the tilts, and a tilt's checkpoints go after its result."""
    out = tmp_path / "out"
    shutil.copytree(whole_run, out)
    os.truncate(out / "projections.h5", 4000)
    (out / "checkpoints" / "sweeps_0001_000002.h5").touch()
    assert hpcrec("run", out, "--until", "ptychography") == 0
    assert (out / "projections.h5").read_bytes() == (whole_run / "projections.h5").read_bytes()
    assert not list(out.rglob("sweeps_*"))


def test_a_notice_does_not_take_the_place_of_the_stage(
    tiny_job: Path, hpcrec: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "FEW_COUNTS", 1e30)
    once = ("--set", "ptychography.iterations=1", "--set", "data.drop_tilts=[0, 2]")
    assert hpcrec("run", tiny_job, "--out", tmp_path / "out", "--until", "ptychography", *once) == 0
    assert any("the losses expect counts" in e["text"] for e in heard(tmp_path / "out", "warning"))
    assert heard(tmp_path / "out", "stage_started")[0]["text"].startswith("1 of 1 tilts to do")


@pytest.mark.slow
def test_a_run_survives_the_death_of_a_dask_worker(
    whole_job: Path, whole_run: Path, hpcrec: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the alignment and in the volume; nothing starts again, and not a bit changes."""
    real, killed = volume.reconstruct_volume, []

    def reconstruct(job: Any, key: str, directory: Any, executor: Any, observer: Any) -> None:
        def hear(event: Any) -> None:
            observer(event)
            text = event.get("text", "")
            if (not killed and text.startswith("aligning")) or (len(killed) == 1 and "volume, R1" in text):
                killed.append(min(executor.client.run(os.getpid).values()))
                os.kill(killed[-1], signal.SIGKILL)

        real(job, key, directory, executor, hear)

    monkeypatch.setattr(volume, "reconstruct_volume", reconstruct)
    out = tmp_path / "out"
    assert hpcrec("run", whole_job, "--out", out, "--until", "tomography") == 0
    assert len(set(killed)) == 2
    warnings = [e["text"] for e in heard(out, "warning")]
    assert sum("brought back" in text for text in warnings) >= 2
    assert not any("attempt" in text for text in warnings)
    np.testing.assert_array_equal(voxels(out), voxels(whole_run))
    assert not [path.name for path in (out / "checkpoints").iterdir() if "slab" in path.name or "progress" in path.name]


def test_an_interrupted_volume_goes_on(
    whole_job: Path, whole_run: Path, hpcrec: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slabs are saved after each of four iterations; the run ends in the half sets, and ends as if it never had."""
    out = tmp_path / "out"
    shutil.copytree(whole_run, out)
    (out / "volume.h5").unlink()
    real = volume.VolumeProblem.solve

    def interrupted(problem: Any, data: Any, picks: Any, name: str) -> Any:
        if name == "odd tilts":
            raise StorageError("the disk is full")
        return real(problem, data, picks, name)

    monkeypatch.setattr(volume.VolumeProblem, "solve", interrupted)
    often = "--set", "parallel.save_every=1"
    assert hpcrec("run", out, "--until", "tomography", *often) == StorageError.exit_code
    assert (out / "checkpoints" / "slabs.json").exists()
    assert len(list((out / "checkpoints").glob("volume-slab0000_*.h5"))) == 2
    monkeypatch.undo()
    seen = len(heard(out, "stage_progress"))
    assert hpcrec("run", out, "--until", "tomography", *often) == 0
    texts = [e.get("text", "") for e in heard(out, "stage_progress")[seen:]]
    assert not any(text.startswith(("volume, R1", "even tilts, R1")) for text in texts), "done before"
    assert sum(text.startswith("odd tilts, R1") for text in texts) == 4
    first, again = read_volume(whole_run / "volume.h5"), read_volume(out / "volume.h5")
    np.testing.assert_array_equal(again.volume, first.volume)
    for name in ("halves/even", "halves/odd", "convergence/r1", "convergence/per_projection"):
        np.testing.assert_array_equal(again.arrays[name], first.arrays[name])
    assert not list((out / "checkpoints").glob("*slab*"))


def test_workers_that_die_again_and_again_end_the_run(
    whole_job: Path, whole_run: Path, hpcrec: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three attempts the user is told; no tilt is lost."""
    out, attempts = tmp_path / "out", []
    shutil.copytree(whole_run, out)
    (out / "volume.h5").unlink()

    def lose(*_: Any) -> None:
        attempts.append(1)
        raise cluster.WorkersLostError("1 Dask worker(s) died")

    class Nobody:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(volume, "reconstruct_volume", lose)
    monkeypatch.setattr(cluster, "cluster", lambda *_: Nobody())
    assert hpcrec("run", whole_job, "--out", out) == cluster.WorkersLostError.exit_code
    assert len(attempts) == pipeline.ATTEMPTS
    assert (out / "projections.h5").exists()
