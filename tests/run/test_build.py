"""Models that a job describes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcrec.run.build import build_model
from hpcrec.run.config import load_job


@pytest.mark.parametrize(("precision", "dtype"), [("single", np.complex64), ("double", np.complex128)])
def test_factors_of_the_detector_have_the_models_precision(tiny_job: Path, precision: str, dtype: type) -> None:
    """A double factor would make every transform of a single model a double one."""
    near = ["detector.field=near", "detector.distance_angstrom=1e4", "detector.point_spread_pixels=0.7"]
    job, _ = load_job(tiny_job, [*near, f"ptychography.precision={precision}"])
    detector = build_model(job, (32, 32), (0.2, 0.2), 0.025).detector
    assert detector.blur is not None
    assert detector.propagator is not None
    assert (detector.blur.dtype, detector.propagator.dtype) == (dtype, dtype)
    assert detector.blur[0, 0] == pytest.approx(1), "counts are kept"
