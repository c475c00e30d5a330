"""phaserEM: gradient engine on JAX with Adam."""

from __future__ import annotations

import numpy as np
import pane
from phaser.execute import execute_plan
from phaser.observer import Observer
from phaser.plan import ReconsPlan
from phaser.state import PartialReconsState, PixelatedProbeState, ReconsState, ScanState
from phaser.utils.num import Sampling
from task import Task


class Done(Exception):
    """Enough sweeps."""


class Watch(Observer):
    """Hands every sweep's object to the task."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def start_engine(self, init_state: ReconsState) -> None:
        self.task.start()

    def update_iteration(self, state: ReconsState, i: int, n: int, errors: dict[str, float]) -> None:
        obj = state.object
        self.task.lap(np.asarray(obj.data).prod(axis=0), -obj.sampling.corner / obj.sampling.sampling)
        if not self.task.more():
            raise Done


def sampling(task: Task) -> Sampling:
    return Sampling((task.n, task.n), sampling=(task.sampling, task.sampling))


def load(args: None, props: object) -> dict[str, object]:
    """Return the data as phaserEM's loaders do: zero frequency at [0, 0]."""
    task = Task()
    return {
        "patterns": np.fft.ifftshift(task.patterns, axes=(1, 2)).astype(np.float32),
        "mask": np.ones((task.n, task.n), np.float32),
        "sampling": sampling(task),
        "wavelength": task.wavelength,
    }


def plan(task: Task) -> ReconsPlan:
    described = {
        "name": "peers",
        "backend": "jax",
        "raw_data": "adapter_phaserem:load",
        "engines": [
            {
                "type": "gradient",
                "niter": 100000,
                "grouping": task.batch,
                "probe_modes": len(task.probe),
                "bwlim_frac": None,
                "buffer_n_groups": None,
                "noise_model": "poisson",
                "calc_error": False,
                "solvers": {
                    "object": {"type": "adam", "learning_rate": task.step},
                    "probe": {"type": "adam", "learning_rate": 10 * task.step},
                },
                "regularizers": [],
                "group_constraints": [],
                "iter_constraints": [],
            }
        ],
    }
    if task.n_slices > 1:
        described["slices"] = {"n": task.n_slices, "slice_thickness": task.thickness}
    return pane.from_data(described, ReconsPlan)


def main() -> None:
    task = Task()
    start = PartialReconsState(
        probe=PixelatedProbeState(sampling(task), task.probe.astype(np.complex64)),
        scan=ScanState(task.positions.astype(np.float32), task.positions.astype(np.float32)),
    )
    try:
        execute_plan(plan(task), seed=1, init_state=start, override_observers=[Watch(task)])
    except Done:
        task.save("phaserem", "2 threads, sub-pixel")


if __name__ == "__main__":
    main()
