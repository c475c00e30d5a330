"""A small phantom with known truth, and a sweep loop of one rank, for the tests of engines."""

import numpy as np
from scipy.ndimage import gaussian_filter

from hpcrec.engines import engine_class
from hpcrec.engines.base import visit
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.chain import Detector
from hpcrec.models.partial import Total
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.physics.probe import aberrated_probe, orthogonal_start_modes
from hpcrec.refine import refinement_class

SHAPE, SAMPLING, WAVELENGTH, SEMIANGLE = (32, 32), (0.4, 0.4), 0.0251, 0.022


class Phantom:
    """True state, start state and patterns of a phase object of one or two slices under one or two modes."""

    def __init__(
        self,
        n_slices=1,
        n_modes=1,
        precision="single",
        loss="amplitude",
        counts=1e5,
        thickness=40.0,
        noise=False,
        threads=1,
    ):
        rng = np.random.default_rng(11)
        self.model = PtychographyModel(
            SHAPE,
            SAMPLING,
            WAVELENGTH,
            thickness if n_slices > 1 else 0.0,
            detector=Detector(loss=loss),
            precision=precision,
            threads=threads,
        )
        y, x = np.meshgrid(np.arange(8) * 1.3, np.arange(8) * 1.3, indexing="ij")
        self.positions = np.stack([y.ravel(), x.ravel()], axis=1) + rng.uniform(-0.3, 0.3, (64, 2))
        self.grid = object_grid(self.positions, SHAPE, SAMPLING)
        self.box = Box(0, self.grid.shape[0], 0, self.grid.shape[1])
        phase = gaussian_filter(rng.standard_normal((n_slices, *self.grid.shape)), (0, 2, 2), mode="wrap")
        phase *= 0.3 / phase.std()
        dtype = self.model.dtype
        probe = aberrated_probe(SHAPE, SAMPLING, WAVELENGTH, SEMIANGLE, {"C10": -120.0})
        probe = orthogonal_start_modes(probe, n_modes, share=0.15) * np.sqrt(counts)
        self.truth = self._state(np.exp(1j * phase).astype(dtype), probe.astype(dtype))
        self.start = self._state(np.ones_like(self.truth.obj), self.truth.probe.copy())
        self.patterns = self.model.simulate(self.truth, np.arange(len(self.positions)))
        self.good = None
        if noise:
            self.patterns = rng.poisson(self.patterns).astype(np.uint16)

    def _state(self, obj, probe):
        return PtychographyState(obj=obj, probe=probe, positions=self.positions.copy(), grid=self.grid, box=self.box)

    def batches(self, size, seed):
        order = np.random.default_rng(seed).permutation(len(self.positions))
        for step, start in enumerate(range(0, len(order), size)):
            indices = order[start : start + size]
            good = None if self.good is None else self.good[indices]
            yield Batch(indices, self.patterns[indices], step=step, n_global=len(indices), good=good)


def total_of(partial, peaks=()):
    """The total that one rank alone sees."""
    if partial.windows is not None:
        return Total({}, partial.sums, {name: partial.windows.peak() for name in peaks}, partial.windows)
    found = {name: float(partial.fields[name].values.max(initial=0)) for name in peaks}
    return Total(partial.fields, partial.sums, found)


def sweep(engine, state, batches):
    """Run one sweep on one rank; return Σ(√I − √I₀)² / ΣI₀ seen on the way."""
    error = counts = 0.0
    for batch in batches:
        total = visit(engine, state, batch, total_of)
        error += total.sums["error"][0]
        counts += total.sums["counts"][0]
    engine.finish_iteration(state)
    return error / counts


def refinements(model, refine):
    """Return refinements from {name: options}."""
    found = [(refinement_class(name), options) for name, options in refine.items()]
    return [cls(model, cls.Options(**options)) for cls, options in found]


def size_for(name, batch_size):
    """The batch size, or all patterns for engines that take no less."""
    return 64 if engine_class(name).full_batch else batch_size


def reconstruct(phantom, name, n_sweeps, batch_size=8, refine=None, **options):
    """Run an engine by name from the start state; return the state and the data error of each sweep."""
    cls = engine_class(name)
    batch_size = size_for(name, batch_size)
    engine = cls(phantom.model, cls.Options(**options), refinements(phantom.model, refine or {}))
    engine.prepare(phantom.start)
    errors = [sweep(engine, phantom.start, phantom.batches(batch_size, i)) for i in range(n_sweeps)]
    return phantom.start, errors


def phase_error(found, truth, margin=16):
    """Relative rms error of the product of the slices inside the scan, with the free global factor removed."""
    a, b = (np.prod(o, axis=0)[margin:-margin, margin:-margin] for o in (found, truth))
    a = a * np.vdot(a, b) / np.vdot(a, a)
    return np.linalg.norm(a - b) / np.linalg.norm(b - b.mean())
