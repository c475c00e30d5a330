"""Patterns per second of the gradients of one batch beside the transforms alone: ``python -m benchmarks.chain``.

Random patterns at scattered positions, sub-pixel shifts, probe gradient included, one core. The floor is the time of as
many in-place transforms of one pattern by FFTW's patient plan, alone and in cache; the kernels' own transforms may be
faster ("transforms": FFTW's time over theirs), so that a share may exceed 1. Compiled, plain, floor and transforms take
turns, so that neighbours on the machine slow all alike.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import time

import numpy as np

from benchmarks.limits import OwnTransforms, Transforms, machine
from benchmarks.table import report
from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.physics.probe import aberrated_probe, orthogonal_start_modes

CASES = ((64, 1, 1), (64, 5, 1), (64, 3, 2), (128, 1, 1), (128, 6, 1), (128, 1, 3), (256, 1, 1))
N_POSITIONS, SAMPLING, WAVELENGTH, ROUNDS = 64, (0.2, 0.2), 0.02508, 7


def n_transforms(n_slices: int, n_modes: int) -> int:
    """Return the transforms of one pattern's gradients.

    A mode: the shifted probe to real space, four a gap between slices (two there, two back), to the detector, back, and
    the probe's gradient to reciprocal space.
    """
    return n_modes * (4 + 4 * (n_slices - 1))


def models(n: int, n_slices: int, n_modes: int) -> dict[str, tuple[PtychographyModel, PtychographyState, Batch]]:
    """Return a model of each kernel with its state and batch."""
    rng = np.random.default_rng(1)
    positions = rng.uniform(0, 40, (N_POSITIONS, 2))
    grid = object_grid(positions, (n, n), SAMPLING)
    probe = orthogonal_start_modes(aberrated_probe((n, n), SAMPLING, WAVELENGTH, 0.03, {"C10": -80.0}), n_modes)
    state = PtychographyState(
        obj=np.exp(0.1j * rng.standard_normal((n_slices, *grid.shape))).astype(np.complex64),
        probe=(300 * probe).astype(np.complex64),
        positions=positions,
        grid=grid,
        box=Box(0, grid.shape[0], 0, grid.shape[1]),
    )
    batch = Batch(np.arange(N_POSITIONS), rng.poisson(10, (N_POSITIONS, n, n)).astype(np.uint16))
    kernels = ("compiled", "array")
    return {k: (PtychographyModel((n, n), SAMPLING, WAVELENGTH, 5.0, kernel=k), state, batch) for k in kernels}


def rates(n: int, n_slices: int, n_modes: int) -> dict[str, object]:
    """Return one row: patterns per second, and the median share of the floor."""
    made, transforms, own = models(n, n_slices, n_modes), Transforms(n), OwnTransforms(n)
    count = N_POSITIONS * n_transforms(n_slices, n_modes)
    times: dict[str, list[float]] = {name: [] for name in (*made, "floor", "own")}
    for i_round in range(ROUNDS + 1):
        for name, (model, state, batch) in made.items():
            start = time.perf_counter()
            model.gradients(state, batch, ("probe",))
            times[name].append(time.perf_counter() - start)
        times["floor"].append(transforms(count))
        times["own"].append(own(count))
        if i_round == 0:  # compiles and plans
            times = {name: [] for name in times}
    shares = [floor / compiled for floor, compiled in zip(times["floor"], times["compiled"])]
    faster = [floor / own for floor, own in zip(times["floor"], times["own"])]
    rate = {name: N_POSITIONS / statistics.median(values) for name, values in times.items()}
    return {
        "case": f"gradients {n}² px, {n_slices} slices, {n_modes} modes",
        "cores": 1,
        "patterns/s": rate["compiled"],
        "fastest": N_POSITIONS / min(times["compiled"]),
        "numpy twin": rate["array"],
        "FFT floor": rate["floor"],
        "share of floor": statistics.median(shares),
        "transforms": statistics.median(faster),
    }


def rows() -> list[dict[str, object]]:
    """Return the table."""
    return [rates(*case) for case in CASES]


def main() -> None:
    here = machine(priority=True)
    report("chain", here, rows())


if __name__ == "__main__":
    main()
