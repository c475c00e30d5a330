import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcrec.data.dataset import unsigned
from hpcrec.errors import ConfigError, DataError
from hpcrec.io import hdf5_access
from hpcrec.io.base import open_series
from hpcrec.io.hdf5 import Hdf5Options

DATA = Path(os.environ.get("HPCREC_DATA", Path(__file__).parents[3] / "shared/data"))


def write(path, shape=(3, 12, 8, 8), dtype=np.uint16, chunks=None, **datasets):
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, shape).astype(dtype)
    with h5py.File(path, "w") as file:
        compression = {} if chunks is None else {"chunks": chunks, "compression": "gzip", "shuffle": True}
        file.create_dataset("entry/patterns", data=patterns, **compression)
        file["entry/scan"] = rng.uniform(0, 10, (int(np.prod(shape[1:-2])), 2))
        file["entry/angles"] = np.array([-60.0, 0.0, 60.0])
        file["entry/scan"].attrs["energy"] = np.array([200e3])
        file.attrs.update({"pixel": 0.05, "word": "text"})
        for name, value in datasets.items():
            file[name] = value
    return patterns


def given(path, **keywords):
    chosen = {
        "path": path,
        "patterns": "entry/patterns",
        "positions": "entry/scan",
        "tilt_angles": "entry/angles",
        "detector_pixel_inverse_angstrom": 0.05,
        **keywords,
    }
    return Hdf5Options(**chosen)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.h5"


@pytest.mark.parametrize("chunks", [None, (1, 5, 8, 8), (1, 1, 8, 8), (2, 4, 4, 8)])
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<f4", "<i4"])
def test_reading_some_patterns_equals_indexing_the_array(path, chunks, dtype):
    patterns = write(path, dtype=dtype, chunks=chunks)
    with open_series(given(path)) as series:
        scan = series.tilt(1)
        indices = np.array([11, 0, 3, 4, 0])
        read = scan.read(indices)
        np.testing.assert_array_equal(read, np.fft.ifftshift(patterns[1][indices], axes=(1, 2)))
        assert read.dtype == unsigned(np.dtype(dtype).newbyteorder("=")) == scan.dtype


@pytest.mark.parametrize("chunks", [None, (1, 2, 2, 8, 8)])
def test_a_raster_of_several_tilts(path, chunks):
    patterns = write(path, shape=(3, 3, 4, 8, 8), chunks=chunks)
    with open_series(given(path, zero_frequency="corner")) as series:
        assert series.tilt(0).n_positions == 12
        np.testing.assert_array_equal(series.tilt(2).read(np.array([7, 2])), patterns[2].reshape(12, 8, 8)[[7, 2]])


def test_units_signs_and_selection_are_settled_when_opening(path):
    write(path)
    with h5py.File(path) as file:
        scan = file["entry/scan"][:]
    chosen = given(path, position_unit="nanometer", flip_position_y=True, tilts=[2, 0, 1], drop_tilts=[0])
    with open_series(chosen) as series:
        np.testing.assert_array_equal(series.tilt_numbers, [2, 1])
        np.testing.assert_allclose(series.tilt_angles, [np.pi / 3, 0])
        np.testing.assert_allclose(series.tilt(0).positions, scan * [-10, 10])
        np.testing.assert_allclose(series.sampling, 1 / (8 * 0.05))
        np.testing.assert_allclose(series.detector_sampling, 0.05)
        assert series.energy_ev is None


def test_scan_rotation_turns_x_towards_y(path):
    write(path, shape=(3, 2, 8, 8))
    with h5py.File(path, "r+") as file:
        file["entry/scan"][:] = [[0, 1], [1, 0]]
    with open_series(given(path, scan_rotation_deg=90.0)) as series:
        np.testing.assert_allclose(series.tilt(0).positions, [[1, 0], [0, -1]], atol=1e-15)  # rounding of cos(pi/2)


def test_detector_pixels_may_be_angles_or_attributes_and_follow_binning_and_window(path):
    write(path)
    wavelength = 0.0250793  # Å at 200 keV
    with open_series(given(path, detector_pixel_inverse_angstrom=None, detector_pixel_mrad=1.0,
                           energy_ev="attribute:entry/scan@energy")) as series:  # fmt: skip
        assert series.detector_sampling[0] == pytest.approx(1e-3 / wavelength, rel=1e-5)
        assert (series.energy_ev, series.wavelength) == (200e3, pytest.approx(wavelength, rel=1e-5))
    chosen = given(path, detector_pixel_inverse_angstrom="attribute:pixel", bin_detector=2, window=6)
    with open_series(chosen) as series:
        assert series.pattern_shape == (6, 6)
        assert series.sampling[0] == pytest.approx(1 / (6 * 0.1))
        assert series.mask.sum() == 16
        assert series.tilt(0).read(np.array([0])).dtype == np.uint32


def test_pixel_positions_are_scaled_by_the_pixel_and_may_point_at_the_corner(path):
    write(path)
    with h5py.File(path) as file:
        scan = file["entry/scan"][:]
    chosen = given(path, detector_pixel_inverse_angstrom=None, pixel_size_angstrom=0.5, position_unit="pixel",
                   position_reference="corner")  # fmt: skip
    with open_series(chosen) as series:
        np.testing.assert_allclose(series.tilt(0).positions, (scan + 4) * 0.5)


def test_mask_and_probe(path):
    bad = np.zeros((8, 8), np.uint32)
    bad[0, 1] = 4
    probe = np.ones((1, 2, 8, 8), np.complex128)
    patterns = write(path, dtype=np.float32, bad=bad, probe=probe)
    with h5py.File(path, "r+") as file:
        file["entry/patterns"][:, :, 0, 1] = np.nan
    with open_series(given(path, mask="bad", mask_good="zero", probe="probe")) as series:
        assert (~series.mask).sum() == 1
        assert not np.fft.fftshift(series.mask)[0, 1]
        assert series.probe.shape == (2, 8, 8)
        assert series.probe.dtype == np.complex64
        expected = patterns[0, 3].copy()
        expected[0, 1] = 0
        np.testing.assert_array_equal(np.fft.fftshift(series.tilt(0).read(np.array([3]))[0]), expected)


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"patterns": "entry/pattern"}, DataError, r"there is no 'entry/pattern'.*nearest are entry/patterns"),
        ({"patterns": "entry"}, DataError, "is a group"),
        ({"patterns": "entry/scan/x"}, DataError, "there is no"),
        ({"positions": "entry/angles"}, DataError, "positions have shape"),
        ({"patterns": "entry/scan"}, DataError, "3, 4 or 5 axes"),
        ({"mask": "entry/scan"}, DataError, "mask has shape"),
        ({"probe": "entry/scan"}, DataError, "start probe has shape"),
        ({"tilts": [3]}, ConfigError, r"tilts \[3\] do not exist"),
        ({"tilts": [1, 1]}, ConfigError, "twice"),
        ({"drop_tilts": [0, 1, 2]}, ConfigError, "no tilt is left"),
        ({"tilt_angles": None}, ConfigError, "set layout"),
        ({"tilt_angles": None, "layout": "tilt,position"}, ConfigError, "name the dataset of their angles"),
        ({"tilt_unit": "radian"}, DataError, "exceeds 360 degrees"),
        ({"detector_pixel_inverse_angstrom": None}, ConfigError, "exactly one of"),
        ({"pixel_size_angstrom": 0.2}, ConfigError, "exactly one of"),
        ({"detector_pixel_inverse_angstrom": "attribute:none"}, DataError, r"no attribute 'none'.*it has pixel, word"),
        ({"detector_pixel_inverse_angstrom": "pixel"}, DataError, "expected a number, 'attribute:NAME'"),
        ({"detector_pixel_inverse_angstrom": "dataset:entry/angles"}, DataError, "is not one number"),
        ({"energy_ev": "attribute:word"}, DataError, "attribute 'word' at / is not a number"),
        ({"detector_pixel_inverse_angstrom": -1.0}, DataError, "positive and finite"),
        ({"detector_pixel_inverse_angstrom": None, "detector_pixel_mrad": 1.0}, ConfigError, "needs energy_ev"),
        ({"centre_pixel": (8, 0)}, ConfigError, "lies outside"),
        ({"centre_pixel": (4, 4), "zero_frequency": "corner"}, ConfigError, "centre_pixel"),
        ({"bin_detector": 0}, ConfigError, "bin_detector"),
        ({"window": 1}, ConfigError, "window"),
        ({"energy_ev": -5.0}, DataError, "beam energy"),
    ],
)
def test_each_wrong_option_is_one_clear_sentence(path, keywords, error, words):
    write(path)
    with pytest.raises(error, match=words) as caught:
        open_series(given(path, **keywords))
    assert "\n" not in str(caught.value)
    with h5py.File(path, "r+"):  # the failed reader has closed the file
        pass


def test_non_finite_positions_and_angles_are_refused(path):
    write(path)
    with h5py.File(path, "r+") as file:
        file["entry/scan"][5, 1] = np.inf
    with pytest.raises(DataError, match="position 5"):
        open_series(given(path))
    with h5py.File(path, "r+") as file:
        file["entry/scan"][5, 1] = 0
        file["entry/angles"][2] = np.nan
    with pytest.raises(DataError, match="tilt angles hold values that are not finite"):
        open_series(given(path))


def test_bad_counts_are_found_when_read(path):
    write(path, dtype=np.float32)
    with h5py.File(path, "r+") as file:
        file["entry/patterns"][2, 7, 0, 0] = -3
    with open_series(given(path)) as series:
        series.tilt(1).read(np.arange(12))
        with pytest.raises(DataError, match=r"tilt 2, position 7: negative counts \(down to -3\)"):
            series.tilt(2).read(np.array([1, 7]))
    with open_series(given(path, clip_negative=True)) as series:
        assert series.tilt(2).read(np.array([7])).min() >= 0


def test_files_that_cannot_be_opened_say_why(path, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such file"):
        open_series(given(path))
    with pytest.raises(DataError, match="is a folder"):
        open_series(given(tmp_path))
    path.write_bytes(b"not hdf5 at all" * 100)
    with pytest.raises(DataError, match="not an HDF5 file"):
        open_series(given(path))
    write(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="truncated"):
        open_series(given(path))

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    write(path)
    monkeypatch.setattr(hdf5_access.h5py, "File", forbidden)
    with pytest.raises(DataError, match="no permission"):
        open_series(given(path))


def test_damage_inside_a_chunk_names_tilt_and_positions(path):
    write(path, chunks=(1, 4, 8, 8))
    with h5py.File(path) as file:
        offset = file["entry/patterns"].id.get_chunk_info_by_coord((1, 4, 0, 0)).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = b"\xff" * 20
    path.write_bytes(content)
    with open_series(given(path)) as series:
        series.tilt(0).read(np.arange(12))
        with pytest.raises(DataError, match=r"tilt 1, positions 5…6: cannot be read, the file is damaged"):
            series.tilt(1).read(np.array([5, 6]))


def test_flipped_bytes_of_a_file_give_data_errors_or_other_counts_but_nothing_else(path):
    write(path, shape=(3, 4, 2, 2), chunks=(1, 2, 2, 2))
    content = path.read_bytes()
    caught = 0
    for where in np.random.default_rng(0).integers(0, len(content), 150):
        damaged = bytearray(content)
        damaged[where] ^= 0xFF
        path.write_bytes(damaged)
        try:
            with open_series(given(path)) as series:
                for i_tilt in range(3):
                    series.tilt(i_tilt).read(np.arange(4))
        except (DataError, ConfigError):
            caught += 1
    assert caught > 3  # most of this small file is room for growth


def test_a_data_set_that_was_never_written_is_refused(path):
    write(path)
    with h5py.File(path, "r+") as file:
        file.create_dataset("empty", (1000000, 1000, 1000), np.uint8, chunks=(1, 1000, 1000))
    with pytest.raises(DataError, match="never written"):
        open_series(given(path, patterns="empty"))


def test_external_storage_and_external_links_are_refused_anywhere_on_the_path(path, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(3 * 12 * 64 * 2))
    write(tmp_path / "other.h5")
    write(path)
    with h5py.File(path, "r+") as file:
        file.create_dataset("raw", (3, 12, 8, 8), np.uint16, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        file["linked"] = h5py.ExternalLink("other.h5", "/entry")
        file["soft"] = h5py.SoftLink("/linked/patterns")
        layout = h5py.VirtualLayout((3, 12, 8, 8), np.uint16)
        layout[:] = h5py.VirtualSource("other.h5", "entry/patterns", (3, 12, 8, 8))
        file.create_virtual_dataset("virtual", layout)
        file["loop"] = h5py.SoftLink("/loop")
    for follow in ("refuse", "same_folder"):
        with pytest.raises(DataError, match="foreign file"):
            open_series(given(path, patterns="raw", linked_files=follow))
        with pytest.raises(DataError, match="more than 32 links"):
            open_series(given(path, patterns="loop", linked_files=follow))
    for name in ("linked/patterns", "soft", "virtual"):
        with pytest.raises(DataError, match="leads to another file"):
            open_series(given(path, patterns=name))
        with open_series(given(path, patterns=name, linked_files="same_folder")) as series:
            assert series.tilt(0).read(np.array([0])).shape == (1, 8, 8)


def test_links_are_not_followed_out_of_the_folder(tmp_path):
    (tmp_path / "inside").mkdir()
    path = tmp_path / "inside/data.h5"
    write(path)
    write(tmp_path / "outside.h5")
    (tmp_path / "inside/symbolic.h5").symlink_to(tmp_path / "outside.h5")
    with h5py.File(path, "r+") as file:
        file["up"] = h5py.ExternalLink("../outside.h5", "/entry/patterns")
        file["sly"] = h5py.ExternalLink("symbolic.h5", "/entry/patterns")
    for name in ("up", "sly"):
        with pytest.raises(DataError, match="outside its folder"):
            open_series(given(path, patterns=name, linked_files="same_folder"))


def test_complex_patterns_and_text_are_refused(path):
    write(path, text="hello", waves=np.ones((3, 12, 8, 8), complex))
    with pytest.raises(DataError, match="expected numbers"):
        open_series(given(path, mask="text"))
    with pytest.raises(DataError, match="expected integers or real numbers"):
        open_series(given(path, patterns="waves"))


def test_simulated_nanocube_opens_with_its_own_units():
    path = DATA / "nanocube/nanocube-small.h5"
    if not path.exists():
        pytest.skip(f"needs {path} (set HPCREC_DATA)")
    chosen = Hdf5Options(
        path=path, patterns="diffraction", positions="scan_positions_A", tilt_angles="tilt_angles_deg",
        detector_pixel_inverse_angstrom="attribute:detector_pixel_invA", energy_ev="attribute:energy_eV",
    )  # fmt: skip
    with open_series(chosen) as series:
        assert series.n_tilts == 36
        assert series.sampling == pytest.approx((0.2, 0.2))
        patterns = series.tilt(18).read(np.arange(0, 625, 5))
        assert patterns.dtype == np.uint16
        mean = patterns.mean(axis=0)
        # the aperture (30 mrad = 15.3 pixels) is centred on [0, 0] and holds most counts
        ky, kx = np.meshgrid(*(np.fft.fftfreq(64, 1 / 64),) * 2, indexing="ij")
        assert mean[np.hypot(ky, kx) < 15].mean() > 10 * mean[np.hypot(ky, kx) > 20].mean()


@pytest.mark.parametrize("mask_good", ["nonzero", "zero"])
def test_each_pattern_may_have_its_own_mask(path, mask_good):
    patterns = write(path, shape=(3, 4, 8, 8))
    good = np.random.default_rng(0).random(patterns.shape) > 0.3
    with h5py.File(path, "r+") as file:
        file["masks"] = (good if mask_good == "nonzero" else ~good).astype(np.uint8)
    chosen = given(path, mask="masks", mask_good=mask_good, window=10, flip_y=True)
    with open_series(chosen) as series, open_series(given(path, window=10, flip_y=True)) as plain:
        assert series.mask.sum() == plain.mask.sum()
        indices = np.array([3, 1])
        seen = series.tilt(2).read_good(indices)
        whole = plain.tilt(2).read(indices)
        np.testing.assert_array_equal(series.tilt(2).read(indices), whole * seen)
        # The window of 10 reaches beyond the detector of 8
        stored = series.facts.frame.apply(good[2][indices].astype(np.uint8))
        np.testing.assert_array_equal(seen, stored != 0)
        assert plain.tilt(2).read_good(indices) is None


def test_masks_of_another_shape_are_refused(path):
    write(path, shape=(3, 4, 8, 8))
    with h5py.File(path, "r+") as file:
        file["masks"] = np.ones((4, 8, 8), np.uint8)
    with pytest.raises(DataError, match="one for each pattern"):
        open_series(given(path, mask="masks"))


def test_the_identity_follows_files_that_links_lead_to(path):
    write(path, shape=(3, 4, 8, 8))
    with h5py.File(path, "r+") as file:
        file["linked"] = h5py.ExternalLink("frames.h5", "/data")
    digests = set()
    for value in (1, 2):
        with h5py.File(path.with_name("frames.h5"), "w") as other:
            other["data"] = np.full((3, 4, 8, 8), value, np.uint16)
        with open_series(given(path, patterns="linked", linked_files="same_folder")) as series:
            digests.add(series.identity.digest)
    assert len(digests) == 2


def test_patterns_of_an_unfinished_measurement_are_reported(path, caplog):
    write(path, shape=(3, 4, 8, 8))
    with h5py.File(path, "r+") as file:
        part = file.create_dataset("part", (3, 4, 8, 8), np.uint16, chunks=(1, 2, 8, 8), fillvalue=7)
        part[:2] = 1
    with open_series(given(path)):
        assert not caplog.text
    with open_series(given(path, patterns="part")) as series:
        assert "'/part': 2 of 6 chunks are not stored and are read as 7" in caplog.text
        assert (series.tilt(2).read(np.arange(4)) == 7).all()
