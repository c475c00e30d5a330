import bz2
import os
from pathlib import Path

import numpy as np
import pytest

from hpcrec.errors import ConfigError, DataError, HpcrecError
from hpcrec.io.base import open_series
from hpcrec.io.numpy_files import NumpyOptions

DATA = Path(os.environ.get("HPCREC_DATA", Path(__file__).parents[3] / "shared/data"))
FRAMES = np.arange(6 * 4 * 4).reshape(1, 6, 4, 4).astype(">u2")
SCAN = np.arange(12.0).reshape(1, 6, 2)


def given(path, **keywords):
    return NumpyOptions(**{"path": path, "positions": "scan", "pixel_size_angstrom": 0.5, **keywords})


@pytest.mark.parametrize("suffix", [".npz", ".npz.bz2"])
def test_archives(tmp_path, suffix):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, data=FRAMES, scan=SCAN)
    if suffix == ".npz.bz2":
        packed = tmp_path / "data.npz.bz2"
        packed.write_bytes(bz2.compress(path.read_bytes()))
        path = packed
    with open_series(given(path)) as series:
        read = series.tilt(0).read(np.array([5, 2]))
        np.testing.assert_array_equal(read, np.fft.ifftshift(FRAMES[0, [5, 2]], axes=(1, 2)))
        assert read.dtype == np.uint16
        assert series.sampling == (0.5, 0.5)
    with pytest.raises(DataError, match="closed"):
        series.tilt(0).read(np.array([0]))


def test_npy_files_are_mapped_and_never_changed(tmp_path):
    frames = FRAMES.astype(np.float32)
    frames[0, 0, 0, 0] = -1
    np.save(tmp_path / "data.npy", frames)
    np.save(tmp_path / "scan.npy", SCAN[0])
    before = (tmp_path / "data.npy").read_bytes()
    with open_series(given(tmp_path / "data.npy", positions="scan.npy", clip_negative=True)) as series:
        assert series.tilt(0).read(np.arange(6)).min() == 0
    assert (tmp_path / "data.npy").read_bytes() == before


def test_bad_files_say_what_is_wrong(tmp_path):
    path = tmp_path / "data.npz"
    with pytest.raises(DataError, match="no such file"):
        open_series(given(path))
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="not a sound NumPy file"):
        open_series(given(path))
    np.savez(path, data=FRAMES, other=SCAN)
    with pytest.raises(DataError, match="no array 'scan'; it holds data, other"):
        open_series(given(path))
    np.savez(path, data=np.array([{"a": 1}], dtype=object), scan=SCAN)
    with pytest.raises(DataError, match="not a sound NumPy file"):
        open_series(given(path))
    np.savez_compressed(path, data=np.zeros((1, 6, 512, 512)), scan=SCAN)
    with pytest.raises(DataError, match="unpacks to more than 1 MiB"):
        open_series(given(path, memory_limit_gib=1 / 1024))
    (tmp_path / "data.npz.bz2").write_bytes(bz2.compress(path.read_bytes())[:-10])
    with pytest.raises(DataError, match="not a sound NumPy file"):
        open_series(given(tmp_path / "data.npz.bz2"))
    with pytest.raises(ConfigError, match="no attributes"):
        open_series(given(path, energy_ev="attribute:energy"))


def test_siemens_star_comes_with_probe_and_pixel_positions():
    path = DATA / "measured/xray_ptycho_siemens_tike/siemens-star-small.npz.bz2"
    if not path.exists():
        pytest.skip(f"needs {path} (set HPCREC_DATA)")
    chosen = given(path, probe="probe", position_unit="pixel", position_reference="corner", zero_frequency="corner",
                   pixel_size_angstrom=1.0)  # fmt: skip
    with open_series(chosen) as series:
        scan = series.tilt(0)
        assert (scan.n_positions, scan.pattern_shape, scan.dtype) == (516, (128, 128), np.float32)
        assert series.probe.shape == (1, 128, 128)
        np.testing.assert_allclose(scan.positions[0], [167.57964 + 64, -159.73396 + 64], atol=1e-4)  # stored in float32
        mean = scan.read(np.arange(516)).mean(axis=0)
        assert np.fft.fftshift(mean)[32:96, 32:96].sum() > 0.9 * mean.sum()  # 0.001 if the shift were wrong


def test_the_identity_follows_the_files_beside(tmp_path):
    np.save(tmp_path / "frames.npy", np.ones((4, 8, 8), np.uint16))
    chosen = NumpyOptions(path=tmp_path / "frames.npy", positions="scan.npy", detector_pixel_inverse_angstrom=0.1)
    digests = set()
    for offset in (0.0, 0.5):
        np.save(tmp_path / "scan.npy", np.arange(8).reshape(4, 2) + offset)
        with open_series(chosen) as series:
            digests.add(series.identity.digest)
    assert len(digests) == 2


def test_damage_anywhere_in_a_packed_archive_ends_in_one_sentence(tmp_path):
    frames = np.random.default_rng(1).integers(0, 9, (4, 8, 8)).astype(np.uint16)
    np.savez_compressed(tmp_path / "scan.npz", data=frames, scan=np.arange(8.0).reshape(4, 2))
    sound = (tmp_path / "scan.npz").read_bytes()
    chosen = NumpyOptions(path=tmp_path / "scan.npz", positions="scan", detector_pixel_inverse_angstrom=0.1)
    faults = 0
    for place in range(0, len(sound), 3):
        (tmp_path / "scan.npz").write_bytes(sound[:place] + bytes([sound[place] ^ 0xFF]) + sound[place + 1 :])
        try:
            open_series(chosen).close()
        except HpcrecError:
            faults += 1
    assert faults > len(sound) // 6


def test_an_npy_header_that_is_no_python_is_named(tmp_path):
    np.save(tmp_path / "frames.npy", np.ones((4, 8, 8), np.uint16))
    sound = (tmp_path / "frames.npy").read_bytes()
    (tmp_path / "frames.npy").write_bytes(sound.replace(b"}", b" "))
    with pytest.raises(DataError, match="not a sound NumPy file"):
        open_series(NumpyOptions(path=tmp_path / "frames.npy", detector_pixel_inverse_angstrom=0.1))
