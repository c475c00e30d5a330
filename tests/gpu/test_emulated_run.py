"""A whole job by the kernels of a GPU, which the CPU runs: the pictures of the processor."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("emulated_run.py")
ROOT = SCRIPT.parents[2]


def found_by(root):
    """An environment in which a script finds what lies in ``root``."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.emulation
@pytest.mark.slow
@pytest.mark.parametrize(
    ("pixels", "words", "launched"),
    [
        (
            64,
            ["refine.positions.start_iteration=0"],
            ["add_gradients<64, AMPLITUDE, Events<unsigned short>, true, true, true, false>"],
        ),
        (
            192,
            ["ptychography.gradient.loss=poisson", "ptychography.deterministic=true"],
            ["stripe_detect<192, false, POISSON, Events<unsigned short>>", "stripe_back<192, true, false, true>"],
        ),
        (
            128,
            ["ptychography.deterministic=true", "ptychography.whole_pixel_iterations=3"],
            ["add_gradients<128, AMPLITUDE, Events<unsigned short>, true, false, false, true>"],
        ),
        (64, ["ptychography.kernel=array", "ptychography.engine=lsqml"], ["window_weigh<AMPLITUDE, unsigned short>"]),
    ],
)
def test_a_job_by_a_gpu_s_kernels_is_that_of_the_processor(tmp_path, pixels, words, launched):
    """Two modes, two slices, three sweeps in single precision; bounds as of a real GPU."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed: the GPU kernels' sources cannot be compiled for the CPU")
    asked = [sys.executable, SCRIPT, tmp_path, str(pixels), *words]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False, env=found_by(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(launched) <= set(found["kernels"]), found["kernels"]
    own = {name for name in found["kernels"] if not name.startswith("window_")}
    assert bool(own) == ("ptychography.kernel=array" not in words)
    assert "disagrees" not in done.stderr
    for name, error in found["errors"].items():
        assert error <= 1e-4, (name, error)
