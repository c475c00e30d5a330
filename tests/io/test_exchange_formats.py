"""EMD, .ptyd and event files, written here in the layout that py4DSTEM 0.14, emdfile, PtyPy and stempy 3 write.

The readers were also compared with files that py4DSTEM 0.14.16, emdfile 0.0.16 and stempy 3.6 themselves wrote: all
values equal.
"""

import h5py
import numpy as np
import pytest

from hpcrec.errors import ConfigError, DataError
from hpcrec.io.base import open_series
from hpcrec.io.emd import EmdOptions
from hpcrec.io.events import EventOptions
from hpcrec.io.ptyd import PtydOptions

RNG = np.random.default_rng(11)
FRAMES = RNG.integers(0, 50, (3, 4, 8, 6)).astype(np.uint16)


def stored(series):
    return series.read_frames(0, np.arange(series.tilt(0).n_positions))


# EMD -----------------------------------------------------------------------------------------------------------------


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


# PtyPy ---------------------------------------------------------------------------------------------------------------

DATA = RNG.integers(0, 999, (7, 8, 8)).astype(np.float32)
POSITIONS = RNG.uniform(-1e-6, 1e-6, (7, 2))


def write_ptyd(path, weights=None, linked=False, **meta):
    content = {"energy": 6.2, "distance": 7.0, "psize": 172e-6, "num_frames": 7, "version": 0.1, **meta}
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            node = file.create_dataset(f"meta/{name}", data=np.zeros(1) if value is None else value)
            node.attrs["type"] = "None" if value is None else "string" if isinstance(value, str) else "scalar"
        for i, part in enumerate((slice(0, 3), slice(3, 7))):
            where = file
            if linked:
                part_path = path.with_name(f"{path.name}.part{i:03d}")
                where = h5py.File(part_path, "w")
                file[f"chunks/{i}"] = h5py.ExternalLink(part_path.name, "/")
            root = "" if linked else f"chunks/{i}/"
            where.create_dataset(f"{root}data", data=DATA[part], compression="gzip")
            where[f"{root}positions"] = POSITIONS[part]
            where[f"{root}indices"] = np.arange(7)[part]
            if weights is not None:
                where[f"{root}weights"] = weights[part]
            if linked:
                where.close()


@pytest.mark.parametrize("linked", [False, True])
def test_ptyd_chunks(tmp_path, linked):
    weights = np.ones((7, 8, 8), np.float32)
    weights[:, 2, 3] = 0
    write_ptyd(tmp_path / "scan.ptyd", weights, linked, center="fftshift", label=None)
    with open_series(PtydOptions(path=tmp_path / "scan.ptyd")) as series:
        expected = DATA * weights
        read = series.tilt(0).read(np.array([6, 0, 4]))
        np.testing.assert_array_equal(read, np.fft.ifftshift(expected[[6, 0, 4]], axes=(1, 2)))
        np.testing.assert_allclose(series.tilt(0).positions, POSITIONS * 1e10)
        assert series.energy_ev == pytest.approx(6200)
        wavelength = 12398.41984 / 6200
        assert series.sampling[0] == pytest.approx(wavelength * 7e10 / (8 * 172e4))
        assert (~series.mask).sum() == 1
        assert set(series.facts.from_file) == {"energy_ev", "detector_pixel_mrad", "positions", "mask"}


def test_ptyd_faults(tmp_path):
    path = tmp_path / "scan.ptyd"
    write_ptyd(path, distance=None, center=np.array([3.0, 4.0]))
    with pytest.raises(ConfigError, match="give exactly one of"):
        open_series(PtydOptions(path=path))
    with open_series(PtydOptions(path=path, detector_pixel_mrad=0.02)) as series:
        assert series.facts.frame.centre == (3, 4)
    write_ptyd(path)
    with pytest.raises(DataError, match="energy_ev is 6200 by the file and 6500 by the job"):
        open_series(PtydOptions(path=path, energy_ev=6500))
    write_ptyd(path, num_frames=9)
    with pytest.raises(DataError, match="announces 9 frames and holds 7"):
        open_series(PtydOptions(path=path))
    weights = np.ones((7, 8, 8), np.float32)
    weights[5:, 1, 1] = 0
    write_ptyd(path, weights)
    with pytest.raises(DataError, match="masks other pixels from frame to frame"):
        open_series(PtydOptions(path=path))
    write_ptyd(path, psize=np.array([1e-4, 2e-4]))
    with pytest.raises(DataError, match="expected square pixels"):
        open_series(PtydOptions(path=path))
    with h5py.File(path, "r+") as file:
        del file["chunks"]
    with pytest.raises(DataError, match="no group 'chunks'"):
        open_series(PtydOptions(path=path))


# Events --------------------------------------------------------------------------------------------------------------


def write_events(path, places, per_place=1, scan=(3, 4)):
    """Random events of frames of 8×6 pixels; returns the dense sum (place, 8, 6)."""
    rng = np.random.default_rng(12)
    dense = np.zeros((scan[0] * scan[1], 48), int)
    lists = [rng.permutation(48)[: rng.integers(1, 20)].astype(np.uint32) for _ in range(len(places) * per_place)]
    for i, events in enumerate(lists):
        dense[places[i // per_place]][events] += 1
    with h5py.File(path, "w") as file:
        frames = file.create_dataset("electron_events/frames", len(lists), h5py.vlen_dtype(np.uint32))
        for i, events in enumerate(lists):
            frames[i] = events
        frames.attrs.update({"Nx": 8, "Ny": 6})
        file["electron_events/scan_positions"] = np.array(places)
        file["electron_events/scan_positions"].attrs.update({"Nx": scan[1], "Ny": scan[0]})
    return dense.reshape(-1, 8, 6)


GIVEN = {"scan_step_angstrom": (0.5, 0.5), "detector_pixel_inverse_angstrom": 0.05}


@pytest.mark.parametrize("per_place", [1, 3])
def test_events_become_dense_where_they_are_asked_for(tmp_path, per_place):
    path = tmp_path / "events.h5"
    dense = write_events(path, list(range(12)), per_place)
    with open_series(EventOptions(path=path, **GIVEN)) as series:
        read = series.tilt(0).read(np.array([11, 2, 2, 0]))
        np.testing.assert_array_equal(read, np.fft.ifftshift(dense[[11, 2, 2, 0]], axes=(1, 2)))
        assert read.dtype == np.uint16
        assert series.facts.from_file == ("scan_shape",)


def test_places_recorded_never_or_twice(tmp_path):
    """Places 1 and 6 are missing, 4 was recorded twice, and rows are not in the scan's order."""
    path = tmp_path / "events.h5"
    places = [3, 0, 4, 2, 4, 5, 11, 10, 9, 8, 7]
    dense = write_events(path, places)
    recorded = [0, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    with open_series(EventOptions(path=path, **GIVEN)) as series:
        np.testing.assert_array_equal(stored(series), dense[recorded])
        row, column = np.divmod(recorded, 4)
        expected = np.stack([row - 1.0, column - 1.5], axis=1) * 0.5
        np.testing.assert_allclose(series.tilt(0).positions, expected)
    with pytest.raises(ConfigError, match="give data.scan_step_angstrom"):
        open_series(EventOptions(path=path, detector_pixel_inverse_angstrom=0.05))


def test_event_faults(tmp_path):
    path = tmp_path / "events.h5"
    write_events(path, [0, 1, 2, 12], scan=(4, 4))
    with h5py.File(path, "r+") as file:
        file["electron_events/scan_positions"].attrs["Ny"] = 3
    with pytest.raises(DataError, match="leads outside the scan of 3×4"):
        open_series(EventOptions(path=path, **GIVEN))
    write_events(path, list(range(12)))
    with h5py.File(path, "r+") as file:
        file["electron_events/frames"][5] = np.array([48], np.uint32)
    with (
        open_series(EventOptions(path=path, **GIVEN)) as series,
        pytest.raises(DataError, match=r"events\.h5: positions 5…5: an event lies at pixel 48 of 48"),
    ):
        series.tilt(0).read(np.array([5]))
    with h5py.File(path, "r+") as file:
        file["electron_events/frames"].attrs["Ny"] = 0
    with pytest.raises(DataError, match="expected sizes above 0"):
        open_series(EventOptions(path=path, **GIVEN))
    with h5py.File(path, "w") as file:
        file["electron_events/frames"] = np.zeros(12)
    with pytest.raises(DataError, match="does not hold lists of integers"):
        open_series(EventOptions(path=path, **GIVEN))
