import errno
import logging
import resource
from contextlib import contextmanager

import h5py
import numpy as np
import pytest

from hpcrec.errors import DataError, StorageError
from hpcrec.io import store
from hpcrec.io.checkpoint import latest_good, load_checkpoint, remove_checkpoints, save_checkpoint

ARRAYS = {
    "obj": np.arange(12).reshape(1, 3, 4).astype(np.complex64),
    "memory/velocity": np.linspace(0, 1, 7),
    "empty": np.zeros((0, 2), np.float32),
    "scalar": np.array(3.0),
    "flags": np.array([True, False]),
    "counts": np.arange(5, dtype=np.int64)[::2],
}
ATTRIBUTES = {"iteration": 7, "seed": 3.5, "name": "ePIE µ", "done": False, "origin": (1.0, 2.0)}


def test_what_is_saved_comes_back_with_types_and_shapes(tmp_path):
    save_checkpoint(tmp_path / "tilt_0001_7.h5", ARRAYS, ATTRIBUTES)
    _, arrays, attributes = load_checkpoint(tmp_path / "tilt_0001_7.h5")
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype
    assert attributes["name"] == "ePIE µ"
    assert int(attributes["iteration"]) == 7
    assert not attributes["done"]
    np.testing.assert_array_equal(attributes["origin"], [1.0, 2.0])
    assert attributes.keys() == ATTRIBUTES.keys()


def test_the_last_two_are_kept_and_other_prefixes_left_alone(tmp_path):
    save_checkpoint(tmp_path / "other_1.h5", ARRAYS, {})
    for number in (8, 9, 10, 11):
        save_checkpoint(tmp_path / f"stage_{number:03d}.h5", ARRAYS, {"n": number})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other_1.h5", "stage_010.h5", "stage_011.h5"]
    save_checkpoint(tmp_path / "stage_010.h5", ARRAYS, {"n": 0})  # 11 belongs to a course that was given up
    assert latest_good(tmp_path, "stage").attributes["n"] == 0
    remove_checkpoints(tmp_path, "stage")
    assert [p.name for p in tmp_path.iterdir()] == ["other_1.h5"]
    assert latest_good(tmp_path, "stage") is None
    with pytest.raises(ValueError, match="PREFIX_NUMBER"):
        save_checkpoint(tmp_path / "name.h5", ARRAYS, {})


@pytest.mark.parametrize("damage", ["empty", "truncated", "bit", "foreign", "attribute", "missing array"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path, caplog, damage):
    for number in (1, 2):
        save_checkpoint(tmp_path / f"stage_{number}.h5", {**ARRAYS, "large": np.ones(5000)}, {"n": number})
    newest = tmp_path / "stage_2.h5"
    content = bytearray(newest.read_bytes())
    if damage == "empty":
        newest.write_bytes(b"")
    elif damage == "truncated":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "bit":
        content[content.index(np.ones(10).tobytes()) + 40] ^= 1
        newest.write_bytes(content)
    elif damage == "foreign":
        newest.write_bytes(b"something else")
    else:
        with h5py.File(newest, "r+") as file:
            if damage == "attribute":
                file.attrs["n"] = 3
            else:
                del file["obj"]
    with pytest.raises(DataError, match="stage_2.h5"):
        load_checkpoint(newest)
    with caplog.at_level(logging.WARNING):
        assert latest_good(tmp_path, "stage").attributes["n"] == 1
    assert "stage_2.h5" in caplog.text


def test_flipped_bytes_anywhere_are_noticed_or_harmless(tmp_path):
    path = tmp_path / "stage_1.h5"
    save_checkpoint(path, ARRAYS, ATTRIBUTES)
    content = path.read_bytes()
    caught = 0
    for where in np.random.default_rng(0).integers(0, len(content), 100):
        damaged = bytearray(content)
        damaged[where] ^= 0xFF
        path.write_bytes(damaged)
        try:
            _, arrays, _ = load_checkpoint(path)
        except DataError:
            caught += 1
            continue
        for name, array in ARRAYS.items():  # padding of the file format was hit
            np.testing.assert_array_equal(arrays[name], array)
    assert caught > 30


class FullDisk:
    """A file on a disk with ``room`` bytes left."""

    def __init__(self, file, room):
        self._file, self.room = file, room

    def write(self, data):
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(data)
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 100, 3000, 40_000, 90_000])
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(tmp_path, monkeypatch, room):
    arrays = {f"array_{i}": np.full(1000, i, float) for i in range(12)}
    save_checkpoint(tmp_path / "stage_1.h5", arrays, {"n": 1})

    def limited(sink, path):
        store.io.RawIOBase.__init__(sink)
        sink._file, sink.fault = FullDisk(path.open("r+b", buffering=0), room), None

    monkeypatch.setattr(store._Sink, "__init__", limited)
    with pytest.raises(StorageError, match=r"stage_2.h5: cannot be written: the disk is full"):
        save_checkpoint(tmp_path / "stage_2.h5", arrays, {"n": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["stage_1.h5"]
    assert latest_good(tmp_path, "stage").attributes["n"] == 1


@contextmanager
def file_size_limit(n_bytes):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_limit_set_by_the_system_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"File too large"), file_size_limit(100_000):
        save_checkpoint(tmp_path / "stage_1.h5", {"a": np.random.default_rng(0).random(50_000)}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_newer_format_is_refused(tmp_path):
    path = tmp_path / "stage_1.h5"
    save_checkpoint(path, ARRAYS, {})
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(DataError, match="version 2 .* reads up to 1"):
        load_checkpoint(path)
    with h5py.File(path, "r+") as file:
        file.attrs["extra"] = "text of variable length"
        file.attrs["format_version"] = 1
    with pytest.raises(DataError, match="not written by this program"):
        load_checkpoint(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = np.bytes_("other")
    with pytest.raises(DataError, match="not a file of format hpcrec-checkpoint"):
        load_checkpoint(path)
