"""A tilt's object in parts: every reader takes it as one in a single file, and notices damage."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcrec.errors import DataError
from hpcrec.geometry.tiles import EMPTY_BOX, Box
from hpcrec.io.checkpoint_parts import part_path
from hpcrec.io.joined import JoinedArray
from hpcrec.io.lazy import LazyArray
from hpcrec.io.results import (
    JoinedTilt,
    ProjectionStore,
    TiltFacts,
    TiltResult,
    assemble_projections,
    gathered_tilts,
    read_tilt_result,
    tilt_number,
    tilt_path,
    write_tilt_result,
)
from hpcrec.io.tilt_parts import remove_stray_parts, write_object_part

BOXES = (Box(0, 4, 0, 9), Box(4, 7, 0, 5), Box(4, 7, 5, 9))


class Held(LazyArray):
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def read(self, selection: Any) -> np.ndarray:
        return self.values[selection]


def result(number: int, dtype: Any = np.complex64) -> TiltResult:
    rng = np.random.default_rng(number)
    return TiltResult(
        tilt_index=number,
        tilt_deg=10.0 * number,
        obj=np.exp(1j * rng.random((2, 7, 9))).astype(dtype),
        probe=rng.random((1, 8, 8)).astype(dtype),
        positions=rng.random((9, 2)),
        illumination=rng.random((7, 9)).astype(np.float32),
        loss=np.array([3.0, 2.0]),
        data_error=np.array([0.3, 0.2]),
        sampling=(0.2, 0.25),
        origin=(-3.0, 4.0),
        slice_thickness=10.0,
        engine="epie",
        iterations=2,
        seconds=1.5,
        refined={"tilt": np.array([0.1, 0.2])},
    )


def in_parts(
    folder: Path, whole: TiltResult, token: str = "ab12", boxes: tuple[Box, ...] = BOXES, *, index: bool = True
) -> Path:
    path = tilt_path(folder, whole.tilt_index)
    files = [part_path(path, token, i) for i in range(len(boxes))]
    for file, box in zip(files, boxes):
        write_object_part(file, Held(whole.obj[(..., *box.slices(EMPTY_BOX))]))
    if index:
        obj = JoinedArray(path, whole.obj.shape, whole.obj.dtype, token, tuple(range(len(boxes))), boxes)
        facts = {one.name: getattr(whole, one.name) for one in fields(TiltFacts)}
        write_tilt_result(path, JoinedTilt(obj=obj, **facts))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same(a: TiltResult, b: TiltResult) -> None:
    for one in fields(TiltResult):
        left, right = getattr(a, one.name), getattr(b, one.name)
        for x, y in [(left, right)] if not isinstance(left, dict) else [(left[k], right[k]) for k in {**left, **right}]:
            np.testing.assert_array_equal(x, y)
            assert getattr(x, "dtype", None) == getattr(y, "dtype", None)


def test_any_selection_comes_back(tmp_path: Path) -> None:
    whole = result(3)
    in_parts(tmp_path, whole)
    joined = JoinedArray(tmp_path / "tilt_0003.h5", whole.obj.shape, whole.obj.dtype, "ab12", (0, 1, 2), BOXES)
    for selection in [
        (), (1,), (0, slice(2, 6)), (slice(0, 1), slice(3, 5), slice(4, 7)), (1, 5, 2), (0, slice(5, 5)),
        (slice(None), -1 % 7, slice(None, -2)),
    ]:  # fmt: skip
        np.testing.assert_array_equal(joined.read(selection), whole.obj[selection])


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("block_bytes", [50, 16 << 20])
def test_every_reader_takes_parts_as_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any, block_bytes: int
) -> None:
    monkeypatch.setattr("hpcrec.io.lazy.BLOCK_BYTES", block_bytes)
    runs = tmp_path / "one", tmp_path / "parts"
    for run in runs:
        (run / "checkpoints").mkdir(parents=True)
    for number in (3, 17):
        whole = result(number, dtype)
        write_tilt_result(tilt_path(runs[0] / "checkpoints", number), whole)
        path = in_parts(runs[1] / "checkpoints", whole)
        assert_same(read_tilt_result(path), whole)
        assert tilt_number(path) == number
        with h5py.File(path) as file, h5py.File(tilt_path(runs[0] / "checkpoints", number)) as one:
            assert file["object"].is_virtual
            np.testing.assert_array_equal(file["object"][()], whole.obj)
            assert file.attrs["sha256"] == one.attrs["sha256"]
    stores = [assemble_projections(run) for run in runs]
    assert stores[0].read_bytes() == stores[1].read_bytes(), "one file holds all, and is the same"
    for path in (runs[1] / "checkpoints").iterdir():
        path.unlink()
    with ProjectionStore(stores[1]) as found:
        assert_same(found.tilt(1), result(17, dtype))
    with h5py.File(stores[1]) as file:
        assert not file["tilts/0017/object"].is_virtual


def test_parts_may_move_with_their_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the folder that the program runs in nor HDF5's own search for files has a say."""
    (tmp_path / "before").mkdir()
    (tmp_path / "other").mkdir()
    in_parts(tmp_path / "before", result(3))
    in_parts(tmp_path / "other", replace(result(3), obj=result(3).obj * 2))
    (tmp_path / "before").rename(tmp_path / "after")
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setenv("HDF5_VDS_PREFIX", str(tmp_path / "other"))
    assert_same(read_tilt_result(tmp_path / "after/tilt_0003.h5"), result(3))


@pytest.mark.parametrize("damage", ["cut", "byte", "missing", "another"])
def test_a_damaged_part_is_named(tmp_path: Path, damage: str) -> None:
    whole = result(3)
    path = in_parts(tmp_path, whole)
    victim, box = part_path(path, "ab12", 1), BOXES[1]
    content = bytearray(victim.read_bytes())
    if damage == "cut":
        victim.write_bytes(content[:-100])
    elif damage == "byte":
        content[content.index(whole.obj[(0, *box.slices(EMPTY_BOX))].tobytes()) + 9] ^= 1
        victim.write_bytes(content)
    elif damage == "missing":
        victim.unlink()
    else:
        write_object_part(victim, Held(np.ones((2, 3, 4), np.complex64)))
    for read in (read_tilt_result, tilt_number):
        with pytest.raises(DataError, match=victim.name) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    (tmp_path / "checkpoints").mkdir()
    for one in tmp_path.glob("*.h5"):
        one.rename(tmp_path / "checkpoints" / one.name)
    with pytest.raises(DataError, match=victim.name):
        assemble_projections(tmp_path)
    assert not (tmp_path / "projections.h5").exists()


def test_a_sound_part_with_other_values_is_noticed(tmp_path: Path) -> None:
    path = in_parts(tmp_path, result(3))
    write_object_part(part_path(path, "ab12", 1), Held(np.ones((2, 3, 5), np.complex64)))
    with pytest.raises(DataError, match=r"tilt_0003.h5: its content does not match its checksum"):
        tilt_number(path)


def test_flipped_bytes_anywhere_in_the_result_are_noticed_or_harmless(tmp_path: Path) -> None:
    whole = result(3)
    path = in_parts(tmp_path, whole)
    content = path.read_bytes()
    kept, noticed = names(tmp_path), 0
    for i in range(0, len(content), 37):
        flipped = bytearray(content)
        flipped[i] ^= 0x55
        path.write_bytes(flipped)
        try:
            assert_same(read_tilt_result(path), whole)
        except DataError:
            noticed += 1
    assert noticed > 20
    assert names(tmp_path) == kept


@pytest.mark.parametrize(
    "change",
    [
        {"parts_token": np.bytes_(b"../secret")},
        {"parts_boxes": np.array([(0, 4, 0, 9), (4, 7, 0, 5), (4, 7, 5, 10)])},
        {"parts_boxes": np.array([(0, 4, 0, 9), (4, 7, 0, 5)])},
        {"parts_numbers": np.array([0, 1, 1])},
        {"parts_shape": np.array([2**40, 7, 9])},
        {"parts_shape": np.array([2, 7, 10])},
        {"parts_type": np.bytes_(b"no type")},
        {"parts_boxes": None},
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = in_parts(tmp_path, result(3))
    with h5py.File(path, "r+") as file:
        for name, value in change.items():
            del file.attrs[name]
            if value is not None:
                file.attrs[name] = value
    with pytest.raises(DataError, match="tilt_0003.h5: .*(do not fit|claims to be larger|cannot be read)"):
        tilt_number(path)


def test_parts_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    """A part may not be a link, a virtual dataset, or have its bytes in another file."""
    path = in_parts(tmp_path, result(3))
    victim = part_path(path, "ab12", 0)
    whole = result(3).obj[:, :4]
    (tmp_path / "raw").write_bytes(whole.tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["object"] = whole
    for kind in ("link", "virtual", "external", "soft"):
        with h5py.File(victim, "r+") as file:
            del file["object"]
            if kind == "link":
                file["object"] = h5py.ExternalLink("secret.h5", "/object")
            elif kind == "virtual":
                layout = h5py.VirtualLayout(whole.shape, whole.dtype)
                layout[...] = h5py.VirtualSource("secret.h5", "object", whole.shape, whole.dtype)
                file.create_virtual_dataset("object", layout)
            elif kind == "external":
                external = [(str(tmp_path / "raw"), 0, whole.nbytes)]
                file.create_dataset("object", whole.shape, whole.dtype, external=external)
            else:
                file["object"] = h5py.SoftLink("/elsewhere")
        with pytest.raises(DataError, match="is not the part"):
            tilt_number(path)


def test_virtual_data_stay_refused_elsewhere(tmp_path: Path) -> None:
    """In projections.h5, and in a user's file, where the object would be taken for patterns."""
    path = in_parts(tmp_path, result(3))
    with h5py.File(path) as file, h5py.File(tmp_path / "projections.h5", "w") as made:
        made.attrs["format"], made.attrs["format_version"] = np.bytes_(b"hpcrec-projections"), 1
        made.attrs["sampling_angstrom"] = file.attrs["sampling_angstrom"]
        file.copy(file["/"], made, "tilts/0003")
    with ProjectionStore(tmp_path / "projections.h5") as store:
        for read in (store.tilt, store.checked):
            with pytest.raises(DataError, match="keeps its bytes in another file: refused"):
                read(0)
    assert gathered_tilts(tmp_path / "projections.h5") == []


def test_strays_go_and_the_parts_of_results_stay(tmp_path: Path) -> None:
    in_parts(tmp_path, result(3))
    kept = names(tmp_path)
    in_parts(tmp_path, result(3), "cd34", index=False)
    in_parts(tmp_path, result(4), "ef56", index=False)
    others = ["tilt_0003.quality.json", "sweeps_0003_000004.ab12-0001.h5", ".tilt_0003.h5.node-1.1.0.tmp"]
    temporary = ".tilt_0003.cd34-0001.h5.node-1.12.0.tmp"
    for name in (*others, temporary):
        (tmp_path / name).write_bytes(b"")
    remove_stray_parts(tmp_path, 4)
    assert not [name for name in names(tmp_path) if "ef56" in name]
    assert len([name for name in names(tmp_path) if "cd34" in name]) == 4
    remove_stray_parts(tmp_path)
    assert names(tmp_path) == sorted([*kept, *others])


def test_parts_go_with_the_result_that_they_belong_to(tmp_path: Path) -> None:
    in_parts(tmp_path, result(3))
    in_parts(tmp_path, result(3), "cd34")
    assert len(names(tmp_path)) == 4
    assert all("cd34" in name for name in names(tmp_path) if "-" in name)
    path = tilt_path(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:200])
    remove_stray_parts(tmp_path)
    assert names(tmp_path) == ["tilt_0003.h5"], "without a sound table parts are of no use"
    in_parts(tmp_path, result(3))
    write_tilt_result(path, result(3))
    assert names(tmp_path) == ["tilt_0003.h5"]


def test_no_reader_holds_the_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MiB in four parts and blocks of 1 MiB: the table, its check and the copy take a few blocks."""
    monkeypatch.setattr("hpcrec.io.lazy.BLOCK_BYTES", 1 << 20)
    whole = replace(result(3), obj=np.full((2, 1024, 1024), 1 + 2j, np.complex64))
    boxes = tuple(Box(y, y + 512, x, x + 512) for y in (0, 512) for x in (0, 512))
    (tmp_path / "checkpoints").mkdir()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        path = in_parts(tmp_path / "checkpoints", whole, boxes=boxes)
        assert tilt_number(path) == 3
        assemble_projections(tmp_path)
        assert gathered_tilts(tmp_path / "projections.h5") == [3]
        assert tracemalloc.get_traced_memory()[1] - before < 4 << 20
    finally:
        tracemalloc.stop()
