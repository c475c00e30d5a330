import numpy as np
import pytest

from hpcrec.errors import ConfigError, DataError
from hpcrec.io import optional
from hpcrec.io.base import open_series
from hpcrec.io.zarr_files import ZarrOptions

RNG = np.random.default_rng(21)
PATTERNS = RNG.integers(1, 200, (2, 12, 8, 6)).astype(np.uint16)
SCAN = RNG.uniform(0, 10, (12, 2))


def test_a_missing_library_is_named_with_the_way_to_install_it(tmp_path, monkeypatch):
    def absent(name, *rest):
        raise ImportError(name)

    monkeypatch.setattr(optional, "import_module", absent)
    with pytest.raises(ConfigError, match=r"needs the library zarr.*pip install 'hpcrec\[formats\]'"):
        open_series(ZarrOptions(path=tmp_path, patterns="x"))


def write_zarr(path, version=3, chunks=(1, 5, 8, 6)):
    zarr = pytest.importorskip("zarr")
    root = zarr.open_group(store=str(path), mode="w", zarr_format=version)
    root.create_array("entry/patterns", shape=PATTERNS.shape, dtype=PATTERNS.dtype, chunks=chunks)[...] = PATTERNS
    root.create_array("scan", shape=SCAN.shape, dtype=SCAN.dtype)[...] = SCAN
    root.create_array("angles", shape=(2,), dtype=float)[...] = [-30, 30]
    root["scan"].attrs["energy"] = 300e3
    root.attrs["pixel"] = 0.05
    return root


def zarr_options(path, **more):
    chosen = {"path": path, "patterns": "entry/patterns", "positions": "scan", "tilt_angles": "angles",
              "detector_pixel_inverse_angstrom": "attribute:pixel", "energy_ev": "attribute:scan@energy",
              **more}  # fmt: skip
    return ZarrOptions(**chosen)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("chunks", [(1, 5, 8, 6), (2, 1, 4, 6)])
def test_zarr_patterns_units_and_attributes(tmp_path, version, chunks):
    write_zarr(tmp_path / "x.zarr", version, chunks)
    with open_series(zarr_options(tmp_path / "x.zarr", position_unit="nanometer")) as series:
        read = series.tilt(1).read(np.array([11, 0, 4, 0]))
        np.testing.assert_array_equal(read, np.fft.ifftshift(PATTERNS[1, [11, 0, 4, 0]], axes=(1, 2)))
        assert read.dtype == np.uint16
        np.testing.assert_allclose(series.tilt(0).positions, SCAN * 10)
        np.testing.assert_allclose(np.rad2deg(series.tilt_angles), [-30, 30])
        assert series.energy_ev == 300e3
        assert series.detector_sampling == pytest.approx((0.05, 0.05))
        assert series.identity.digest.startswith("sha256-folder:")
    with pytest.raises(DataError, match="closed"):
        series.tilt(0).read(np.array([0]))


def test_zarr_identity_follows_the_content(tmp_path):
    write_zarr(tmp_path / "x.zarr")
    with open_series(zarr_options(tmp_path / "x.zarr")) as series:
        before = series.identity.digest
    write_zarr(tmp_path / "x.zarr").attrs["pixel"] = 0.06
    with open_series(zarr_options(tmp_path / "x.zarr")) as series:
        assert series.identity.digest != before


def test_zarr_faults(tmp_path, caplog):
    path = tmp_path / "x.zarr"
    with pytest.raises(DataError, match="no such Zarr folder"):
        open_series(zarr_options(path))
    path.mkdir()
    with pytest.raises(DataError, match="no Zarr group"):
        open_series(zarr_options(path))
    write_zarr(path)
    with pytest.raises(DataError, match="no sound array 'absent'.*angles"):
        open_series(zarr_options(path, patterns="absent"))
    with pytest.raises(DataError, match="is not one number"):
        open_series(zarr_options(path, energy_ev="attribute:absent"))
    with pytest.raises(DataError, match="expected a number"):
        open_series(zarr_options(path, energy_ev="pixel"))
    chunks = sorted(p for p in (path / "entry/patterns").rglob("*") if p.is_file() and p.name != "zarr.json")
    chunks[0].write_bytes(b"damaged")
    with open_series(zarr_options(path)) as series, pytest.raises(DataError, match=r"tilt 0, positions 0…2: cannot be"):
        series.tilt(0).read(np.array([0, 2]))
    chunks[0].unlink()
    with open_series(zarr_options(path)):
        assert "'entry/patterns': 1 of 6 chunks are not stored and are read as 0" in caplog.text


def test_zarr_patterns_that_were_never_written(tmp_path):
    path = tmp_path / "x.zarr"
    root = write_zarr(path)
    root.create_array("empty", shape=PATTERNS.shape, dtype=PATTERNS.dtype, chunks=(1, 5, 8, 6))
    with pytest.raises(DataError, match="'empty' was declared but never written"):
        open_series(zarr_options(path, patterns="empty"))


def test_zarr_shards_beyond_the_array_are_no_missing_chunks(tmp_path, caplog):
    """Shards of 10 positions, twice, for 12 of them: 8 chunks are stored, 6 of them inside the array."""
    path = tmp_path / "x.zarr"
    root = write_zarr(path)
    shards = {"chunks": (1, 5, 8, 6), "shards": (1, 10, 8, 6)}
    root.create_array("sharded", shape=PATTERNS.shape, dtype=PATTERNS.dtype, **shards)[...] = PATTERNS
    with open_series(zarr_options(path, patterns="sharded")) as series:
        np.testing.assert_array_equal(series.read_frames(1, np.arange(12)), PATTERNS[1])
    assert "not stored" not in caplog.text


def test_zarr_attributes_of_a_group(tmp_path):
    write_zarr(tmp_path / "x.zarr")["entry"].attrs["energy"] = 200e3
    with open_series(zarr_options(tmp_path / "x.zarr", energy_ev="attribute:entry@energy")) as series:
        assert series.energy_ev == 200e3


@pytest.mark.parametrize("codec", ["GZip", "Zlib", "LZMA", "BZ2", "Blosc", "Zstd"])
def test_zarr_chunks_cut_short_are_named_whatever_packs_them(tmp_path, codec):
    numcodecs = pytest.importorskip("numcodecs")
    path = tmp_path / "x.zarr"
    root = write_zarr(path, version=2)
    packed = {"chunks": PATTERNS.shape, "compressors": getattr(numcodecs, codec)()}
    root.create_array("packed", shape=PATTERNS.shape, dtype=PATTERNS.dtype, **packed)[...] = PATTERNS
    with open_series(zarr_options(path, patterns="packed")) as series:
        np.testing.assert_array_equal(series.read_frames(0, np.arange(12)), PATTERNS[0])
    chunk = path / "packed/0.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-100])
    with (
        pytest.raises(DataError, match="damaged there"),
        open_series(zarr_options(path, patterns="packed")) as series,
    ):
        series.tilt(0).read(np.array([0]))
