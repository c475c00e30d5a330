"""Parts of a checkpoint: any box and any patterns come back, damage is noticed, nothing is left over or lost."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcrec.errors import DataError, StorageError
from hpcrec.geometry.tiles import EMPTY_BOX, Box
from hpcrec.io import store
from hpcrec.io.checkpoint import (
    latest_good,
    load_checkpoint,
    newest_first,
    open_checkpoint,
    remove_checkpoints,
    remove_strays,
    save_checkpoint,
    save_index,
)
from hpcrec.io.checkpoint_parts import Parts, part_path, write_part

GRID = Box(0, 7, 0, 9)
# The last one has no pixels, the second no patterns
BOXES = (Box(0, 4, 0, 9), Box(4, 7, 0, 5), Box(4, 7, 5, 9), EMPTY_BOX)
PLACES = ([0, 3, 4, 9], [], [1, 2, 8], [5, 6, 7])
OBJECT = (np.arange(2 * 7 * 9) * (1 + 2j)).astype(np.complex64).reshape(2, 7, 9)
VELOCITY = np.arange(7 * 9, dtype=np.float32).reshape(7, 9) / 3
WAVES = (np.arange(10 * 6) * (2 - 1j)).astype(np.complex64).reshape(10, 2, 3)
SMALL = {"probe": np.arange(6.0).reshape(1, 2, 3), "loss": np.arange(3.0)}


def write(folder: Path, number: int, token: str = "ab12", *, index: bool = True) -> Path:
    path = folder / f"stage_{number}.h5"
    parts = []
    for i, (box, places) in enumerate(zip(BOXES, PLACES)):
        pixels = {name: values[(..., *box.slices(GRID))] for name, values in (("obj", OBJECT), ("v:1", VELOCITY))}
        own = np.array(places, np.int64)
        parts.append(write_part(part_path(path, token, i), box, own, pixels, {"waves": WAVES[own]}))
    if index:
        save_index(SMALL, {"n": number}, Parts(path, token, tuple(parts)))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files(number: int, token: str = "ab12") -> list[str]:
    return [f"stage_{number}.{token}-{i:04d}.h5" for i in range(len(BOXES))]


@pytest.mark.parametrize("box", [GRID, Box(3, 6, 2, 8), Box(5, 6, 0, 2), Box(0, 2, 3, 3), EMPTY_BOX, *BOXES[:3]])
def test_any_box_comes_back(tmp_path: Path, box: Box) -> None:
    parts = open_checkpoint(write(tmp_path, 1)).parts
    assert parts is not None
    found = parts.pixels(box)
    for name, values in (("obj", OBJECT), ("v:1", VELOCITY)):
        np.testing.assert_array_equal(found[name], values[(..., *box.slices(GRID))])
        assert found[name].dtype == values.dtype


@pytest.mark.parametrize("places", [range(10), [7], [9, 0, 5, 6, 2], [1, 2, 8], []])
def test_any_patterns_come_back_in_the_order_asked(tmp_path: Path, places: Any) -> None:
    parts = open_checkpoint(write(tmp_path, 1)).parts
    assert parts is not None
    found = parts.patterns(np.array(places, np.int64))["waves"]
    np.testing.assert_array_equal(found, WAVES[np.array(places, np.int64)])
    assert found.dtype == WAVES.dtype


def test_the_whole_comes_back_as_from_one_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "one_1.h5", {**SMALL, "obj": OBJECT, "v:1": VELOCITY, "patterns:waves": WAVES}, {"n": 1})
    one, parts = load_checkpoint(tmp_path / "one_1.h5"), load_checkpoint(write(tmp_path, 1))
    assert parts.arrays.keys() == one.arrays.keys()
    assert parts.attributes == one.attributes == {"n": 1}
    for name, values in one.arrays.items():
        np.testing.assert_array_equal(parts.arrays[name], values)
        assert parts.arrays[name].dtype == values.dtype


@pytest.mark.parametrize(
    "damage", ["cut part", "byte of part", "no part", "part of before", "cut index", "byte of index"]
)
def test_a_damaged_one_is_named_and_the_one_before_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    victim = newest if "index" in damage else part_path(newest, "ab12", 2)
    content = bytearray(victim.read_bytes())
    if damage.startswith("cut"):
        victim.write_bytes(content[:-100])
    elif damage.startswith("byte"):
        known = SMALL["probe"] if "index" in damage else WAVES[[1, 2, 8]]
        content[content.index(known.tobytes()) + 9] ^= 1
        victim.write_bytes(content)
    elif damage == "no part":
        victim.unlink()
    else:
        box = BOXES[2]
        pixels = {"obj": OBJECT[(..., *box.slices(GRID))] + 1, "v:1": VELOCITY[box.slices(GRID)]}
        write_part(victim, box, np.array(PLACES[2]), pixels, {"waves": WAVES[PLACES[2]]})
    with pytest.raises(DataError, match=victim.name):
        load_checkpoint(newest)
    with caplog.at_level(logging.WARNING):
        found = latest_good(tmp_path, "stage")
    assert found is not None
    assert found.attributes["n"] == 1
    assert victim.name in caplog.text


def test_flipped_bytes_anywhere_in_a_part_are_noticed_or_harmless(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    victim = part_path(path, "ab12", 0)
    content, caught = victim.read_bytes(), 0
    for where in np.random.default_rng(0).integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[where] ^= 0xFF
        victim.write_bytes(damaged)
        try:
            arrays = load_checkpoint(path).arrays
        except DataError:
            caught += 1
            continue
        np.testing.assert_array_equal(arrays["obj"], OBJECT)
        np.testing.assert_array_equal(arrays["patterns:waves"], WAVES)
    assert caught > 15


def test_the_last_two_are_kept_with_their_parts(tmp_path: Path) -> None:
    write(tmp_path, 7, "0f", index=False)  # of a killed run
    for number in (8, 9, 10):
        write(tmp_path, number)
    write(tmp_path, 12, index=False)  # being written by now
    write(tmp_path, 13, "0f", index=False)  # of a course of events that was given up
    write(tmp_path, 11)
    assert names(tmp_path) == sorted(["stage_10.h5", "stage_11.h5", *files(10), *files(11), *files(12)])
    write(tmp_path, 11, "cd")  # the same number again, by another start
    assert names(tmp_path) == sorted(["stage_10.h5", "stage_11.h5", *files(10), *files(11, "cd")])
    save_checkpoint(tmp_path / "stage_12.h5", SMALL, {})  # by one rank
    assert names(tmp_path) == sorted(["stage_11.h5", "stage_12.h5", *files(11, "cd")])
    assert newest_first(tmp_path, "stage") == [tmp_path / "stage_12.h5", tmp_path / "stage_11.h5"]


def test_what_killed_runs_left_goes_and_all_goes_at_the_end(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2, index=False)
    (tmp_path / ".stage_2.ab12-0004.h5.other-host.17.0.tmp").touch()
    others = [".stages_2.h5.other-host.17.0.tmp", "other_1.ab12-0000.h5", "stage_1_2.ab12-0000.h5"]
    for name in others:
        (tmp_path / name).touch()
    remove_strays(tmp_path, "stage")
    assert names(tmp_path) == sorted(["stage_1.h5", *files(1), *others])
    remove_checkpoints(tmp_path, "stage")
    assert names(tmp_path) == sorted(others)


def test_parts_without_an_index_are_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1, index=False)
    assert latest_good(tmp_path, "stage") is None


@pytest.mark.parametrize(("room", "victim"), [(0, files(2)[0]), (100, files(2)[0]), (3000, "stage_2.h5")])
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, victim: str
) -> None:
    """Parts whose index found no room are left to the next start."""
    write(tmp_path, 1)

    class Full:
        def __init__(self, path: Path) -> None:
            self._file, self._room = path.open("r+b", buffering=0), room

        def write(self, data: Any) -> int:
            self._room -= len(data)
            if self._room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self._file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    def limited(sink: Any, path: Path) -> None:
        store.io.RawIOBase.__init__(sink)
        sink._file, sink.fault = Full(path), None

    monkeypatch.setattr(store._Sink, "__init__", limited)
    with pytest.raises(StorageError, match=rf"{victim}: cannot be written: the disk is full"):
        write(tmp_path, 2)
    remove_strays(tmp_path, "stage")
    assert names(tmp_path) == sorted(["stage_1.h5", *files(1)])
    found = latest_good(tmp_path, "stage")
    assert found is not None
    assert found.attributes["n"] == 1
