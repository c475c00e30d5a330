import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hpcrec.errors import DataError
from hpcrec.io.base import open_series
from hpcrec.io.mib import MibOptions

VENDOR = Path(os.environ.get("HPCREC_DATA", Path(__file__).parents[3] / "shared/data")) / "measured/vendor_formats"
needs_vendor_files = pytest.mark.skipif(not VENDOR.exists(), reason="the detector vendors' files are not here")
SCAN = {"scan_step_angstrom": (0.5, 0.4), "detector_pixel_mrad": 0.8}


def stored(series):
    """All frames of the first tilt as they are in the file."""
    return series.read_frames(0, np.arange(series.tilt(0).n_positions))


def unpack(archive, folder, *names):
    with zipfile.ZipFile(VENDOR / "quantumdetector" / archive) as packed:
        for name in names:
            packed.extract(name, folder)


@needs_vendor_files
def test_mib_with_a_scan_that_the_header_tells(tmp_path):
    """The name of this measurement tells its hot pixel: x 52, y 39."""
    stem = "002_merlin_test_roi_sig256x128_nav4x2_hot_pixel_52x_39y"
    unpack("Merlin_navigation4x2_signalNx256_ROI.zip", tmp_path, f"{stem}.hdr", f"{stem}.mib")
    with open_series(MibOptions(path=tmp_path / f"{stem}.mib", energy_ev=2e5, **SCAN)) as series:
        frames = stored(series)
        assert frames.shape == (8, 128, 256)
        assert frames.dtype == np.uint16
        assert np.unravel_index(frames.sum(axis=0).argmax(), (128, 256)) == (39, 52)
        assert series.facts.from_file == ("scan_shape",)
        assert len(np.unique(series.tilt(0).positions[:, 0])) == 2
        assert frames.sum() == 79


@needs_vendor_files
@pytest.mark.parametrize(
    ("name", "dtype", "shape", "total"),
    [
        ("Single_9_Frame_CounterDepth_6_Rows_256", np.uint8, (9, 256, 256), 217684),
        ("Single_9_Frame_CounterDepth_24_Rows_256", np.uint32, (9, 256, 256), 258156),
        ("Quad_1_Frame_CounterDepth_12_Rows_256", np.uint16, (1, 512, 512), 845907),
    ],
)
def test_mib_pixel_types_and_chips(tmp_path, name, dtype, shape, total):
    """Totals as read by rosettasciio 0.15 from the same files."""
    unpack("Merlin_Single_Quad.zip", tmp_path, f"{name}.mib", f"{name}.hdr")
    given = {"path": tmp_path / f"{name}.mib", "energy_ev": 2e5, "scan_shape": (1, shape[0]), **SCAN}
    with open_series(MibOptions(**given)) as series:
        frames = stored(series)
        assert frames.shape == shape
        assert frames.dtype == dtype
        assert frames.sum() == total


@needs_vendor_files
def test_mib_raw_mode_is_refused(tmp_path):
    name = "Single_1_Frame_CounterDepth_1_Rows_256RAW.mib"
    unpack("Merlin_Single_Quad.zip", tmp_path, name)
    with pytest.raises(DataError, match="holds raw frames"):
        open_series(MibOptions(path=tmp_path / name, energy_ev=2e5, **SCAN))


def write_mib(path, frames):
    with path.open("wb") as file:
        for i, frame in enumerate(frames):
            rows, columns = frame.shape
            head = f"MQ1,{i + 1:06d},00384,01,{columns:04d},{rows:04d},U16,   1x1,01,2026-01-01 00:00:00.0,0.001,"
            file.write(head.encode().ljust(384) + frame.astype(">u2").tobytes())


def test_mib_faults(tmp_path):
    path = tmp_path / "scan.mib"
    frames = np.random.default_rng(4).integers(0, 4095, (6, 16, 24)).astype(np.uint16)
    write_mib(path, frames)
    given = MibOptions(path=path, energy_ev=2e5, scan_shape=(2, 3), **SCAN)
    with open_series(given) as series:
        np.testing.assert_array_equal(stored(series), frames)
    (tmp_path / "scan.hdr").write_text("HDR,\r\nFrames in Acquisition (Number):\t8\r\nEnd\r\n")
    with pytest.raises(DataError, match=r"holds 6 of the 8 frames that scan\.hdr announces"):
        open_series(given)
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(DataError, match="ends within frame 6"):
        open_series(given)
    path.write_bytes(b"nonsense" * 1000)
    with pytest.raises(DataError, match="does not start with a Merlin header"):
        open_series(given)


def test_mib_without_a_scan_of_its_own(tmp_path):
    """Zeros in the companion say nothing: the shape is the job's."""
    write_mib(tmp_path / "scan.mib", np.ones((6, 16, 24), np.uint16))
    (tmp_path / "scan.hdr").write_text("HDR,\r\nScanX:\t0\r\nScanY:\t0\r\nEnd\r\n")
    with open_series(MibOptions(path=tmp_path / "scan.mib", energy_ev=2e5, scan_shape=(2, 3), **SCAN)) as series:
        assert series.tilt(0).n_positions == 6
