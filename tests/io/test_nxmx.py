"""DECTRIS master files: a genuine one of an ARINA, and small ones with data in several compressed files."""

import os
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from hpcrec.errors import DataError
from hpcrec.io.base import open_series
from hpcrec.io.nxmx import NxmxOptions

VENDOR = Path(os.environ.get("HPCREC_DATA", Path(__file__).parents[3] / "shared/data")) / "measured/vendor_formats"
needs_vendor_files = pytest.mark.skipif(not VENDOR.exists(), reason="the detector vendors' files are not here")
SCAN = {"scan_step_angstrom": (0.5, 0.4), "detector_pixel_mrad": 0.8}


def stored(series):
    """All frames of the first tilt as they are in the file."""
    return series.read_frames(0, np.arange(series.tilt(0).n_positions))


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


def test_a_file_of_the_masters_name_that_is_another_programs_is_left_alone(tmp_path):
    write_master(tmp_path)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["sum"] = np.zeros((8, 8))
    given = NxmxOptions(path=tmp_path / "x_master.h5", scan_shape=(2, 3), scan_step_angstrom=(1, 1))
    with open_series(given) as series:
        assert series.energy_ev == 200e3


def test_a_centre_that_is_no_number_is_none(tmp_path):
    write_master(tmp_path, beam_center_x=np.nan)
    given = NxmxOptions(path=tmp_path / "x_master.h5", scan_shape=(2, 3), scan_step_angstrom=(1, 1))
    with open_series(given) as series:
        assert series.facts.frame.centre == (4, 4)
        assert "centre_pixel" not in series.facts.from_file
