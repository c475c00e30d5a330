"""The ptychography stage on GPUs, by the stand-in for CuPy: the answer of processors, on any ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from all_tilts import reconstruct_all
from device_runtime import OutOfMemoryError

from hpcrec.backend.device import PLAN_BYTES
from hpcrec.data.resident import DeviceReader
from hpcrec.errors import DeviceError
from hpcrec.io.base import open_series
from hpcrec.io.results import read_tilt_result, tilt_path
from hpcrec.models import multislice
from hpcrec.parallel.communicator import Communicator, SerialCommunicator, run_ranks
from hpcrec.run import devices
from hpcrec.run.config import load_job
from hpcrec.run.device_memory import device_rooms
from hpcrec.run.devices import rank_device
from hpcrec.run.job import Job
from hpcrec.run.memory import GIB
from hpcrec.run.plan import make_plan
from hpcrec.run.start import common_grid

PLAIN = ["ptychography.precision=double", "ptychography.batch_size=9", "data.tilts=[1]"]


def run_all(job: Job, folder: Path, n_ranks: int = 1) -> Any:
    """Reconstruct tilt 1 and return its result."""
    reconstruct_all(job, folder, n_ranks)
    return read_tilt_result(tilt_path(folder, 1))


def assert_same(found: Any, wanted: Any, tolerance: float = 1e-9) -> None:
    for name in ("obj", "probe"):
        expected = getattr(wanted, name)
        assert np.abs(getattr(found, name) - expected).max() <= tolerance * np.abs(expected).max(), name
    np.testing.assert_allclose(found.data_error, wanted.data_error, rtol=tolerance)
    for name, values in wanted.quality.items():
        np.testing.assert_allclose(found.quality[name], values, rtol=max(1e-6, tolerance), atol=1e-12, err_msg=name)


@pytest.mark.parametrize("exchange", ["replicated", "tiled"])
@pytest.mark.parametrize("n_ranks", [1, 3])
@pytest.mark.parametrize("engine", ["gradient", "lsqml"])
def test_gpus_give_the_answer_of_processors(
    tiny_job: Path, tmp_path: Path, gpus: ModuleType, engine: str, n_ranks: int, exchange: str
) -> None:
    """Two modes, two slices; ranks share the tilt; figures of patterns and all that a result holds too."""
    words = [
        *PLAIN,
        f"ptychography.engine={engine}",
        "probe.modes=2",
        "ptychography.slices=2",
        "ptychography.slice_thickness_angstrom=4",
        f"parallel.group_size={n_ranks}",
        f"parallel.exchange={exchange}",
    ]
    ends = {}
    for device in ("cpu", "gpu"):
        job, _ = load_job(tiny_job, [*words, f"parallel.device={device}"])
        ends[device] = run_all(job, tmp_path / device, n_ranks)
        assert bool(gpus.used) == (device == "gpu")
    assert_same(ends["gpu"], ends["cpu"])
    # Ranks of a host take its two GPUs in turn
    assert sorted(gpus.used) == sorted(i % 2 for i in range(n_ranks))


def test_patterns_that_do_not_fit_come_batch_by_batch(
    tiny_job: Path, tmp_path: Path, gpus: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []
    begin = DeviceReader.__init__

    def bounded(self: DeviceReader, reader: Any, share: Any, device: Any, room: int, **more: Any) -> None:
        begin(self, reader, share, device, room if len(made) == 0 else 1000, **more)
        made.append(self.resident)

    monkeypatch.setattr(DeviceReader, "__init__", bounded)
    job, _ = load_job(tiny_job, [*PLAIN, "parallel.device=gpu"])
    assert_same(run_all(job, tmp_path / "b"), run_all(job, tmp_path / "a"))
    assert made == [True, False]


def test_a_run_goes_on_elsewhere(
    tiny_job: Path, tmp_path: Path, gpus: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted on a GPU after the first checkpoint, it ends on processors as if nothing had happened."""
    engine = ["ptychography.engine=lsqml", "ptychography.lsqml.momentum=0.5"]
    on_gpu, _ = load_job(tiny_job, [*PLAIN, *engine, "parallel.device=gpu"])
    on_cpu, _ = load_job(tiny_job, [*PLAIN, *engine, "parallel.device=cpu"])
    wanted = run_all(on_cpu, tmp_path / "whole")
    section = dataclasses.replace(on_gpu.ptychography, iterations=3)
    part = dataclasses.replace(on_gpu, ptychography=section)
    run_all(part, tmp_path / "parts")
    tilt_path(tmp_path / "parts", 1).unlink()
    begun = sorted((tmp_path / "parts").glob("sweeps*"))
    assert not begun  # a tilt that is done keeps none
    monkeypatch.setattr("hpcrec.run.tilts.remove_parts", lambda *told: None)
    run_all(part, tmp_path / "parts")
    tilt_path(tmp_path / "parts", 1).unlink()
    found = run_all(on_cpu, tmp_path / "parts")
    assert len(found.loss) == 4
    assert_same(found, wanted)


def test_waves_that_do_not_fit_are_made_in_pieces(
    tiny_job: Path, tmp_path: Path, gpus: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Too many at a time fail late, when sums have begun; what they began does not count."""
    job, _ = load_job(tiny_job, [*PLAIN, "parallel.device=gpu"])
    wanted, most, failed = run_all(job, tmp_path / "a"), 5 << 20, []
    gradients = multislice.add_gradients

    def bounded(chain: Any, *told: Any, **more: Any) -> None:
        gradients(chain, *told, **more)
        if chain.room > most:
            failed.append(chain.room)
            raise OutOfMemoryError("out of memory")

    monkeypatch.setattr(multislice, "add_gradients", bounded)
    assert_same(run_all(job, tmp_path / "b"), wanted)
    assert len(failed) == len(set(failed)) > 0  # what was too much is not tried again
    assert gpus.pool.freed == len(failed) + len(gpus.used)
    assert "of waves at a time" in caplog.text


def test_memory_that_suffices_for_nothing_is_told(
    tiny_job: Path, tmp_path: Path, gpus: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*told: Any, **more: Any) -> None:
        raise OutOfMemoryError("Out of memory allocating 42 bytes")

    monkeypatch.setattr(multislice, "add_gradients", full)
    # The plan's own try would end first
    job, _ = load_job(tiny_job, [*PLAIN, "parallel.device=gpu"])
    with pytest.raises(DeviceError, match=r"tilt 1: GPU 0 has no memory left \(Out of memory allocating 42 bytes\)"):
        run_all(job, tmp_path / "a")


def test_the_plan_shares_a_gpu(tiny_job: Path, gpus: ModuleType) -> None:
    job, _ = load_job(tiny_job, [*PLAIN, "parallel.device=gpu"])
    with open_series(job.data) as series:
        plan = make_plan(job, series, 4)
        assert plan.device == "GPU 0"
        assert plan.resident
        # Four ranks on two GPUs, nine tenths of 30 GiB each
        assert plan.device_limit_gib == pytest.approx(13.5)
        assert 0 < plan.device_gib - PLAN_BYTES / GIB < 0.1
        grid = common_grid(job, series)
        device = rank_device("gpu", SerialCommunicator())
        rooms = device_rooms(job, series, grid, 1, device)
        least = dataclasses.replace(device, pool_bytes=rooms.needed)
        tight = device_rooms(job, series, grid, 1, least)
        assert tight.needed == rooms.needed
        assert tight.waves + tight.patterns <= rooms.needed
        small = dataclasses.replace(device, pool_bytes=rooms.needed - 1)
        with pytest.raises(DeviceError, match=r"GPU 0: a rank would need .* GiB of its memory and may take"):
            device_rooms(job, series, grid, 1, small)


def test_gpus_on_some_hosts_only_are_told(gpus: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def device(world: Communicator) -> Any:
        return rank_device("auto", world)

    seen = iter([("", "0000:01"), ("", "0000:01"), ()])
    monkeypatch.setattr(devices, "visible", lambda: next(seen))
    with pytest.raises(DeviceError, match="1 of 3 ranks, on .*, see no GPU and the others do"):
        run_ranks(3, device)


def test_without_a_gpu_auto_is_the_processor() -> None:
    assert rank_device("auto", SerialCommunicator()).kind == "cpu"
    with pytest.raises(DeviceError, match="device 'gpu'"):
        rank_device("gpu", SerialCommunicator())


def test_the_commands_take_gpus(
    tiny_job: Path, tmp_path: Path, gpus: ModuleType, hpcrec: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Single precision, by the command line: the same to single precision's rounding, grown over four sweeps."""
    words = ["--set", "data.tilts=[1]"]
    assert hpcrec("check", tiny_job, *words, "--set", "parallel.device=gpu") == 0
    assert "all patterns of a tilt stay there" in " ".join(capsys.readouterr().out.split())
    for device in ("cpu", "gpu"):
        assert hpcrec("run", tiny_job, *words, "--set", f"parallel.device={device}", "--out", tmp_path / device) == 0
    assert "on GPUs, rank 0 on GPU 0 with 27 GiB" in " ".join(capsys.readouterr().out.split())
    found, wanted = (read_tilt_result(tilt_path(tmp_path / name / "checkpoints", 1)) for name in ("gpu", "cpu"))
    assert_same(found, wanted, 1e-4)
    assert hpcrec("info") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "0: Pretended, 40.0 GiB" in shown
    assert "0: 0000:01:00.0" in shown
