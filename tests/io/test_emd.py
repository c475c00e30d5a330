"""EMD files in the layout of py4DSTEM 0.14 and emdfile; the files these wrote themselves gave equal values."""

import h5py
import numpy as np
import pytest

from hpcrec.errors import ConfigError, DataError
from hpcrec.io.base import open_series
from hpcrec.io.emd import EmdOptions

RNG = np.random.default_rng(11)
FRAMES = RNG.integers(0, 50, (3, 4, 8, 6)).astype(np.uint16)


def stored(series):
    """All frames of the first tilt as they are in the file."""
    return series.read_frames(0, np.arange(series.tilt(0).n_positions))


def write_emd(path, steps=((0.4, "A"), (0.4, "A"), (0.05, "A^-1"), (0.05, "A^-1")), first=0, calibration=None):
    with h5py.File(path, "w") as file:
        group = file.create_group("datacube_root/datacube")
        group.attrs["emd_group_type"] = "array"
        group.create_dataset("data", data=FRAMES, chunks=(1, 2, 8, 6))
        for axis, (step, unit) in enumerate(steps):
            dim = group.create_dataset(f"dim{first + axis}", data=np.array([0.0, step]))  # a line: two values suffice
            dim.attrs["units"] = unit
        for name, value in (calibration or {}).items():
            file[f"datacube_root/metadatabundle/calibration/{name}"] = value


def test_py4dstem_files(tmp_path):
    path = tmp_path / "cube.h5"
    calibration = {"Q_pixel_size": 0.05, "Q_pixel_units": "A^-1", "R_pixel_size": 0.04, "R_pixel_units": "nm",
                   "qx0_mean": 3.8, "qy0_mean": 2.2}  # fmt: skip
    write_emd(path, calibration=calibration)
    with open_series(EmdOptions(path=path)) as series:
        np.testing.assert_array_equal(stored(series), FRAMES.reshape(12, 8, 6))
        assert stored(series).dtype == np.uint16
        assert series.detector_sampling == pytest.approx((0.05, 0.05))
        assert series.facts.frame.centre == (4, 2)
        steps = np.diff(series.tilt(0).positions.reshape(3, 4, 2), axis=1)[..., 1]
        np.testing.assert_allclose(steps, 0.4)
        found = {"detector_pixel_inverse_angstrom", "scan_step_angstrom", "scan_shape", "centre_pixel"}
        assert set(series.facts.from_file) == found


@pytest.mark.parametrize(
    ("unit", "step", "expected"),
    [("nm^-1", 0.5, 0.05), ("[n_m^-1]", 0.5, 0.05), ("mrad", 1.0, 1e-3 / 0.0196875), ("Å^-1", 0.02, 0.02)],
)
def test_emd_units(tmp_path, unit, step, expected):
    """Units as EMD 0.2 (dim1…dim4, brackets) and EMD 1.0 spell them; 0.0196875 Å at 300 keV."""
    path = tmp_path / "cube.emd"
    write_emd(path, ((2.0, "[n_m]"), (3.0, "[n_m]"), (step, unit), (step, unit)), first=1)
    with open_series(EmdOptions(path=path, energy_ev=300e3)) as series:
        assert series.detector_sampling == pytest.approx((expected, expected), rel=1e-4)
        positions = series.tilt(0).positions.reshape(3, 4, 2)
        np.testing.assert_allclose(positions[1, 1] - positions[0, 0], [20, 30])


def test_emd_in_pixels_needs_the_job(tmp_path):
    path = tmp_path / "cube.h5"
    write_emd(path, ((1.0, "pixels"),) * 4, calibration={"Q_pixel_size": 1, "Q_pixel_units": "pixels"})
    with pytest.raises(ConfigError, match="give exactly one of"):
        open_series(EmdOptions(path=path, scan_step_angstrom=(1, 1)))
    with pytest.raises(ConfigError, match="give scan_step_angstrom"):
        open_series(EmdOptions(path=path, pixel_size_angstrom=0.3))
    with open_series(EmdOptions(path=path, pixel_size_angstrom=0.3, scan_step_angstrom=(1, 1))) as series:
        assert series.sampling == (0.3, 0.3)


def test_emd_contradictions(tmp_path):
    path = tmp_path / "cube.h5"
    write_emd(path)
    with pytest.raises(DataError, match=r"scan_step_angstrom along y is 0\.4 by the file and 0\.5 by the job"):
        open_series(EmdOptions(path=path, scan_step_angstrom=(0.5, 0.4)))
    with pytest.raises(DataError, match=r"is 0\.05 by the file and 0\.06 by the job"):
        open_series(EmdOptions(path=path, detector_pixel_inverse_angstrom=0.06))
    with open_series(EmdOptions(path=path, detector_pixel_inverse_angstrom=0.0503)) as series:  # within 1 %
        assert series.detector_sampling[0] == pytest.approx(0.0503)
    write_emd(path, calibration={"Q_pixel_size": 0.07, "Q_pixel_units": "A^-1"})
    with pytest.raises(DataError, match=r"contradicts itself: the pixel of the pattern is 0\.05 a\^-1 and 0\.07 a\^-1"):
        open_series(EmdOptions(path=path))
    with h5py.File(path, "r+") as file:
        file["other/data"] = FRAMES
    with pytest.raises(ConfigError, match="several data sets of four axes.*datacube_root/datacube/data, other/data"):
        open_series(EmdOptions(path=path))
    with h5py.File(path, "w") as file:
        file["image"] = np.zeros((3, 3))
    with pytest.raises(DataError, match="no data set of four axes"):
        open_series(EmdOptions(path=path))
