"""Patterns a second of PtyRAD and Pty-Chi on the same device, where they are installed: a sweep with their own update.

Their steps are not hpcrec's: PtyRAD's is a gradient with Adam, Pty-Chi's LSQ-ML solves for step sizes. What is compared
is a sweep that reads every pattern once and changes object and probe.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.gpu.bench import Bench, Case
from benchmarks.gpu.chains import SAMPLING, THICKNESS, WAVELENGTH, make_chain

_ENERGY_EV: Final = 300e3
_SIDE: Final = 32
_BATCHES: Final = (64, 256)
_CASES: Final = (Case(128, 5, 1, False), Case(128, 1, 1, False), Case(256, 5, 1, False), Case(128, 1, 4, False))
_EDGE: Final = 5
Sweep = Callable[[], object]


def scan(case: Case, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return counts (position, ky, kx), first pixels (position, 2) and the probe (mode, y, x) of a square scan."""
    at = np.arange(side)
    corners = np.stack(np.meshgrid(at, at, indexing="ij"), axis=-1).reshape(-1, 2)
    counts = np.random.default_rng(3).poisson(1.0, (len(corners), case.n, case.n))
    return counts.astype(np.float32), corners, make_chain(case, 1).spectrum


def ptyrad_sweep(case: Case, batch: int, place: str, side: int) -> Sweep:
    """Return a sweep of PtyRAD."""
    core, solving = import_module("ptyrad.core"), import_module("ptyrad.solver.reconstruction")
    torch = import_module("torch")
    counts, corners, probe = scan(case, side)
    fixed = {"start_iter": None, "lr": 0.0}
    moved = {name: {"start_iter": 1, "lr": 1e-3} for name in ("obja", "objp", "probe")}
    described = {
        "init_params": {
            "random_seed": 1, "probe_kv": _ENERGY_EV / 1e3, "probe_conv_angle": 25.0, "meas_Npix": case.n,
            "pos_N_scans": len(corners), "pos_N_scan_slow": side, "pos_N_scan_fast": side,
            "pos_scan_step_size": SAMPLING[0], "pos_scan_rand_std": None,
            "meas_calibration": {"mode": "dx", "value": SAMPLING[0]}, "probe_pmode_max": case.n_modes,
            "obj_Nlayer": case.n_slices, "obj_slice_thickness": THICKNESS, "meas_source": "custom",
            "meas_params": counts, "probe_source": "custom", "probe_params": probe, "pos_source": "custom",
            "pos_params": (corners + _EDGE).astype(float),
        },
        "model_params": {
            "optimizer_params": {"name": "Adam", "configs": {}},
            "update_params": moved | dict.fromkeys(("obj_tilts", "slice_thickness", "probe_pos_shifts"), fixed),
        },
        "recon_params": {
            "BATCH_SIZE": {"size": batch}, "GROUP_MODE": "random", "SAVE_ITERS": None,
            "output_dir": tempfile.gettempdir(),
        },
    }  # fmt: skip
    chosen = import_module("ptyrad.params.ptyrad_params").PtyRADParams(**described).model_dump()
    for constraint in chosen["constraint_params"].values():
        constraint["start_iter"] = None
    solver = import_module("ptyrad.solver.ptyrad_solver").PtyRADSolver(chosen, device=place, seed=1)
    model = core.PtychoModel(solver.init.init_variables, solver.params["model_params"], device=place)
    optimizer = solving.create_optimizer(model.optimizer_params, model.optimizable_params)
    _, batches, _ = solving.prepare_recon(model, solver.init, solver.params)
    batches = [torch.from_numpy(one) for one in batches]

    def sweep() -> None:
        rules = solver.loss_fn, solver.constraint_fn, 1, None, solving.compute_loss
        solving.recon_step(batches, 1, model, optimizer, None, *rules)

    return sweep


def ptychi_sweep(case: Case, batch: int, place: str, side: int) -> Sweep:
    """Return a sweep of Pty-Chi's LSQ-ML."""
    api = import_module("ptychi.api")
    counts, corners, probe = scan(case, side)
    centres = corners - corners.mean(axis=0)
    shape = (case.n_slices, *(int(np.ptp(at)) + case.n + 2 * _EDGE for at in corners.T))
    options = api.LSQMLOptions()
    # Ångström as metres, times 1e-10
    options.data_options.wavelength_m = WAVELENGTH * 1e-10
    options.data_options.save_data_on_device = place != "cpu"
    options.object_options.pixel_size_m = SAMPLING[0] * 1e-10
    if case.n_slices > 1:
        options.object_options.slice_spacings_m = [THICKNESS * 1e-10] * (case.n_slices - 1)
    options.reconstructor_options.batch_size = batch
    options.reconstructor_options.num_epochs = 1
    options.reconstructor_options.default_device = api.Devices.CPU if place == "cpu" else api.Devices.GPU
    task = import_module("ptychi.api.task").PtychographyTask(
        options,
        diffraction_data=counts,
        object_data=np.ones(shape, np.complex64),
        # An axis of probes that vary from position to position, of which there is one
        probe_data=probe[None],
        probe_position_x_px=centres[:, 1].astype(np.float32),
        probe_position_y_px=centres[:, 0].astype(np.float32),
    )
    return lambda: task.run(1)


PEERS: Final = {"ptyrad": ("PtyRAD", ptyrad_sweep), "ptychi": ("Pty-Chi LSQ-ML", ptychi_sweep)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what peers log and print out of the tables."""
    logging.disable(logging.WARNING)
    try:
        with Path(os.devnull).open("w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
            yield
    finally:
        logging.disable(logging.NOTSET)


def rows(bench: Bench) -> Iterator[dict[str, object]]:
    """Yield a row for each peer that is installed, case and batch; a peer's own error is its row's."""
    place, side = ("cpu", 3) if bench.rehearsal else ("cuda", _SIDE)
    cases = (Case(64, 2, 1, False),) if bench.rehearsal else _CASES
    batches = (3,) if bench.rehearsal else _BATCHES
    for module, (name, make) in PEERS.items():
        if find_spec(module) is None:
            bench.left.append(f"{name}: not installed")
            continue
        for case, batch in product(cases, batches):
            if bench.has_time(f"{name} on {case}", 15.0):
                about = {**case._asdict(), "program": name, "batch": batch}
                yield about | _timed(bench, make, case, batch, place, side)


def _timed(bench: Bench, make: Callable[..., Sweep], case: Case, batch: int, place: str, side: int) -> dict[str, Any]:
    try:
        with quiet():
            seconds = bench.seconds_of(make(case, batch, place, side))
    except Exception as error:  # noqa: BLE001 - a peer that does not know a case is told as such
        return {"patterns/s": None, "fault": f"{type(error).__name__}: {error}"[:200]}
    finally:
        # Pty-Chi leaves its own behind
        import_module("torch").set_default_device(None)
    return {"patterns/s": bench.rate(side**2, seconds)}
