import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcrec.data.experiment import (
    DetectorOptions,
    MultisliceOptions,
    NuisanceOptions,
    OpticsOptions,
    ScanOptions,
    SimulationOptions,
    TiltOptions,
    tilt_truth,
)
from hpcrec.data.simulate import simulate_tilt
from hpcrec.data.specimen import SpecimenOptions, co3o4_cube
from hpcrec.errors import ConfigError, DataError, StorageError
from hpcrec.io.atoms import write_xyz
from hpcrec.io.simulated import simulated_specimen, write_simulated_series

DATA = Path(os.environ.get("HPCREC_DATA", Path(__file__).parents[3] / "shared" / "data")) / "nanocube/nanocube-small.h5"
TINY = SimulationOptions(
    specimen=SpecimenOptions(n_cells=(1, 1, 1)),
    optics=OpticsOptions(defocus_angstrom=30.0),
    scan=ScanOptions(shape=(4, 3), step_angstrom=2.0),
    detector=DetectorOptions(pixels=24, pixel_inverse_angstrom=0.125),
    tilt=TiltOptions(first_deg=-30, last_deg=30, n_tilts=2),
    multislice=MultisliceOptions(grid_pixels=36, n_phonons=1, slice_thickness_angstrom=4.0),
    nuisance=NuisanceOptions(drift_angstrom=0.5, scan_jitter_angstrom=0.1, in_plane_error_deg=0.5),
)


def test_file_holds_what_was_simulated(tmp_path):
    seen = []
    write_simulated_series(tmp_path / "s.h5", TINY, lambda done, of: seen.append((done, of)))
    assert seen == [(1, 2), (2, 2)]
    tilt = simulate_tilt(TINY, co3o4_cube(1), 1)
    with h5py.File(tmp_path / "s.h5") as file:
        patterns = file["diffraction"]
        assert patterns.shape == (2, 12, 24, 24)
        assert patterns.dtype == np.uint16
        np.testing.assert_array_equal(np.fft.ifftshift(patterns[1], axes=(-2, -1)), tilt.patterns)
        # The bright disc stands around index N/2.
        ky = patterns[:].sum(axis=(0, 1, 3), dtype=float)
        assert (ky * np.arange(24)).sum() / ky.sum() == pytest.approx(12, abs=0.2)
        np.testing.assert_allclose(file["tilt_angles_deg"], [-30, 30])
        np.testing.assert_allclose(file["scan_positions_A"][0], [-3, -2])
        truth = tilt_truth(TINY, 1)
        assert file["truth/drift_A"][1].tolist() == [truth.drift[1], truth.drift[0]]
        assert file["truth/inplane_deg"][1] == pytest.approx(np.rad2deg(truth.in_plane))
        np.testing.assert_allclose(file["truth/scan_jitter_A"][1], truth.jitter, atol=1e-6)
        np.testing.assert_allclose(file["truth/atom_positions_A"][:][:, ::-1], co3o4_cube(1).positions, atol=1e-5)


@pytest.mark.skipif(not DATA.is_file(), reason=f"the simulated nanocube {DATA} is missing")
def test_layout_is_the_nanocubes(tmp_path):
    write_simulated_series(tmp_path / "s.h5", TINY)

    def layout(path):
        found = {}
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item: found.update({name: (getattr(item, "dtype", None), getattr(item, "ndim", 0))})
            )
            return found, set(file.attrs), set(file["truth"].attrs)

    ours, theirs = layout(tmp_path / "s.h5"), layout(DATA)
    assert ours[0] == theirs[0]
    assert ours[1] == theirs[1]
    assert ours[2] >= theirs[2]


def test_atoms_come_from_a_file(tmp_path):
    write_xyz(tmp_path / "cube.xyz", co3o4_cube(1))
    chosen = SpecimenOptions(kind="file", path=str(tmp_path / "cube.xyz"), b_factor_angstrom2=0.7)
    specimen = simulated_specimen(replace(TINY, specimen=chosen))
    assert specimen.n_atoms == 56
    assert specimen.b_factors[0] == 0.7
    with pytest.raises(DataError, match="found none"):
        simulated_specimen(replace(TINY, specimen=replace(chosen, path=str(tmp_path / "none.xyz"))))


def test_a_failed_simulation_leaves_no_file(tmp_path):
    with pytest.raises(ConfigError, match="window"):
        write_simulated_series(tmp_path / "s.h5", replace(TINY, optics=OpticsOptions(defocus_angstrom=500.0)))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="cannot write"):
        write_simulated_series(tmp_path / "none" / "s.h5", TINY)
