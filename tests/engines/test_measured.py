"""Measured data: the Siemens star of tike (X-ray, far field, pixel units)."""

import bz2
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from phantom import sweep

from hpcrec.engines import engine_class
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.objectives.losses import amplitude_error

DATA = Path(os.environ.get("HPCREC_DATA", "../shared/data"))
STAR = DATA / "measured/xray_ptycho_siemens_tike/siemens-star-small.npz.bz2"


@pytest.fixture(scope="module")
def star():
    if not STAR.exists():
        pytest.skip(f"the Siemens star set is not at {STAR}; set HPCREC_DATA")
    # In memory: a zip archive is read back and forth, and every step back would unpack from the start
    with np.load(BytesIO(bz2.decompress(STAR.read_bytes()))) as data:
        return {name: data[name][0] for name in ("data", "scan", "probe")}


# A plain reconstruction by other programs reaches 0.018 in 25 sweeps of ePIE
@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch_size", "n_sweeps"), [("epie", 1, 5), ("lsqml", 32, 12), ("gradient", 32, 5)])
def test_siemens_star(star, name, batch_size, n_sweeps):
    patterns, positions = star["data"], star["scan"].astype(float)
    probe = star["probe"][0, 0] * np.sqrt(patterns.sum() / len(patterns)) / np.linalg.norm(star["probe"][0, 0])
    model = PtychographyModel((128, 128), (1.0, 1.0), 1.0)
    grid = object_grid(positions, (128, 128), (1.0, 1.0))
    state = PtychographyState(
        obj=np.ones((1, *grid.shape), np.complex64),
        probe=probe.astype(np.complex64),
        positions=positions,
        grid=grid,
        box=Box(0, grid.shape[0], 0, grid.shape[1]),
    )
    cls = engine_class(name)
    engine = cls(model, cls.Options(probe_start=0))
    engine.prepare(state)
    for i in range(n_sweeps):
        order = np.random.default_rng(i).permutation(len(patterns))
        sets = np.array_split(order, -(-len(order) // batch_size))
        sweep(engine, state, (Batch(indices, patterns[indices], n_global=len(indices)) for indices in sets))
    error, counts = amplitude_error(model.simulate(state, np.arange(len(positions))), patterns, None)
    assert error / counts < 0.018
