"""EMPAD, Merlin, MRC and DECTRIS files: genuine ones where they are at hand, and small ones in their format."""

import os
import zipfile
from pathlib import Path

import h5py
import hdf5plugin
import mrcfile
import numpy as np
import pytest

from hpcrec.errors import ConfigError, DataError
from hpcrec.io.base import open_series
from hpcrec.io.empad import EmpadOptions
from hpcrec.io.mib import MibOptions
from hpcrec.io.mrc import MrcOptions
from hpcrec.io.nxmx import NxmxOptions

VENDOR = Path(os.environ.get("HPCREC_DATA", Path(__file__).parents[3] / "shared/data")) / "measured/vendor_formats"
SCAN = {"scan_step_angstrom": (0.5, 0.4), "detector_pixel_mrad": 0.8}
needs_vendor_files = pytest.mark.skipif(not VENDOR.exists(), reason="the detector vendors' files are not here")


def stored(series):
    """All frames of the first tilt as they are in the file."""
    return series.read_frames(0, np.arange(series.tilt(0).n_positions))


# EMPAD ---------------------------------------------------------------------------------------------------------------


def write_empad(path, n_frames=6):
    frames = np.random.default_rng(2).normal(300, 100, (n_frames, 130, 128)).astype("<f4")
    frames[:, 128:] = 1e9  # what the detector appends is no picture
    frames.tofile(path)
    return frames[:, :128]


def test_empad_raw_files_tell_their_scan_by_name_and_are_scaled_to_counts(tmp_path):
    path = tmp_path / "scan_x3_y2.raw"
    frames = write_empad(path)
    given = EmpadOptions(path=path, energy_ev=80e3, adu_per_electron=150.0, clip_negative=True, **SCAN)
    with open_series(given) as series:
        expected = np.fft.ifftshift(np.maximum(frames[[4, 1]] / np.float32(150), 0), axes=(1, 2))
        np.testing.assert_allclose(series.tilt(0).read(np.array([4, 1])), expected, rtol=1e-6)  # float32 division
        positions = series.tilt(0).positions.reshape(2, 3, 2)
        np.testing.assert_allclose(np.diff(positions[:, 0, 0]), 0.5)
        np.testing.assert_allclose(np.diff(positions[0, :, 1]), 0.4)
        assert series.pattern_shape == (128, 128)
        assert series.facts.from_file == ("scan_shape",)


@needs_vendor_files
def test_empad_xml_names_file_scan_and_voltage():
    raw = np.fromfile(VENDOR / "empad/scan_x4_y4.raw", "<f4").reshape(16, 130, 128)[:, :128]
    with open_series(EmpadOptions(path=VENDOR / "empad/map4x4.xml", **SCAN)) as series:
        np.testing.assert_array_equal(stored(series), raw)
        assert series.energy_ev == 300e3
        assert set(series.facts.from_file) == {"energy_ev", "scan_shape"}
        assert len(np.unique(series.tilt(0).positions[:, 0])) == 4
    with pytest.raises(DataError, match="energy_ev is 300000 by the file and 200000 by the job"):
        open_series(EmpadOptions(path=VENDOR / "empad/map4x4.xml", energy_ev=200e3, **SCAN))
    with pytest.raises(DataError, match=r"scan_shape is \[4, 4\] by the file and \[2, 8\] by the job"):
        open_series(EmpadOptions(path=VENDOR / "empad/map4x4.xml", scan_shape=(2, 8), **SCAN))
    with pytest.raises(ConfigError, match="neither the shape of the scan nor positions"):
        open_series(EmpadOptions(path=VENDOR / "empad/stack_images.xml", energy_ev=2e5, **SCAN))


@needs_vendor_files
def test_empad_xml_of_newer_software(tmp_path):
    """Version 1.2.2 keeps the scan and the voltage elsewhere; the raw file of this xml is made here."""
    xml = tmp_path / "scan.xml"
    xml.write_bytes((VENDOR / "empad/EMPAD_v1.2.2_x32_y64_size0.8.xml").read_bytes())
    (tmp_path / "scan_x32_y64.raw").touch()
    os.truncate(tmp_path / "scan_x32_y64.raw", 64 * 32 * 130 * 128 * 4)
    with open_series(EmpadOptions(path=xml, **SCAN)) as series:
        assert series.energy_ev == 300e3
        assert len(np.unique(series.tilt(0).positions[:, 0])) == 64
        assert len(series.identity.digest) > 20


def test_empad_faults(tmp_path):
    path = tmp_path / "scan_x3_y2.raw"
    with pytest.raises(DataError, match="no such file"):
        open_series(EmpadOptions(path=path, **SCAN))
    write_empad(path)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(DataError, match="not a whole number of EMPAD frames"):
        open_series(EmpadOptions(path=path, energy_ev=2e5, **SCAN))
    write_empad(path, 5)
    with pytest.raises(DataError, match="holds 5 frames, but by the file's own description the scan has 2×3"):
        open_series(EmpadOptions(path=path, energy_ev=2e5, **SCAN))
    with pytest.raises(ConfigError, match="'attribute:x': this format has no attributes"):
        open_series(EmpadOptions(path=path, energy_ev="attribute:x", **SCAN))
    with pytest.raises(ConfigError, match="detector_pixel_mrad needs energy_ev"):
        open_series(EmpadOptions(path=path, scan_shape=(1, 5), ignore_in_file=["scan_shape"], **SCAN))
    (tmp_path / "bad.xml").write_text("<root><type>scan</type>")
    with pytest.raises(DataError, match="not a sound xml"):
        open_series(EmpadOptions(path=tmp_path / "bad.xml", **SCAN))


def test_positions_and_mask_from_files_beside(tmp_path):
    path = tmp_path / "frames.raw"
    frames = write_empad(path)
    scan = np.random.default_rng(3).uniform(0, 9, (6, 2))
    np.savetxt(tmp_path / "scan.csv", scan, delimiter=",")
    good = np.ones((128, 128), bool)
    good[5, 7] = False
    np.save(tmp_path / "good.npy", good)
    given = {"path": path, "positions": "scan.csv", "mask": "good.npy", "detector_pixel_inverse_angstrom": 0.01}
    with open_series(EmpadOptions(**given, position_unit="nanometer", clip_negative=True)) as series:
        np.testing.assert_allclose(series.tilt(0).positions, scan * 10)
        read = np.fft.fftshift(series.tilt(0).read(np.arange(6)), axes=(1, 2))
        np.testing.assert_array_equal(read, np.maximum(frames, 0) * good)
    with pytest.raises(DataError, match=r"absent.csv: cannot be read as an array"):
        open_series(EmpadOptions(**{**given, "positions": "absent.csv"}))


# Merlin --------------------------------------------------------------------------------------------------------------


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


# MRC -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.int8])
def test_mrc_stacks(tmp_path, dtype):
    frames = np.random.default_rng(5).integers(0, 100, (6, 16, 24)).astype(dtype)
    with mrcfile.new(tmp_path / "movie.mrc") as file:
        file.set_data(frames)
    given = {"path": tmp_path / "movie.mrc", "energy_ev": 2e5, **SCAN}
    with open_series(MrcOptions(scan_shape=(3, 2), **given)) as series:
        read = series.tilt(0).read(np.array([5, 0]))
        np.testing.assert_array_equal(read, np.fft.ifftshift(frames[[5, 0]], axes=(1, 2)))
        assert read.dtype == dtype
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


# DECTRIS -------------------------------------------------------------------------------------------------------------


@needs_vendor_files
def test_arina_master_file():
    with h5py.File(VENDOR / "arina/test_00_data_000001.h5") as file:
        raw = file["entry/data/data"][:]
    given = {"path": VENDOR / "arina/test_00_master.h5", **SCAN}
    with open_series(NxmxOptions(**given)) as series:
        assert series.energy_ev == 300e3
        assert stored(series).dtype == np.uint32
        np.testing.assert_array_equal(stored(series), raw)
        assert series.pattern_shape == (192, 192)
        assert len(np.unique(series.tilt(0).positions[:, 1])) == 4
        assert {"energy_ev", "scan_shape", "mask"} <= set(series.facts.from_file)
    with pytest.raises(DataError, match="energy_ev is 300000 by the file and 80000 by the job"):
        open_series(NxmxOptions(energy_ev=80e3, **given))
    with pytest.raises(DataError, match="leads to another file.*refused"):
        open_series(NxmxOptions(linked_files="refuse", **given))


def write_master(folder, counts=(4, 2), announced=6, **values):
    """A master file with compressed data files, as a DECTRIS file writer lays them out."""
    frames = np.random.default_rng(6).integers(0, 9, (sum(counts), 8, 8)).astype(np.uint16)
    detector = "entry/instrument/detector"
    with h5py.File(folder / "x_master.h5", "w") as master:
        start = 0
        for i, n in enumerate(counts, 1):
            with h5py.File(folder / f"x_data_{i:06d}.h5", "w") as file:
                part = frames[start : start + n]
                file.create_dataset("entry/data/data", data=part, chunks=(1, 8, 8), **hdf5plugin.Bitshuffle())
            master[f"entry/data/data_{i:06d}"] = h5py.ExternalLink(f"x_data_{i:06d}.h5", "/entry/data/data")
            start += n
        bad = np.zeros((8, 8), np.uint32)
        bad[1, 2] = 16
        content = {"detectorSpecific/photon_energy": 200e3, "x_pixel_size": 1e-4, "detector_distance": 0.5,
                   "beam_center_x": 3.0, "beam_center_y": 4.0, "detectorSpecific/nimages": 1,
                   "detectorSpecific/ntrigger": announced, "pixel_mask": bad, **values}  # fmt: skip
        for name, value in content.items():
            master[f"{detector}/{name}"] = value
    return frames


def test_nxmx_data_in_several_files(tmp_path):
    frames = write_master(tmp_path)
    given = NxmxOptions(path=tmp_path / "x_master.h5", scan_shape=(2, 3), scan_step_angstrom=(1, 1))
    with open_series(given) as series:
        frames[:, 1, 2] = 0
        expected = np.roll(frames[[5, 0, 3, 4]], (-4, -3), axis=(1, 2))  # the beam hits pixel (4, 3)
        mask = np.roll(np.arange(64).reshape(8, 8) != 10, (-4, -3), axis=(0, 1))
        read = series.tilt(0).read(np.array([5, 0, 3, 4]))
        inside = np.ones((8, 8), bool)
        inside[:, 4] = False  # the window reaches one column beyond the detector, on the side away from the beam
        np.testing.assert_array_equal(read[:, inside], expected[:, inside])
        np.testing.assert_array_equal(series.mask[inside], mask[inside])
        # 0.1 mm at 0.5 m are 0.2 mrad; 0.0250793 Å at 200 keV
        assert series.detector_sampling[0] == pytest.approx(0.2e-3 / 0.0250793, rel=1e-5)
        assert len(series.identity.digest) > 20
        assert series.identity.digest.startswith("sha256-files:")


def test_nxmx_faults(tmp_path):
    write_master(tmp_path, announced=7)
    given = NxmxOptions(path=tmp_path / "x_master.h5", scan_shape=(2, 3), scan_step_angstrom=(1, 1))
    with pytest.raises(DataError, match="announces 7 frames, its data files hold 6"):
        open_series(given)
    write_master(tmp_path)
    (tmp_path / "x_data_000002.h5").unlink()
    with pytest.raises(DataError, match=r"x_data_000002\.h5: no such file"):
        open_series(given)
    write_master(tmp_path)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_group("STEM Metadata").attrs.update({"NumPixelsX": 3, "NumPixelsY": 2, "High Tension": [80e3]})
    with pytest.raises(DataError, match=r"photon energy is 200000 eV, but x\.h5 says 80000 V"):
        open_series(given)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_group("STEM Metadata").attrs.update({"NumPixelsX": 3, "NumPixelsY": 2, "High Tension": [200e3]})
    with pytest.raises(DataError, match=r"scan_shape is \[2, 3\] by the file and \[3, 2\] by the job"):
        open_series(NxmxOptions(path=tmp_path / "x_master.h5", scan_shape=(3, 2), scan_step_angstrom=(1, 1)))
