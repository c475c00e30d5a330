import h5py
import mrcfile
import numpy as np
import pytest
import tifffile

from hpcrec.errors import ConfigError, DataError, StorageError
from hpcrec.io.base import open_series
from hpcrec.io.cxi import CxiOptions
from hpcrec.io.export import EXPORTS, export_run
from hpcrec.io.results import TiltResult, VolumeResult, assemble_projections, tilt_path, write_tilt_result, write_volume
from hpcrec.tomography.prepare import PrepareOptions

SAMPLING = (0.25, 0.2)
ANGLES = (-30.0, 12.5)


def known_phase(i_tilt, n_slices):
    """A smooth phase of each slice that passes π in the sum only."""
    y, x = np.indices((40, 48))
    bump = np.exp(-((y - 20) ** 2 + (x - 24) ** 2) / 60)
    return np.stack([(1.4 + 0.3 * s + 0.2 * i_tilt) * bump for s in range(n_slices)])


def tilt(i_tilt, n_slices, offset=0.0):
    rng = np.random.default_rng(i_tilt)
    phase = known_phase(i_tilt, n_slices)
    return TiltResult(
        tilt_index=i_tilt + 3,
        tilt_deg=ANGLES[i_tilt],
        obj=(0.9 * np.exp(1j * (phase + offset))).astype(np.complex64),
        probe=(rng.normal(size=(2, 16, 16)) + 1j * rng.normal(size=(2, 16, 16))).astype(np.complex64),
        positions=rng.uniform(-3, 3, (7, 2)),
        illumination=np.ones((40, 48), np.float32),
        loss=np.array([2.0, 1.0]),
        data_error=np.array([0.2, 0.1]),
        sampling=SAMPLING,
        origin=(-5.0, -4.0),
        slice_thickness=8.0,
        engine="lsqml",
        iterations=2,
        seconds=1.0,
        energy_ev=300e3,
        wavelength=0.0196875,
    )


def make_run(folder, n_slices=3, offset=0.0):
    (folder / "checkpoints").mkdir(parents=True)
    for i in range(2):
        write_tilt_result(tilt_path(folder / "checkpoints", i + 3), tilt(i, n_slices, offset))
    assemble_projections(folder)
    values = np.random.default_rng(5).normal(size=(10, 12, 14)).astype(np.float32)
    write_volume(folder / "volume.h5", VolumeResult(volume=values, voxel_size=0.5), mrc=False)
    return values


def export(run, out, name, prepare=None):
    return export_run(run / "projections.h5", run / "volume.h5", out, name, prepare)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, make_run(folder)


# Phases are compared within 1e-5 rad: they pass through complex64 numbers (1e-7) and sums of three of them.
CLOSE = {"atol": 1e-5}


def test_tiff_images_carry_their_pixel_in_angstrom(run, tmp_path):
    files = export(run[0], tmp_path / "out", "tiff")
    names = [f"tilt_{n}_{what}.tif" for n in ("0003", "0004") for what in ("phase", "amplitude", "probe", "slices")]
    assert [f.name for f in files] == [*names, "volume.tif"]
    with tifffile.TiffFile(tmp_path / "out/tilt_0003_phase.tif") as file:
        np.testing.assert_allclose(file.asarray(), known_phase(0, 3).sum(axis=0), **CLOSE)
        assert file.asarray().dtype == np.float32
        described = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert (described["PhysicalSizeY"], described["PhysicalSizeX"]) == SAMPLING
        assert described["PhysicalSizeXUnit"] == described["PhysicalSizeYUnit"] == "Å"
        tags = file.pages[0].tags
        x = tags["XResolution"].value
        assert tags["ResolutionUnit"].value == 3  # centimetre
        assert x[0] / x[1] == pytest.approx(1e8 / 0.2)
    with tifffile.TiffFile(tmp_path / "out/volume.tif") as file:
        np.testing.assert_array_equal(file.asarray(), run[1])
        described = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert [described[f"PhysicalSize{axis}"] for axis in "XYZ"] == [0.5, 0.5, 0.5]
    slices = tifffile.imread(tmp_path / "out/tilt_0004_slices.tif")
    np.testing.assert_allclose(slices, known_phase(1, 3), **CLOSE)
    np.testing.assert_allclose(tifffile.imread(tmp_path / "out/tilt_0003_amplitude.tif"), 0.9**3, rtol=1e-5)
    probe = tifffile.imread(tmp_path / "out/tilt_0003_probe.tif")
    np.testing.assert_allclose(probe[:, 0], np.abs(tilt(0, 3).probe) ** 2, rtol=1e-6)


def test_mrc_stacks_carry_their_pixel_and_angles(run, tmp_path):
    files = export(run[0], tmp_path, "mrc")
    with mrcfile.open(tmp_path / "phase.mrc") as file:
        assert file.is_image_stack()
        np.testing.assert_allclose(file.data[1], known_phase(1, 3).sum(axis=0), **CLOSE)
        assert (file.voxel_size.y, file.voxel_size.x) == pytest.approx(SAMPLING)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "phase.rawtlt"), ANGLES)
    with mrcfile.open(tmp_path / "tilt_0004_slices.mrc") as file:
        assert file.is_volume()
        np.testing.assert_allclose(file.data, known_phase(1, 3), **CLOSE)
        assert tuple(file.voxel_size.tolist()) == pytest.approx((0.2, 0.25, 8.0))
    with mrcfile.open(tmp_path / "tilt_0003_probe.mrc") as file:
        np.testing.assert_array_equal(file.data, tilt(0, 3).probe)
    with mrcfile.open(tmp_path / "volume.mrc") as file:
        np.testing.assert_array_equal(file.data, run[1])
        assert file.voxel_size.x == pytest.approx(0.5)
    assert all(mrcfile.validate(f) for f in files if f.suffix == ".mrc")


def test_cxi_results_are_si_and_nexus(run, tmp_path):
    assert [f.name for f in export(run[0], tmp_path, "cxi")] == ["result.cxi", "volume.cxi"]
    known = tilt(1, 3)
    with h5py.File(tmp_path / "result.cxi") as file:
        assert file["number_of_entries"][()] == 2
        entry = file["entry_2"]
        assert entry.attrs["NX_class"] == "NXentry"
        np.testing.assert_array_equal(entry["image_1/data"], known.obj)
        np.testing.assert_allclose(entry["image_1/image_size"], np.array([48 * 0.2, 40 * 0.25, 3 * 8]) * 1e-10)
        np.testing.assert_allclose(entry["image_2/data"], known_phase(1, 3).sum(axis=0), **CLOSE)
        assert entry["image_2/data"].attrs["units"] == "rad"
        assert entry["image_2"].attrs["signal"] == "data"
        assert list(entry["image_2"].attrs["axes"]) == ["y", "x"]
        np.testing.assert_allclose(entry["image_2/y"], (-5 + 0.25 * np.arange(40)) * 1e-10)
        np.testing.assert_allclose(entry["image_5/x"], 0.2e-10 * np.arange(-8, 8), atol=1e-25)
        assert entry["image_5/data"].shape == (2, 16, 16)
        assert entry["sample_1/rotation_angle"][()] == 12.5
        assert entry["instrument_1/source_1/energy"][()] == pytest.approx(300e3 * 1.602176634e-19)
        assert entry["process_1/data_error"][()] == 0.1
    with h5py.File(tmp_path / "volume.cxi") as file:
        np.testing.assert_array_equal(file["entry_1/image_1/data"], run[1])
        np.testing.assert_allclose(np.diff(file["entry_1/image_1/z"]), 0.5e-10)


def test_positions_of_a_cxi_result_are_those_that_the_reader_reads(run, tmp_path):
    """What is written as translation and what is read from it must have one sign."""
    export(run[0], tmp_path, "cxi")
    with h5py.File(tmp_path / "result.cxi", "r+") as file:
        file["entry_1/instrument_1/detector_1/data"] = np.ones((7, 8, 8), np.uint16)
    given = CxiOptions(path=tmp_path / "result.cxi", pixel_size_angstrom=0.2, radiation="electron")
    with open_series(given) as series:
        np.testing.assert_allclose(series.tilt(0).positions, tilt(0, 3).positions)
        assert series.energy_ev == pytest.approx(300e3)


def test_phases_follow_the_jobs_preparation_and_one_slice_needs_no_stack(tmp_path):
    """With the plane of tomography the vacuum is at zero; without it the object's own offset of 0.7 rad stays."""
    make_run(tmp_path / "run", n_slices=1, offset=0.7)
    vacuum = {}
    for name, prepare in (("plain", None), ("flat", PrepareOptions(background="plane"))):
        files = export(tmp_path / "run", tmp_path / name, "tiff", prepare)
        assert not [f for f in files if "slices" in f.name]
        vacuum[name] = float(np.median(tifffile.imread(tmp_path / name / "tilt_0003_phase.tif")[5:9, 5:9]))
    assert vacuum["plain"] == pytest.approx(0.7, abs=0.02)  # the tail of the bump is 0.01 rad there
    assert vacuum["flat"] == pytest.approx(0.0, abs=0.02)


def test_faults(run, tmp_path):
    assert set(EXPORTS) == {"cxi", "tiff", "mrc"}
    with pytest.raises(ConfigError, match="--format png: choose one of cxi, tiff, mrc"):
        export(run[0], tmp_path, "png")
    with pytest.raises(DataError, match="no such file"):
        export_run(tmp_path / "projections.h5", tmp_path / "volume.h5", tmp_path, "mrc", None)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        export(run[0], tmp_path / "file", "cxi")
