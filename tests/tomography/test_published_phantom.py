import os
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

from hpcrec.engines.fista import Fista, FistaOptions
from hpcrec.geometry.pose import Pose
from hpcrec.models.tomography import TomographyModel
from hpcrec.tomography.reconstruct import reconstruct

FOLDER = Path(os.environ.get("HPCREC_DATA", "../shared/data")) / "measured" / "aet_mg_sample_sim"


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"test data not found: {FOLDER} (set HPCREC_DATA)")
def test_projections_made_by_others_give_their_volume():
    # axes of the files: x across, y along the tilt axis, beam; their rotation is the transpose of ours
    truth = loadmat(FOLDER / "ground_truth_amorphous_vol.mat")["Vol"].transpose(2, 1, 0)
    data = loadmat(FOLDER / "sample_projections_amorphous.mat")["Projs"].transpose(2, 1, 0).astype(np.float32)
    tilts = -np.deg2rad(loadmat(FOLDER / "sample_angles_amorphous.mat")["angles"][:, 1])
    rows = slice(16, 48)  # half of the rows is enough and faster
    model = TomographyModel(
        volume_shape=(64, 32, 64),
        voxel_size=1.0,
        detector_shape=(32, 64),
        poses=tuple(Pose.from_tilt(t) for t in tilts),
    )
    solver = Fista(FistaOptions(n_iterations=20, sparsity=0.0, blur_angstrom=0.0))
    found = reconstruct(model, np.ascontiguousarray(data[:, rows]), np.ones((41, 32, 64), np.float32), solver)
    assert np.corrcoef(found.volume.ravel(), truth[:, rows].ravel())[0, 1] > 0.96  # wrong sign of the tilt: 0.35
    assert found.r1[-1] < 0.02
