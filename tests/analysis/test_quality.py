"""The quality record: plain JSON, and warnings where they are due."""

import json

import numpy as np

from hpcrec.analysis.atoms import AtomTable
from hpcrec.analysis.compare import compare_atoms
from hpcrec.analysis.quality import QualityReport, TiltQuality, atom_quality, resolution_quality, summarise_tilts
from hpcrec.analysis.resolution import crystal_resolution, directional_correlations, fourier_shell_correlation


def tilts(**change):
    base = [{"index": i, "data_error": 0.02, "mass": 80.0, "n_residues": 0} for i in range(6)]
    base[2].update(change)
    return [TiltQuality(**values) for values in base]


def test_good_tilts_have_no_warning():
    error, warnings = summarise_tilts(tilts())
    assert error == 0.02
    assert warnings == []


def test_bad_tilts_are_named():
    assert "tilt 2" in summarise_tilts(tilts(data_error=0.09))[1][0]
    assert "residues" in summarise_tilts(tilts(doubtful=True))[1][0]
    assert "varies" in summarise_tilts(tilts(mass=8.0))[1][0]
    assert summarise_tilts([]) == (None, [])


def test_everything_becomes_json(particle):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 24, 24, 24))
    voxel = (0.5, 0.5, 0.5)
    positions, species = particle
    n = len(positions)
    table = AtomTable(positions=positions, species=species, intensity=np.ones(n), confidence=np.full(n, 0.95))
    quality = QualityReport(
        tilts=tilts(mass=float("nan")),
        data_error=np.float32(0.02),
        resolution=resolution_quality(
            fourier_shell_correlation(a, b, voxel), directional_correlations(a, b, voxel), crystal_resolution(a, voxel)
        ),
        atoms=atom_quality(table, compare_atoms(positions, species, positions, species)),
        warnings=("one",),
    )
    plain = json.loads(json.dumps(quality.to_dict(), allow_nan=False))
    assert plain["tilts"][2]["mass"] is None
    assert plain["atoms"]["comparison"]["species"]["Co"]["found_share"] == 1.0
    assert plain["atoms"]["doubtful"] == 0
    assert set(plain["resolution"]["half_bit_axes"]) == {"z", "y", "x"}
    assert plain["resolution"]["last_peak"]["axial"] is None
    assert json.loads(json.dumps(QualityReport().to_dict()))["resolution"] is None


def test_limit_by_the_voxel_is_named():
    volume = np.random.default_rng(1).standard_normal((20, 20, 20))
    quality = resolution_quality(fourier_shell_correlation(volume, volume, (0.5, 0.5, 0.5)))
    assert "half_bit" in quality.at_nyquist
    assert quality.half_bit == 1.0
