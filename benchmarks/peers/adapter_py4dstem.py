"""py4DSTEM: gradient descent in batches, one core."""

from __future__ import annotations

import warnings

import numpy as np
import py4DSTEM
from py4DSTEM.process.phase import MixedstatePtychography, MultislicePtychography, SingleslicePtychography
from task import Task


def prepared(task: Task) -> object:
    """Return the reconstruction, ready for its first sweep."""
    side = round(task.n_positions**0.5)
    cube = py4DSTEM.DataCube(data=task.patterns.reshape(side, side, task.n, task.n).astype(np.float32))
    cube.calibration.set_R_pixel_size(float(np.ptp(task.positions[:, 0]) / (side - 1)))
    cube.calibration.set_R_pixel_units("A")
    cube.calibration.set_Q_pixel_size(1 / (task.n * task.sampling))
    cube.calibration.set_Q_pixel_units("A^-1")
    common = {
        "datacube": cube,
        "energy": task.energy_ev,
        "semiangle_cutoff": task.semiangle * 1e3,
        "initial_scan_positions": task.positions,
        "initial_probe_guess": np.fft.ifftshift(task.probe if len(task.probe) > 1 else task.probe[0], axes=(-2, -1)),
        "object_padding_px": (task.n // 2 + 16,) * 2,
        "device": "cpu",
        "verbose": False,
    }
    if task.n_slices > 1:
        made = MultislicePtychography(num_slices=task.n_slices, slice_thicknesses=task.thickness, **common)
    elif len(task.probe) > 1:
        made = MixedstatePtychography(num_probes=len(task.probe), **common)
    else:
        made = SingleslicePtychography(**common)
    quiet = {"plot_center_of_mass": False, "plot_rotation": False, "plot_probe_overlaps": False}
    return made.preprocess(force_com_rotation=0, force_com_transpose=False, fit_function="constant", **quiet)


def main() -> None:
    task = Task()
    warnings.filterwarnings("ignore")
    whole = prepared(task)
    origin = np.mean(whole.positions / task.sampling - task.pixels, axis=0)
    task.start()
    while task.more():
        whole.reconstruct(
            num_iter=1,
            max_batch_size=task.batch,
            step_size=task.step,
            seed_random=len(task.times),
            fix_probe_com=False,
            progress_bar=False,
        )
        obj = np.asarray(whole.object)
        task.lap(obj.prod(axis=0) if obj.ndim == 3 else obj, origin)
    task.save("py4dstem", "1 core, sub-pixel")


if __name__ == "__main__":
    main()
