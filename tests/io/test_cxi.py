import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcrec.errors import ConfigError, DataError
from hpcrec.io.base import open_series
from hpcrec.io.cxi import CxiOptions
from hpcrec.io.facts import FileFacts, differing_fact
from hpcrec.run.config import check_job

DATA = Path(os.environ.get("HPCREC_DATA", Path(__file__).parents[3] / "shared/data"))
NEAR_FIELD = DATA / "measured/xray_nfptycho_petra_p25/PETRAIII_P25_Near_Field_Ptycho.cxi"
JOULE = 1.602176634e-19
DETECTOR = "entry_1/instrument_1/detector_1"


@pytest.fixture
def path(tmp_path):
    """A small far-field scan: 8.8 keV photons (1.4089 Å), 2 m, 75 µm, 6 frames of 8×6 pixels."""
    target = tmp_path / "scan.cxi"
    rng = np.random.default_rng(1)
    with h5py.File(target, "w") as file:
        file["cxi_version"] = 160
        file[f"{DETECTOR}/data"] = rng.integers(0, 99, (6, 8, 6)).astype(np.uint16)
        file[f"{DETECTOR}/distance"] = np.float32(2.0)
        file[f"{DETECTOR}/x_pixel_size"] = 75e-6
        file[f"{DETECTOR}/y_pixel_size"] = 75e-6
        mask = np.zeros((8, 6), np.uint32)
        mask[0, 5] = 8
        file[f"{DETECTOR}/mask"] = mask
        file["entry_1/instrument_1/source_1/energy"] = 8800 * JOULE
        file["entry_1/sample_1/geometry_1/translation"] = rng.uniform(-1e-6, 1e-6, (6, 3))
        file["entry_1/data_1/data"] = h5py.SoftLink(f"/{DETECTOR}/data")
    return target


def change(path, **values):
    with h5py.File(path, "r+") as file:
        for name, value in values.items():
            where = name if name.startswith("entry") else f"{DETECTOR}/{name}"
            if where in file:
                del file[where]
            if value is not None:
                file[where] = value


def test_far_field_geometry_mask_positions_and_patterns(path):
    with h5py.File(path) as file:
        data, moved = file[f"{DETECTOR}/data"][:], file["entry_1/sample_1/geometry_1/translation"][:]
    with open_series(CxiOptions(path=path)) as series:
        wavelength = 12398.41984 / 8800  # hc in eV·Å
        assert series.energy_ev == pytest.approx(8800)
        assert series.wavelength == pytest.approx(wavelength)
        # λz / (n·pixel), in Å; the distance is stored in single precision
        assert series.sampling == pytest.approx((wavelength * 2e10 / (8 * 75e4), wavelength * 2e10 / (6 * 75e4)))
        np.testing.assert_allclose(series.tilt(0).positions, moved[:, [1, 0]] * 1e10)
        expected = data.copy()
        expected[:, 0, 5] = 0
        read = series.tilt(0).read(np.array([5, 0, 5]))
        np.testing.assert_array_equal(read, np.fft.ifftshift(expected[[5, 0, 5]], axes=(1, 2)))
        assert read.dtype == np.uint16
        assert series.mask.sum() == 47
        assert not np.fft.fftshift(series.mask)[0, 5]
        assert set(series.facts.from_file) == {"energy_ev", "detector_pixel_mrad", "positions", "mask"}


def test_basis_vectors_turn_the_positions_into_the_frame_of_the_detector(path):
    """A detector turned by 90 degrees: rows step along +x, columns along −y."""
    with h5py.File(path) as file:
        moved = file["entry_1/sample_1/geometry_1/translation"][:]
    for basis in (np.array([[75e-6, 0], [0, -75e-6], [0, 0]]), np.array([[75e-6, 0, 0], [0, -75e-6, 0]])):
        change(path, basis_vectors=basis)
        with open_series(CxiOptions(path=path)) as series:
            np.testing.assert_allclose(series.tilt(0).positions, np.stack([-moved[:, 0], moved[:, 1]], 1) * 1e10)
    change(path, basis_vectors=np.array([[0, 0], [0, -75e-6], [75e-6, 0]]))
    with pytest.raises(DataError, match="across the beam"):
        open_series(CxiOptions(path=path))


def test_the_corner_tells_where_the_beam_hits(path):
    basis = np.array([[0, -75e-6], [-75e-6, 0], [0, 0]])
    change(path, basis_vectors=basis, corner_position=np.array([2.5, 4.5, 0]) * 75e-6)
    with open_series(CxiOptions(path=path)) as series:
        assert series.facts.frame.centre == (4, 2)
    with open_series(CxiOptions(path=path, centre_pixel=(4, 3))) as series:  # half a pixel is no contradiction
        assert series.facts.frame.centre == (4, 3)
    with pytest.raises(DataError, match=r"centre_pixel is \[4, 2\] by the file and \[1, 3\] by the job"):
        open_series(CxiOptions(path=path, centre_pixel=(1, 3)))


def test_nexus_units_beam_group_and_raster(path):
    """NXcxi_ptycho: units as attributes, the ring's energy in source_1, a raster in four axes."""
    with h5py.File(path) as file:
        data = file[f"{DETECTOR}/data"][:]
    change(path, data=data.reshape(2, 3, 8, 6), distance=2000.0, beam_center_x=3.0, beam_center_y=4 * 75e-6,
           **{"entry_1/instrument_1/source_1/energy": 3.0, "entry_1/instrument_1/beam_1/energy": 8.8,
              "entry_1/definition": "NXptycho"})  # fmt: skip
    with h5py.File(path, "r+") as file:
        file["entry_1/instrument_1/source_1/energy"].attrs["units"] = "GeV"
        file["entry_1/instrument_1/beam_1/energy"].attrs["units"] = "keV"
        file[f"{DETECTOR}/distance"].attrs["units"] = "mm"
        file[f"{DETECTOR}/beam_center_x"].attrs["units"] = np.bytes_("pixel")
        file[f"{DETECTOR}/beam_center_y"].attrs["units"] = "m"
        file["entry_1/sample_1/geometry_1/translation"].attrs["units"] = "um"
        file["entry_1/sample_1/geometry_1/translation"][:] *= 1e6
        moved = file["entry_1/sample_1/geometry_1/translation"][:]
    with open_series(CxiOptions(path=path)) as series:
        assert series.energy_ev == pytest.approx(8800)
        assert series.sampling[0] == pytest.approx(12398.41984 / 8800 * 2e10 / (8 * 75e4))
        assert series.facts.frame.centre == (4, 3)
        np.testing.assert_allclose(series.tilt(0).positions, moved[:, [1, 0]] * 1e4)
        assert series.tilt(0).read(np.array([4])).sum() == data[4].sum() - data[4, 0, 5]
    change(path, distance=np.array(1.0))
    with h5py.File(path, "r+") as file:
        file[f"{DETECTOR}/distance"].attrs["units"] = "furlong"
    with pytest.raises(DataError, match="unit 'furlong' is unknown"):
        open_series(CxiOptions(path=path))


def test_what_contradicts_itself_or_the_job_is_reported(path):
    with pytest.raises(DataError, match="energy_ev is 8800 by the file and 9000 by the job"):
        open_series(CxiOptions(path=path, energy_ev=9000))
    with open_series(CxiOptions(path=path, energy_ev=9000, ignore_in_file=["energy"])) as series:
        assert series.energy_ev == 9000
    with pytest.raises(DataError, match="the detector pixel.*by the file and.*by the job"):
        open_series(CxiOptions(path=path, pixel_size_angstrom=100.0))
    with pytest.raises(DataError, match="has positions and the job gives others by data.scan_step"):
        open_series(CxiOptions(path=path, scan_step_angstrom=(10, 10)))
    change(path, **{"entry_1/instrument_1/source_1/wavelength": 1.5e-10})
    with pytest.raises(DataError, match=r"contradicts itself.*8800 eV.*1\.5 Å"):
        open_series(CxiOptions(path=path))
    change(path, **{"entry_1/instrument_1/source_1/energy": None})
    with open_series(CxiOptions(path=path)) as series:  # the wavelength alone is enough
        assert series.wavelength == pytest.approx(1.5)


def test_what_is_missing_must_be_given(path):
    change(path, distance=None)
    with pytest.raises(ConfigError, match="give exactly one of"):
        open_series(CxiOptions(path=path))
    with open_series(CxiOptions(path=path, pixel_size_angstrom=50.0)) as series:
        assert series.sampling == (50.0, 50.0)
    change(path, **{"entry_1/sample_1/geometry_1/translation": np.zeros((5, 3))})
    with pytest.raises(DataError, match="5, 2.*for 6 frames"):
        open_series(CxiOptions(path=path, pixel_size_angstrom=50.0))
    change(path, data=None)
    with pytest.raises(DataError, match="has neither entry_1/instrument_1/detector_1/data"):
        open_series(CxiOptions(path=path))


def test_several_files_make_a_tilt_series(path, tmp_path):
    second = tmp_path / "second.cxi"
    second.write_bytes(path.read_bytes())
    change(second, **{"entry_1/sample_1/geometry_1/translation": np.ones((6, 3)) * 1e-8})
    given = {"path": path, "tilt_files": ["second.cxi"], "tilt_angles_deg": [-10.0, 20.0]}
    with open_series(CxiOptions(**given)) as series:
        np.testing.assert_allclose(np.rad2deg(series.tilt_angles), [-10, 20])
        np.testing.assert_allclose(series.tilt(1).positions, 100.0)
        assert series.identity.size == path.stat().st_size + second.stat().st_size
    with pytest.raises(ConfigError, match="3 angles for 2 files"):
        open_series(CxiOptions(**{**given, "tilt_angles_deg": [1.0, 2.0, 3.0]}))
    change(second, distance=2.5)
    with pytest.raises(DataError, match="second.cxi: detector_pixel_mrad.*must be alike"):
        open_series(CxiOptions(**given))


def test_a_job_file_names_the_reader(path):
    raw = {"version": 1, "name": "x", "data": {"format": "cxi", "path": str(path)},
           "beam": {"kind": "photon", "energy_ev": 8800.0}, "probe": {"semiangle_mrad": 1.0}}  # fmt: skip
    chosen = check_job(raw).data
    assert isinstance(chosen, CxiOptions)
    assert (chosen.energy_ev, chosen.radiation) == (8800.0, "photon")
    raw["beam"]["energy_ev"] = 9000.0
    with pytest.raises(DataError, match="energy_ev is 8800 by the file and 9000 by the job"):
        open_series(check_job(raw).data)
    raw["data"]["radiation"] = "electron"
    with pytest.raises(ConfigError, match="data.radiation 'electron' and beam.kind 'photon' differ"):
        check_job(raw)


@pytest.mark.skipif(not NEAR_FIELD.exists(), reason="the measured near-field file is not here")
def test_a_measured_near_field_file():
    """Figures of the data set's own description: 12.66 keV, 1.12 m, 55 µm, effective pixel 178.66 nm."""
    given = CxiOptions(path=NEAR_FIELD, pixel_size_angstrom=1786.6, ignore_in_file=["detector_pixel"])
    with h5py.File(NEAR_FIELD) as file:
        frame = file["entry_1/data_1/data"][77]
        moved = file["entry_1/data_1/translation"][:].astype(np.float64)
        bad = file[f"{DETECTOR}/mask"][:] != 0
    with open_series(given) as series:
        assert series.pattern_shape == (100, 100)
        assert series.sampling == (1786.6, 1786.6)
        assert series.energy_ev == pytest.approx(12658, abs=1)
        # rows follow +y of the translation and columns +x: the other three choices of sign reconstruct badly
        np.testing.assert_allclose(series.tilt(0).positions, moved[:, [1, 0]] * 1e10, rtol=1e-6)
        frame[bad] = 0
        np.testing.assert_array_equal(series.tilt(0).read(np.array([77]))[0], np.fft.ifftshift(frame))
        assert (~series.mask).sum() == bad.sum() == 5


def test_scans_of_other_shapes_or_centres_are_no_series(path, tmp_path):
    """Shapes that differ by less than a hundredth count too, and a centre may move by the pixel of rounding only."""
    first = FileFacts(scan_shape=(400, 404), centre_pixel=(400, 400), energy_ev=8800.0)
    assert differing_fact(first, replace(first, scan_shape=(404, 400))) == "scan_shape"
    assert differing_fact(first, replace(first, centre_pixel=(400, 403))) == "centre_pixel"
    assert differing_fact(first, replace(first, centre_pixel=None)) == "centre_pixel"
    assert differing_fact(first, replace(first, centre_pixel=(401, 399), energy_ev=8850.0)) is None
    assert differing_fact(first, replace(first, energy_ev=8900.0)) == "energy_ev"


def test_a_beam_centre_that_is_no_number_is_none(path):
    change(path, beam_center_x=np.nan, beam_center_y=3 * 75e-6)
    with open_series(CxiOptions(path=path)) as series:
        assert series.facts.frame.centre == (4, 3)


def test_real_space_pixels_that_are_square_contradict_a_window_that_is_not(path):
    """λz / (n·pixel) is another number for 8 rows and 6 columns; the file knows distance and pixel."""
    along_rows = 12398.41984 / 8800 * 2e10 / (8 * 75e4)
    with pytest.raises(DataError, match="the detector pixel.*by the file and.*by the job"):
        open_series(CxiOptions(path=path, pixel_size_angstrom=along_rows))
    with open_series(CxiOptions(path=path, pixel_size_angstrom=along_rows, window=8)) as series:
        assert series.sampling == (along_rows, along_rows)
