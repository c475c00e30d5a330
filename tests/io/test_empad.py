import os
from pathlib import Path

import numpy as np
import pytest

from hpcrec.errors import ConfigError, DataError
from hpcrec.io.base import open_series
from hpcrec.io.empad import EmpadOptions

VENDOR = Path(os.environ.get("HPCREC_DATA", Path(__file__).parents[3] / "shared/data")) / "measured/vendor_formats"
needs_vendor_files = pytest.mark.skipif(not VENDOR.exists(), reason="the detector vendors' files are not here")
SCAN = {"scan_step_angstrom": (0.5, 0.4), "detector_pixel_mrad": 0.8}


def stored(series):
    """All frames of the first tilt as they are in the file."""
    return series.read_frames(0, np.arange(series.tilt(0).n_positions))


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


def write_xml(path, raw, rows="2", columns="3"):
    path.write_text(
        f'<root><raw_file filename="{raw}"/><pix_y>{rows}</pix_y><pix_x>{columns}</pix_x>'
        "<high_voltage>300000</high_voltage></root>"
    )


def test_empad_xml_written_under_windows_names_the_raw_file_beside_it(tmp_path):
    frames = write_empad(tmp_path / "scan.raw")
    write_xml(tmp_path / "scan.xml", "C:\\data\\monday\\scan.raw")
    with open_series(EmpadOptions(path=tmp_path / "scan.xml", **SCAN)) as series:
        np.testing.assert_array_equal(stored(series), frames)
        assert series.energy_ev == 300e3


@pytest.mark.parametrize("text", ["nan", "inf", "many"])
def test_empad_xml_with_a_size_that_is_no_number(tmp_path, text):
    write_empad(tmp_path / "scan.raw")
    write_xml(tmp_path / "scan.xml", "scan.raw", rows=text)
    with pytest.raises(DataError, match=f"pix_y is '{text}', expected a number"):
        open_series(EmpadOptions(path=tmp_path / "scan.xml", **SCAN))


def test_the_identity_follows_the_files_beside(tmp_path):
    """A run must not go on with other positions or another mask than it began with."""
    path = tmp_path / "frames.raw"
    write_empad(path)
    np.savetxt(tmp_path / "scan.csv", np.arange(12).reshape(6, 2), delimiter=",")
    np.save(tmp_path / "good.npy", np.ones((128, 128), bool))
    given = EmpadOptions(
        path=path, positions="scan.csv", mask="good.npy", detector_pixel_inverse_angstrom=0.01, clip_negative=True
    )
    digests = {open_series(given).identity.digest}
    np.savetxt(tmp_path / "scan.csv", np.arange(12).reshape(6, 2) + 0.5, delimiter=",")
    digests.add(open_series(given).identity.digest)
    np.save(tmp_path / "good.npy", np.eye(128, dtype=bool))
    digests.add(open_series(given).identity.digest)
    assert len(digests) == 3


def test_scan_shapes_that_cannot_be(tmp_path):
    path = tmp_path / "frames.raw"
    write_empad(path)
    with pytest.raises(ConfigError, match="at least one row and one column, got \\[-2, -3\\]"):
        open_series(EmpadOptions(path=path, scan_shape=(-2, -3), energy_ev=2e5, **SCAN))
    write_empad(tmp_path / "second.raw")
    given = {"path": path, "tilt_files": ["second.raw"], "tilt_angles_deg": [0.0, 1.0], "energy_ev": 2e5, **SCAN}
    with pytest.raises(ConfigError, match="neither the shape of the scan nor positions"):
        open_series(EmpadOptions(**given))
