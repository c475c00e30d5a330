"""PtyRAD: automatic differentiation in PyTorch with Adam, without its constraints."""

from __future__ import annotations

import logging

import numpy as np
import torch
from ptyrad.core import PtychoModel
from ptyrad.params.ptyrad_params import PtyRADParams
from ptyrad.solver.ptyrad_solver import PtyRADSolver
from ptyrad.solver.reconstruction import compute_loss, create_optimizer, prepare_recon, recon_step
from task import Task

# First pixels of windows start here, so that the object has an edge
EDGE = 16


def parameters(task: Task) -> dict[str, object]:
    """Return the parameter file as a dictionary."""
    side = round(task.n_positions**0.5)
    corners = task.pixels - task.pixels.min(axis=0) + EDGE
    fixed = {"start_iter": None, "lr": 0.0}
    described = {
        "init_params": {
            "random_seed": 1,
            "probe_kv": task.energy_ev / 1e3,
            "probe_conv_angle": task.semiangle * 1e3,
            "meas_Npix": task.n,
            "pos_N_scans": task.n_positions,
            "pos_N_scan_slow": side,
            "pos_N_scan_fast": side,
            "pos_scan_step_size": float(np.ptp(task.positions[:, 0]) / (side - 1)),
            "pos_scan_rand_std": None,
            "meas_calibration": {"mode": "dx", "value": task.sampling},
            "probe_pmode_max": len(task.probe),
            "obj_Nlayer": task.n_slices,
            "obj_slice_thickness": task.thickness or 1.0,
            "meas_source": "custom",
            "meas_params": task.patterns.astype(np.float32),
            "probe_source": "custom",
            "probe_params": task.probe.astype(np.complex64),
            "pos_source": "custom",
            "pos_params": corners,
        },
        "model_params": {
            "optimizer_params": {"name": "Adam", "configs": {}},
            "update_params": {
                "obja": {"start_iter": 1, "lr": task.step},
                "objp": {"start_iter": 1, "lr": task.step},
                "probe": {"start_iter": 1, "lr": 0.2 * task.step},
                "obj_tilts": fixed,
                "slice_thickness": fixed,
                "probe_pos_shifts": fixed,
            },
        },
        "recon_params": {
            "BATCH_SIZE": {"size": task.batch},
            "GROUP_MODE": "random",
            "SAVE_ITERS": None,
            "output_dir": str(task.out.parent),
        },
    }
    chosen = PtyRADParams(**described).model_dump()
    for constraint in chosen["constraint_params"].values():
        constraint["start_iter"] = None
    return chosen


def main() -> None:
    task = Task()
    logging.disable(logging.INFO)
    torch.set_num_threads(task.threads)
    chosen = parameters(task)
    solver = PtyRADSolver(chosen, device="cpu", seed=1)
    model = PtychoModel(solver.init.init_variables, solver.params["model_params"], device="cpu")
    optimizer = create_optimizer(model.optimizer_params, model.optimizable_params)
    _, batches, _ = prepare_recon(model, solver.init, solver.params)
    batches = [torch.from_numpy(batch) for batch in batches]
    origin = EDGE - task.pixels.min(axis=0) + task.n // 2
    rng = np.random.default_rng(1)
    task.start()
    while task.more():
        order = [batches[i] for i in rng.permutation(len(batches))]
        recon_step(
            order,
            1,
            model,
            optimizer,
            None,
            solver.loss_fn,
            solver.constraint_fn,
            len(task.times) + 1,
            None,
            compute_loss,
        )
        obj = model.opt_obja.detach().numpy() * np.exp(1j * model.opt_objp.detach().numpy())
        task.lap(obj[0].prod(axis=0), origin)
    task.save("ptyrad", "2 threads, sub-pixel")


if __name__ == "__main__":
    main()
