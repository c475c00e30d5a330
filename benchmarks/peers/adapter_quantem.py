"""quantem: automatic differentiation in PyTorch; ``adam`` as it comes, or its ``analytic`` gradient."""

from __future__ import annotations

import numpy as np
import torch
from quantem.core.datastructures import Dataset4dstem
from quantem.diffractive_imaging.dataset_models import PtychographyDatasetRaster
from quantem.diffractive_imaging.detector_models import DetectorPixelated
from quantem.diffractive_imaging.object_models import ObjectPixelated
from quantem.diffractive_imaging.probe_models import ProbePixelated
from quantem.diffractive_imaging.ptychography import Ptychography
from task import Task

PADDING = 16


def prepared(task: Task) -> tuple[Ptychography, np.ndarray]:
    """Return the reconstruction, ready for its first sweep, and the object pixel of position (0, 0)."""
    side, pixel = round(task.n_positions**0.5), 1 / (task.n * task.sampling)
    step = (task.positions[-1] - task.positions[0]) / (side - 1)
    four = Dataset4dstem.from_array(
        task.patterns.reshape(side, side, task.n, task.n).astype(np.float32),
        sampling=(*step, pixel, pixel),
        units=("A", "A", "A^-1", "A^-1"),
    )
    data = PtychographyDatasetRaster.from_dataset4dstem(four, verbose=0, learn_descan=False, learn_scan_positions=False)
    aperture = {"energy": task.energy_ev, "defocus": task.defocus, "semiangle_cutoff": task.semiangle * 1e3}
    data.preprocess(
        com_fit_function="no_shift",
        force_com_rotation=0,
        force_com_transpose=False,
        plot_rotation=False,
        plot_com=False,
        probe_energy=task.energy_ev,
    )
    whole = Ptychography.from_models(
        dset=data,
        obj_model=ObjectPixelated.from_uniform(
            num_slices=task.n_slices, slice_thicknesses=task.thickness or None, obj_type="complex", rng=1
        ),
        probe_model=ProbePixelated.from_array(
            np.fft.ifftshift(task.probe, axes=(1, 2)), num_probes=len(task.probe), probe_params=aperture, rng=1
        ),
        detector_model=DetectorPixelated(),
        device="cpu",
        verbose=0,
        rng=1,
    )
    whole.preprocess(obj_padding_px=(task.n // 2 + PADDING,) * 2)
    # Its raster becomes the true positions; both are centred at 0
    origin = whole.dset.scan_positions_px.detach().numpy().mean(axis=0)
    positions = torch.tensor(task.pixels + origin, dtype=torch.float32)
    whole.dset.initial_scan_positions_px = positions
    whole.dset.scan_positions_px = positions
    return whole, origin


def main() -> None:
    task = Task()
    torch.set_num_threads(task.threads)
    whole, origin = prepared(task)
    kind = "sgd" if task.algorithm == "analytic" else "adam"
    chosen = {
        "batch_size": task.batch,
        "autograd": task.algorithm != "analytic",
        "optimizer_params": {
            "object": {"name": kind, "lr": task.step},
            "probe": {"name": kind, "lr": task.step if kind == "sgd" else 0.2 * task.step},
        },
    }
    task.start()
    while task.more():
        whole.reconstruct(num_iters=1, device="cpu", **chosen)
        chosen.pop("optimizer_params", None)
        task.lap(whole.obj.prod(axis=0), origin)
    task.save("quantem", "2 threads, sub-pixel")


if __name__ == "__main__":
    main()
