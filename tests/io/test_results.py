import resource
from dataclasses import fields, replace

import h5py
import mrcfile
import numpy as np
import pytest

from hpcrec.errors import DataError, StorageError
from hpcrec.io.results import (
    ProjectionStore,
    TiltResult,
    VolumeResult,
    assemble_projections,
    gathered_tilts,
    read_tilt_result,
    read_volume,
    tilt_number,
    tilt_path,
    write_mrc,
    write_tilt_result,
    write_volume,
)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def result(i_tilt, **changed):
    rng = np.random.default_rng(i_tilt)
    made = TiltResult(
        tilt_index=i_tilt,
        tilt_deg=10.0 * i_tilt,
        obj=np.exp(1j * rng.random((2, 20 + i_tilt, 24))).astype(np.complex64),
        probe=rng.random((1, 8, 8)).astype(np.complex64),
        positions=rng.random((9, 2)),
        illumination=rng.random((20 + i_tilt, 24)).astype(np.float32),
        loss=np.array([3.0, 2.0]),
        data_error=np.array([0.3, 0.2]),
        sampling=(0.2, 0.25),
        origin=(-3.0, 4.0),
        slice_thickness=10.0,
        engine="epie",
        iterations=2,
        seconds=1.5,
        energy_ev=200e3,
        wavelength=0.025,
    )
    return replace(made, **changed)


def assert_same(a, b):
    for field in fields(TiltResult):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype
        else:
            assert left == right
            assert type(left) is type(right)


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for i_tilt in (0, 2, 17):
        write_tilt_result(tilt_path(tmp_path / "checkpoints", i_tilt), result(i_tilt))
    return tmp_path


def test_a_tilt_comes_back_as_it_was(run_dir):
    assert_same(read_tilt_result(run_dir / "checkpoints/tilt_0017.h5"), result(17))
    path = run_dir / "checkpoints/tilt_0003.h5"
    plain = result(3, energy_ev=None, wavelength=None)
    write_tilt_result(path, plain)
    assert_same(read_tilt_result(path), plain)


def test_projections_gather_all_tilts_in_order(run_dir):
    (run_dir / "checkpoints/tilt_0002_000004.h5").write_bytes(b"a checkpoint inside a tilt is not a result")
    with ProjectionStore(assemble_projections(run_dir)) as store:
        assert store.n_tilts == 3
        np.testing.assert_array_equal(store.tilt_indices, [0, 2, 17])
        np.testing.assert_allclose(store.tilt_angles, np.deg2rad([0, 20, 170]))
        assert (store.sampling, store.energy_ev, store.wavelength) == ((0.2, 0.25), 200e3, 0.025)
        for i_tilt, tilt in zip((0, 2, 17), store):
            assert_same(tilt, result(i_tilt))
        with pytest.raises(DataError, match="there are 3 tilts"):
            store.tilt(3)


def test_expected_tilts_must_be_there_and_others_are_left_out(run_dir):
    with ProjectionStore(assemble_projections(run_dir, expected=[17, 0])) as store:
        np.testing.assert_array_equal(store.tilt_indices, [0, 17])
    with pytest.raises(DataError, match=r"tilts \[1, 5\] are"):
        assemble_projections(run_dir, expected=[0, 1, 5])


def test_no_tilts_or_tilts_of_another_run_are_refused(run_dir, tmp_path_factory):
    with pytest.raises(DataError, match="no tilt is reconstructed"):
        assemble_projections(tmp_path_factory.mktemp("empty"))
    write_tilt_result(run_dir / "checkpoints/tilt_0020.h5", result(20, sampling=(0.3, 0.3)))
    with pytest.raises(DataError, match=r"tilt_0020.h5: has sampling.*do not mix"):
        assemble_projections(run_dir)
    assert not (run_dir / "projections.h5").exists()


def test_a_damaged_tilt_is_found_when_assembling_and_when_reading(run_dir):
    path = assemble_projections(run_dir)
    with h5py.File(path, "r+") as file:
        file["tilts/0002/object"][0, 0, 0] = 5
    with ProjectionStore(path) as store:
        store.tilt(0)
        with pytest.raises(DataError, match=r"tilts/0002: its content does not match"):
            store.tilt(1)
    before = path.read_bytes()
    with h5py.File(run_dir / "checkpoints/tilt_0002.h5", "r+") as file:
        file["object"][0, 0, 0] = 5
    with pytest.raises(DataError, match=r"tilt_0002.h5: its content"):
        assemble_projections(run_dir)
    assert path.read_bytes() == before
    with pytest.raises(DataError, match="not a file of format"):
        ProjectionStore(run_dir / "checkpoints/tilt_0000.h5")


@pytest.mark.parametrize("way", ["cut", "header", "tilt"])
def test_damaged_projections_count_as_none(run_dir, way):
    path = run_dir / "projections.h5"
    assert gathered_tilts(path) == []
    assemble_projections(run_dir)
    assert gathered_tilts(path) == [0, 2, 17]
    if way == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        with h5py.File(path, "r+") as file:
            if way == "header":
                del file.attrs["sampling_angstrom"]
            else:
                file["tilts/0017/object"][0, 0, 0] = 5
    assert gathered_tilts(path) == []
    assemble_projections(run_dir)
    assert gathered_tilts(path) == [0, 2, 17]


def test_what_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(DataError, match="obj is not finite"):
        write_tilt_result(tmp_path / "tilt_0001.h5", result(1, obj=np.full((1, 4, 4), np.nan, np.complex64)))
    with pytest.raises(DataError, match="volume is not finite"):
        write_volume(
            tmp_path / "volume.h5", VolumeResult(volume=np.full((2, 2, 2), np.inf, np.float32), voxel_size=0.2)
        )
    assert listing(tmp_path) == []


def volume_result():
    rng = np.random.default_rng(0)
    return VolumeResult(
        volume=rng.random((5, 6, 7)).astype(np.float32),
        voxel_size=0.3,
        arrays={"alignment/shifts_angstrom": rng.random((3, 2)), "halves/even": np.ones((5, 6, 7), np.float32)},
        attributes={"solver": "fista", "iterations": 20},
    )


def test_a_volume_comes_back_and_viewers_get_the_same_axes(tmp_path):
    made = volume_result()
    write_volume(tmp_path / "volume.h5", made)
    back = read_volume(tmp_path / "volume.h5")
    np.testing.assert_array_equal(back.volume, made.volume)
    assert back.voxel_size == 0.3
    assert back.arrays.keys() == made.arrays.keys()
    np.testing.assert_array_equal(back.arrays["alignment/shifts_angstrom"], made.arrays["alignment/shifts_angstrom"])
    assert back.attributes == made.attributes
    with mrcfile.open(tmp_path / "volume.mrc") as file:
        np.testing.assert_array_equal(file.data, made.volume)
        assert (file.header.nx, file.header.nz) == (7, 5)
        assert float(file.voxel_size.x) == pytest.approx(0.3, rel=1e-6)  # stored in float32
    assert listing(tmp_path) == ["volume.h5", "volume.mrc"]


def test_a_volume_that_does_not_fit_leaves_the_old_one(tmp_path):
    write_volume(tmp_path / "volume.h5", volume_result())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    large = VolumeResult(volume=np.random.default_rng(1).random((60, 60, 60)).astype(np.float32), voxel_size=0.3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match=r"volume.h5: cannot be written.*the earlier file is unchanged"):
            write_volume(tmp_path / "volume.h5", large)
        with pytest.raises(StorageError, match=r"volume.mrc: cannot be written.*the earlier file is unchanged"):
            write_mrc(tmp_path / "volume.mrc", large.volume, 0.3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("block_bytes", [1, 200, 1 << 20])
def test_tilts_are_gathered_in_blocks(tmp_path, monkeypatch, block_bytes):
    """Less than a row at a time, some rows, whole arrays: the same file, and the checksums of the tilts."""
    monkeypatch.setattr("hpcrec.io.lazy.BLOCK_BYTES", block_bytes)
    (tmp_path / "checkpoints").mkdir()
    wanted = [result(i, refined={"tilt": np.array([0.1, 0.2]), "scale": np.array(1.5)}) for i in (3, 5)]
    for one in wanted:
        write_tilt_result(tilt_path(tmp_path / "checkpoints", one.tilt_index), one)
        assert tilt_number(tilt_path(tmp_path / "checkpoints", one.tilt_index)) == one.tilt_index
    with ProjectionStore(assemble_projections(tmp_path)) as store:
        for one, found in zip(wanted, store, strict=True):
            assert_same(one, replace(found, refined=one.refined))
            for name, values in one.refined.items():
                np.testing.assert_array_equal(found.refined[name], values)


def test_a_changed_number_is_seen_in_blocks_too(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcrec.io.lazy.BLOCK_BYTES", 200)
    path = tilt_path(tmp_path, 1)
    write_tilt_result(path, result(1))
    with h5py.File(path, "r+") as file:
        file["object"][1, 20, 3] += 1
    with pytest.raises(DataError, match="does not match its checksum"):
        tilt_number(path)
