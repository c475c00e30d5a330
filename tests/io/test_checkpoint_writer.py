"""Checkpoints written in a thread: computing goes on, nothing is lost or hidden."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcrec.errors import StorageError
from hpcrec.io import checkpoint
from hpcrec.io.checkpoint import CheckpointWriter, latest_good, load_checkpoint


def test_the_caller_goes_on_and_the_second_write_waits_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, go, first, begun = checkpoint.save_checkpoint, threading.Event(), threading.Event(), []

    def slow(path: Path, arrays: Any, attributes: Any) -> None:
        begun.append(path.name)
        first.set()
        assert go.wait(60)
        real(path, arrays, attributes)

    monkeypatch.setattr(checkpoint, "save_checkpoint", slow)
    writer = CheckpointWriter()
    writer.save(tmp_path / "stage_1.h5", {"a": np.arange(3)}, {})
    writer.check()
    assert not (tmp_path / "stage_1.h5").exists(), "the caller was not held up"
    second = threading.Thread(target=writer.save, args=(tmp_path / "stage_2.h5", {"a": np.arange(4)}, {}))
    second.start()
    assert first.wait(60)
    second.join(0.2)
    assert begun == ["stage_1.h5"]
    go.set()
    second.join()
    writer.wait()
    assert [len(load_checkpoint(tmp_path / f"stage_{n}.h5").arrays["a"]) for n in (1, 2)] == [3, 4]


@pytest.mark.parametrize("call", ["save", "check", "wait"])
def test_a_failed_write_is_told_by_the_next_call_and_the_one_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    writer = CheckpointWriter()
    writer.save(tmp_path / "stage_1.h5", {"a": np.arange(3)}, {})
    writer.wait()

    def fail(*_: Any) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", fail)
        writer.save(tmp_path / "stage_2.h5", {"a": np.arange(4)}, {})
        assert writer._under_way is not None
        assert isinstance(writer._under_way.exception(60), StorageError)
        more = (tmp_path / "stage_3.h5", {"a": np.arange(5)}, {}) if call == "save" else ()
        with pytest.raises(StorageError, match="the disk is full"):
            getattr(writer, call)(*more)
    found = latest_good(tmp_path, "stage")
    assert found is not None
    assert found.path.name == "stage_1.h5"
    writer.save(tmp_path / "stage_4.h5", {"a": np.arange(6)}, {})
    writer.wait()
    assert (tmp_path / "stage_4.h5").exists()
