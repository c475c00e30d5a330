"""Patterns per second of the gradients of one batch, compiled and plain, one core: ``python benchmarks/chain.py``.

Random patterns at scattered positions, sub-pixel shifts, probe gradient included. The best of ten is printed beside the
median, since neighbours on the machine only ever slow a run down.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import numpy as np

from hpcrec.geometry.grid import object_grid
from hpcrec.geometry.tiles import Box
from hpcrec.models.base import Batch, PtychographyState
from hpcrec.models.ptychography import PtychographyModel
from hpcrec.physics.probe import aberrated_probe, orthogonal_start_modes

CASES = ((64, 1, 1), (64, 5, 1), (64, 3, 2), (128, 1, 1), (128, 6, 1), (128, 1, 3), (256, 1, 1))
N_POSITIONS, SAMPLING, WAVELENGTH = 64, (0.2, 0.2), 0.02508


def rates(n: int, n_slices: int, n_modes: int, kernel: str) -> tuple[float, float]:
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
    model = PtychographyModel((n, n), SAMPLING, WAVELENGTH, 5.0, kernel=kernel)
    batch = Batch(np.arange(N_POSITIONS), rng.poisson(10, (N_POSITIONS, n, n)).astype(np.uint16))
    model.gradients(state, batch, ("probe",))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        model.gradients(state, batch, ("probe",))
        times.append(time.perf_counter() - start)
    return N_POSITIONS / min(times), N_POSITIONS / float(np.median(times))


def main() -> None:
    print("pixels slices modes   compiled: best (median)      plain: best (median)   patterns/s")
    for n, n_slices, n_modes in CASES:
        (fast, fast_median), (plain, plain_median) = (rates(n, n_slices, n_modes, k) for k in ("compiled", "numpy"))
        print(
            f"{n:6d} {n_slices:6d} {n_modes:5d} {fast:16.0f} ({fast_median:6.0f}) {plain:19.0f} ({plain_median:6.0f})"
        )


if __name__ == "__main__":
    main()
