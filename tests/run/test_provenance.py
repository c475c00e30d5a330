"""Provenance: enough to tell how, where and from what a run was made, and how often it was continued."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

import hpcrec as package
from hpcrec.run.provenance import collect_provenance, now


def test_the_record_says_how_and_from_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["hpcrec", "run", "x.toml"])
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_TOKEN", "not to be kept")
    record = collect_provenance({"name": "x", "ptychography": {"seed": 5}}, [{"path": "a.h5"}], 4, "MPICH")
    assert record["hpcrec"]["version"] == package.__version__
    assert record["command"] == ["hpcrec", "run", "x.toml"]
    assert (record["seed"], record["ranks"], record["mpi"]) == (5, 4, "MPICH")
    assert record["inputs"] == [{"path": "a.h5"}]
    assert record["scheduler"] == {"SLURM_JOB_ID": "17"}
    assert {"host", "system", "processor", "cores", "memory_gib", "python"} <= set(record["machine"])
    assert record["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert "not to be kept" not in json.dumps(record)


def test_a_checkout_without_git_is_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container that holds the sources."""
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(package, "__file__", str(tmp_path / "hpcrec" / "__init__.py"))
    monkeypatch.setenv("PATH", "")
    assert set(collect_provenance({}, [], 1, "none")["hpcrec"]) == {"version"}


def test_the_seed_has_its_default_and_time_is_in_utc() -> None:
    assert collect_provenance({}, [], 1, "none")["seed"] == 1
    assert abs((datetime.now(UTC) - datetime.fromisoformat(now())).total_seconds()) < 5


def test_each_restart_is_listed(tiny_job: Path, tiny_series: Path, tmp_path: Path, hpcrec: Callable[..., int]) -> None:
    out = tmp_path / "out"
    records = []
    for _ in range(3):
        assert hpcrec("run", tiny_job, "--out", out, "--until", "ptychography") == 0
        records.append(json.loads((out / "provenance.json").read_text()))
    first, _, last = records
    assert "restarts" not in first
    assert len(last["restarts"]) == 2
    assert all(set(entry) == {"started", "command", "ranks", "hpcrec"} for entry in last["restarts"])
    assert last["started"] == first["started"]
    assert last["outputs"] == ["events.jsonl", "job.toml", "projections.h5"]
    assert last["finished"] >= first["finished"]
    assert last["job"]["name"] == "tiny"
    (source,) = last["inputs"]
    assert source["path"] == str(tiny_series)
    assert source["size"] == tiny_series.stat().st_size
    assert source["digest"] == f"sha256:{hashlib.sha256(tiny_series.read_bytes()).hexdigest()}"
