"""Coarse start and half scans: the same answer for any ranks and interruptions, and a better start than none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_tilt import silent

from hpcrec.analysis.resolution import ShellCorrelation
from hpcrec.errors import ConfigError
from hpcrec.geometry.grid import Grid
from hpcrec.io.base import open_series
from hpcrec.io.checkpoint import latest_good
from hpcrec.parallel.communicator import Communicator, SerialCommunicator, run_ranks
from hpcrec.run.config import load_job
from hpcrec.run.job import Job
from hpcrec.run.outcome import TiltOutcome
from hpcrec.run.parts import TiltTask, finer_object, reconstruct_tilt, remove_parts
from hpcrec.run.runner import TiltRun
from hpcrec.run.start import common_grid

COARSE = ["ptychography.coarse_iterations=5", "refine.positions.start_iteration=2"]


def both(
    job: Job, folder: Path, group: Communicator | None = None, hear: Any = silent
) -> tuple[TiltOutcome | None, ShellCorrelation | None]:
    """Reconstruct tilt 1 with all its parts: the outcome, and the ring correlation of its half scans."""
    folder.mkdir(exist_ok=True)
    with open_series(job.data) as series:
        task = TiltTask(
            job=job,
            series=series,
            grid=common_grid(job, series),
            i_tilt=1,
            group=group or SerialCommunicator(),
            checkpoints=folder,
            report=hear,
        )
        return reconstruct_tilt(task)


def reconstruct(*arguments: Any, **more: Any) -> TiltOutcome | None:
    return both(*arguments, **more)[0]


def half_scan_curve(*arguments: Any, **more: Any) -> Any:
    return both(*arguments, **more)[1]


def assert_same(a: TiltOutcome | None, b: TiltOutcome | None) -> None:
    assert a is not None
    assert b is not None
    np.testing.assert_array_equal(a.obj, b.obj)
    np.testing.assert_array_equal(a.probe, b.probe)
    np.testing.assert_array_equal(a.positions, b.positions)
    np.testing.assert_array_equal(a.data_error, b.data_error)


def test_a_coarse_start_saves_sweeps(tiny_job: Path, tmp_path: Path) -> None:
    """The first full sweep begins where some full sweeps would have come."""
    heard: list[Any] = []
    found = reconstruct(load_job(tiny_job, COARSE)[0], tmp_path / "coarse", hear=heard.append)
    plain = reconstruct(load_job(tiny_job)[0], tmp_path / "plain")
    assert found is not None
    assert plain is not None
    assert found.data_error[0] < plain.data_error[1]
    assert found.data_error[-1] < plain.data_error[-1]
    assert len(found.data_error) == 4
    names = [e["event"] for e in heard]
    assert names.count("part_sweep") == 5
    assert names.count("sweep") == 4
    assert names.count("tilt_done") == 1
    assert names.index("part_sweep") < names.index("tilt_started")


@pytest.mark.parametrize("exchange", ["replicated", "tiled"])
def test_ranks_do_not_change_a_coarse_start(tiny_job: Path, tmp_path: Path, exchange: str) -> None:
    job, _ = load_job(tiny_job, [*COARSE, f"parallel.exchange={exchange}"])
    one = reconstruct(job, tmp_path / "one")
    many = run_ranks(3, lambda group: reconstruct(job, tmp_path / "many", group))[0]
    assert one is not None
    assert many is not None
    assert np.linalg.norm(many.obj - one.obj) <= 1e-4 * np.linalg.norm(one.obj)
    np.testing.assert_allclose(many.positions, one.positions, atol=1e-4)


@pytest.mark.parametrize(("event", "iteration"), [("part_sweep", 3), ("part_sweep", 5), ("sweep", 1), ("sweep", 3)])
def test_a_tilt_resumed_in_any_part_is_the_same(tiny_job: Path, tmp_path: Path, event: str, iteration: int) -> None:
    job, _ = load_job(tiny_job, COARSE)
    whole = reconstruct(job, tmp_path / "whole")

    def die(e: Any) -> None:
        if e["event"] == event and e["iteration"] == iteration:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        reconstruct(job, tmp_path / "cut", hear=die)
    assert_same(reconstruct(job, tmp_path / "cut"), whole)


def test_no_part_leaves_checkpoints(tiny_job: Path, tmp_path: Path) -> None:
    reconstruct(load_job(tiny_job, COARSE)[0], tmp_path)
    assert latest_good(tmp_path, "coarse_sweeps_0001") is not None
    remove_parts(tmp_path, 1)
    assert not list(tmp_path.glob("*.h5"))


def test_moves_count_from_the_given_positions(tiny_job: Path, tmp_path: Path) -> None:
    """A bound on them holds for coarse and full sweeps together; taking the mean off may add a little."""
    bound = "refine.positions.max_move_angstrom=0.002"
    found = reconstruct(load_job(tiny_job, [*COARSE, bound])[0], tmp_path)
    assert found is not None
    moves = np.abs(found.positions - found.setup.positions)
    assert 0.0015 < moves.max() < 0.0028


def test_a_finer_object_lies_where_the_coarse_one_did() -> None:
    """A smooth bump at a given place in Å, on grids with other origins."""
    coarse = Grid(shape=(40, 44), sampling=(0.4, 0.4), origin=(-8.0, -6.4))
    fine = Grid(shape=(70, 90), sampling=(0.2, 0.2), origin=(-6.6, -7.2))

    def bump(grid: Grid) -> np.ndarray:
        y, x = (o + d * np.arange(n) for o, d, n in zip(grid.origin, grid.sampling, grid.shape))
        return np.exp(0.5j * np.exp(-((y[:, None] - 1.0) ** 2 + (x[None] - 2.0) ** 2) / 4))[None]

    found = finer_object(bump(coarse), coarse, fine)
    # Å by Å the same where the coarse grid reaches; 1 beyond
    np.testing.assert_allclose(found, bump(fine), atol=2e-3)
    assert (found[:, :, :4] == 1).all()


def test_near_field_images_have_no_coarse_half(tiny_job: Path) -> None:
    changes = ["detector.field=near", "detector.distance_angstrom=1e4", *COARSE]
    with pytest.raises(ConfigError, match="near-field image is no coarser"):
        load_job(tiny_job, changes)


FRC = ["quality.frc=true", "quality.hold_out=0.03"]


def test_half_scans_are_correlated_the_same_on_any_ranks(tiny_job: Path, tmp_path: Path) -> None:
    """The curve is found from one rank or three; the main result is that of a run without half scans."""
    job, _ = load_job(tiny_job, FRC)
    one = half_scan_curve(job, tmp_path / "one")
    many = run_ranks(3, lambda group: half_scan_curve(job, tmp_path / "many", group))
    assert one.correlation[2] > 0.5
    assert many[1] is None
    # The ring at zero frequency holds round-off only: means are taken off
    np.testing.assert_allclose(many[0].correlation[1:], one.correlation[1:], atol=2e-3)
    plain = reconstruct(load_job(tiny_job, FRC[1:])[0], tmp_path / "plain")
    assert_same(reconstruct(job, tmp_path / "with"), plain)


def test_half_scans_go_on_where_they_were(tiny_job: Path, tmp_path: Path) -> None:
    job, _ = load_job(tiny_job, [*FRC, "ptychography.coarse_iterations=2"])
    whole = half_scan_curve(job, tmp_path / "whole")

    def die(e: Any) -> None:
        if e.get("part") == "half2" and e["iteration"] == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        half_scan_curve(job, tmp_path / "cut", hear=die)
    heard: list[Any] = []
    again = half_scan_curve(job, tmp_path / "cut", hear=heard.append)
    np.testing.assert_array_equal(again.correlation, whole.correlation)
    assert [e["iteration"] for e in heard if e.get("part") == "half2"] == [3, 4]
    assert not [e for e in heard if e.get("part") in ("coarse_half1", "half1", "coarse_half2")], "what is done is kept"
    remove_parts(tmp_path / "cut", 1)
    assert not list((tmp_path / "cut").glob("*.h5"))


def test_half_scans_share_no_pattern(tiny_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[str, set[int]] = {}
    real = TiltRun.__init__

    def begin(self: TiltRun, job: Job, series: Any, *rest: Any) -> None:
        scan = series.tilt(1)
        used[rest[5]] = set(map(tuple, scan.positions.tolist()))
        real(self, job, series, *rest)

    monkeypatch.setattr(TiltRun, "__init__", begin)
    half_scan_curve(load_job(tiny_job, FRC)[0], tmp_path)
    assert not used["half1"] & used["half2"]
    assert len(used["half1"] | used["half2"]) == 35, "the held-out one is in neither"
    assert len(used["sweeps"]) == 36
