"""Every engine on the device beside the same on the processor, some iterations of a small phantom.

In single precision, but for engines that keep exit waves: these put the measured amplitude on waves whose phase is that
of round-off where they vanish. On the processor alone, array code and compiled loops then part by 4e-4 of the object in
ten iterations; in double precision they do not, and what is left to differ is the device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.correctness import relative
from hpcrec.backend.array import complex_dtype
from hpcrec.engines import engine_class
from hpcrec.engines.base import visit
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.partial import Partial, Total
from hpcrec.models.placement import state_on
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.physics.probe import aberrated_probe

TOLERANCE: Final = 1e-4
Precision = Literal["single", "double"]
_SAMPLING, _WAVELENGTH, _STEP, _COUNTS = (0.4, 0.4), 0.0251, 2.0, 1e5


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """Where engines start, and counts (pattern, ky, kx) of the truth."""

    start: PtychographyState
    counts: np.ndarray
    n: int
    thickness: float

    def model(self, kernel: str, precision: Precision) -> PtychographyModel:
        """Return the model."""
        window = self.n, self.n
        return PtychographyModel(window, _SAMPLING, _WAVELENGTH, self.thickness, kernel=kernel, precision=precision)

    def beginning(self, precision: Precision) -> PtychographyState:
        """Return a copy of the state where engines start."""
        dtype = complex_dtype(precision)
        return replace(
            copy.deepcopy(self.start), obj=self.start.obj.astype(dtype), probe=self.start.probe.astype(dtype)
        )


def make_phantom(side: int, n: int = 64, n_slices: int = 1) -> Phantom:
    """Return a phase object of n_slices under side² positions with jitter, Poisson counts, and a flat start."""
    rng, thickness = np.random.default_rng(5), 40.0 if n_slices > 1 else 0.0
    y, x = np.meshgrid(_STEP * np.arange(side), _STEP * np.arange(side), indexing="ij")
    positions = np.stack([y.ravel(), x.ravel()], axis=1) + rng.uniform(-0.3, 0.3, (side**2, 2))
    grid = object_grid(positions, (n, n), _SAMPLING)
    phase = gaussian_filter(rng.standard_normal((n_slices, *grid.shape)), (0, 3, 3), mode="wrap")
    probe = aberrated_probe((n, n), _SAMPLING, _WAVELENGTH, 0.022, {"C10": -150.0})[None] * np.sqrt(_COUNTS)
    truth = PtychographyState(
        obj=np.exp(0.3j * phase / phase.std()).astype(np.complex64),
        probe=probe.astype(np.complex64),
        positions=positions,
        grid=grid,
        box=Box(0, grid.shape[0], 0, grid.shape[1]),
    )
    model = PtychographyModel((n, n), _SAMPLING, _WAVELENGTH, thickness, kernel="array")
    counts = rng.poisson(model.simulate(truth, np.arange(side**2))).astype(np.uint16)
    start = copy.deepcopy(truth)
    start.obj[...] = 1
    return Phantom(start=start, counts=counts, n=n, thickness=thickness)


def total_of(partial: Partial, peaks: tuple[str, ...] = ()) -> Total:
    """Return the total that one rank alone sees, on either device."""
    if partial.windows is not None:
        return Total({}, partial.sums, {name: partial.windows.peak() for name in peaks}, partial.windows)
    return Total(partial.fields, partial.sums, {name: float(partial.fields[name].values.max()) for name in peaks})


def run(
    phantom: Phantom, name: str, iterations: int, start: PtychographyState, kernel: str, precision: Precision
) -> tuple[PtychographyState, float]:
    """Run an engine with its own options; return the state and the last iteration's data error Σ(√I − √I₀)²/ΣI₀."""
    cls, n_patterns = engine_class(name), len(phantom.counts)
    engine = cls(phantom.model(kernel, precision), cls.Options(), [])
    size = n_patterns if cls.full_batch else 8
    engine.prepare(start)
    told = 0.0
    for iteration in range(iterations):
        order, error, counts = np.random.default_rng(iteration).permutation(n_patterns), 0.0, 0.0
        for step, first in enumerate(range(0, n_patterns, size)):
            indices = order[first : first + size]
            batch = Batch(indices, phantom.counts[indices], step=step, n_global=len(indices))
            sums = visit(engine, start, batch, total_of).sums
            error, counts = error + float(sums["error"][0]), counts + float(sums["counts"][0])
        engine.finish_iteration(start)
        told = error / counts
    return start, told


def compare(cupy: Any, phantom: Phantom, name: str, iterations: int) -> dict[str, object]:
    """Return how far the device ends from the processor, over the largest value, and both data errors."""
    precision: Precision = "double" if engine_class(name).keeps_waves else "single"
    on_host, on_device = phantom.beginning(precision), state_on(cupy, phantom.beginning(precision))
    host, wanted = run(phantom, name, iterations, on_host, "auto", precision)
    there, found = run(phantom, name, iterations, on_device, "launched", precision)
    return {
        "engine": name,
        "precision": precision,
        "slices": len(host.obj),
        "obj": relative(there.obj, host.obj),
        "probe": relative(there.probe, host.probe),
        "data error": relative(np.array(found), np.array(wanted)),
        "change": float(np.abs(host.obj - phantom.start.obj).max()),
    }


def rows(bench: Bench) -> Iterator[dict[str, object]]:
    """Yield a row for each engine that there is time for, of one slice, and of two where it knows them."""
    for n_slices in (1, 2):
        phantom = make_phantom(bench.sizes.side, n_slices=n_slices)
        for name in bench.sizes.engines:
            if n_slices > 1 and engine_class(name).one_slice_only:
                continue
            if bench.has_time(f"engine {name} of {n_slices} slices"):
                with bench.guarded(f"engine {name} of {n_slices} slices"):
                    yield compare(bench.cupy, phantom, name, bench.sizes.iterations)


def wrong(found: list[dict[str, object]]) -> list[str]:
    """Return in words which engines end elsewhere on the device."""
    parts = ("obj", "probe", "data error")
    return [
        "engine {engine} of {slices} slices ends elsewhere: object {obj:.1e}, probe {probe:.1e}".format(**row)
        for row in found
        if not all(float(str(row[part])) <= TOLERANCE for part in parts)
    ]
