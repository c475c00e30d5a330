import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcrec.backend.kernels.projection import BORDER, back_project, project, projection_matrix


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("n_bins", [1, 2, 4])
@pytest.mark.parametrize("moment", [False, True])
@pytest.mark.parametrize("kind", ["tilt", "any"])
def test_compiled_equals_the_numpy_twin(degree, n_bins, moment, kind):
    rng = np.random.default_rng(degree + 10 * n_bins)
    shape, out_shape = (7, 8, 11), (n_bins, 9, 10)
    affine = rng.normal(size=(3, 4, 4))  # columns: ix, iy, iz, 1
    if kind == "tilt":  # nearly single-axis: v follows iy
        affine[:, :2, 1] = [0.03, 0.998]
        affine[:, 1, [0, 2]] *= 0.02
        affine[:, 2, 1] *= 0.02
    affine[:, :3, 3] = [4.0, 1.3, n_bins / 2]
    volume = rng.normal(size=shape).astype(np.float32)
    ranges = np.zeros((*shape[:2], 2), np.int64)
    ranges[..., 1] = shape[2]
    images = np.zeros((3, n_bins, 9 + 2 * BORDER, 10 + 2 * BORDER), np.float32)
    project(volume, ranges, affine, degree, moment, images)
    inner = images[:, :, BORDER:-BORDER, BORDER:-BORDER]
    matrices = [projection_matrix(shape, a, degree, moment, out_shape) for a in affine]
    scale = max(np.abs(m).sum(axis=1).max() for m in matrices)
    for image, matrix in zip(inner, matrices):
        # float32 offsets are good to 1e-6 pixels
        np.testing.assert_allclose(image.ravel(), matrix @ volume.ravel(), rtol=0, atol=1e-5 * scale)
    if not moment:
        back = np.zeros(shape, np.float32)
        padded = np.zeros_like(images)
        padded[:, :, BORDER:-BORDER, BORDER:-BORDER] = inner
        back_project(padded, ranges, affine, degree, 0, back)
        expected = sum(m.T @ i.ravel() for m, i in zip(matrices, inner))
        terms = sum(np.abs(m).T @ np.abs(i).ravel() for m, i in zip(matrices, inner))
        np.testing.assert_allclose(back.ravel(), expected, rtol=0, atol=1e-5 * terms.max())


SUMS = """
import hashlib
import numpy as np
from hpcrec.backend.kernels.volume import derivative_images
from hpcrec.geometry.pose import Pose, rotation_from_angles
from hpcrec.operators.projection import Projector

rng = np.random.default_rng(0)
poses = [Pose(rotation=rotation_from_angles(0.01, t, -0.02), shift=(0.2, -0.1)) for t in np.linspace(-1, 1, 9)]
tool = Projector((20, 24, 21), 0.4, (28, 26), poses)
images = tool.forward(rng.random((20, 24, 21), dtype=np.float32))
turned = derivative_images(images[0], images[1], np.eye(3), (0.1, 0.2), 0.4)
print(*(hashlib.sha256(a.tobytes()).hexdigest() for a in (images, tool.adjoint(images), turned)))
"""


def test_kernels_of_numba_s_cache_are_those_just_compiled(tmp_path):
    """To the last bit: of workers that share a volume one may have compiled what another loads."""
    kept = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    asked = [sys.executable, "-c", SUMS]
    found = [subprocess.run(asked, env=kept, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert len(found[0].split()) == 3
    assert found[0].split() == found[1].split()
