"""A strong phantom whose patterns hold what a refinement must find."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from phantom import refinements, sweep

from hpcrec.engines import engine_class
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import Detector
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.physics.probe import aberrated_probe

SHAPE, SAMPLING, WAVELENGTH, SEMIANGLE = (32, 32), (0.4, 0.4), 0.0251, 0.025


class Case:
    """A phase object of some slices, 100 positions, patterns without noise of ``truth`` with ``refined``."""

    def __init__(self, n_slices=1, refined=None, thickness=25.0, counts=1e5, defocus=120.0, alike=False, **options):
        rng = np.random.default_rng(5)
        self.model = PtychographyModel(SHAPE, SAMPLING, WAVELENGTH, thickness if n_slices > 1 else 0.0, **options)
        y, x = np.meshgrid(np.arange(10) * 1.2, np.arange(10) * 1.2, indexing="ij")
        positions = np.stack([y.ravel(), x.ravel()], axis=1) + rng.uniform(-0.3, 0.3, (100, 2))
        grid = object_grid(positions, SHAPE, SAMPLING, 4)
        phase = gaussian_filter(rng.standard_normal((n_slices, *grid.shape)), (0, 1.2, 1.2), mode="wrap")
        if alike:
            phase[:] = phase[:1]
        phase *= 0.3 / phase.std()
        probe = self.probe(defocus, counts)
        self.truth = PtychographyState(
            obj=np.exp(1j * phase).astype(np.complex64),
            probe=probe[None],
            positions=positions,
            grid=grid,
            box=Box(0, grid.shape[0], 0, grid.shape[1]),
            refined=refined or {},
        )
        self.patterns = self.model.simulate(self.truth, np.arange(100))

    @staticmethod
    def probe(defocus, counts=1e5):
        wave = aberrated_probe(SHAPE, SAMPLING, WAVELENGTH, SEMIANGLE, {"C10": -defocus})
        return (wave * np.sqrt(counts)).astype(np.complex64)

    def reconstruct(
        self, engine, refine, n_sweeps, model=None, probe=None, batch_size=20, positions=None, after=None, **options
    ):
        """Start from an empty object; return the final state and the last data error."""
        model = self.model if model is None else model
        truth = self.truth
        state = replace(
            truth,
            obj=np.ones_like(truth.obj),
            probe=(truth.probe if probe is None else probe[None]).copy(),
            positions=(truth.positions if positions is None else positions).copy(),
            refined={},
            memory={},
            object_memory={},
        )
        cls = engine_class(engine)
        made = cls(model, cls.Options(**options), refinements(model, refine))
        made.prepare(state)
        error = np.inf
        for i in range(n_sweeps):
            order = np.random.default_rng(i).permutation(100)
            sets = [order[k : k + batch_size] for k in range(0, 100, batch_size)]
            error = sweep(made, state, (Batch(s, self.patterns[s], n_global=len(s)) for s in sets))
            if after is not None:
                after(state)
        return state, error


def detector(**options):
    return Detector(**options)
