import hashlib
import os

import numpy as np
import pytest

from hpcrec.data.dataset import SeriesFacts, TiltSeries, file_identity, joint_identity
from hpcrec.data.preprocess import DetectorFrame
from hpcrec.errors import DataError


class ArraySeries(TiltSeries):
    def __init__(self, frames, path, raw_mask=None):
        self.frames = frames
        shape = frames.shape[-2:]
        frame = DetectorFrame(stored=shape, centre=(shape[0] // 2, shape[1] // 2), shape=shape)
        super().__init__(
            SeriesFacts(
                tilt_angles=np.array([0.1, 0.2]),
                tilt_numbers=np.array([3, 1]),
                positions=(np.zeros((5, 2)), np.ones((5, 2))),
                frame=frame,
                dtype=frames.dtype,
                sampling=(0.5, 0.25),
                mask=frame.apply_mask(raw_mask),
                raw_mask=raw_mask,
                probe=None,
                energy_ev=None,
                wavelength=None,
                identity=file_identity(path),
            )
        )

    def read_frames(self, tilt_number, indices):
        return self.frames[tilt_number][indices]

    def close(self):
        pass


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(b"patterns")
    return path


def test_a_scan_reads_its_own_tilt_in_the_order_asked(path):
    frames = np.arange(4 * 5 * 4 * 8).reshape(4, 5, 4, 8).astype(np.uint16)
    with ArraySeries(frames, path) as series:
        assert series.n_tilts == 2
        assert series.detector_sampling == (1 / (4 * 0.5), 1 / (8 * 0.25))
        scan = series.tilt(1)
        assert (scan.number, scan.angle, scan.n_positions, scan.pattern_shape) == (1, 0.2, 5, (4, 8))
        read = scan.read(np.array([4, 0, 4]))
        np.testing.assert_array_equal(read, np.fft.ifftshift(frames[1][[4, 0, 4]], axes=(1, 2)))
        assert read.dtype == scan.dtype == np.uint16
        assert scan.read(np.array([], int)).shape == (0, 4, 8)
        with pytest.raises(DataError, match="there are 2 tilts"):
            series.tilt(2)
        with pytest.raises(DataError, match=r"positions 0…4, asked for 5"):
            scan.read(np.array([5]))


@pytest.mark.parametrize(("value", "words"), [(np.nan, "not finite"), (-1.0, "negative")])
def test_bad_counts_name_tilt_and_position_unless_masked(path, value, words):
    frames = np.ones((4, 5, 4, 4), np.float32)
    frames[3, 2, 1, 1] = value
    scan = ArraySeries(frames, path).tilt(0)
    scan.read(np.array([0, 1]))
    with pytest.raises(DataError, match=rf"tilt 3, position 2: .*{words}"):
        scan.read(np.array([0, 2]))
    good = np.ones((4, 4), bool)
    good[1, 1] = False
    masked = ArraySeries(frames, path, good).tilt(0)
    assert masked.read(np.array([2])).sum() == 15
    assert (~masked.mask).sum() == 1


def test_identity_of_a_small_file_is_its_whole_hash(path):
    identity = file_identity(path)
    assert identity.digest == "sha256:" + hashlib.sha256(b"patterns").hexdigest()
    assert (identity.size, identity.path) == (8, path.resolve())


@pytest.mark.parametrize("where", [0, 9 << 20, -1])
def test_identity_of_a_large_file_sees_samples_from_first_to_last_byte(tmp_path, where):
    path = tmp_path / "large.bin"
    content = bytearray(17 << 20)
    path.write_bytes(content)
    before = file_identity(path)
    assert before.digest.startswith("sha256-sampled:")
    content[where] = 1
    path.write_bytes(content)
    assert file_identity(path).digest != before.digest


def test_identity_of_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        file_identity(tmp_path / "none.h5")


def test_many_files_are_read_no_more_than_one(tmp_path):
    """Of 16 files of 17 MiB the first and the last MiB count; the middle of a file that is alone does."""
    paths = [tmp_path / f"part{i:02d}" for i in range(16)]
    for path in paths:
        path.touch()
        os.truncate(path, 17 << 20)
    alone, together = file_identity(paths[3]), joint_identity(paths[0], paths)
    assert together.size == 16 * 17 << 20
    assert joint_identity(paths[3], [paths[3], paths[3]]) == alone
    for place, seen in ((8 << 20, False), ((17 << 20) - 1, True)):
        with paths[3].open("r+b") as stream:
            stream.seek(place)
            stream.write(b"x")
        assert (joint_identity(paths[0], paths).digest != together.digest) is seen
        assert file_identity(paths[3]).digest != alone.digest


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_signed_counts_come_without_a_sign_in_the_same_bits(path, dtype):
    """Kernels take unsigned counts as they are; signed ones would be widened to floats, all of a batch at once."""
    frames = np.random.default_rng(0).integers(0, 100, (4, 5, 4, 8)).astype(dtype)
    with ArraySeries(frames, path) as series:
        read = series.tilt(0).read(np.arange(5))
        assert read.dtype == series.tilt(0).dtype == np.dtype(f"u{frames.itemsize}")
        assert series.tilt(0).read(np.zeros(0, int)).dtype == read.dtype
        np.testing.assert_array_equal(read, np.fft.ifftshift(frames[3 % 4], axes=(1, 2)))
    frames[3, 2, 1, 1] = -1
    with ArraySeries(frames, path) as series, pytest.raises(DataError, match="negative"):
        series.tilt(0).read(np.arange(5))
