import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from hpcrec.data.dataset import unsigned
from hpcrec.errors import ConfigError, DataError
from hpcrec.io.base import open_series
from hpcrec.io.mrc import MrcOptions

VENDOR = Path(os.environ.get("HPCREC_DATA", Path(__file__).parents[3] / "shared/data")) / "measured/vendor_formats"
needs_vendor_files = pytest.mark.skipif(not VENDOR.exists(), reason="the detector vendors' files are not here")
SCAN = {"scan_step_angstrom": (0.5, 0.4), "detector_pixel_mrad": 0.8}


def stored(series):
    """All frames of the first tilt as they are in the file."""
    return series.read_frames(0, np.arange(series.tilt(0).n_positions))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.int8])
def test_mrc_stacks(tmp_path, dtype):
    frames = np.random.default_rng(5).integers(0, 100, (6, 16, 24)).astype(dtype)
    with mrcfile.new(tmp_path / "movie.mrc") as file:
        file.set_data(frames)
    given = {"path": tmp_path / "movie.mrc", "energy_ev": 2e5, **SCAN}
    with open_series(MrcOptions(scan_shape=(3, 2), **given)) as series:
        read = series.tilt(0).read(np.array([5, 0]))
        np.testing.assert_array_equal(read, np.fft.ifftshift(frames[[5, 0]], axes=(1, 2)))
        assert read.dtype == unsigned(np.dtype(dtype))
    with pytest.raises(ConfigError, match="neither the shape of the scan nor positions"):
        open_series(MrcOptions(**given))
    with mrcfile.new(tmp_path / "movie.mrc", overwrite=True) as file:
        file.set_data(frames.reshape(2, 3, 16, 24))
    with open_series(MrcOptions(**given)) as series:
        np.testing.assert_array_equal(stored(series), frames)
        assert series.facts.from_file == ("scan_shape",)


@needs_vendor_files
def test_mrc_with_the_cameras_own_text(tmp_path):
    """A genuine info file of Direct Electron: a raster of 8×4 points, 300 kV; the movie is made here."""
    (tmp_path / "info.txt").write_bytes((VENDOR / "mrc/20241021_00405_info.txt").read_bytes())
    frames = np.arange(32 * 8 * 8, dtype=np.uint16).reshape(32, 8, 8)
    with mrcfile.new(tmp_path / "movie.mrc") as file:
        file.set_data(frames)
    with open_series(MrcOptions(path=tmp_path / "movie.mrc", info="info.txt", **SCAN)) as series:
        assert series.energy_ev == 300e3
        assert len(np.unique(series.tilt(0).positions[:, 0])) == 4
        assert set(series.facts.from_file) == {"energy_ev", "scan_shape"}


@needs_vendor_files
def test_mrc_with_an_extended_header():
    """A genuine scan image of 16×16 pixels behind 909312 bytes of extended header."""
    with open_series(MrcOptions(path=VENDOR / "mrc/HAADFscan.mrc", scan_shape=(1, 1), energy_ev=3e5, **SCAN)) as series:
        raw = np.fromfile(VENDOR / "mrc/HAADFscan.mrc", "<u2", offset=1024 + 909312).reshape(1, 16, 16)
        np.testing.assert_array_equal(stored(series), raw)


def test_mrc_faults(tmp_path):
    path = tmp_path / "movie.mrc"
    path.write_bytes(b"no header at all")
    with pytest.raises(DataError, match="not a sound MRC file"):
        open_series(MrcOptions(path=path, **SCAN))
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.zeros((6, 16, 24), np.uint16))
    os.truncate(path, path.stat().st_size - 2)
    with pytest.raises(DataError, match="not a sound MRC file"):
        open_series(MrcOptions(path=path, **SCAN))


def test_mrc_with_more_bytes_than_its_header_says_is_read_with_a_warning(tmp_path, caplog, recwarn):
    frames = np.ones((6, 16, 24), np.uint16)
    with mrcfile.new(tmp_path / "movie.mrc") as file:
        file.set_data(frames)
    with (tmp_path / "movie.mrc").open("ab") as stream:
        stream.write(bytes(100))
    with open_series(MrcOptions(path=tmp_path / "movie.mrc", energy_ev=2e5, scan_shape=(3, 2), **SCAN)) as series:
        np.testing.assert_array_equal(stored(series), frames)
    assert "movie.mrc: MRC file is 100 bytes larger than expected" in caplog.text
    assert not recwarn.list


def test_mrc_info_with_sizes_that_cannot_be_is_no_help(tmp_path):
    (tmp_path / "info.txt").write_text(
        "Scan - Type = Raster\nScan - Size X = inf\nScan - Size Y = 2\nInstrument Accelerating Voltage (V) = 300000\n"
    )
    with mrcfile.new(tmp_path / "movie.mrc") as file:
        file.set_data(np.ones((6, 16, 24), np.uint16))
    with open_series(MrcOptions(path=tmp_path / "movie.mrc", info="info.txt", scan_shape=(2, 3), **SCAN)) as series:
        assert series.facts.from_file == ("energy_ev",)
