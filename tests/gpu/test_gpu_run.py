"""A whole job on a GPU gives the pictures that it gives on the processor."""

import subprocess
import sys
from dataclasses import fields

import h5py
import numpy as np
import pytest

from hpcrec.run.directory import RunDirectory
from hpcrec.run.job import ParallelSection

HAS_DEVICE = "device" in {one.name for one in fields(ParallelSection)}


def phases(tiny_job, folder, device):
    """The phase projections of the job on a device, by the names of their data sets."""
    command = [sys.executable, "-m", "hpcrec", "run", tiny_job, "--out", folder, "--set", f"parallel.device={device}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    with h5py.File(RunDirectory(folder).projections) as file:
        file.visititems(lambda name, one: found.update({name: one[()]}) if isinstance(one, h5py.Dataset) else None)
    return {name: values for name, values in found.items() if values.dtype.kind in "fc" and values.ndim > 1}


@pytest.mark.skipif(not HAS_DEVICE, reason="the job has no parallel.device yet")
def test_a_job_on_a_gpu_is_that_on_the_processor(gpu, tiny_job, tmp_path):
    found, wanted = (phases(tiny_job, tmp_path / device, device) for device in ("gpu", "cpu"))
    assert found.keys() == wanted.keys()
    assert wanted
    for name, values in wanted.items():
        scale = np.abs(values).max()
        assert np.abs(found[name] - values).max() <= 1e-4 * scale, name
