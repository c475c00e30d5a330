"""Files of prepared data in the layout that PtyPy writes."""

import h5py
import numpy as np
import pytest

from hpcrec.errors import ConfigError, DataError
from hpcrec.io.base import open_series
from hpcrec.io.ptyd import PtydOptions

RNG = np.random.default_rng(13)
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
